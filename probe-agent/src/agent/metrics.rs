//! What the agent counts about itself and its node, under `splitsecond_agent_`.
//!
//! Figures that the kernel or the ledger sum up are set to those sums, never added to, so that a scrape shows exactly
//! what was counted. Labels come from enums; addresses and names of pods are never among them.

use std::sync::atomic::Ordering;

use probe_common::abi::{Cold, Loss};
use probe_common::cause::FailureCause;
use probe_common::wire::CheckOutcome;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::ledger::Sums;
use crate::index::Tier;
use crate::tally::Counts;

/// What self-hops are labelled with in place of a tier: they are counted as closely as the hot one.
const SELF_HOP: &str = "self-hop";

/// How a connect can fail; [`FailureCause::Reset`] is how a flow does.
const CONNECT_CAUSES: [FailureCause; 3] = [FailureCause::Refused, FailureCause::Unreachable, FailureCause::NoAnswer];

type One = [(&'static str, &'static str); 1];
type Two = [(&'static str, &'static str); 2];

/// Every metric of the agent. The clones in the registry are the same metrics.
#[derive(Clone, Default)]
pub(super) struct Metrics {
    attempts: Family<One, Counter>,
    established: Family<One, Counter>,
    failures: Family<Two, Counter>,
    cancelled: Family<One, Counter>,
    outstanding: Gauge,
    late_ends: Family<One, Counter>,
    abandoned: Counter,
    flows_answered: Counter,
    flows_reset: Family<One, Counter>,
    losses: Family<One, Counter>,
    recursion_misses: Counter,
    pub(super) meshed: Gauge,
    pub(super) proxy_spaces: Gauge,
    pub(super) destinations: Family<One, Gauge>,
    pub(super) map_full: Family<One, Counter>,
    pub(super) unplaced: Gauge,
    pub(super) map_errors: Counter,
    pub(super) probe_attached: Gauge,
    pub(super) probe_memory: Gauge,
    pub(super) frames_sent: Counter,
    pub(super) rows: Counter,
    pub(super) rows_dropped: Counter,
    pub(super) results_dropped: Counter,
    pub(super) frames_skipped: Counter,
    pub(super) controllers: Gauge,
    pub(super) streams: Gauge,
    pub(super) stream_ends: Counter,
    pub(super) splits: Gauge,
    checks: Family<One, Counter>,
    pub(super) watch_errors: Family<One, Counter>,
    pub(super) watch_complete: Family<One, Gauge>,
    pub(super) objects_undecodable: Family<One, Counter>,
    lateness: Lateness,
}

/// How late the loop woke.
#[derive(Clone)]
struct Lateness(Histogram);

impl Default for Lateness {
    fn default() -> Self {
        Self(Histogram::new([0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5]))
    }
}

impl Metrics {
    /// All of them, registered.
    pub(super) fn registered() -> (Self, Registry) {
        let metrics = Self::default();
        let mut registry = Registry::with_prefix("splitsecond_agent");
        metrics.register_connects(&mut registry);
        metrics.register_probe(&mut registry);
        metrics.register_streams(&mut registry);
        metrics.register_cluster(&mut registry);
        registry.register("build", "Version of this agent", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        (metrics, registry)
    }

    fn register_connects(&self, registry: &mut Registry) {
        let help = "Connection attempts begun on this node, to destinations of splits (hot), all others (cold), and of a \
                    mesh's proxies to the applications behind them (self-hop; in neither of the others)";
        registry.register("connect_attempts", help, self.attempts.clone());
        let help = "Attempts that were established (hot: in time)";
        registry.register("connect_established", help, self.established.clone());
        let help = "Attempts that failed, by cause; hot ones that became late are no-answer, whatever became of them";
        registry.register("connect_failures", help, self.failures.clone());
        let help = "Attempts that their client gave up (hot: in time)";
        registry.register("connects_cancelled", help, self.cancelled.clone());
        let help = "Attempts to hot destinations that are under way and not late";
        registry.register("connects_outstanding", help, self.outstanding.clone());
        let help = "How attempts ended that had become late before; each is among the failures already";
        registry.register("connect_late_ends", help, self.late_ends.clone());
        let help = "Attempts whose destination ceased to be counted while they were under way";
        registry.register("connects_abandoned", help, self.abandoned.clone());
        let help = "Established connections to hot destinations that ended with at least a byte of answer";
        registry.register("flows_answered", help, self.flows_answered.clone());
        let help = "Established connections that were reset before the first byte of an answer";
        registry.register("flows_reset", help, self.flows_reset.clone());
    }

    fn register_probe(&self, registry: &mut Registry) {
        registry.register(
            "probe_attached",
            "1 while the probe counts, 0 while this node is blind",
            self.probe_attached.clone(),
        );
        let help = "Kernel memory of the probe's programs and maps";
        registry.register_with_unit("probe_memory", help, Unit::Bytes, self.probe_memory.clone());
        let help = "What the probe gave up or could not attribute, by kind";
        registry.register("losses", help, self.losses.clone());
        let help = "Events that the kernel kept from the probe because it was running on that CPU already";
        registry.register("recursion_misses", help, self.recursion_misses.clone());
        let help = "Endpoints on this node whose mesh proxy was seen at work in the last ten minutes";
        registry.register("meshed_endpoints", help, self.meshed.clone());
        let help = "Network namespaces with such a proxy: what others dial in them is not counted";
        registry.register("proxy_namespaces", help, self.proxy_spaces.clone());
        registry.register("destinations", "Destinations that are counted, by tier", self.destinations.clone());
        let help = "Destinations that found their tier full, by tier";
        registry.register("map_full", help, self.map_full.clone());
        let help = "Destinations that wait for room in their tier";
        registry.register("destinations_unplaced", help, self.unplaced.clone());
        registry.register("map_errors", "Reads and writes of the probe's maps that failed", self.map_errors.clone());
        let help = "How late the agent's loop woke";
        registry.register_with_unit("wake_lateness", help, Unit::Seconds, self.lateness.0.clone());
    }

    fn register_streams(&self, registry: &mut Registry) {
        registry.register("controllers", "Controller replicas known", self.controllers.clone());
        registry.register("controller_streams", "Controller replicas that answer", self.streams.clone());
        registry.register(
            "stream_ends",
            "Streams to controllers that ended or did not come about",
            self.stream_ends.clone(),
        );
        registry.register("reports_sent", "Frames sent to controllers", self.frames_sent.clone());
        registry.register("rows", "Rows read from the probe and handed to the streams", self.rows.clone());
        let help = "Rows that were not sent because a controller did not read them, summed over controllers";
        registry.register("rows_dropped", help, self.rows_dropped.clone());
        let help = "Results of checks that were not sent, summed over controllers";
        registry.register("check_results_dropped", help, self.results_dropped.clone());
        let help = "Frames from controllers that were passed over: of an unknown kind, or unreadable";
        registry.register("frames_skipped", help, self.frames_skipped.clone());
        registry.register("checks", "Checks asked for by controllers, by outcome", self.checks.clone());
    }

    fn register_cluster(&self, registry: &mut Registry) {
        registry.register("splits", "Splits that controllers told", self.splits.clone());
        registry.register("watch_errors", "Errors of the watches, by kind of object", self.watch_errors.clone());
        let help = "1 once every object of the kind was listed";
        registry.register("watch_complete", help, self.watch_complete.clone());
        let help = "Objects that could not be decoded and were skipped, by kind";
        registry.register("objects_undecodable", help, self.objects_undecodable.clone());
    }

    /// Sets everything that is summed up elsewhere.
    pub(super) fn set_sums(&self, sums: &Sums) {
        let hot = &sums.hot;
        self.set_counts(Tier::Hot.as_str(), hot);
        self.set_counts(SELF_HOP, &sums.self_hops);
        for cause in CONNECT_CAUSES {
            set(&self.late_ends.get_or_create(&[("end", cause.as_str())]), hot.failed_late[cause.index()]);
        }
        set(&self.late_ends.get_or_create(&[("end", "established")]), hot.established_late);
        set(&self.late_ends.get_or_create(&[("end", "cancelled")]), hot.cancelled_late);
        self.outstanding.set(hot.young);
        set(&self.abandoned, sums.abandoned);
        set(&self.flows_answered, hot.answered);
        let reset = FailureCause::Reset.index();
        set(&self.flows_reset.get_or_create(&tier(Tier::Hot)), hot.failed[reset]);
        self.set_cold(&sums.cold);
    }

    fn set_counts(&self, of: &'static str, counts: &Counts) {
        self.set_tier(of, counts.attempts, counts.established, counts.cancelled);
        for cause in CONNECT_CAUSES {
            let late = if cause == FailureCause::NoAnswer { counts.late } else { 0 };
            self.set_failures(of, cause, counts.failed[cause.index()] + late);
        }
    }

    fn set_cold(&self, cold: &Cold) {
        let of = Tier::Cold.as_str();
        self.set_tier(of, cold.attempts, cold.established, cold.cancelled);
        for cause in CONNECT_CAUSES {
            self.set_failures(of, cause, cold.failed[cause.index()]);
        }
        let reset = cold.failed[FailureCause::Reset.index()];
        set(&self.flows_reset.get_or_create(&tier(Tier::Cold)), reset);
    }

    fn set_tier(&self, of: &'static str, attempts: u64, established: u64, cancelled: u64) {
        let tier = [("tier", of)];
        set(&self.attempts.get_or_create(&tier), attempts);
        set(&self.established.get_or_create(&tier), established);
        set(&self.cancelled.get_or_create(&tier), cancelled);
    }

    fn set_failures(&self, of: &'static str, cause: FailureCause, count: u64) {
        set(&self.failures.get_or_create(&[("tier", of), ("cause", cause.as_str())]), count);
    }

    /// Sets what the kernel lost.
    pub(super) fn set_losses(&self, losses: &[u64; Loss::COUNT], recursion_misses: u64) {
        for loss in Loss::ALL {
            set(&self.losses.get_or_create(&[("kind", loss.as_str())]), losses[loss as usize]);
        }
        set(&self.recursion_misses, recursion_misses);
    }

    /// Counts a check.
    pub(super) fn on_check(&self, outcome: CheckOutcome) {
        let outcome = match outcome {
            CheckOutcome::Passed => "passed",
            CheckOutcome::Failed(cause) => cause.as_str(),
            CheckOutcome::NotMade => "not-made",
        };
        self.checks.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Notes how late the loop woke.
    pub(super) fn on_wake(&self, lateness_ns: u64) {
        self.lateness.0.observe(lateness_ns as f64 / 1e9);
    }
}

/// The label of a tier.
pub(super) fn tier(tier: Tier) -> One {
    [("tier", tier.as_str())]
}

/// Makes a counter show a sum that is kept elsewhere.
pub(super) fn set(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_is_in_exactly_one_figure() {
        let (metrics, registry) = Metrics::registered();
        let hot = Counts {
            attempts: 20,
            established: 8,
            cancelled: 2,
            failed: [3, 1, 1, 9],
            late: 4,
            young: 1,
            ..Counts::default()
        };
        let self_hops = Counts { attempts: 7, established: 4, failed: [2, 0, 0, 0], late: 1, ..Counts::default() };
        metrics.set_sums(&Sums { hot, self_hops, ..Sums::default() });
        metrics.set_sums(&Sums { hot, self_hops, ..Sums::default() });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        let figure = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("splitsecond_agent_{name} ")));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .unwrap_or_else(|| panic!("{name}: {text}"))
        };
        assert_eq!(figure("connect_attempts_total{tier=\"hot\"}"), 20);
        let parts = [
            figure("connect_established_total{tier=\"hot\"}"),
            figure("connect_failures_total{tier=\"hot\",cause=\"refused\"}"),
            figure("connect_failures_total{tier=\"hot\",cause=\"unreachable\"}"),
            figure("connect_failures_total{tier=\"hot\",cause=\"no-answer\"}"),
            figure("connects_cancelled_total{tier=\"hot\"}"),
            figure("connects_outstanding"),
        ];
        assert_eq!(parts, [8, 3, 1, 5, 2, 1]);
        assert_eq!(parts.iter().sum::<u64>(), 20);
        assert_eq!(figure("flows_reset_total{tier=\"hot\"}"), 9);
        let self_hops = [
            figure("connect_attempts_total{tier=\"self-hop\"}"),
            figure("connect_established_total{tier=\"self-hop\"}"),
            figure("connect_failures_total{tier=\"self-hop\",cause=\"refused\"}"),
            figure("connect_failures_total{tier=\"self-hop\",cause=\"no-answer\"}"),
        ];
        assert_eq!(self_hops, [7, 4, 2, 1]);
    }
}
