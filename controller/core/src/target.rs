//! A target: one port of one Service, or one port of a gateway that many mirrors share. Pure.
//!
//! Samples come in as they are taken; checks to make come out of [`Target::step`]; [`Target::verdict`] is the answer
//! to "is it dead", with rules C1, C2, C3 and C7. Whether that moves traffic is the split's business.

mod canary;
mod contradiction;
mod course;
mod self_hop;
mod volley;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use probe_common::wire::{Destination, Row};

use crate::Config;
use crate::agents::{Agents, FULL_WEIGHT, NodeId};
use crate::evidence::{ACT, Bucket, Evidence, FAILING, HEALTHY_BELOW, NODE_CAP, SUSPECT};
use crate::facts::ObjectId;
use crate::guard::Guard;
use crate::time::Time;

pub use canary::Budget;
use canary::Canaries;
use contradiction::Contradiction;
use course::{Course, Episode};
use self_hop::SelfHops;
use volley::{Finished, Volley};

/// A check counts as a failure only from a node whose check of the same destination succeeded within this span: else
/// a NetworkPolicy that drops checks would confirm every suspicion.
pub const OBSERVER_FOR: Duration = Duration::from_secs(60);

/// Nodes with a sample within this span take part in "half of the nodes that see it" (C3).
const SAMPLED_WITHIN: Duration = Duration::from_millis(200);

/// The same where nobody can check, and no node's word but its users' connections is there: rare ones count, too.
const SAMPLED_WHERE_NOBODY_CHECKS: Duration = Duration::from_secs(10);

/// A last look is believed for this long.
const LOOK_FOR: Duration = Duration::from_secs(1);

/// A secondary's success is believed for this long (C5): two canaries of one node may be lost.
const PROVED_FOR: Duration = Duration::from_millis(500);

/// Two volleys that each fail by half count as one that fails by three quarters when they are this far apart.
const VOLLEYS_APART: Duration = Duration::from_millis(50);

/// Volleys beyond the first of a suspicion: five a second.
const VOLLEY_SPACING: Duration = Duration::from_millis(200);

/// So many volleys of a suspicion follow each other as closely as they may: for all of them where the evidence is
/// enough to act and only the last look is missing, else for a few. Of a backend that refuses half of its connections
/// three volleys of five fail by half, so that a second's worth of them hardly ever misses it.
const QUICK_VOLLEYS: u32 = 3;
const QUICK_VOLLEYS_TO_ACT: u32 = 20;

/// See [`Target::hold`]: of 10 attempts a second one comes within this span in 49 of 50 cases.
const HOLD_FOR_TRAFFIC: Duration = Duration::from_millis(400);

/// A node that could check when an episode began may go on for this long, although nothing answers any more.
const RIGHT_KEPT_FOR: Duration = Duration::from_secs(600);

/// Without any observer two client nodes decide, but not sooner than this; nor does a single node where that is allowed.
const HOLD_WITHOUT_OBSERVERS: Duration = Duration::from_secs(1);

/// From one success of a run to its next, at most: canaries of a standby come every 83 ms.
const STRAIGHT_WITHIN: Duration = Duration::from_secs(2);

/// What an agent says began longer ago than this is not believed to have: a report is sent within milliseconds of a
/// failure, and one that was late by more than this would be stale.
const STARTED_WITHIN: Duration = Duration::from_millis(500);

/// Which Service or gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// A Service whose endpoints are pods.
    Service(ObjectId),
    /// The addresses of another cluster's gateway, joined: every mirror behind them is this one site.
    Gateway(String),
}

/// Names a target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TargetKey {
    /// Which Service or gateway.
    pub site: Site,
    /// Its port: the Service's, or the gateway's.
    pub port: u16,
}

/// What a target consists of, as EndpointSlices and Service say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Ready endpoints, by identity, with one destination per family.
    pub endpoints: BTreeMap<String, Vec<Destination>>,
    /// The Service's own addresses: evidence about the Service as a whole.
    pub services: Vec<Destination>,
    /// Behind a gateway: handshakes take longer.
    pub remote: bool,
    /// Which node an endpoint's address is on, where EndpointSlices say so.
    pub nodes: BTreeMap<Destination, String>,
    /// Its port takes no bare connections that say nothing: nobody checks it.
    pub unchecked: bool,
}

/// What a target may look at while it judges.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// All evidence.
    pub evidence: &'a Evidence,
    /// All agents.
    pub agents: &'a Agents,
    /// The settings.
    pub config: &'a Config,
    /// The time.
    pub now: Time,
}

impl Sight<'_> {
    /// Whether an endpoint stands behind a mesh's proxy, as the agent of its own node says.
    #[must_use]
    pub fn is_meshed(&self, shape: &Shape, to: &Destination) -> bool {
        shape.nodes.get(to).is_some_and(|node| self.agents.says_meshed(node, to.ip(), self.now))
    }
}

/// Checks for one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Comes back with the results.
    pub id: u64,
    /// Who is to check.
    pub node: NodeId,
    /// What.
    pub destinations: Vec<Destination>,
    /// How long each may take.
    pub timeout: Duration,
}

/// A check that ended. Failures of a node that has not seen the destination healthy lately never get here: they say
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The order's.
    pub id: u64,
    /// Who checked.
    pub node: NodeId,
    /// What.
    pub to: Destination,
    /// Whether it was established in time.
    pub passed: bool,
    /// When its SYN left, on the controller's clock, at the latest.
    pub started: Time,
}

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
    fn nodes_agree(&self, within: Duration, now: Time) -> bool {
        let sick: BTreeSet<NodeId> =
            self.nodes.iter().filter(|(_, sum)| **sum >= FAILING).map(|(node, _)| *node).collect();
        let seeing = self.sampled.iter().filter(|(_, at)| now.since(**at) <= within).map(|(node, _)| *node);
        sick.len() >= 2 && sick.len() * 2 >= seeing.chain(sick.iter().copied()).collect::<BTreeSet<_>>().len()
    }
}

/// Samples of one destination, from traffic or from a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Samples {
    /// Who took them.
    pub node: NodeId,
    /// Of whom.
    pub to: Destination,
    /// How many; the evidence has them already.
    pub bucket: Bucket,
    /// How many failed, a client's retry loop counted in full.
    pub failed: u64,
    /// When the oldest failed attempt began.
    pub started: Time,
    /// When the last of the successes was there, at the latest.
    pub answered: Time,
    /// For traffic: when the period that they are from began.
    pub from: Option<Time>,
}

/// Straight successes of checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Straight {
    since: Option<Time>,
    last: Option<Time>,
    count: u32,
    nodes: BTreeSet<NodeId>,
}

/// See the module header.
#[derive(Debug)]
pub struct Target {
    shape: Shape,
    wanted: bool,
    suspect: bool,
    episode: Option<Episode>,
    /// The same per endpoint, since they die one by one.
    course: Course,
    self_hops: SelfHops,
    contradiction: Contradiction,
    volley: Option<Volley>,
    looks: [Option<Finished>; 2],
    volleys: u32,
    next_volley: Time,
    straight: Straight,
    ever_healthy: bool,
    traffic_succeeded: bool,
    check_succeeded: bool,
    last_success: Option<Time>,
    traffic: BTreeMap<NodeId, Traffic>,
    canaries: Canaries,
}

impl Target {
    /// A target nobody has looked at yet.
    #[must_use]
    pub fn new(shape: Shape, now: Time) -> Self {
        Self {
            shape,
            wanted: false,
            suspect: false,
            episode: None,
            course: Course::default(),
            self_hops: SelfHops::default(),
            contradiction: Contradiction::default(),
            volley: None,
            looks: [None; 2],
            volleys: 0,
            next_volley: now,
            straight: Straight::default(),
            ever_healthy: false,
            traffic_succeeded: false,
            check_succeeded: false,
            last_success: None,
            traffic: BTreeMap::new(),
            canaries: Canaries::new(now),
        }
    }

    /// What it consists of.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// It consists of something else now.
    pub fn reshape(&mut self, shape: Shape, now: Time) {
        if self.shape != shape {
            self.shape = shape;
            let stays: BTreeSet<Destination> = self.destinations().collect();
            self.course.retain(&stays);
            self.self_hops.retain(|to| stays.contains(to));
            self.canaries.begin_anew(now);
        }
    }

    /// Whether some split sends traffic to it: only then a suspicion is worth volleys of checks.
    pub const fn set_wanted(&mut self, wanted: bool) {
        self.wanted = wanted;
    }

    /// Every address it can be reached at.
    pub fn destinations(&self) -> impl Iterator<Item = Destination> {
        self.shape.endpoints.values().flatten().chain(&self.shape.services).copied()
    }

    /// From which age on an attempt without an answer is late.
    #[must_use]
    pub const fn late_after(&self, config: &Config) -> Duration {
        if self.shape.remote { config.late_after_gateway } else { config.late_after }
    }

    /// Samples of a node's traffic came in: `row` is what they were made of.
    pub fn on_traffic(&mut self, node: NodeId, row: &Row, samples: Samples, now: Time) {
        let bucket = samples.bucket;
        // A retry loop counts as its client does, and connections that stay are at work, too.
        let connects = bucket.successes.saturating_add(bucket.failures);
        let flows = bucket.flow_successes.saturating_add(bucket.flow_failures);
        self.traffic.entry(node).or_default().on_attempts(connects.max(flows), now);
        self.contradiction.on_traffic(node, row, samples.answered, now);
        self.on_samples(&samples, now);
    }

    /// What the proxy of one of its endpoints met when it dialled the application. `refused`: when the oldest refused
    /// attempt began.
    pub fn on_self_hops(&mut self, to: Destination, succeeded: bool, refused: Option<Time>, now: Time) {
        let refused = refused.map(|at| at.max(now.before(STARTED_WITHIN)));
        self.self_hops.on_row(to, succeeded, refused);
        if succeeded {
            self.last_success = Some(now);
            self.ever_healthy = true;
        }
        if refused.is_some() {
            self.straight = Straight::default();
        }
    }

    /// A check of an endpoint behind a proxy ended. The proxy answers for itself: that is no evidence about the
    /// application, but all that shows an idle endpoint to be there at all (C5).
    pub fn on_proxy_answered(&mut self, node: NodeId, now: Time) {
        self.last_success = Some(now);
        self.ever_healthy = true;
        self.check_succeeded = true;
        self.on_straight(node, now);
    }

    /// An agent said that it saw a success that long ago, before the controller listened.
    pub fn on_history(&mut self, age: Duration) {
        self.ever_healthy |= age <= Duration::from_secs(3600);
    }

    /// A check ended, and says something.
    pub fn on_check(&mut self, check: Checked, now: Time) {
        let Checked { id, node, to, passed, started } = check;
        if let Some(volley) = &mut self.volley {
            volley.on_result(id, node, to, passed);
        }
        if passed {
            self.on_straight(node, now);
        } else {
            self.straight = Straight::default();
        }
        let bucket = Bucket::check(passed);
        let failed = u64::from(!passed);
        self.on_samples(&Samples { node, to, bucket, failed, started, answered: started, from: None }, now);
    }

    fn on_straight(&mut self, node: NodeId, now: Time) {
        // Successes that nobody followed up are no run.
        if self.straight.last.is_some_and(|at| now.since(at) > STRAIGHT_WITHIN) {
            self.straight = Straight::default();
        }
        self.straight.since.get_or_insert(now);
        self.straight.last = Some(now);
        self.straight.count = self.straight.count.saturating_add(1);
        self.straight.nodes.insert(node);
    }

    fn on_samples(&mut self, samples: &Samples, now: Time) {
        let samples = &Samples { started: samples.started.max(now.before(STARTED_WITHIN)), ..*samples };
        if samples.bucket.successes > 0 {
            self.last_success = Some(now);
            self.ever_healthy = true;
            self.traffic_succeeded |= samples.from.is_some();
            self.check_succeeded |= samples.from.is_none();
        }
        if samples.bucket.any_failure() {
            self.episode.get_or_insert(Episode::new(samples.started));
        }
        if self.episode.as_mut().is_some_and(|episode| episode.on_samples(samples)) {
            self.episode = None;
        }
        self.course.on_samples(samples, now);
    }

    /// As of when a node's right to be believed about a failed check is looked at: what began to fail a minute ago
    /// does not become better because nobody can see it healthy since.
    #[must_use]
    pub fn observed_at(&self, now: Time) -> Time {
        self.episode.map_or(now, |episode| episode.start.max(now.before(RIGHT_KEPT_FOR)).min(now))
    }

    /// What the agent of that node said last has a gap: a pair of refusals with the gap between is none.
    pub fn forget_self_hops(&mut self, node: &str) {
        let nodes = &self.shape.nodes;
        self.self_hops.retain(|to| nodes.get(to).is_none_or(|other| other != node));
    }

    /// Probation begins: what was held against it is settled, and tested anew.
    pub fn settle(&mut self) {
        self.episode = None;
        self.course.settle();
        self.self_hops.settle();
        self.contradiction = Contradiction::default();
        self.looks = [None; 2];
        self.volley = None;
        self.volleys = 0;
        self.suspect = false;
    }

    /// Moves checks and suspicion along. Returns whether the suspicion changed.
    pub fn step(&mut self, sight: Sight<'_>, budget: &mut Budget, ids: &mut u64, orders: &mut Vec<Order>) -> bool {
        let was = self.suspect;
        if let Some(finished) = self.volley.as_ref().and_then(|volley| volley.finished(sight.now)) {
            self.volley = None;
            self.looks = [Some(finished), self.looks[0]];
        }
        // Weighing walks all streams: without an episode no evidence is fresh enough to be worth it.
        self.suspect = self.episode.is_some() && self.weigh(sight).total >= SUSPECT;
        if !self.suspect && self.volley.is_none() {
            self.volleys = 0;
            self.looks = [None; 2];
        }
        if self.suspect && self.wanted && self.volley.is_none() && sight.now >= self.next_volley {
            self.start_volley(sight, budget, ids, orders);
        }
        self.canaries.step(
            &self.shape,
            self.is_idle(sight.now),
            sight,
            self.timeout(sight.config),
            budget,
            ids,
            orders,
        );
        was != self.suspect
    }

    fn start_volley(&mut self, sight: Sight<'_>, budget: &mut Budget, ids: &mut u64, orders: &mut Vec<Order>) {
        *ids += 1;
        let weighed = self.weigh(sight);
        let at = self.observed_at(sight.now);
        let lookable = self.lookable(&weighed, sight);
        let timeout = self.timeout(sight.config);
        // Those that answered last are the likeliest to live: what fails must fail there, too.
        let answered = |to: &[Destination]| self.course.answered(to);
        let volley = Volley::plan(*ids, &self.shape, &weighed, &lookable, answered, timeout, at, sight);
        self.volleys = self.volleys.saturating_add(1);
        self.next_volley = self.when_after_volley(&weighed, budget.is_ample(sight.now), sight);
        if volley.size() > 0 && budget.take(volley.size() as u64, sight.now) {
            orders.extend(volley.orders());
            self.volley = Some(volley);
        }
    }

    /// The first volleys come in quick succession, later ones as often as a target's share of the budget allows; one
    /// starts right when the hold is over, the last look, and none so shortly before it that it would be in its way.
    fn when_after_volley(&self, weighed: &Weighed, is_ample: bool, sight: Sight<'_>) -> Time {
        // Enough for C1 and C3: it takes looks at more endpoints, or the last one.
        let only_looks_are_missing = weighed.total >= ACT && weighed.nodes_agree(SAMPLED_WITHIN, sight.now);
        let quick = if only_looks_are_missing && is_ample { QUICK_VOLLEYS_TO_ACT } else { QUICK_VOLLEYS };
        let next = sight.now + if self.volleys < quick { VOLLEYS_APART } else { VOLLEY_SPACING };
        match self.began(&weighed.condemned, 2).map(|began| began + self.hold(sight.config, sight.now)) {
            Some(hold_over) if sight.now < hold_over && next + VOLLEYS_APART > hold_over => hold_over,
            Some(_) | None => next,
        }
    }

    fn timeout(&self, config: &Config) -> Duration {
        self.late_after(config)
    }

    fn hold(&self, config: &Config, now: Time) -> Duration {
        let usual = self.usual_hold(config);
        // While only checks fail, traffic that there is gets the time to say what it meets.
        let only_checks = self.episode.is_some_and(|episode| !episode.traffic_failed);
        if only_checks && self.attempts_lately(now) > 0 { usual.max(HOLD_FOR_TRAFFIC) } else { usual }
    }

    fn usual_hold(&self, config: &Config) -> Duration {
        if self.shape.endpoints.len() <= 1 { config.single_endpoint_hold.max(config.hold) } else { config.hold }
    }

    /// When more than half of the endpoints began to fail: the hold is counted from there. Of a primary that is half
    /// dead for hours the other half has to fail for as long as a whole one.
    fn began(&self, condemned: &BTreeMap<String, Time>, nodes: usize) -> Option<Time> {
        self.course.began(&self.shape, condemned, nodes)
    }

    /// Endpoints that their own proxies condemn, by the word of agents that are fresh.
    fn self_condemned(&self, sight: Sight<'_>) -> BTreeMap<String, Time> {
        let is_fresh = |to: &Destination| {
            let node = self.shape.nodes.get(to).and_then(|name| sight.agents.id(name));
            node.is_some_and(|node| sight.agents.weight(node, sight.config, sight.now) > 0)
        };
        self.self_hops.condemned(&self.shape, self.usual_hold(sight.config), sight.now, is_fresh)
    }

    /// Endpoints, by their place, that some node can look at: not those behind a proxy, which answers for itself, nor
    /// those that nobody has ever seen answer, as after a rollout of pods that do not listen.
    fn lookable(&self, weighed: &Weighed, sight: Sight<'_>) -> BTreeSet<usize> {
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

    /// When [`Target::step`] has something to do next.
    #[must_use]
    pub fn due(&self) -> Time {
        let volley = match &self.volley {
            Some(volley) => Some(volley.deadline()),
            None if self.suspect && self.wanted => Some(self.next_volley),
            None => None,
        };
        volley.map_or(self.canaries.due(), |at| at.min(self.canaries.due()))
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

    /// Whether other nodes are asked about it.
    #[must_use]
    pub const fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// How many of its endpoints stand behind a mesh's proxy.
    #[must_use]
    pub fn meshed(&self, sight: Sight<'_>) -> usize {
        self.shape.endpoints.values().filter(|to| to.iter().any(|to| sight.is_meshed(&self.shape, to))).count()
    }

    /// How many of its endpoints are refusing their own proxies.
    #[must_use]
    pub fn refusing_proxies(&self, sight: Sight<'_>) -> usize {
        self.self_hops.suspect(&self.shape, sight.now)
    }

    /// Whether anybody ever saw it healthy.
    #[must_use]
    pub const fn was_healthy(&self) -> bool {
        self.ever_healthy
    }

    /// When anybody last saw it healthy.
    #[must_use]
    pub const fn last_success(&self) -> Option<Time> {
        self.last_success
    }

    /// Attempts within the last minute, a client's retry loop counted as the client.
    #[must_use]
    pub fn attempts_lately(&self, now: Time) -> u64 {
        self.traffic.values().fold(0, |sum, of_node| sum.saturating_add(of_node.last_minute(now)))
    }

    /// The same by node.
    pub fn attempts_by_node(&self, now: Time) -> impl Iterator<Item = (NodeId, u64)> {
        self.traffic.iter().map(move |(node, of_node)| (*node, of_node.last_minute(now)))
    }

    fn is_idle(&self, now: Time) -> bool {
        self.traffic.values().map(|of_node| of_node.last_two(now)).sum::<u64>() < Traffic::IDLE
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

/// Attempts of the last minute, in six buckets of ten seconds.
#[derive(Debug, Default)]
struct Traffic {
    buckets: [u64; 6],
    latest: u64,
}

impl Traffic {
    const SPAN: Duration = Duration::from_secs(10);

    /// Less than this many attempts in about ten seconds is idle: 20 a second.
    const IDLE: u64 = 200;

    /// Where a bucket stops counting: an agent may say any number, and sums over buckets and ports must not overflow.
    const LIMIT: u64 = 1 << 48;

    fn turn(now: Time) -> u64 {
        now.0 / u64::try_from(Self::SPAN.as_nanos()).expect("ten seconds")
    }

    fn on_attempts(&mut self, attempts: u64, now: Time) {
        let turn = Self::turn(now);
        let stale = turn.saturating_sub(self.latest).min(self.buckets.len() as u64);
        for back in 0..stale {
            self.buckets[((turn - back) % 6) as usize] = 0;
        }
        self.latest = self.latest.max(turn);
        let bucket = &mut self.buckets[(turn % 6) as usize];
        *bucket = bucket.saturating_add(attempts).min(Self::LIMIT);
    }

    fn of_turn(&self, turn: u64) -> u64 {
        if turn <= self.latest && turn + 6 > self.latest { self.buckets[(turn % 6) as usize] } else { 0 }
    }

    fn last_minute(&self, now: Time) -> u64 {
        let turn = Self::turn(now);
        (0..6).fold(0, |sum, back| sum + turn.checked_sub(back).map_or(0, |turn| self.of_turn(turn)))
    }

    fn last_two(&self, now: Time) -> u64 {
        let turn = Self::turn(now);
        self.of_turn(turn) + turn.checked_sub(1).map_or(0, |turn| self.of_turn(turn))
    }
}
