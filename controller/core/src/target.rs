//! A target: one port of one Service, or one port of a gateway that many mirrors share. Pure.
//!
//! Samples come in as they are taken; checks to make come out of [`Target::step`]; [`Target::verdict`] is the answer
//! to "is it dead", with rules C1, C2, C3 and C7. Whether that moves traffic is the split's business.

mod canary;
mod volley;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use probe_common::wire::Destination;

use crate::Config;
use crate::agents::{Agents, FULL_WEIGHT, NodeId};
use crate::evidence::{ACT, Bucket, Evidence, FAILING, HEALTHY_BELOW, NODE_CAP, SUSPECT};
use crate::facts::ObjectId;
use crate::guard::Guard;
use crate::time::Time;

pub use canary::Budget;
use canary::Canaries;
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

/// Volleys beyond the third of a suspicion: five a second.
const VOLLEY_SPACING: Duration = Duration::from_millis(200);

/// Endpoints that begin to fail within this span died together: at 10 attempts a second it takes that long to notice.
const TOGETHER: Duration = Duration::from_millis(500);

/// See [`Target::hold`]: of 10 attempts a second one comes within this span in 49 of 50 cases.
const HOLD_FOR_TRAFFIC: Duration = Duration::from_millis(400);

/// Traffic that passes while only checks fail is believed for this long.
const CONTRADICTED_FOR: Duration = Duration::from_secs(10);

/// A node that could check when an episode began may go on for this long, although nothing answers any more.
const RIGHT_KEPT_FOR: Duration = Duration::from_secs(600);

/// Without any observer two client nodes decide, but not sooner than this.
const HOLD_WITHOUT_OBSERVERS: Duration = Duration::from_secs(1);

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
    Unobserved(Guard),
    /// Evidence, endpoints, nodes and the last look agree. `episode` is when the first failing attempt began.
    Condemned {
        /// See above.
        episode: Time,
    },
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
    /// For traffic: when the period that they are from began.
    pub from: Option<Time>,
}

/// A run of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Episode {
    start: Time,
    failures: u64,
    successes: u64,
    /// Whether any of the failures was traffic's own.
    traffic_failed: bool,
    /// When traffic last succeeded, in a period that began in the episode.
    traffic_passed: Option<Time>,
}

impl Episode {
    const fn new(start: Time) -> Self {
        Self { start, failures: 0, successes: 0, traffic_failed: false, traffic_passed: None }
    }

    /// Takes samples in; says whether successes have ended it.
    fn on_samples(&mut self, samples: &Samples, now: Time) -> bool {
        let failures = samples.bucket.any_failures();
        let successes = samples.bucket.successes;
        if failures > 0 {
            self.start = self.start.min(samples.started);
            self.failures = self.failures.saturating_add(failures);
            self.traffic_failed |= samples.from.is_some();
        }
        // A node without failures reports every 100 ms: what it saw succeed before the episode is no word against it.
        if samples.from.unwrap_or(samples.started) >= self.start {
            if successes > 0 && samples.from.is_some() {
                self.traffic_passed = Some(now);
            }
            self.successes = self.successes.saturating_add(successes);
        }
        self.successes > self.failures.saturating_mul(2).saturating_add(2)
    }

    /// Checks fail, and traffic does not: they contradict each other (a NetworkPolicy that came between, say).
    fn is_contradicted(&self, now: Time) -> bool {
        !self.traffic_failed && self.traffic_passed.is_some_and(|at| now.since(at) <= CONTRADICTED_FOR)
    }
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
    /// The same per destination, since endpoints die one by one.
    episodes: BTreeMap<Destination, Episode>,
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
            episodes: BTreeMap::new(),
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
            self.episodes.retain(|to, _| stays.contains(to));
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

    /// Samples of traffic came in.
    pub fn on_traffic(&mut self, attempts: u64, samples: Samples, now: Time) {
        self.traffic.on_attempts(attempts, now);
        self.on_samples(&samples, now);
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
            self.straight.since.get_or_insert(now);
            self.straight.count = self.straight.count.saturating_add(1);
            self.straight.nodes.insert(node);
        } else {
            self.straight = Straight::default();
        }
        self.on_samples(&Samples { to, bucket: Bucket::check(passed), started, from: None }, now);
    }

    fn on_samples(&mut self, samples: &Samples, now: Time) {
        if samples.bucket.successes > 0 {
            self.last_success = Some(now);
            self.ever_healthy = true;
        }
        if samples.bucket.any_failure() {
            self.episode.get_or_insert(Episode::new(samples.started));
            self.episodes.entry(samples.to).or_insert(Episode::new(samples.started));
        }
        if self.episode.as_mut().is_some_and(|episode| episode.on_samples(samples, now)) {
            self.episode = None;
        }
        if self.episodes.get_mut(&samples.to).is_some_and(|episode| episode.on_samples(samples, now)) {
            self.episodes.remove(&samples.to);
        }
    }

    /// When the hold began: with the first failure, where more than half of the endpoints followed at once; else when
    /// they had. Of a primary that is half dead for hours the other half has to fail for as long as a whole one.
    fn hold_from(&self, now: Time) -> Option<Time> {
        let first = self.episode?.start;
        let start = |to: &Vec<Destination>| to.iter().filter_map(|to| self.episodes.get(to)).map(|it| it.start).min();
        let mut starts: Vec<Time> = self.shape.endpoints.values().filter_map(start).collect();
        starts.sort_unstable();
        let most = starts.get(self.shape.endpoints.len() / 2).copied();
        if most.unwrap_or(now).since(first) <= TOGETHER { Some(first) } else { most }
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
        self.episodes.clear();
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
        let volley =
            Volley::plan(*ids, &self.shape, &weighed, self.timeout(sight.config), self.observed_at(sight.now), sight);
        self.volleys = self.volleys.saturating_add(1);
        self.next_volley = self.when_after_volley(sight.now, sight.config);
        if volley.size() > 0 && budget.take(volley.size() as u64, sight.now) {
            orders.extend(volley.orders());
            self.volley = Some(volley);
        }
    }

    /// The first volleys come in quick succession, later ones as often as a target's share of the budget allows; one
    /// starts right when the hold is over, the last look, and none so shortly before it that it would be in its way.
    fn when_after_volley(&self, now: Time, config: &Config) -> Time {
        let spacing = if self.volleys < 3 { VOLLEYS_APART } else { VOLLEY_SPACING };
        let next = now + spacing;
        match self.hold_from(now).map(|start| start + self.hold(config, now)) {
            Some(hold_over) if now < hold_over && next + VOLLEYS_APART > hold_over => hold_over,
            Some(_) | None => next,
        }
    }

    fn timeout(&self, config: &Config) -> Duration {
        self.late_after(config)
    }

    fn hold(&self, config: &Config, now: Time) -> Duration {
        let usual =
            if self.shape.endpoints.len() <= 1 { config.single_endpoint_hold.max(config.hold) } else { config.hold };
        // While only checks fail, traffic that there is gets the time to say what it meets.
        let only_checks = self.episode.is_some_and(|episode| !episode.traffic_failed);
        if only_checks && self.attempts_lately(now) > 0 { usual.max(HOLD_FOR_TRAFFIC) } else { usual }
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
        for destinations in self.shape.endpoints.values() {
            let mut families =
                destinations.iter().filter_map(|to| weigh_destination(to, sight, &mut raw, &mut weighed));
            // Every family that has samples must fail; none with samples is no failure.
            let failing = match families.next() {
                Some(first) => families.fold(first >= FAILING, |all, sum| all & (sum >= FAILING)),
                None => false,
            };
            weighed.failing += usize::from(failing);
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
        let Some(episode) = self.episode.filter(|_| self.suspect) else { return Verdict::Clear };
        if episode.is_contradicted(sight.now) {
            return Verdict::Suspect;
        }
        let weighed = self.weigh(sight);
        if weighed.total < NODE_CAP || weighed.failing * 2 <= self.shape.endpoints.len() {
            return Verdict::Suspect;
        }
        let observers = self.observers(sight).count();
        let agree = weighed.total >= ACT && weighed.nodes_agree();
        let Some(from) = self.hold_from(sight.now) else { return Verdict::Suspect };
        let held_long = |span: Duration| sight.now >= from + span;
        let hold = self.hold(sight.config, sight.now);
        let condemned = match observers {
            0 => agree && held_long(HOLD_WITHOUT_OBSERVERS),
            1 => false,
            _ => agree && self.last_look_failed(from + hold, sight.now),
        };
        match (condemned, observers) {
            (true, _) => Verdict::Condemned { episode: episode.start },
            // All that one node can say is said, and there is no second one to ask.
            (false, 0 | 1) if held_long(hold) => Verdict::Unobserved(Guard::InsufficientObservers),
            (false, _) => Verdict::Suspect,
        }
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

    /// Nodes whose checks count: they can check, and saw one of the endpoints healthy lately.
    pub fn observers<'a>(&'a self, sight: Sight<'a>) -> impl Iterator<Item = NodeId> + 'a {
        let mut nodes = BTreeSet::new();
        let at = self.observed_at(sight.now);
        for to in self.shape.endpoints.values().flatten() {
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
            && (self.episode.is_none() || self.weigh(sight).total < HEALTHY_BELOW)
    }

    /// Whether it has answered long and often enough for traffic to come back.
    #[must_use]
    pub fn has_recovered(&self, sight: Sight<'_>) -> bool {
        let Some(since) = self.straight.since else { return false };
        self.straight.count >= sight.config.recovery_successes
            && sight.now.since(since) >= sight.config.recovery_span
            && self.straight.nodes.len() >= self.observers(sight).count().min(3)
    }

    /// Whether something is wrong enough to take a step of the ramp back: half of what a failover needs, but not of
    /// one node alone, which reaches that half.
    #[must_use]
    pub fn fails_probation(&self, sight: Sight<'_>) -> bool {
        if self.episode.is_none_or(|episode| episode.is_contradicted(sight.now)) {
            return false;
        }
        let weighed = self.weigh(sight);
        weighed.total >= ACT / 2 && weighed.nodes_agree() && weighed.failing * 2 > self.shape.endpoints.len()
    }

    /// Whether other nodes are asked about it.
    #[must_use]
    pub const fn is_suspect(&self) -> bool {
        self.suspect
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
