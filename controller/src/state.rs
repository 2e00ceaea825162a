//! What the controller shows: /ready, /metrics, /state.
//!
//! In: marks and transitions as they happen, and a snapshot that the loop is asked for. Out: the admin server's
//! [`Surface`]. A reader never slows the loop by more than one snapshot per 50 ms, and never waits for it longer than 250 ms.
//! Deliberately no history beyond the last transitions: that is what metrics and logs are for.
//!
//! # /state
//!
//! ```text
//! {"mode":"enforce","profile":"default","version":"0.1.0","ready":true,"reason":null,"now_ns":..,"uptime_ms":..,
//!  "watches":{"trafficsplits":"synced",..},
//!  "agents":[{"node":"n1","freshness":"fresh","stream":3,"stream_age_ms":..}],
//!  "findings":[{"object":"trafficsplit demo/bad","kind":"missing-service","text":"spec.service \"web\" does not exist..",
//!               "age_ms":..}],
//!  "disbelieved":{"unknown_destinations":0,"foreign_endpoints":0},
//!  "splits":[{"split":"demo/emoji","state":"steady","primary":"web","guard":null,"guard_sentence":null,"fault":null,
//!             "failovers":0,"dwell_left_ms":0,"backends":[{"service":"web","weight":"1","weight_milli":1000,
//!             "health":"healthy","ready":6,"failing":0,"evidence_millinats":0,"observers":3,"last_success_ms":12,
//!             "nodes":{"n1":{"198.18.1.1:8080":0}}}]}],
//!  "transitions":[{"at_ns":..,"split":"demo/emoji","kind":"decided","write":1,"direction":"failover",
//!                  "cause":"connections"}]}
//! ```
//!
//! Every `_ns` is raw CLOCK_MONOTONIC; those of `reported` (`started_ns`, `failed_ns`) are the agent's. Transitions are the
//! last 64, oldest first; `kind` and its fields are in [`json`].

pub(crate) mod json;
pub(crate) mod progress;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use controller_core::Time;
use controller_core::config::Mode;
use controller_core::core::Sums;
use controller_core::explain::Explanation;
use controller_core::facts::ObjectId;
use controller_core::output::{Freshness, Transition};
use probe_common::admin::Surface;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc;

use crate::findings::{Finding, FindingKind};
use progress::Progress;

/// Transitions that /state keeps.
const TRANSITIONS: usize = 64;

/// How old a snapshot may be that a reader gets: pollers together cost the loop at most twenty a second.
pub(crate) const SNAPSHOT_AGE: Duration = Duration::from_millis(50);

/// How long a reader waits for the loop; then it gets the last snapshot.
const SNAPSHOT_WAIT: Duration = Duration::from_millis(250);

/// Readers that wait at the same time; more get the last snapshot.
pub(crate) const ASKS: usize = 16;

/// Where the loop puts the snapshot that a reader asked for.
pub(crate) type Ask = std::sync::mpsc::SyncSender<Arc<Snapshot>>;

/// What the loop knew at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// Which moment.
    pub(crate) at: Time,
    /// Every split of ours, with why it stands as it stands.
    pub(crate) splits: Vec<(ObjectId, Explanation)>,
    /// Every agent that was heard of.
    pub(crate) agents: Vec<AgentRow>,
    /// What is wrong with the objects, and since when.
    pub(crate) findings: Vec<(Finding, Time)>,
    /// What of the agents' words was not believed.
    pub(crate) sums: Sums,
}

/// One agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentRow {
    /// Its node.
    pub(crate) node: String,
    /// What its evidence is worth.
    pub(crate) freshness: Freshness,
    /// Its live stream's number and when that began.
    pub(crate) stream: Option<(u64, Time)>,
}

/// See the file's header.
pub(crate) struct View {
    mode: Mode,
    profile: &'static str,
    started: Time,
    now: fn() -> Time,
    progress: Arc<Progress>,
    asks: mpsc::Sender<Ask>,
    last: Mutex<Arc<Snapshot>>,
    transitions: Mutex<VecDeque<Transition>>,
    registry: Registry,
    gauges: Gauges,
}

/// Families that a snapshot fills.
#[derive(Default)]
struct Gauges {
    agents: Family<[(&'static str, &'static str); 1], Gauge>,
    splits: Family<[(&'static str, &'static str); 1], Gauge>,
    backend_state: Family<Vec<(&'static str, String)>, Gauge>,
    backend_weight: Family<Vec<(&'static str, String)>, Gauge<f64, AtomicU64>>,
    findings: Family<[(&'static str, &'static str); 1], Gauge>,
    disbelieved: Family<[(&'static str, &'static str); 1], Counter>,
    /// Taken while the four are filled and read: two scrapes at once would mix.
    filling: Mutex<()>,
}

impl View {
    /// A view that asks through `asks`; `registry` has the families of everyone else.
    pub(crate) fn new(
        (mode, profile): (Mode, &'static str),
        now: fn() -> Time,
        progress: Arc<Progress>,
        asks: mpsc::Sender<Ask>,
        mut registry: Registry,
    ) -> Self {
        let gauges = Gauges::default();
        registry.register("agents", "Agents by what their evidence is worth", gauges.agents.clone());
        registry.register("splits", "TrafficSplits of ours by state", gauges.splits.clone());
        registry.register("backend_state", "1 for the state that a backend is in", gauges.backend_state.clone());
        registry.register("backend_weight", "Weight as last observed", gauges.backend_weight.clone());
        registry.register("findings", "Faults of objects that stand now, by kind", gauges.findings.clone());
        registry.register(
            "disbelieved",
            "Words of agents that nothing followed from, by kind",
            gauges.disbelieved.clone(),
        );
        Self {
            mode,
            profile,
            started: now(),
            now,
            progress,
            asks,
            last: Mutex::default(),
            transitions: Mutex::default(),
            registry,
            gauges,
        }
    }

    /// Keeps a transition for /state.
    pub(crate) fn on_transition(&self, transition: Transition) {
        let mut transitions = lock(&self.transitions);
        if transitions.len() == TRANSITIONS {
            transitions.pop_front();
        }
        transitions.push_back(transition);
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        let (ask, answer) = std::sync::mpsc::sync_channel(1);
        if self.asks.try_send(ask).is_ok() {
            let wait = || answer.recv_timeout(SNAPSHOT_WAIT).ok();
            // The loop never waits for this thread, so waiting here cannot last; other tasks of this thread move on.
            let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
            let snapshot = match flavor {
                Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
                _ => wait(),
            };
            if let Some(snapshot) = snapshot {
                *lock(&self.last) = snapshot;
            }
        }
        Arc::clone(&lock(&self.last))
    }
}

impl Surface for View {
    fn ready(&self) -> Result<(), String> {
        self.progress.ready()
    }

    fn state(&self) -> Value {
        let snapshot = self.snapshot();
        let now = (self.now)();
        let ready = self.progress.ready();
        serde_json::json!({
            "mode": json::mode_name(self.mode),
            "profile": self.profile,
            "version": env!("CARGO_PKG_VERSION"),
            "ready": ready.is_ok(),
            "reason": ready.err(),
            "now_ns": now.0,
            "uptime_ms": json::millis(now.since(self.started)),
            "watches": self.progress.watches(),
            "agents": snapshot.agents.iter().map(|agent| json::agent(agent, now)).collect::<Vec<_>>(),
            "findings": snapshot.findings.iter().map(|(finding, since)| json::finding(finding, *since, now)).collect::<Vec<_>>(),
            "disbelieved": {
                "unknown_destinations": snapshot.sums.unknown_destinations,
                "foreign_endpoints": snapshot.sums.foreign_endpoints,
            },
            "splits": snapshot.splits.iter().map(|(id, split)| json::split(id, split)).collect::<Vec<_>>(),
            "transitions": lock(&self.transitions).iter().map(json::transition).collect::<Vec<_>>(),
        })
    }

    fn encode_metrics(&self, into: &mut String) -> fmt::Result {
        let snapshot = self.snapshot();
        let _one_at_a_time = lock(&self.gauges.filling);
        self.gauges.fill(&snapshot);
        prometheus_client::encoding::text::encode(into, &self.registry)
    }
}

impl Gauges {
    fn fill(&self, snapshot: &Snapshot) {
        for freshness in [Freshness::Fresh, Freshness::Stale, Freshness::Blind, Freshness::Unknown] {
            let count = snapshot.agents.iter().filter(|agent| agent.freshness == freshness).count();
            self.agents.get_or_create(&[("freshness", freshness.as_str())]).set(count_of(count));
        }
        for kind in FindingKind::ALL {
            let count = snapshot.findings.iter().filter(|(finding, _)| finding.kind == kind).count();
            self.findings.get_or_create(&[("kind", kind.as_str())]).set(count_of(count));
        }
        let Sums { unknown_destinations, foreign_endpoints, .. } = snapshot.sums;
        for (kind, sum) in [("unknown-destination", unknown_destinations), ("foreign-endpoint", foreign_endpoints)] {
            self.disbelieved.get_or_create(&[("kind", kind)]).inner().store(sum, Ordering::Relaxed);
        }
        // Objects come and go: what is not there any more must not be shown for ever.
        self.splits.clear();
        self.backend_state.clear();
        self.backend_weight.clear();
        for (id, split) in &snapshot.splits {
            self.splits.get_or_create(&[("state", split.state)]).inc();
            for backend in &split.backends {
                let mut labels = vec![
                    ("namespace", id.namespace.clone()),
                    ("split", id.name.clone()),
                    ("backend", backend.service.clone()),
                ];
                // At most 10^9 thousandths: exact in a double.
                self.backend_weight.get_or_create(&labels).set(backend.weight.milli() as f64 / 1_000.0);
                labels.push(("state", backend.health.to_owned()));
                self.backend_state.get_or_create(&labels).set(1);
            }
        }
    }
}

fn count_of(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Everything behind these locks is replaced or appended as a whole: a panic elsewhere leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
