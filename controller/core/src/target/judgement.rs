//! Is it dead, is it well, has it recovered: what the evidence on a target amounts to, rules C1, C2, C3 and C7. Pure, and
//! without memory of its own: everything is asked of the target and what it can see.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use probe_common::wire::Destination;

use super::course::Episode;
use super::{OBSERVER_FOR, STRAIGHT_WITHIN, Sight, Target, VOLLEYS_APART};
use crate::agents::{FULL_WEIGHT, NodeId};
use crate::evidence::{ACT, FAILING, HEALTHY_BELOW, NODE_CAP};
use crate::guard::Guard;
use crate::time::Time;

/// Nodes with a sample within this span take part in "half of the nodes that see it" (C3).
pub(super) const SAMPLED_WITHIN: Duration = Duration::from_millis(200);

/// The same where nobody can check, and no node's word but its users' connections is there: rare ones count, too.
const SAMPLED_WHERE_NOBODY_CHECKS: Duration = Duration::from_secs(10);

/// Of two refused self-hops that condemn an endpoint: a little less than the second pause of Linkerd's proxy, 200 ms,
/// since the dial that the application died under may have shown nothing.
const LONGEST_SPAN: Duration = Duration::from_millis(180);

/// A last look is believed for this long.
const LOOK_FOR: Duration = Duration::from_secs(1);

/// A secondary's success is believed for this long (C5): two canaries of one node may be lost.
const PROVED_FOR: Duration = Duration::from_millis(500);

/// Without any observer two client nodes decide, but not sooner than this; nor does a single node where that is allowed.
const HOLD_WITHOUT_OBSERVERS: Duration = Duration::from_secs(1);
/// What the evidence amounts to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against it.
    Clear,
    /// Something does, not enough.
    Suspect,
    /// Enough does, but too few nodes can look at it.
    Unobserved {
        /// What is missing.
        guard: Guard,
        /// Since when the only node that there is sees it dead for long enough, where a split allows one to decide.
        alone: Option<Time>,
    },
    /// Evidence, endpoints, nodes and the last look agree. `episode` is when the first failing attempt began.
    Condemned {
        /// See above.
        episode: Time,
        /// What it rests on.
        grounds: Grounds,
    },
}

/// What a condemnation rests on, beside the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grounds {
    /// Checks from other nodes failed after the hold (C7).
    LastLook,
    /// The endpoints' own proxies were refused by their applications.
    SelfHop,
    /// Nobody could check, and two client nodes saw it fail for a second.
    NobodyCan,
    /// Checks pass, and for five seconds nearly every connection of every client node failed.
    ChecksDisagree,
    /// One node saw it fail for a second, and is allowed to decide.
    SingleNode,
}

impl Grounds {
    /// Its name in /state and the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LastLook => "last-look",
            Self::SelfHop => "self-hop",
            Self::NobodyCan => "nobody-can-check",
            Self::ChecksDisagree => "checks-disagree",
            Self::SingleNode => "single-node",
        }
    }
}

/// The evidence on a target, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weighed {
    /// Of all nodes, each capped (T).
    pub total: u64,
    /// Per node, capped and weighted by freshness.
    pub nodes: BTreeMap<NodeId, u64>,
    /// Ready endpoints that fail by the word of two nodes, or of their own proxies; by their place in the shape.
    pub failing: BTreeSet<usize>,
    /// How many ready endpoints fail by the word of any node.
    pub failing_for_one: usize,
    /// When endpoints were first refused that their own proxies condemn.
    pub condemned: BTreeMap<String, Time>,
    /// When nodes last had a sample.
    pub sampled: BTreeMap<NodeId, Time>,
}

impl Weighed {
    /// Whether two nodes see it fail, and they are half of those that have seen it at all within the span (C3).
    pub(super) fn nodes_agree(&self, within: Duration, now: Time) -> bool {
        let sick: BTreeSet<NodeId> =
            self.nodes.iter().filter(|(_, sum)| **sum >= FAILING).map(|(node, _)| *node).collect();
        let seeing = self.sampled.iter().filter(|(_, at)| now.since(**at) <= within).map(|(node, _)| *node);
        sick.len() >= 2 && sick.len() * 2 >= seeing.chain(sick.iter().copied()).collect::<BTreeSet<_>>().len()
    }
}

impl Target {
    /// Endpoints that their own proxies condemn, by the word of agents that are fresh.
    fn self_condemned(&self, sight: Sight<'_>) -> BTreeMap<String, Time> {
        let is_fresh = |to: &Destination| {
            let node = self.shape.nodes.get(to).and_then(|name| sight.agents.id(name));
            node.is_some_and(|node| sight.agents.weight(node, sight.config, sight.now) > 0)
        };
        let span = self.usual_hold(sight.config).min(LONGEST_SPAN);
        self.self_hops.condemned(&self.shape, span, sight.now, is_fresh)
    }

    /// Endpoints, by their place, that some node can look at: not those behind a proxy, which answers for itself, nor
    /// those that nobody has ever seen answer, as after a rollout of pods that do not listen.
    pub(super) fn lookable(&self, weighed: &Weighed, sight: Sight<'_>) -> BTreeSet<usize> {
        if self.shape.unchecked {
            return BTreeSet::new();
        }
        let at = self.observed_at(sight.now);
        let is_lookable = |identity: &String, to: &Vec<Destination>| {
            let bare =
                !weighed.condemned.contains_key(identity) && !to.iter().any(|to| sight.is_meshed(&self.shape, to));
            let able = |to: Destination| {
                sight.evidence.nodes(&to).any(|(node, stream)| {
                    stream.checked_within(OBSERVER_FOR, at) && sight.agents.can_check(node, sight.config, sight.now)
                })
            };
            bare && sight.evidence.used(to).is_some_and(able)
        };
        let endpoints = self.shape.endpoints.iter().enumerate();
        endpoints.filter(|(_, (identity, to))| is_lookable(identity, to)).map(|(index, _)| index).collect()
    }

    /// Rule C2.
    fn fails_for_most(&self, weighed: &Weighed) -> bool {
        weighed.failing.len() * 2 > self.shape.endpoints.len()
    }

    /// Adds the evidence up.
    #[must_use]
    pub fn weigh(&self, sight: Sight<'_>) -> Weighed {
        let mut weighed = Weighed::default();
        let mut raw: BTreeMap<NodeId, u64> = BTreeMap::new();
        weighed.condemned = self.self_condemned(sight);
        for (index, (identity, destinations)) in self.shape.endpoints.iter().enumerate() {
            // Every family that users used lately must fail, or every one that was checked where they used none.
            let mut families: Vec<Sums> =
                destinations.iter().filter_map(|to| weigh_destination(to, sight, &mut raw, &mut weighed)).collect();
            if families.iter().any(|sums| sums.traffic) {
                families.retain(|sums| sums.traffic);
            }
            let fails = |sum: fn(&Sums) -> u64| !families.is_empty() && families.iter().all(|of| sum(of) >= FAILING);
            let is_condemned = weighed.condemned.contains_key(identity);
            if is_condemned || fails(|sums| sums.of_two) {
                weighed.failing.insert(index);
            }
            weighed.failing_for_one += usize::from(is_condemned || fails(|sums| sums.of_any));
        }
        for to in &self.shape.services {
            weigh_destination(to, sight, &mut raw, &mut weighed);
        }
        for (node, sum) in raw {
            let sum = sum.min(NODE_CAP) * sight.agents.weight(node, sight.config, sight.now) / FULL_WEIGHT;
            if sum > 0 {
                weighed.total += sum;
                weighed.nodes.insert(node, sum);
            }
        }
        weighed
    }

    /// Is it dead? Cheap when there is no suspicion.
    #[must_use]
    pub fn verdict(&self, sight: Sight<'_>) -> Verdict {
        if let Some(verdict) = self.verdict_of_proxies(sight) {
            return verdict;
        }
        let Some(episode) = self.episode.filter(|_| self.suspect) else { return Verdict::Clear };
        let weighed = self.weigh(sight);
        if self.is_contradicted(&episode, sight) || weighed.total < NODE_CAP {
            return Verdict::Suspect;
        }
        if let Some(grounds) = self.grounds(&weighed, sight) {
            return Verdict::Condemned { episode: episode.start, grounds };
        }
        if weighed.failing_for_one * 2 <= self.shape.endpoints.len() || self.observers(sight).nth(1).is_some() {
            return Verdict::Suspect;
        }
        // All that one node can say is said, and there is no second one to ask.
        match self.began(&weighed.condemned, 1) {
            Some(began) if sight.now >= began + self.hold(sight.config, sight.now) => Verdict::Unobserved {
                guard: Guard::InsufficientObservers,
                alone: self.is_seen_alone(began, sight).then_some(episode.start),
            },
            Some(_) | None => Verdict::Suspect,
        }
    }

    /// Checks fail, and traffic passes with hardly a failure: they contradict each other (a NetworkPolicy that came
    /// between, say).
    fn is_contradicted(&self, episode: &Episode, sight: Sight<'_>) -> bool {
        let began = self.began(&self.self_condemned(sight), 2).map_or(episode.start, |at| at.min(episode.start));
        if !self.contradiction.has_passed_since(began, sight.now) {
            return false;
        }
        let mut nodes: BTreeMap<NodeId, u64> = BTreeMap::new();
        for to in self.destinations() {
            for (node, stream) in sight.evidence.nodes(&to).filter(|(_, stream)| stream.last_traffic().is_some()) {
                *nodes.entry(node).or_default() += stream.traffic_sum(sight.now);
            }
        }
        let enough = ACT.min(NODE_CAP * nodes.len() as u64);
        self.contradiction.fails_seldom(sight.now) || nodes.values().sum::<u64>() < enough
    }

    /// What condemns it, if enough does: rules C1, C2, C3, the hold and C7.
    fn grounds(&self, weighed: &Weighed, sight: Sight<'_>) -> Option<Grounds> {
        let agree = |within| weighed.total >= ACT && weighed.nodes_agree(within, sight.now);
        if !agree(SAMPLED_WITHIN) {
            return None;
        }
        if !self.fails_for_most(weighed) {
            return self.grounds_of_service(weighed, sight);
        }
        let began = self.began(&weighed.condemned, 2)?;
        let hold = self.hold(sight.config, sight.now);
        let lookable = self.lookable(weighed, sight);
        let seen = weighed.failing.iter().filter(|index| lookable.contains(index)).count();
        let looked = || self.last_look_failed(weighed, began + hold, sight.now);
        if (seen + weighed.condemned.len()) * 2 > self.shape.endpoints.len() {
            if self.observers(sight).nth(1).is_none() {
                // Two client nodes say so, and only one node can look: it takes as long as where none can.
                let from = began + hold.max(HOLD_WITHOUT_OBSERVERS);
                let decided = agree(SAMPLED_WHERE_NOBODY_CHECKS) && self.only_look_failed(from, sight.now);
                return decided.then_some(Grounds::NobodyCan);
            }
            if looked() {
                return Some(Grounds::LastLook);
            }
            return self.contradiction.is_settled(sight.now).then_some(Grounds::ChecksDisagree);
        }
        // Those that decide are out of everybody's sight: what can be looked at must fail, and client nodes decide.
        let held = sight.now >= began + hold.max(HOLD_WITHOUT_OBSERVERS);
        (held && agree(SAMPLED_WHERE_NOBODY_CHECKS) && (seen == 0 || looked())).then_some(Grounds::NobodyCan)
    }

    /// Users may dial the Service's own address only, and nobody can check its endpoints: then nearly every connection
    /// has to fail, for seconds, on every client node. (Half of them would fail where half of the endpoints are dead.)
    fn grounds_of_service(&self, weighed: &Weighed, sight: Sight<'_>) -> Option<Grounds> {
        let only_service = weighed.failing_for_one == 0 && self.observers(sight).next().is_none();
        (only_service && self.contradiction.is_settled(sight.now)).then_some(Grounds::NobodyCan)
    }

    /// Whether the only node that there is has seen it dead for long enough, and its look failed if it can look.
    fn is_seen_alone(&self, began: Time, sight: Sight<'_>) -> bool {
        let from = began + self.hold(sight.config, sight.now).max(HOLD_WITHOUT_OBSERVERS);
        match self.observers(sight).next() {
            Some(_) => self.only_look_failed(from, sight.now),
            None => sight.now >= from,
        }
    }

    /// Where the proxies of more than half of the endpoints are refused, that is enough: no count of connections, no
    /// second node and no further hold makes it surer. Less than that is a suspicion.
    fn verdict_of_proxies(&self, sight: Sight<'_>) -> Option<Verdict> {
        let condemned = self.self_condemned(sight);
        if condemned.len() * 2 > self.shape.endpoints.len() {
            let episode = condemned.values().min().copied().unwrap_or(sight.now);
            return Some(Verdict::Condemned { episode, grounds: Grounds::SelfHop });
        }
        // Nothing but self-hops speaks against it: the evidence of connections has nothing to add.
        (!self.suspect && self.self_hops.suspect(&self.shape, sight.now) > 0).then_some(Verdict::Suspect)
    }

    /// C7: a volley after the hold failed, and what it disproves does not leave C2 without its majority.
    fn last_look_failed(&self, weighed: &Weighed, not_before: Time, now: Time) -> bool {
        let [Some(last), before] = self.looks else { return false };
        if last.started < not_before || now.since(last.ended) > LOOK_FOR {
            return false;
        }
        let left = weighed.failing.len().saturating_sub(last.disproved);
        let twice_half =
            || before.is_some_and(|before| before.failed_by_half() && last.started >= before.started + VOLLEYS_APART);
        left * 2 > self.shape.endpoints.len() && (last.failed_for_sure() || (last.failed_by_half() && twice_half()))
    }

    /// The same for the one node that there is.
    fn only_look_failed(&self, not_before: Time, now: Time) -> bool {
        let [Some(last), _] = self.looks else { return false };
        last.started >= not_before && now.since(last.ended) <= LOOK_FOR && last.failed_for_one()
    }

    /// Nodes whose checks count: they can check, and saw one of the endpoints healthy lately.
    pub fn observers<'a>(&'a self, sight: Sight<'a>) -> impl Iterator<Item = NodeId> + 'a {
        let mut nodes = BTreeSet::new();
        let at = self.observed_at(sight.now);
        let checked = self.shape.endpoints.values().flatten().filter(|to| !sight.is_meshed(&self.shape, to));
        for to in checked {
            nodes.extend(
                sight
                    .evidence
                    .nodes(to)
                    .filter(|(_, stream)| stream.checked_within(OBSERVER_FOR, at))
                    .map(|(node, _)| node),
            );
        }
        nodes.into_iter().filter(move |node| sight.agents.can_check(*node, sight.config, sight.now))
    }

    /// Whether it answers right now (C5).
    #[must_use]
    pub fn is_healthy(&self, sight: Sight<'_>) -> bool {
        self.last_success.is_some_and(|at| sight.now.since(at) <= PROVED_FOR)
            && self.self_hops.suspect(&self.shape, sight.now) * 2 <= self.shape.endpoints.len()
            && (self.episode.is_none() || self.weigh(sight).total < HEALTHY_BELOW)
    }

    /// Whether it has answered long and often enough for traffic to come back.
    #[must_use]
    pub fn has_recovered(&self, sight: Sight<'_>) -> bool {
        if self.shape.unchecked || (self.traffic_succeeded && !self.check_succeeded) {
            // Nobody will ever check it (connections passed, and never a check: a NetworkPolicy, say): the first step of
            // the ramp has to.
            return true;
        }
        if self.straight.last.is_none_or(|at| sight.now.since(at) > STRAIGHT_WITHIN) {
            return false;
        }
        let Some(since) = self.straight.since else { return false };
        let refused = self.self_hops.last_refused();
        refused.is_none_or(|at| sight.now.since(at) >= sight.config.recovery_span)
            && self.straight.count >= sight.config.recovery_successes
            && sight.now.since(since) >= sight.config.recovery_span
            && self.straight.nodes.len() >= self.observers(sight).count().min(3)
    }

    /// Whether something is wrong enough to take a step of the ramp back: half of what a failover needs, for as long as a
    /// hold, but not by the word of one node, which reaches that half; `alone`: by that of the only one that there is.
    #[must_use]
    pub fn fails_probation(&self, alone: bool, sight: Sight<'_>) -> bool {
        if self.self_condemned(sight).len() * 2 > self.shape.endpoints.len() {
            return true;
        }
        let Some(episode) = self.episode.filter(|episode| !self.is_contradicted(episode, sight)) else { return false };
        let weighed = self.weigh(sight);
        let held = |nodes| {
            let began = self.began(&weighed.condemned, nodes).unwrap_or(episode.start);
            sight.now >= began + self.usual_hold(sight.config)
        };
        if alone {
            return weighed.total >= FAILING
                && weighed.failing_for_one * 2 > self.shape.endpoints.len()
                && self.observers(sight).nth(1).is_none()
                && held(1);
        }
        // A blip leaves evidence behind that little traffic is slow to settle: where it can be looked at, it is.
        let looks_bad = || {
            let [Some(last), _] = self.looks else { return false };
            last.failed_by_half() && sight.now.since(last.ended) <= LOOK_FOR
        };
        weighed.total >= ACT / 2
            && weighed.nodes_agree(SAMPLED_WITHIN, sight.now)
            && self.fails_for_most(&weighed)
            && held(2)
            && (self.lookable(&weighed, sight).is_empty() || looks_bad())
    }
}

/// What speaks against one address.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Of any node.
    of_any: u64,
    /// With at most half of what makes it fail from each node, so that it takes two.
    of_two: u64,
    /// Whether users connected to it within a minute.
    traffic: bool,
}

/// Adds one destination's streams to `raw`; returns what they amount to, or `None` when it has no samples in memory.
fn weigh_destination(
    to: &Destination,
    sight: Sight<'_>,
    raw: &mut BTreeMap<NodeId, u64>,
    weighed: &mut Weighed,
) -> Option<Sums> {
    let mut sums: Option<Sums> = None;
    for (node, stream) in sight.evidence.nodes(to) {
        let Some(at) = stream.last_sample() else { continue };
        if sight.agents.weight(node, sight.config, sight.now) == 0 {
            continue;
        }
        let sampled = weighed.sampled.entry(node).or_insert(at);
        *sampled = at.max(*sampled);
        if sight.now.since(at) <= OBSERVER_FOR {
            let value = stream.sum(sight.now);
            *raw.entry(node).or_default() += value;
            let sums = sums.get_or_insert_default();
            sums.of_any += value;
            sums.of_two += value.min(FAILING / 2);
            sums.traffic |= stream.last_traffic().is_some_and(|at| sight.now.since(at) <= OBSERVER_FOR);
        }
    }
    sums
}
