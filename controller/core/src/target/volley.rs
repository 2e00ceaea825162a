//! A volley: the same endpoints checked from several other nodes at once. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use probe_common::wire::Destination;

use super::{OBSERVER_FOR, Order, Shape, Sight, Weighed};
use crate::agents::NodeId;
use crate::evidence::FAILING;
use crate::time::Time;

/// How many nodes check at most.
const CHECKERS: usize = 3;

/// How many endpoints each checks at most.
const ENDPOINTS: usize = 4;

/// The same when all evidence is about the Service's own address, which names no endpoint: the last look then has to
/// cover every one, up to this many.
const ENDPOINTS_OF_A_SERVICE: usize = 12;

/// Beyond the time-out of a check: for the request and the result to travel. A result later than that is not waited for.
const TRAVEL: Duration = Duration::from_millis(75);

/// Checks under way.
#[derive(Debug)]
pub(super) struct Volley {
    id: u64,
    started: Time,
    timeout: Duration,
    results: BTreeMap<NodeId, BTreeMap<Destination, Option<bool>>>,
}

/// How a volley ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finished {
    /// When it was ordered: its SYNs left later.
    pub(super) started: Time,
    /// When its last result was there, or not waited for any longer.
    pub(super) ended: Time,
    asked: usize,
    failed: usize,
    checkers: usize,
    /// Endpoints that answered everybody but the node that saw most fail: it may be that node's path.
    pub(super) disproved: usize,
}

impl Volley {
    /// Chooses who checks what: nodes that do not share the suspicion first, others only where fewer than two such
    /// exist; endpoints that do not fail yet first, of those the ones that answered last, and by lot, where the lot is the volley's number. `lookable`: those that somebody can look at. `at`:
    /// see `Target::observed_at`.
    #[expect(clippy::too_many_arguments, reason = "one call; a struct for it would be its parameter list again")]
    pub(super) fn plan(
        id: u64,
        shape: &Shape,
        weighed: &Weighed,
        lookable: &BTreeSet<usize>,
        answered: impl Fn(&[Destination]) -> Option<Time>,
        timeout: Duration,
        at: Time,
        sight: Sight<'_>,
    ) -> Self {
        let only_service = weighed.failing.is_empty() && !shape.services.is_empty();
        // Where more than half seem to fail it is asked of those whether they do: of half dead ones, and one that failed
        // for a moment, a lot of four could be three dead ones.
        let only_failing = weighed.failing.len() * 2 > shape.endpoints.len();
        let mut endpoints: Vec<_> = shape
            .endpoints
            .iter()
            .enumerate()
            .filter(|(index, _)| lookable.contains(index) && (!only_failing || weighed.failing.contains(index)))
            .filter_map(|(index, (identity, to))| {
                let order = (weighed.failing.contains(&index), Reverse(answered(to)), lot(id, identity.as_bytes()));
                Some((order, sight.evidence.used(to)?))
            })
            .collect();
        endpoints.sort_unstable();
        endpoints.truncate(if only_service { ENDPOINTS_OF_A_SERVICE } else { ENDPOINTS });
        let able = |node: NodeId| -> Vec<Destination> {
            let saw_healthy = |to: &Destination| {
                sight.evidence.stream(to, node).is_some_and(|stream| stream.checked_within(OBSERVER_FOR, at))
            };
            endpoints.iter().map(|(.., to)| *to).filter(saw_healthy).collect()
        };
        let mut checkers: Vec<_> = sight
            .agents
            .nodes()
            .filter(|node| sight.agents.can_check(*node, sight.config, sight.now))
            .map(|node| (node, able(node)))
            .filter(|(_, able)| !able.is_empty())
            .map(|(node, able)| {
                let shares = weighed.nodes.get(&node).is_some_and(|sum| *sum >= FAILING);
                // Agents report every 100 ms: one that is silent for longer may be lost with what it was to check.
                let silent = sight.agents.silence(node, sight.now) > sight.config.decay_from;
                (silent, shares, endpoints.len() - able.len(), lot(id, sight.agents.name(node).as_bytes()), node, able)
            })
            .collect();
        checkers.sort_unstable();
        let unsuspicious = checkers.iter().filter(|(silent, shares, ..)| !silent && !shares).count();
        let wanted = if unsuspicious >= 2 { unsuspicious.min(CHECKERS) } else { CHECKERS };
        let results = checkers
            .into_iter()
            .take(wanted)
            .map(|(.., node, able)| (node, able.into_iter().map(|to| (to, None)).collect()))
            .collect();
        Self { id, started: sight.now, timeout, results }
    }

    /// How many checks it is.
    pub(super) fn size(&self) -> usize {
        self.results.values().map(BTreeMap::len).sum()
    }

    pub(super) fn orders(&self) -> impl Iterator<Item = Order> {
        let order = |(node, results): (&NodeId, &BTreeMap<Destination, Option<bool>>)| Order {
            id: self.id,
            node: *node,
            destinations: results.keys().copied().collect(),
            timeout: self.timeout,
        };
        self.results.iter().map(order)
    }

    /// A result of this volley, or of another that came late and is passed over.
    pub(super) fn on_result(&mut self, id: u64, node: NodeId, to: Destination, passed: bool) {
        if id == self.id
            && let Some(place) = self.results.get_mut(&node).and_then(|results| results.get_mut(&to))
        {
            *place = Some(passed);
        }
    }

    pub(super) fn deadline(&self) -> Time {
        self.started + self.timeout + TRAVEL
    }

    /// The outcome, once it is certain, every result is there, or the deadline is over. A missing result is not a
    /// failure; but where enough others failed, nobody waits for the slowest node.
    pub(super) fn finished(&self, now: Time) -> Option<Finished> {
        let failed = |results: &BTreeMap<Destination, Option<bool>>| {
            results.values().filter(|result| **result == Some(false)).count()
        };
        let so_far = Finished {
            started: self.started,
            ended: now,
            asked: self.size(),
            failed: self.results.values().map(failed).sum(),
            checkers: self.results.values().filter(|results| failed(results) * 2 >= results.len()).count(),
            disproved: self.disproved(),
        };
        let is_complete = || self.results.values().flat_map(BTreeMap::values).all(Option::is_some);
        (so_far.failed_for_sure() || now >= self.deadline() || is_complete()).then_some(so_far)
    }

    fn disproved(&self) -> usize {
        let failed = |results: &BTreeMap<Destination, Option<bool>>| {
            results.values().filter(|result| **result == Some(false)).count()
        };
        let worst = self.results.iter().max_by_key(|(_, results)| failed(results)).map(|(node, _)| *node);
        let others = self.results.iter().filter(|(node, _)| self.results.len() == 1 || Some(**node) != worst);
        let mut answered: BTreeMap<Destination, bool> = BTreeMap::new();
        for (to, result) in others.flat_map(|(_, of_node)| of_node) {
            *answered.entry(*to).or_insert(true) &= *result == Some(true);
        }
        answered.values().filter(|answered| **answered).count()
    }
}

impl Finished {
    /// Three quarters of all failed, and two nodes saw at least half of theirs fail.
    pub(super) const fn failed_for_sure(&self) -> bool {
        self.asked > 0 && self.failed * 4 >= self.asked * 3 && self.checkers >= 2
    }

    /// Three quarters of all failed, whoever checked.
    pub(super) const fn failed_for_one(&self) -> bool {
        self.asked > 0 && self.failed * 4 >= self.asked * 3
    }

    /// Half of all failed, and two nodes saw at least half of theirs fail.
    pub(super) const fn failed_by_half(&self) -> bool {
        self.asked > 0 && self.failed * 2 >= self.asked && self.checkers >= 2
    }
}

/// A lot that every replica draws the same: FNV-1a over the volley's number and a name.
pub(super) fn lot(seed: u64, name: &[u8]) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = seed.to_le_bytes().iter().chain(name).fold(0xcbf2_9ce4_8422_2325, |hash, byte| fold(hash, *byte));
    // FNV's high bits are weak for short names; one multiply-shift spreads them.
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_volley(outcomes: &[&[Option<bool>]]) -> Volley {
        let to = |index: usize| Destination::from(([198, 18, 0, index as u8], 80));
        let results = outcomes
            .iter()
            .enumerate()
            .map(|(node, results)| {
                (NodeId(node as u32), results.iter().enumerate().map(|(index, result)| (to(index), *result)).collect())
            })
            .collect();
        Volley { id: 1, started: Time(0), timeout: Duration::from_millis(25), results }
    }

    const P: Option<bool> = Some(true);
    const F: Option<bool> = Some(false);

    #[track_caller]
    fn check(outcomes: &[&[Option<bool>]], sure: bool, half: bool) {
        let volley = mk_volley(outcomes);
        let finished = volley.finished(volley.deadline()).expect("its deadline is over");
        assert_eq!((finished.failed_for_sure(), finished.failed_by_half()), (sure, half));
    }

    #[test]
    fn nine_of_twelve_from_two_nodes_are_sure() {
        check(&[&[F, F, F, F], &[F, F, F, F], &[F, P, P, P]], true, true);
        check(&[&[F, F, F, F], &[F, F, F, P], &[F, P, P, P]], false, true);
    }

    #[test]
    fn an_endpoint_that_answers_all_but_the_worst_node_is_disproved() {
        let disproved = |outcomes: &[&[Option<bool>]]| mk_volley(outcomes).disproved();
        assert_eq!(disproved(&[&[F, P], &[F, P], &[F, P]]), 1);
        assert_eq!(disproved(&[&[F, P], &[F, P], &[F, F]]), 1);
        assert_eq!(disproved(&[&[F, P], &[P, F], &[F, F]]), 0);
        assert_eq!(disproved(&[&[F, P]]), 1);
        assert_eq!(disproved(&[&[F, None], &[F, None], &[F, None]]), 0, "no answer is none");
    }

    #[test]
    fn one_lying_node_is_never_enough() {
        check(&[&[F, F, F, F], &[P, P, P, P], &[P, P, P, P]], false, false);
        check(&[&[F, F, F, F], &[F, P, P, P]], false, false);
        check(&[&[F, F, F, F]], false, false);
    }

    #[test]
    fn results_that_never_came_are_not_failures() {
        check(&[&[F, F, F, F], &[None; 4], &[None; 4]], false, false);
        check(&[&[None; 4], &[None; 4]], false, false);
        check(&[], false, false);
    }

    #[test]
    fn a_volley_that_failed_for_sure_does_not_wait_for_its_slowest_node() {
        assert!(mk_volley(&[&[F, F, F, F], &[F, F, F, F], &[F, None, None, None]]).finished(Time(1)).is_some());
        assert!(mk_volley(&[&[F, F, F, F], &[F, F, F, F], &[None; 4]]).finished(Time(1)).is_none());
    }

    #[test]
    fn a_volley_ends_with_its_last_result_or_at_its_deadline() {
        let mut volley = mk_volley(&[&[F], &[None]]);
        assert_eq!(volley.finished(Time(1)), None);
        volley.on_result(1, NodeId(1), ([198, 18, 0, 0], 80).into(), false);
        assert!(volley.finished(Time(1)).is_some());
    }
}
