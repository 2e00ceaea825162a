//! What the server was asked over the wire, and what it answered: an answered request comes in, a list of them goes out.
//! Pure and bounded. The lab's own direct calls are not in it: so a test can tell what a program wrote from what the test
//! itself did, and a list of rights can be held against what the programs really ask for.

use std::collections::VecDeque;

use http::Method;
use serde_json::Value;

use super::resources::Resource;

/// Requests that are kept: a drill's busiest minute has a few thousand.
const KEPT: usize = 65_536;

/// One request that was answered, or begun where it was a watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// When it was answered, raw `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// As Kubernetes' rights name it: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: &'static str,
    /// The path without its query.
    pub path: String,
    /// The kind; `None` for discovery and health.
    pub resource: Option<Resource>,
    /// API group and version that the path names; empty for discovery and health.
    pub api_version: String,
    /// Empty for cluster-scoped kinds and for requests over all namespaces.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    /// Whether it was about the status alone.
    pub is_status: bool,
    /// `User-Agent`, empty without one.
    pub client: String,
    /// HTTP status.
    pub code: u16,
    /// For a write of a TrafficSplit that was taken: the object as it stands now, in the version that the client speaks.
    pub left: Option<Value>,
}

/// The verb of a request, as rights name it.
pub(crate) fn verb(method: &Method, is_collection: bool, is_watch: bool) -> &'static str {
    match (method.as_str(), is_collection) {
        ("GET", true) if is_watch => "watch",
        ("GET", true) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => "get",
    }
}

/// The last requests, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    requests: VecDeque<Request>,
}

impl Audit {
    pub(crate) fn keep(&mut self, request: Request) {
        if self.requests.len() == KEPT {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.iter().cloned().collect()
    }
}
