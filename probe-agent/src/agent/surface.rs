//! What the admin server shows of the agent: the loop puts it here, the server takes it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use probe_common::abi::Loss;
use probe_common::admin::Surface;
use probe_common::cause::FailureCause;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::ledger::{HotView, late_after_ns};
use super::transitions::Transitions;

/// The agent as its operator sees it.
pub(super) struct Shown {
    registry: Registry,
    parts: Mutex<Parts>,
}

/// What the loop publishes: the cheap parts at once, the destinations twice a second.
#[derive(Default)]
pub(super) struct Parts {
    /// The Kubernetes node.
    pub(super) node: String,
    /// Differs with every start.
    pub(super) incarnation: u64,
    /// CLOCK_MONOTONIC of the last change.
    pub(super) now_ns: u64,
    /// Why the node is blind, if it is.
    pub(super) blind: Option<String>,
    /// Everything that keeps the agent from being ready.
    pub(super) unready: Vec<String>,
    /// Controllers, and how each stream stands.
    pub(super) controllers: BTreeMap<SocketAddr, String>,
    /// Last errors of the watches.
    pub(super) watches: BTreeMap<&'static str, String>,
    /// What the kernel lost, and missed by recursion.
    pub(super) losses: ([u64; Loss::COUNT], u64),
    /// Endpoints on this node that stand behind a mesh's proxy.
    pub(super) meshed: Vec<IpAddr>,
    /// Hot destinations, and self-hops to them, with the Services and backends that they serve.
    pub(super) destinations: Vec<(HotView, Arc<Names>)>,
    /// How many cold ones there are.
    pub(super) cold: u32,
    /// Destinations that wait for room.
    pub(super) waiting: usize,
    /// What happened last.
    pub(super) transitions: Transitions,
}

/// What a destination serves, for people.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// `namespace/name`.
    pub(super) services: Vec<String>,
    /// `namespace/split/service`.
    pub(super) backends: Vec<String>,
}

impl Shown {
    /// Nothing published yet: not ready.
    pub(super) fn new(registry: Registry, node: String, incarnation: u64) -> Self {
        let unready = vec!["starting".to_owned()];
        Self { registry, parts: Mutex::new(Parts { node, incarnation, unready, ..Parts::default() }) }
    }

    /// To publish.
    pub(super) fn parts(&self) -> MutexGuard<'_, Parts> {
        // Publishing is a few assignments, none of which can panic half way.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Surface for Shown {
    fn ready(&self) -> Result<(), String> {
        let parts = self.parts();
        if parts.unready.is_empty() { Ok(()) } else { Err(parts.unready.join("; ")) }
    }

    fn state(&self) -> Value {
        let parts = self.parts();
        let probe = match &parts.blind {
            None => json!({"attached": true}),
            Some(reason) => json!({"attached": false, "blind": reason}),
        };
        let (losses, recursion_misses) = &parts.losses;
        let mut lost: BTreeMap<&str, u64> =
            Loss::ALL.iter().map(|loss| (loss.as_str(), losses[*loss as usize])).collect();
        lost.insert("recursion-misses", *recursion_misses);
        json!({
            "node": parts.node,
            "incarnation": parts.incarnation,
            "version": env!("CARGO_PKG_VERSION"),
            "now_ns": parts.now_ns,
            "probe": probe,
            "ready": parts.unready.is_empty(),
            "unready": parts.unready,
            "controllers": parts.controllers.iter().map(|(controller, state)| {
                json!({"controller": controller, "state": state})
            }).collect::<Vec<_>>(),
            "watches": parts.watches,
            "losses": lost,
            "meshed": parts.meshed,
            "destinations": views(&parts.destinations, false),
            "self_hops": views(&parts.destinations, true),
            "cold_destinations": parts.cold,
            "waiting_destinations": parts.waiting,
            "transitions": parts.transitions.to_json(),
        })
    }

    fn encode_metrics(&self, into: &mut String) -> fmt::Result {
        prometheus_client::encoding::text::encode(into, &self.registry)
    }
}

/// Those that are self-hops, or those that are not.
fn views(destinations: &[(HotView, Arc<Names>)], self_hop: bool) -> Vec<Value> {
    destinations.iter().filter(|(view, _)| view.self_hop == self_hop).map(destination).collect()
}

fn destination((view, names): &(HotView, Arc<Names>)) -> Value {
    let counts = &view.counts;
    json!({
        "destination": view.to,
        "tier": "hot",
        "index": view.index,
        "late_after_ns": late_after_ns(view.late_slots),
        "services": names.services,
        "backends": names.backends,
        "attempts": counts.attempts,
        "established": counts.established,
        "refused": counts.failed[FailureCause::Refused.index()],
        "unreachable": counts.failed[FailureCause::Unreachable.index()],
        "no_answer": counts.failed[FailureCause::NoAnswer.index()] + counts.late,
        "recovered": counts.established_late,
        "cancelled": counts.cancelled,
        "outstanding": counts.young,
        "answered": counts.answered,
        "reset": counts.failed[FailureCause::Reset.index()],
    })
}
