//! Why a split stands as it stands, as plain values for /state and `explain`. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use probe_common::wire::Destination;

use crate::guard::Guard;
use crate::weights::Weight;

/// A split's state and what it rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// `steady`, `failed`, `probation` or `invalid`.
    pub state: &'static str,
    /// The primary backend.
    pub primary: String,
    /// What holds a decision, if one is held.
    pub guard: Option<Guard>,
    /// What is wrong with the object, if it cannot be understood.
    pub fault: Option<String>,
    /// Failovers in a row.
    pub failovers: u32,
    /// Until a failback may begin.
    pub dwell_left: Duration,
    /// Per backend, in the object's order.
    pub backends: Vec<BackendExplanation>,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendExplanation {
    /// The leaf Service.
    pub service: String,
    /// As observed.
    pub weight: Weight,
    /// `healthy`, `suspect`, `condemned`, `unready` or `unknown`.
    pub health: &'static str,
    /// Endpoints that are ready.
    pub ready: usize,
    /// Endpoints that are ready and fail.
    pub failing: usize,
    /// Evidence of all nodes, in thousandths of a nat; the threshold is [`evidence::ACT`](crate::evidence).
    pub evidence: u64,
    /// Evidence per node and destination, where there is any.
    pub nodes: BTreeMap<String, BTreeMap<Destination, u64>>,
    /// Nodes whose checks of it count.
    pub observers: usize,
    /// Nodes whose checks do not: their agents are there, and none of their checks succeeded within a minute.
    pub abstaining: Vec<String>,
    /// Endpoints behind a mesh's proxy: bare checks of them say nothing.
    pub meshed: usize,
    /// Endpoints that refused their own proxy lately.
    pub refusing_proxies: usize,
    /// How long ago the last success was.
    pub last_success: Option<Duration>,
}
