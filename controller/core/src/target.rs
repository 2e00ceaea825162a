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
    /// Ready endpoints that fail.
    pub failing: usize,
    /// Of those, the ones that their own proxies condemned.
    pub condemned_by_self: usize,
    /// Nodes with a sample lately.
    pub sampled: BTreeSet<NodeId>,
}

impl Weighed {
    /// Whether two nodes see it fail, and they are half of those that see it at all (C3).
    fn nodes_agree(&self) -> bool {
        let sick: BTreeSet<NodeId> =
            self.nodes.iter().filter(|(_, sum)| **sum >= FAILING).map(|(node, _)| *node).collect();
        sick.len() >= 2 && sick.len() * 2 >= self.sampled.union(&sick).count()
    }
}

/// Samples of one destination, from traffic or from a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Samples {
    /// Of whom.
    pub to: Destination,
    /// How many; the evidence has them already.
    pub bucket: Bucket,
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
    last_success: Option<Time>,
    traffic: Traffic,
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
            last_success: None,
            traffic: Traffic::default(),
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
        self.traffic.on_attempts(row.attempts, now);
        self.contradiction.on_traffic(node, row, now);
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
        self.on_samples(&Samples { to, bucket: Bucket::check(passed), started, answered: started, from: None }, now);
    }

    fn on_straight(&mut self, node: NodeId, now: Time) {
        self.straight.since.get_or_insert(now);
        self.straight.count = self.straight.count.saturating_add(1);
        self.straight.nodes.insert(node);
    }

    fn on_samples(&mut self, samples: &Samples, now: Time) {
        let samples = &Samples { started: samples.started.max(now.before(STARTED_WITHIN)), ..*samples };
        if samples.bucket.successes > 0 {
            self.last_success = Some(now);
            self.ever_healthy = true;
        }
        if samples.bucket.any_failure() {
            self.episode.get_or_insert(Episode::new(samples.started));
        }
        if self.episode.as_mut().is_some_and(|episode| episode.on_samples(samples, now)) {
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
            self.traffic.is_idle(sight.now),
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
        let volley = Volley::plan(*ids, &self.shape, &weighed, self.timeout(sight.config), at, sight);
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
        let only_the_look_is_missing = weighed.total >= ACT && weighed.nodes_agree() && self.fails_for_most(weighed);
        let quick = if only_the_look_is_missing && is_ample { QUICK_VOLLEYS_TO_ACT } else { QUICK_VOLLEYS };
        let next = sight.now + if self.volleys < quick { VOLLEYS_APART } else { VOLLEY_SPACING };
        match self.began(sight).map(|began| began + self.hold(sight.config, sight.now)) {
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
    fn began(&self, sight: Sight<'_>) -> Option<Time> {
        self.course.began(&self.shape, &self.self_condemned(sight))
    }

    fn self_condemned(&self, sight: Sight<'_>) -> BTreeMap<String, Time> {
        self.self_hops.condemned(&self.shape, self.usual_hold(sight.config), sight.now)
    }

    /// Rule C2.
    fn fails_for_most(&self, weighed: &Weighed) -> bool {
        weighed.failing * 2 > self.shape.endpoints.len()
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
        let condemned = self.self_condemned(sight);
        weighed.condemned_by_self = condemned.len();
        for (identity, destinations) in &self.shape.endpoints {
            let mut families =
                destinations.iter().filter_map(|to| weigh_destination(to, sight, &mut raw, &mut weighed));
            // Every family that has samples must fail; none with samples is no failure.
            let failing = match families.next() {
                Some(first) => families.fold(first >= FAILING, |all, sum| all & (sum >= FAILING)),
                None => false,
            };
            weighed.failing += usize::from(failing || condemned.contains_key(identity));
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
        if episode.is_contradicted(sight.now) {
            return Verdict::Suspect;
        }
        let weighed = self.weigh(sight);
        if weighed.total < NODE_CAP || !self.fails_for_most(&weighed) {
            return Verdict::Suspect;
        }
        let Some(began) = self.began(sight) else { return Verdict::Suspect };
        let observers = self.observers(sight).count();
        let agree = weighed.total >= ACT && weighed.nodes_agree();
        let held_long = |span: Duration| sight.now >= began + span;
        let hold = self.hold(sight.config, sight.now);
        let slow_hold = hold.max(HOLD_WITHOUT_OBSERVERS);
        let grounds = match observers {
            0 => (agree && held_long(slow_hold)).then_some(Grounds::NobodyCan),
            1 => None,
            _ if agree && self.last_look_failed(began + hold, sight.now) => Some(Grounds::LastLook),
            _ => (agree && self.contradiction.is_settled(sight.now)).then_some(Grounds::ChecksDisagree),
        };
        let alone = || {
            let looked = observers == 1 && self.only_look_failed(began + slow_hold, sight.now);
            looked.then_some(episode.start)
        };
        match (grounds, observers) {
            (Some(grounds), _) => Verdict::Condemned { episode: episode.start, grounds },
            // All that one node can say is said, and there is no second one to ask.
            (None, 0 | 1) if held_long(hold) => {
                Verdict::Unobserved { guard: Guard::InsufficientObservers, alone: alone() }
            }
            (None, _) => Verdict::Suspect,
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

    fn last_look_failed(&self, not_before: Time, now: Time) -> bool {
        let [Some(last), before] = self.looks else { return false };
        if last.started < not_before || now.since(last.ended) > LOOK_FOR {
            return false;
        }
        let twice_half =
            || before.is_some_and(|before| before.failed_by_half() && last.started >= before.started + VOLLEYS_APART);
        last.failed_for_sure() || (last.failed_by_half() && twice_half())
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
        let Some(since) = self.straight.since else { return false };
        let refused = self.self_hops.last_refused();
        refused.is_none_or(|at| sight.now.since(at) >= sight.config.recovery_span)
            && self.straight.count >= sight.config.recovery_successes
            && sight.now.since(since) >= sight.config.recovery_span
            && self.straight.nodes.len() >= self.observers(sight).count().min(3)
    }

    /// Whether something is wrong enough to take a step of the ramp back: half of what a failover needs, but not of
    /// one node alone, which reaches that half.
    #[must_use]
    pub fn fails_probation(&self, sight: Sight<'_>) -> bool {
        if self.self_condemned(sight).len() * 2 > self.shape.endpoints.len() {
            return true;
        }
        if self.episode.is_none_or(|episode| episode.is_contradicted(sight.now)) {
            return false;
        }
        let weighed = self.weigh(sight);
        weighed.total >= ACT / 2 && weighed.nodes_agree() && self.fails_for_most(&weighed)
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

    /// Attempts within the last minute.
    #[must_use]
    pub fn attempts_lately(&self, now: Time) -> u64 {
        self.traffic.last_minute(now)
    }
}

/// Adds one destination's streams to `raw`; returns its sum over nodes, or `None` when it has no samples in memory.
fn weigh_destination(
    to: &Destination,
    sight: Sight<'_>,
    raw: &mut BTreeMap<NodeId, u64>,
    weighed: &mut Weighed,
) -> Option<u64> {
    let mut sum = None;
    for (node, stream) in sight.evidence.nodes(to) {
        let Some(at) = stream.last_sample() else { continue };
        if sight.agents.weight(node, sight.config, sight.now) == 0 {
            continue;
        }
        if sight.now.since(at) <= SAMPLED_WITHIN {
            weighed.sampled.insert(node);
        }
        if sight.now.since(at) <= OBSERVER_FOR {
            let value = stream.sum(sight.now);
            *raw.entry(node).or_default() += value;
            *sum.get_or_insert(0) += value;
        }
    }
    sum
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

    fn is_idle(&self, now: Time) -> bool {
        let turn = Self::turn(now);
        self.of_turn(turn) + turn.checked_sub(1).map_or(0, |turn| self.of_turn(turn)) < Self::IDLE
    }
}
