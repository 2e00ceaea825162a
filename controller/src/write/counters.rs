//! What writing counts.

use std::time::Duration;

use controller_core::input::WriteOutcome;
use controller_core::output::Direction;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// See the file's header.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
    writes: Family<[(&'static str, &'static str); 2], Counter>,
    hedges: Counter,
    seconds: Histogram,
    events: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            writes: Family::default(),
            hedges: Counter::default(),
            // 1 ms to 2 s: a write is given up after half a second, a queue of 200 may take longer.
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 12)),
            events: Family::default(),
        }
    }
}

impl Counters {
    /// Registers every family.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("writes", "Writes of TrafficSplits by how they ended", self.writes.clone());
        registry.register(
            "write_hedges",
            "Writes that were sent a second time, on the second connection",
            self.hedges.clone(),
        );
        registry.register_with_unit(
            "write",
            "From decision to the API server's answer",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register("events", "Kubernetes Events by how their publication ended", self.events.clone());
    }

    pub(super) fn written(&self, direction: Direction, outcome: &WriteOutcome, elapsed: Duration) {
        self.writes
            .get_or_create(&[("direction", direction_name(direction)), ("outcome", outcome_name(outcome))])
            .inc();
        if matches!(outcome, WriteOutcome::Applied { .. }) {
            self.seconds.observe(elapsed.as_secs_f64());
        }
    }

    pub(super) fn hedged(&self) {
        self.hedges.inc();
    }

    pub(crate) fn event(&self, outcome: &'static str) {
        self.events.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// How many hedges were sent.
    #[cfg(test)]
    pub(super) fn hedges_sent(&self) -> u64 {
        self.hedges.get()
    }

    /// How many Events ended so.
    #[cfg(test)]
    pub(super) fn events_of(&self, outcome: &'static str) -> u64 {
        self.events.get_or_create(&[("outcome", outcome)]).get()
    }
}

/// A direction's name in metrics, logs and /state.
pub(crate) const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Failover => "failover",
        Direction::Spread => "spread",
        Direction::Ramp => "ramp",
        Direction::Failback => "failback",
    }
}

/// An outcome's name in metrics and logs.
pub(crate) const fn outcome_name(outcome: &WriteOutcome) -> &'static str {
    match outcome {
        WriteOutcome::Applied { .. } => "applied",
        WriteOutcome::Conflict => "conflict",
        WriteOutcome::Gone => "gone",
        WriteOutcome::Refused(_) => "refused",
        WriteOutcome::Failed(_) => "failed",
        WriteOutcome::Expired => "expired",
    }
}
