//! Evidence: what samples of one node say about one destination, as a sequential test. Pure.
//!
//! Each attempt is a Bernoulli sample. Under the healthy hypothesis it fails with p0 = 1 %, under the dead one with
//! p1 = 50 %; a failure adds ln(p1/p0), a success subtracts ln((1-p0)/(1-p1)), and the sum starts again at zero: Page's
//! CUSUM. A destination that fails in fewer than 14.9 % of attempts never gathers evidence. All sums are integers, in
//! thousandths of a nat.

use std::collections::BTreeMap;
use std::time::Duration;

use probe_common::wire::{Destination, Row};

use crate::agents::NodeId;
use crate::time::Time;

/// What a failure adds: ln(0.50 / 0.01) = 3.912.
pub const FAILURE: u32 = 3_912;

/// What a success takes away: ln(0.99 / 0.50) = 0.683.
pub const SUCCESS: u32 = 683;

/// Evidence of all nodes from which a target turns suspect: ln 1e4. It only makes other nodes check.
pub const SUSPECT: u64 = 9_210;

/// Evidence of all nodes that a decision needs (C1): ln 1e15. With ln 1e9 a CUSUM at 1,000 samples a second alarms
/// falsely 5 times a year even if failures were independent; with ln 1e15 4 times in a million years, for three more
/// failures.
pub const ACT: u64 = 34_540;

/// What one node alone can contribute: half of [`ACT`], rounded up, so that two have to agree.
pub const NODE_CAP: u64 = ACT.div_ceil(2);

/// Evidence from which a node, or an endpoint, counts as failing: two failures net.
pub const FAILING: u64 = 7_800;

/// Evidence under which a target counts as healthy: less than one failure net.
pub const HEALTHY_BELOW: u64 = 3_900;

/// Evidence of a node that has seen no failure for this long is over: whatever it saw, it is not happening now.
const MEMORY: Duration = Duration::from_secs(10);

/// One sequential test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cusum {
    sum: u32,
}

impl Cusum {
    /// Applies one bucket: within a bucket nobody knows the order, and failures last is the suspicious reading, which
    /// the checks that follow can correct; the other order would let a success of 20 ms ago hide an outage.
    fn on_bucket(&mut self, successes: u64, failures: u64) {
        let down = u32::try_from(successes.saturating_mul(u64::from(SUCCESS))).unwrap_or(u32::MAX);
        let up = failures.saturating_mul(u64::from(FAILURE)).min(NODE_CAP);
        let sum = u64::from(self.sum.saturating_sub(down)) + up;
        self.sum = u32::try_from(sum.min(NODE_CAP)).expect("the cap fits 32 bits");
    }
}

/// Where samples come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Users' connections.
    Traffic,
    /// An agent's check.
    Check,
}

/// What one node knows about one destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    connect: Cusum,
    flow: Cusum,
    /// The same of traffic alone, without checks.
    traffic: Cusum,
    last_traffic: Option<Time>,
    last_sample: Option<Time>,
    last_failure: Option<Time>,
    last_success: Option<Time>,
    checked: Option<Time>,
}

/// A bucket of samples, already capped and freed of what must not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Attempts that were established in time.
    pub successes: u64,
    /// Attempts that failed, at most as many as distinct clients.
    pub failures: u64,
    /// Flows that ended with an answer.
    pub flow_successes: u64,
    /// Flows that were reset before the first byte of an answer.
    pub flow_failures: u64,
}

impl Bucket {
    /// What a row is worth: one client's retry loop counts once per read. `trust_late` is false for a node whose own
    /// loop was late: there an answer may have waited in a queue while the clock went on.
    #[must_use]
    pub fn of(row: &Row, trust_late: bool) -> Self {
        let failed = row.refused.saturating_add(row.unreachable).saturating_add(if trust_late { row.late } else { 0 });
        let cap = u64::from(row.clients.max(1));
        Self {
            successes: row.established,
            failures: failed.min(cap),
            flow_successes: row.answered,
            flow_failures: row.reset.min(cap),
        }
    }

    /// A check that ended.
    #[must_use]
    pub const fn check(passed: bool) -> Self {
        Self { successes: passed as u64, failures: !passed as u64, flow_successes: 0, flow_failures: 0 }
    }

    /// Failures of either stream.
    #[must_use]
    pub const fn any_failure(&self) -> bool {
        self.any_failures() > 0
    }

    /// Failures, by the stream that has more.
    #[must_use]
    pub const fn any_failures(&self) -> u64 {
        if self.failures > self.flow_failures { self.failures } else { self.flow_failures }
    }
}

impl Stream {
    fn on_bucket(&mut self, bucket: Bucket, source: Source, now: Time) {
        if self.last_failure.is_some_and(|at| now.since(at) > MEMORY) {
            (self.connect, self.flow, self.traffic) = (Cusum::default(), Cusum::default(), Cusum::default());
        }
        self.connect.on_bucket(bucket.successes, bucket.failures);
        self.flow.on_bucket(bucket.flow_successes, bucket.flow_failures);
        match source {
            Source::Check => {}
            Source::Traffic => {
                self.traffic.on_bucket(bucket.successes, bucket.failures);
                if bucket.successes > 0 || bucket.any_failure() {
                    self.last_traffic = Some(now);
                }
            }
        }
        if bucket.successes > 0 {
            self.last_success = Some(now);
        }
        if bucket.any_failure() {
            self.last_failure = Some(now);
        }
        if bucket.successes > 0 || bucket.any_failure() {
            self.last_sample = Some(now);
        }
    }

    /// The evidence now, in thousandths of a nat: the larger of the two streams, never their sum, since one dead
    /// backend may show in both.
    #[must_use]
    pub fn sum(&self, now: Time) -> u64 {
        match self.last_failure {
            Some(at) if now.since(at) <= MEMORY => u64::from(self.connect.sum.max(self.flow.sum)),
            Some(_) | None => 0,
        }
    }

    /// The evidence of traffic alone, in thousandths of a nat.
    #[must_use]
    pub fn traffic_sum(&self, now: Time) -> u64 {
        match self.last_failure {
            Some(at) if now.since(at) <= MEMORY => u64::from(self.traffic.sum.max(self.flow.sum)),
            Some(_) | None => 0,
        }
    }

    /// When traffic last gave a sample.
    #[must_use]
    pub const fn last_traffic(&self) -> Option<Time> {
        self.last_traffic
    }

    /// When the last success or failure was taken in.
    #[must_use]
    pub const fn last_sample(&self) -> Option<Time> {
        self.last_sample
    }

    /// When the last success was taken in.
    #[must_use]
    pub const fn last_success(&self) -> Option<Time> {
        self.last_success
    }

    /// Whether a check of this node's succeeded within `span`: only then does a failed one mean anything.
    #[must_use]
    pub fn checked_within(&self, span: Duration, now: Time) -> bool {
        self.checked.is_some_and(|at| now.since(at) <= span)
    }
}

/// All streams, by destination and node.
#[derive(Debug, Default)]
pub struct Evidence {
    streams: BTreeMap<Destination, BTreeMap<NodeId, Stream>>,
}

impl Evidence {
    /// Takes a bucket of samples in.
    pub fn on_bucket(&mut self, to: Destination, node: NodeId, bucket: Bucket, source: Source, now: Time) {
        self.streams.entry(to).or_default().entry(node).or_default().on_bucket(bucket, source, now);
    }

    /// Remembers that a check from `node` succeeded.
    pub fn on_check_passed(&mut self, to: Destination, node: NodeId, now: Time) {
        let stream = self.streams.entry(to).or_default().entry(node).or_default();
        stream.checked = stream.checked.max(Some(now));
    }

    /// Forgets what a node's counters said, since they began anew or have a gap; what its checks said stays.
    pub fn reset_node(&mut self, node: NodeId) {
        for nodes in self.streams.values_mut() {
            if let Some(stream) = nodes.get_mut(&node) {
                *stream = Stream { checked: stream.checked, last_success: stream.last_success, ..Stream::default() };
            }
        }
    }

    /// What was held against a destination is settled: every node's sum starts at zero.
    pub fn settle(&mut self, to: &Destination) {
        for stream in self.streams.get_mut(to).into_iter().flat_map(BTreeMap::values_mut) {
            let nothing = Cusum::default();
            *stream = Stream { connect: nothing, flow: nothing, traffic: nothing, ..*stream };
        }
    }

    /// Forgets a node that is gone for good.
    pub fn forget_node(&mut self, node: NodeId) {
        for nodes in self.streams.values_mut() {
            nodes.remove(&node);
        }
    }

    /// Forgets a destination that no target has any more.
    pub fn forget(&mut self, to: &Destination) {
        self.streams.remove(to);
    }

    /// What each node says about a destination.
    pub fn nodes(&self, to: &Destination) -> impl Iterator<Item = (NodeId, &Stream)> {
        self.streams.get(to).into_iter().flatten().map(|(node, stream)| (*node, stream))
    }

    /// Of an endpoint's families, the one that was used last; the first where none was.
    #[must_use]
    pub fn used(&self, to: &[Destination]) -> Option<Destination> {
        let last = |to: &Destination| self.nodes(to).filter_map(|(_, stream)| stream.last_traffic()).max();
        let by_use = to.iter().enumerate().max_by_key(|(index, to)| (last(to), std::cmp::Reverse(*index)));
        by_use.map(|(_, to)| *to)
    }

    /// What one node says about a destination.
    #[must_use]
    pub fn stream(&self, to: &Destination, node: NodeId) -> Option<&Stream> {
        self.streams.get(to)?.get(&node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_row(established: u64, refused: u64, late: u64, clients: u32) -> Row {
        Row { established, refused, late, clients, ..Row::empty(([198, 18, 0, 1], 80).into(), 0, 1) }
    }

    fn sum_after(buckets: &[(u64, u64)]) -> u32 {
        let mut cusum = Cusum::default();
        for &(successes, failures) in buckets {
            cusum.on_bucket(successes, failures);
        }
        cusum.sum
    }

    #[test]
    fn nine_straight_failures_are_what_a_decision_needs() {
        assert!(u64::from(FAILURE) * 8 < ACT && ACT <= u64::from(FAILURE) * 9);
        assert_eq!(sum_after(&[(0, 1), (0, 1)]), 2 * FAILURE);
    }

    #[test]
    fn one_node_never_reaches_the_threshold_alone() {
        assert_eq!(u64::from(sum_after(&[(0, u64::MAX); 50])), NODE_CAP);
        const { assert!(NODE_CAP < ACT) };
    }

    #[test]
    fn within_a_bucket_failures_come_last_and_successes_never_go_below_zero() {
        assert_eq!(sum_after(&[(u64::MAX, 1)]), FAILURE);
        assert_eq!(sum_after(&[(0, 1), (1, 0)]), FAILURE - SUCCESS);
        assert_eq!(sum_after(&[(0, 1), (1000, 0)]), 0);
    }

    #[test]
    fn a_retry_loop_of_one_client_counts_once_per_read() {
        let bucket = Bucket::of(&mk_row(0, 500, 0, 1), true);
        assert_eq!(bucket.failures, 1);
        let bucket = Bucket::of(&mk_row(0, 500, 0, 0), true);
        assert_eq!(bucket.failures, 1, "a failure whose client is not known is one client's");
    }

    #[test]
    fn a_stalled_node_is_not_believed_about_lateness_but_about_refusals() {
        assert_eq!(Bucket::of(&mk_row(0, 0, 9, 9), false).failures, 0);
        assert_eq!(Bucket::of(&mk_row(0, 2, 9, 9), false).failures, 2);
    }

    #[test]
    fn evidence_is_over_when_nothing_has_failed_for_its_memory() {
        let mut stream = Stream::default();
        stream.on_bucket(Bucket::check(false), Source::Check, Time(0));
        assert_eq!(stream.sum(Time(0) + MEMORY), u64::from(FAILURE));
        assert_eq!(stream.sum(Time(1) + MEMORY), 0);
    }

    #[test]
    fn evidence_that_is_over_does_not_come_back_with_the_next_failure() {
        let mut stream = Stream::default();
        stream.on_bucket(Bucket::check(false), Source::Check, Time(0));
        let later = Time(1) + MEMORY;
        stream.on_bucket(Bucket::check(false), Source::Check, later);
        assert_eq!(stream.sum(later), u64::from(FAILURE));
    }
}
