//! What the loop counts.

use std::collections::BTreeMap;

use controller_core::Time;
use controller_core::facts::{MoveCause, ObjectId};
use controller_core::output::{Direction, Transition, TransitionKind};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::state::json::{cause_name, kind_name};
use crate::write::counters::direction_name;

/// See the file's header.
#[derive(Debug)]
pub(in crate::shell) struct Counters {
    transitions: Family<[(&'static str, &'static str); 1], Counter>,
    decisions: Family<[(&'static str, &'static str); 2], Counter>,
    held: Family<[(&'static str, &'static str); 1], Counter>,
    overruns: Counter,
    detection: Histogram,
    /// When the episode began that a split's condemned backend is in.
    episodes: BTreeMap<ObjectId, Time>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            transitions: Family::default(),
            decisions: Family::default(),
            held: Family::default(),
            overruns: Counter::default(),
            // 10 ms to 20 s: a busy backend takes about 100 ms, an idle one half a second, a held one longer.
            detection: Histogram::new(exponential_buckets(0.01, 2.0, 12)),
            episodes: BTreeMap::new(),
        }
    }
}

impl Counters {
    /// Registers every family.
    pub(in crate::shell) fn register(&self, registry: &mut Registry) {
        registry.register("transitions", "What happened to splits, backends and agents", self.transitions.clone());
        registry.register("decisions", "Writes that were decided", self.decisions.clone());
        registry.register("held", "Moves that a guard holds, by guard, each once", self.held.clone());
        registry.register(
            "streams_overrun",
            "Agent streams ended because the agent did not read",
            self.overruns.clone(),
        );
        registry.register_with_unit(
            "detection",
            "From the first failing attempt of an episode to the decision to move",
            Unit::Seconds,
            self.detection.clone(),
        );
    }

    pub(super) fn overrun(&self) {
        self.overruns.inc();
    }

    pub(super) fn on_transition(&mut self, transition: &Transition) {
        self.transitions.get_or_create(&[("kind", kind_name(&transition.kind))]).inc();
        match (&transition.kind, &transition.split) {
            (TransitionKind::Condemned { episode, .. }, Some(split)) => {
                self.episodes.insert(split.clone(), *episode);
            }
            (TransitionKind::Decided { direction, cause, .. }, Some(split)) => {
                let labels = [("direction", direction_name(*direction)), ("cause", cause_name(*cause))];
                self.decisions.get_or_create(&labels).inc();
                let episode = self.episodes.remove(split);
                if let (Direction::Failover, MoveCause::Connections, Some(episode)) = (direction, cause, episode) {
                    self.detection.observe(transition.at.since(episode).as_secs_f64());
                }
            }
            (TransitionKind::Held { guard, .. }, _) => {
                self.held.get_or_create(&[("guard", guard.as_str())]).inc();
            }
            _ => {}
        }
    }
}
