//! What the cluster says, as plain values: splits, Services, endpoints. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::weights::Weight;

/// A namespaced object's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectId {
    /// From its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A TrafficSplit that is ours to drive, as last observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`: every write is guarded by it.
    pub resource_version: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// The apex Service.
    pub service: String,
    /// In the object's order.
    pub backends: Vec<BackendFacts>,
    /// `failover.linkerd.io/primary-service`; without it the first backend is primary.
    pub primary: Option<String>,
    /// `splitsecond.dev/port`: the one port whose failure moves the split.
    pub port: Option<u16>,
    /// `splitsecond.dev/single-node: allow`: the one node of a cluster may decide alone.
    pub single_node: bool,
    /// `splitsecond.dev/checks: allow`: also ports whose servers take offence at connections that say nothing.
    pub check_all_ports: bool,
    /// What we wrote beside the weights when we moved it: `splitsecond.dev/state`.
    pub record: Option<Record>,
}

/// One backend of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendFacts {
    /// The leaf Service, in the split's own namespace.
    pub service: String,
    /// As observed.
    pub weight: Weight,
}

/// What a replica has to know to go on where another, or an earlier self, stopped. It lives in an annotation of the
/// split. Spans instead of wall-clock times: the shell converts, so that core needs no wall clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which state the split is in.
    pub state: RecordedState,
    /// Raised by every write of ours.
    pub epoch: u64,
    /// Why it moved.
    pub cause: MoveCause,
    /// How often it failed over in a row without a quiet hour: the dwell doubles with it.
    pub failovers: u32,
    /// How long from the observation until a failback may begin.
    pub dwell_left: Duration,
    /// How long before the observation the state was entered.
    pub age: Duration,
    /// The weights before the failover, by backend: what failback restores.
    pub steady: BTreeMap<String, Weight>,
}

/// The states that outlive a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordedState {
    /// The primary has its weight back; only the count of failovers is remembered.
    Steady,
    /// Traffic is on the secondaries.
    Failed,
    /// Traffic returns in steps.
    Probation,
}

/// Why a split moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MoveCause {
    /// No endpoint of the primary was ready.
    Readiness,
    /// Connections to the primary failed.
    Connections,
}

/// A Service that a split names, or that a backend is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    /// One per family; empty for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
    /// A mirror whose endpoints are another cluster's gateway (`mirror.linkerd.io/mirrored-service`).
    pub mirror: bool,
}

/// A TCP port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty when the Service has only one.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// What it speaks, as `appProtocol` says.
    pub app_protocol: Option<String>,
}

impl ServicePort {
    /// Ports whose servers count a connection that says nothing against whoever made it (MySQL blocks such a host), or
    /// log every one: nobody checks them unasked.
    const OFFENDED: [u16; 4] = [25, 3306, 5432, 6379];

    /// Protocols in which the server speaks first, by their names at IANA, and those of the ports above.
    const SPEAKS_FIRST: [&str; 9] = ["ftp", "imap", "mysql", "nntp", "pop3", "postgresql", "redis", "smtp", "ssh"];

    /// Whether a bare connection may be made to see whether it answers.
    #[must_use]
    pub fn takes_bare_connections(&self) -> bool {
        let speaks_first = |name: &String| {
            let name = name.rsplit('/').next().unwrap_or(name);
            Self::SPEAKS_FIRST.iter().any(|other| name.eq_ignore_ascii_case(other))
        };
        !Self::OFFENDED.contains(&self.port) && !self.app_protocol.as_ref().is_some_and(speaks_first)
    }
}

/// One endpoint of a Service, joined over all its EndpointSlices (one per family).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointFacts {
    /// The pod's uid, or the address where the endpoint has no target.
    pub identity: String,
    /// One per family.
    pub addresses: Vec<IpAddr>,
    /// Port name to number, TCP only.
    pub ports: BTreeMap<String, u16>,
    /// Where it runs, if said.
    pub node: Option<String>,
    /// Its zone, if said.
    pub zone: Option<String>,
    /// `conditions.ready`, and not terminating.
    pub ready: bool,
}
