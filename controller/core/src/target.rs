//! A target: one port of one Service, or one port of a gateway that many mirrors share. Pure.
//!
//! Samples come in as they are taken; checks to make come out of [`Target::step`]; [`Target::verdict`] is the answer
//! to "is it dead" ([`judgement`]), with rules C1, C2, C3 and C7. Whether that moves traffic is the split's business.

mod canary;
mod contradiction;
mod course;
mod judgement;
mod self_hop;
mod traffic;
mod volley;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use probe_common::wire::{Destination, Row};

use crate::Config;
use crate::agents::{Agents, NodeId};
use crate::evidence::{ACT, Bucket, Evidence, SUSPECT};
use crate::facts::ObjectId;
use crate::time::Time;

pub use canary::Budget;
use canary::Canaries;
use contradiction::Contradiction;
use course::{Course, Episode};
use judgement::SAMPLED_WITHIN;
pub use judgement::{Grounds, Verdict, Weighed};
use self_hop::SelfHops;
use traffic::Traffic;
use volley::{Finished, Volley};

/// A check counts as a failure only from a node whose check of the same destination succeeded within this span: else
/// a NetworkPolicy that drops checks would confirm every suspicion.
pub const OBSERVER_FOR: Duration = Duration::from_secs(60);

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

    /// A node is gone for good.
    pub fn forget_node(&mut self, node: NodeId) {
        self.course.forget_node(node);
        self.contradiction.forget_node(node);
        self.straight.nodes.remove(&node);
        self.traffic.remove(&node);
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
