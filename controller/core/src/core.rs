//! The state machine's front: routes inputs to agents, evidence, targets and splits, and collects what they want. Pure.
//!
//! Nothing is judged here: [`crate::target`] says what is dead, [`crate::split`] what moves.

mod agent_input;
mod topology;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use probe_common::wire::{CheckRequest, CheckTarget, ControllerFrame, Destination};

use crate::agents::{Agents, NodeId};
use crate::budget::{GroupBudget, Receipt};
use crate::evidence::Evidence;
use crate::explain::{BackendExplanation, Explanation};
use crate::facts::{EndpointFacts, MoveCause, ObjectId, ServiceFacts};
use crate::guard::Guard;
use crate::input::WriteOutcome;
use crate::output::{Direction, NoticeReason, Transition, TransitionKind, Write, WriteId};
use crate::split::{DECISION_TTL, Gates, Health, Move, Split, Wish};
use crate::target::{Budget, Grounds, Order, Sight, Target, TargetKey, Verdict};
use crate::time::Time;
use crate::weights::Weight;
use crate::{Config, Input, Output};

/// How often agents' freshness is looked at: a seventh of the time after which one is stale.
const FRESHNESS_STEP: Duration = Duration::from_millis(50);

/// A check that was asked for longer ago than this is forgotten, and its result ignored.
const ASKED_FOR: Duration = Duration::from_secs(5);

/// A backend without failures for this long is clean: the next failure is worth a transition.
const CLEAN_AFTER: Duration = Duration::from_millis(200);

/// A target's number, so that rows need no string comparison to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TargetId(u32);

/// A split and what core knows around it.
#[derive(Debug)]
struct Entry {
    split: Split,
    backends: Vec<BackendLinks>,
    due: Option<Time>,
    told: BTreeMap<String, Told>,
    noticed: Option<Guard>,
    /// What the write under way took of the budget of cause groups.
    receipt: Option<Receipt>,
}

/// Where a backend's evidence comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct BackendLinks {
    ready: usize,
    /// One per port of the Service; the same one where ports meet at a gateway.
    targets: Vec<TargetId>,
    /// The Service's ports, in the same order.
    ports: Vec<u16>,
}

/// What was last published of a backend.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    suspect: bool,
    condemned: bool,
    last_failure: Option<Time>,
}

/// What agents said that nothing followed from.
#[derive(Debug, Default)]
struct Disbelieved {
    unknown_destinations: u64,
    last_unknown: Option<Destination>,
    foreign_endpoints: u64,
    told: BTreeMap<NodeId, Time>,
}

/// Sums for metrics, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Rows about destinations of no split: of one that is just gone, or made up.
    pub unknown_destinations: u64,
    /// The last of them.
    pub last_unknown: Option<Destination>,
    /// Words of agents about endpoints on other nodes that only those nodes' agents may speak for.
    pub foreign_endpoints: u64,
}

/// Checks of one node that are under way.
#[derive(Debug)]
struct Asked {
    target: TargetId,
    destinations: BTreeSet<Destination>,
    at: Time,
}

/// See the crate's header.
#[derive(Debug)]
pub struct Core {
    config: Config,
    agents: Agents,
    evidence: Evidence,
    services: BTreeMap<ObjectId, ServiceFacts>,
    endpoints: BTreeMap<ObjectId, Vec<EndpointFacts>>,
    splits: BTreeMap<ObjectId, Entry>,
    invalid: BTreeMap<ObjectId, String>,
    targets: BTreeMap<TargetId, Target>,
    keys: BTreeMap<TargetKey, TargetId>,
    users: BTreeMap<TargetId, BTreeSet<ObjectId>>,
    by_destination: BTreeMap<Destination, Vec<TargetId>>,
    views: BTreeMap<ObjectId, probe_common::wire::Split>,
    asked: BTreeMap<(u64, NodeId), Asked>,
    disbelieved: Disbelieved,
    caches_complete: bool,
    checks: Option<Budget>,
    groups: GroupBudget,
    next_check: u64,
    next_write: u64,
    next_target: u32,
    next_freshness: Time,
    deadline: Option<Time>,
    outputs: VecDeque<Output>,
}

impl Core {
    /// A core that knows nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            groups: GroupBudget::new(config.group_spacing, config.group_limit, config.group_window),
            config,
            agents: Agents::default(),
            evidence: Evidence::default(),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            splits: BTreeMap::new(),
            invalid: BTreeMap::new(),
            targets: BTreeMap::new(),
            keys: BTreeMap::new(),
            users: BTreeMap::new(),
            by_destination: BTreeMap::new(),
            views: BTreeMap::new(),
            asked: BTreeMap::new(),
            disbelieved: Disbelieved::default(),
            caches_complete: false,
            checks: None,
            next_check: 0,
            next_write: 0,
            next_target: 0,
            next_freshness: Time(0),
            deadline: None,
            outputs: VecDeque::new(),
        }
    }

    /// Takes one fact.
    pub fn handle(&mut self, input: Input, now: Time) {
        match input {
            Input::Split(id, facts) => self.on_split(id, facts, now),
            Input::SplitInvalid { split, fault } => self.on_split_invalid(&split, fault),
            Input::SplitGone(id) => self.on_split_gone(&id, now),
            Input::Service(id, facts) => self.on_service(id, Some(facts), now),
            Input::ServiceGone(id) => self.on_service(id, None, now),
            Input::Endpoints(id, endpoints) => self.on_endpoints(id, endpoints, now),
            Input::CachesComplete => {
                self.caches_complete = true;
                self.rebuild(now);
                self.publish_all();
                self.decide_all(now);
            }
            Input::ExpectedAgents(nodes) => self.agents.on_expected(nodes),
            Input::Agent { node, stream, frame } => self.on_agent(&node, stream, frame, now),
            Input::AgentGone { node, stream } => self.agents.on_gone(&node, stream),
            Input::WriteDone { id, outcome } => self.on_write_done(id, &outcome, now),
        }
        self.plan_deadline(now);
    }

    /// Lets time pass. To be called at [`Core::deadline`]; harmless at any other time.
    pub fn handle_timeout(&mut self, now: Time) {
        if now >= self.next_freshness {
            self.step_freshness(now);
        }
        self.asked.retain(|_, asked| now.since(asked.at) <= ASKED_FOR);
        let due: Vec<TargetId> =
            self.targets.iter().filter(|(_, target)| target.due() <= now).map(|(id, _)| *id).collect();
        self.step_targets(&due, now);
        let due: Vec<ObjectId> = self
            .splits
            .iter()
            .filter(|(_, entry)| entry.due.is_some_and(|at| at <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.decide(&id, now);
        }
        self.deadline = None;
        self.plan_deadline(now);
    }

    /// The next wish. To be called until `None` after every [`Core::handle`] and [`Core::handle_timeout`].
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Core::handle_timeout`] has something to do next.
    #[must_use]
    pub const fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// What was not believed, for metrics.
    #[must_use]
    pub const fn sums(&self) -> Sums {
        Sums {
            unknown_destinations: self.disbelieved.unknown_destinations,
            last_unknown: self.disbelieved.last_unknown,
            foreign_endpoints: self.disbelieved.foreign_endpoints,
        }
    }

    fn plan_deadline(&mut self, _now: Time) {
        let targets = self.targets.values().map(Target::due);
        let splits = self.splits.values().filter_map(|entry| entry.due);
        let freshness = self.agents.nodes().next().map(|_| self.next_freshness);
        self.deadline = targets.chain(splits).chain(freshness).min();
    }

    fn step_freshness(&mut self, now: Time) {
        self.next_freshness = now + FRESHNESS_STEP;
        for node in self.agents.forget_gone(now) {
            self.evidence.forget_node(node);
            self.disbelieved.told.remove(&node);
            for target in self.targets.values_mut() {
                target.forget_node(node);
            }
        }
        for (node, freshness) in self.agents.step(&self.config, now) {
            let node = self.agents.name(node).to_owned();
            self.tell(now, None, TransitionKind::Agent { node, freshness });
        }
    }

    /// Lets targets move their checks and suspicions along, then the splits that use them decide.
    fn step_targets(&mut self, ids: &[TargetId], now: Time) {
        let mut orders = Vec::new();
        let count = self.targets.len();
        for id in ids {
            let Some(target) = self.targets.get_mut(id) else { continue };
            let checks = self.checks.get_or_insert_with(|| Budget::new(self.config.checks_per_second, now));
            checks.set_targets(count);
            let sight = Sight { evidence: &self.evidence, agents: &self.agents, config: &self.config, now };
            let mut of_target = Vec::new();
            target.step(sight, checks, &mut self.next_check, &mut of_target);
            orders.extend(of_target.into_iter().map(|order| (*id, order)));
        }
        for (target, order) in orders {
            self.send_order(target, &order, now);
        }
        let splits: BTreeSet<ObjectId> = ids.iter().filter_map(|id| self.users.get(id)).flatten().cloned().collect();
        for id in splits {
            self.decide(&id, now);
        }
    }

    fn send_order(&mut self, target: TargetId, order: &Order, now: Time) {
        let Some(stream) = self.agents.stream(order.node) else { return };
        let timeout_ms = u32::try_from(order.timeout.as_millis()).unwrap_or(u32::MAX);
        let targets = order.destinations.iter().map(|to| CheckTarget { to: *to, timeout_ms }).collect();
        let destinations = order.destinations.iter().copied().collect();
        self.asked.insert((order.id, order.node), Asked { target, destinations, at: now });
        let node = self.agents.name(order.node).to_owned();
        let frame = ControllerFrame::Checks(CheckRequest { id: order.id, targets });
        self.outputs.push_back(Output::Send { node, stream, frame });
    }

    fn decide_all(&mut self, now: Time) {
        let ids: Vec<_> = self.splits.keys().cloned().collect();
        for id in ids {
            self.decide(&id, now);
        }
    }

    /// Asks one split what it wants now, and passes it on.
    fn decide(&mut self, id: &ObjectId, now: Time) {
        if !self.caches_complete {
            return;
        }
        let Some(health) = self.health(id, now) else { return };
        self.tell_health(id, &health, now);
        let gates = self.gates(id, now);
        let Some(entry) = self.splits.get_mut(id) else { return };
        let before = entry.split.held();
        let wish = entry.split.wish(&health, gates, &self.config, now);
        entry.due = entry.split.due(&self.config, now);
        match wish {
            Wish::Stay => entry.noticed = None,
            Wish::Hold(guard) => {
                if before != Some(guard) {
                    self.tell_held(id, guard, now);
                }
            }
            Wish::Move(planned) => self.write(id, planned, now),
        }
    }

    fn write(&mut self, id: &ObjectId, planned: Move, now: Time) {
        let group = self.group_of(id);
        let Some(entry) = self.splits.get_mut(id) else { return };
        entry.noticed = None;
        self.next_write += 1;
        let write_id = WriteId(self.next_write);
        if let (Direction::Failover, MoveCause::Connections) = (planned.direction, planned.cause) {
            entry.receipt = Some(self.groups.spend(group, now));
        }
        if planned.begins_probation() {
            self.settle_primary(id);
        }
        let Some(entry) = self.splits.get_mut(id) else { return };
        let facts = entry.split.facts();
        let names = facts.backends.iter().map(|backend| backend.service.clone());
        let event = event_note(&id.name, planned.direction);
        let (uid, resource_version) = (facts.uid.clone(), facts.resource_version.clone());
        let weights: Vec<(String, Weight)> = names.zip(planned.weights.iter().copied()).collect();
        let (direction, cause) = (planned.direction, planned.cause);
        let record = entry.split.on_decided(write_id, planned, now);
        let write = Write {
            id: write_id,
            split: id.clone(),
            uid,
            resource_version,
            weights,
            record,
            direction,
            cause,
            decided: now,
            expires: now + DECISION_TTL,
            event,
        };
        self.tell(now, Some(id), TransitionKind::Decided { write: write_id, direction, cause });
        self.outputs.push_back(Output::Write(write));
    }

    /// The primary gets traffic again: what was held against it is over, and tested anew.
    fn settle_primary(&mut self, id: &ObjectId) {
        let Some(entry) = self.splits.get(id) else { return };
        for target in entry.backends.get(entry.split.primary()).into_iter().flat_map(|links| &links.targets) {
            if let Some(target) = self.targets.get_mut(target) {
                target.settle();
                for to in target.destinations() {
                    self.evidence.settle(&to);
                }
            }
        }
    }

    fn on_write_done(&mut self, id: WriteId, outcome: &WriteOutcome, now: Time) {
        let found = self
            .splits
            .iter_mut()
            .find_map(|(split, entry)| Some((split.clone(), entry.split.on_written(id, outcome, &self.config, now)?)));
        let Some((split, planned)) = found else { return };
        let receipt = self.splits.get_mut(&split).and_then(|entry| entry.receipt.take());
        if let Some(receipt) = receipt.filter(|_| !matches!(outcome, WriteOutcome::Applied { .. })) {
            self.groups.refund(receipt);
        }
        let direction = planned.direction;
        let (at, kind) = match outcome {
            WriteOutcome::Applied { acknowledged, .. } => {
                (*acknowledged, TransitionKind::Acknowledged { write: id, direction })
            }
            WriteOutcome::Conflict => (now, not_applied(id, "the object changed in between")),
            WriteOutcome::Gone => (now, not_applied(id, "the object is gone")),
            WriteOutcome::Refused(error) | WriteOutcome::Failed(error) => (now, not_applied(id, error)),
            WriteOutcome::Expired => (now, not_applied(id, "the decision was too old when its turn came")),
        };
        self.tell(at, Some(&split), kind);
        self.publish_view(&split);
        self.mark_wanted(&split);
        self.decide(&split, now);
    }

    fn gates(&self, id: &ObjectId, now: Time) -> Gates {
        Gates {
            warm: self.agents.are_warm(now),
            majority: self.agents.majority_is_fresh(&self.config, now),
            budget: self.groups.allows(&self.group_of(id), now),
        }
    }

    /// What fails together counts as one: the nodes and gateways that the primary's endpoints are on.
    fn group_of(&self, id: &ObjectId) -> BTreeSet<String> {
        let Some(entry) = self.splits.get(id) else { return BTreeSet::new() };
        let facts = entry.split.facts();
        let Some(primary) = facts.backends.get(entry.split.primary()) else { return BTreeSet::new() };
        let service = ObjectId::new(&id.namespace, &primary.service);
        let endpoints = self.endpoints.get(&service).into_iter().flatten();
        let place = |endpoint: &EndpointFacts| endpoint.node.clone().unwrap_or_else(|| endpoint.identity.clone());
        endpoints.map(place).collect()
    }

    fn sight(&self, now: Time) -> Sight<'_> {
        Sight { evidence: &self.evidence, agents: &self.agents, config: &self.config, now }
    }

    /// The health of every backend of a split, in its order.
    fn health(&self, id: &ObjectId, now: Time) -> Option<Vec<Health>> {
        let entry = self.splits.get(id)?;
        let primary = entry.split.primary();
        let failed = entry.backends.get(primary).map(|links| self.failed_ports(links, now)).unwrap_or_default();
        let none = BTreeSet::new();
        let needed = |index: usize| if index == primary { &none } else { &failed };
        let health = |(index, links)| self.backend_health(links, needed(index), now);
        Some(entry.backends.iter().enumerate().map(health).collect())
    }

    fn failed_ports(&self, links: &BackendLinks, now: Time) -> BTreeSet<u16> {
        let sight = self.sight(now);
        let fails = |id| self.targets.get(id).is_some_and(|target| is_condemned(target.verdict(sight)));
        links.ports.iter().zip(&links.targets).filter(|(_, id)| fails(id)).map(|(port, _)| *port).collect()
    }

    /// `needed`: the ports that have to answer for it to be healthy; where it has none of them, all that ever did.
    fn backend_health(&self, links: &BackendLinks, needed: &BTreeSet<u16>, now: Time) -> Health {
        let sight = self.sight(now);
        let of_ports = |holds: &dyn Fn(u16, &Target) -> bool| -> Vec<&Target> {
            let targets = links.ports.iter().zip(&links.targets);
            let found = targets.filter_map(|(port, id)| Some((*port, self.targets.get(id)?)));
            found.filter(|(port, target)| holds(*port, target)).map(|(_, target)| target).collect()
        };
        // A port that a Service declares and nobody serves says nothing, however often somebody tries it.
        let served = of_ports(&|_, target| target.was_healthy());
        let targets = if served.is_empty() { of_ports(&|_, _| true) } else { served };
        let deciding = of_ports(&|port, _| needed.contains(&port));
        let deciding = if deciding.is_empty() { &targets } else { &deciding };
        let all = |holds: &dyn Fn(&Target) -> bool| !targets.is_empty() && targets.iter().all(|target| holds(target));
        let any = |holds: &dyn Fn(&Target) -> bool| targets.iter().any(|target| holds(target));
        Health {
            ready: links.ready > 0,
            verdict: verdict_of_ports(&targets, sight),
            healthy: !deciding.is_empty() && deciding.iter().all(|target| target.is_healthy(sight)),
            suspect: any(&|target| target.is_suspect() || target.refusing_proxies(sight) > 0),
            watched: self.agents.nodes().any(|node| self.agents.can_check(node, &self.config, now)),
            recovered: all(&|target| target.has_recovered(sight)),
            fails_probation: any(&|target| target.fails_probation(false, sight)),
            fails_probation_alone: any(&|target| target.fails_probation(true, sight)),
            was_healthy: any(&Target::was_healthy),
        }
    }

    fn mark_wanted(&mut self, id: &ObjectId) {
        let Some(entry) = self.splits.get(id) else { return };
        let targets: BTreeSet<TargetId> =
            entry.backends.iter().flat_map(|links| links.targets.iter().copied()).collect();
        for target in targets {
            let wants = |split: &ObjectId| {
                let entry = self.splits.get(split);
                entry.is_some_and(|entry| {
                    entry
                        .backends
                        .iter()
                        .enumerate()
                        .any(|(index, links)| links.targets.contains(&target) && entry.split.wants(index))
                })
            };
            let wanted = self.users.get(&target).into_iter().flatten().any(wants);
            if let Some(target) = self.targets.get_mut(&target) {
                target.set_wanted(wanted);
            }
        }
    }

    /// Publishes what changed in the backends' health since it was last published.
    fn tell_health(&mut self, id: &ObjectId, health: &[Health], now: Time) {
        let Some(entry) = self.splits.get_mut(id) else { return };
        let mut kinds = Vec::new();
        let decides_alone = entry.split.facts().single_node;
        for (backend, health) in entry.split.facts().backends.iter().zip(health) {
            let told = entry.told.entry(backend.service.clone()).or_default();
            let backend = backend.service.clone();
            if told.suspect != health.suspect {
                told.suspect = health.suspect;
                let cleared = TransitionKind::Cleared { backend: backend.clone() };
                kinds.push(if health.suspect { TransitionKind::Suspect { backend: backend.clone() } } else { cleared });
            }
            match health.verdict {
                Verdict::Condemned { episode, grounds } if !told.condemned => {
                    told.condemned = true;
                    kinds.push(TransitionKind::Condemned { backend, episode, grounds });
                }
                Verdict::Unobserved { alone: Some(episode), .. } if decides_alone && !told.condemned => {
                    told.condemned = true;
                    kinds.push(TransitionKind::Condemned { backend, episode, grounds: Grounds::SingleNode });
                }
                Verdict::Condemned { .. } | Verdict::Suspect | Verdict::Unobserved { .. } => {}
                Verdict::Clear => told.condemned = false,
            }
        }
        for kind in kinds {
            self.tell(now, Some(id), kind);
        }
    }

    /// A held decision: always a transition, and an Event where an operator can do something about it.
    fn tell_held(&mut self, id: &ObjectId, guard: Guard, now: Time) {
        let Some(entry) = self.splits.get_mut(id) else { return };
        let Some(backend) =
            entry.split.facts().backends.get(entry.split.primary()).map(|backend| backend.service.clone())
        else {
            return;
        };
        // What passes by itself within a moment is nobody's to look at.
        let passes = matches!(guard, Guard::NotWarm | Guard::WritePending);
        let is_news = entry.noticed.replace(guard) != Some(guard) && !passes;
        let stand = if entry.split.is_failed() { "off" } else { "on" };
        self.tell(now, Some(id), TransitionKind::Held { backend: backend.clone(), guard });
        if is_news {
            let note = format!("trafficsplit/{} stays {stand} {backend}, which fails: {}", id.name, guard.sentence());
            self.outputs.push_back(Output::Notice { split: id.clone(), reason: NoticeReason::Held, note });
        }
    }

    fn tell(&mut self, at: Time, split: Option<&ObjectId>, kind: TransitionKind) {
        self.outputs.push_back(Output::Transition(Transition { at, split: split.cloned(), kind }));
    }

    /// Why a split stands as it stands.
    #[must_use]
    pub fn explain(&self, split: &ObjectId, now: Time) -> Option<Explanation> {
        if let (Some(fault), None) = (self.invalid.get(split), self.splits.get(split)) {
            return Some(Explanation { state: "invalid", fault: Some(fault.clone()), ..Explanation::default() });
        }
        let entry = self.splits.get(split)?;
        let facts = entry.split.facts();
        let (failovers, dwell_left) = entry.split.dwell(now);
        let backends = facts.backends.iter().zip(&entry.backends);
        Some(Explanation {
            state: entry.split.state_name(),
            primary: facts
                .backends
                .get(entry.split.primary())
                .map(|backend| backend.service.clone())
                .unwrap_or_default(),
            guard: entry.split.held(),
            fault: entry.split.fault().cloned(),
            failovers,
            dwell_left,
            backends: backends
                .map(|(backend, links)| self.explain_backend(&backend.service, backend.weight, links, now))
                .collect(),
        })
    }

    fn abstaining(&self, targets: &[&Target], sight: Sight<'_>) -> Vec<String> {
        let observers: BTreeSet<NodeId> = targets.iter().flat_map(|target| target.observers(sight)).collect();
        let able = self.agents.nodes().filter(|node| self.agents.can_check(*node, &self.config, sight.now));
        able.filter(|node| !observers.contains(node)).map(|node| self.agents.name(node).to_owned()).collect()
    }

    fn explain_backend(&self, service: &str, weight: Weight, links: &BackendLinks, now: Time) -> BackendExplanation {
        let sight = self.sight(now);
        let targets: Vec<&Target> = links.targets.iter().filter_map(|id| self.targets.get(id)).collect();
        let weighed: Vec<_> = targets.iter().map(|target| target.weigh(sight)).collect();
        let mut nodes: BTreeMap<String, BTreeMap<Destination, u64>> = BTreeMap::new();
        for to in targets.iter().flat_map(|target| target.destinations()) {
            for (node, stream) in self.evidence.nodes(&to).filter(|(_, stream)| stream.sum(now) > 0) {
                nodes.entry(self.agents.name(node).to_owned()).or_default().insert(to, stream.sum(now));
            }
        }
        BackendExplanation {
            service: service.to_owned(),
            weight,
            health: health_name(&self.backend_health(links, &BTreeSet::new(), now)),
            ready: links.ready,
            failing: weighed.iter().map(|weighed| weighed.failing.len()).max().unwrap_or(0),
            evidence: weighed.iter().map(|weighed| weighed.total).max().unwrap_or(0),
            nodes,
            observers: targets.iter().map(|target| target.observers(sight).count()).min().unwrap_or(0),
            abstaining: self.abstaining(&targets, sight),
            meshed: targets.iter().map(|target| target.meshed(sight)).max().unwrap_or(0),
            refusing_proxies: targets.iter().map(|target| target.refusing_proxies(sight)).max().unwrap_or(0),
            last_success: targets.iter().filter_map(|target| target.last_success()).max().map(|at| now.since(at)),
        }
    }
}

/// A backend is as dead as the ports that carried more than half of the last minute's attempts; without attempts, as
/// more than half of its ports.
fn verdict_of_ports(targets: &[&Target], sight: Sight<'_>) -> Verdict {
    let verdicts: Vec<(u64, Verdict)> =
        targets.iter().zip(shares(targets, sight.now)).map(|(target, share)| (share, target.verdict(sight))).collect();
    let idle = verdicts.iter().all(|(attempts, _)| *attempts == 0);
    let share = |holds: &dyn Fn(&Verdict) -> bool| -> u64 {
        verdicts
            .iter()
            .filter(|(_, verdict)| holds(verdict))
            .map(|(attempts, _)| if idle { 1 } else { *attempts })
            .sum()
    };
    let all = share(&|_| true);
    if share(&|verdict| is_condemned(*verdict)) * 2 > all {
        let condemned = verdicts.iter().filter_map(|(_, verdict)| match verdict {
            Verdict::Condemned { episode, grounds } => Some((*episode, *grounds)),
            Verdict::Clear | Verdict::Suspect | Verdict::Unobserved { .. } => None,
        });
        let (episode, grounds) = condemned.min().expect("more than half are");
        return Verdict::Condemned { episode, grounds };
    }
    let unobserved = verdicts.iter().find(|(_, verdict)| matches!(verdict, Verdict::Unobserved { .. }));
    if let Some((_, Verdict::Unobserved { guard, .. })) = unobserved
        && share(&|verdict| matches!(verdict, Verdict::Condemned { .. } | Verdict::Unobserved { .. })) * 2 > all
    {
        let since = |verdict: &Verdict| match verdict {
            Verdict::Condemned { episode, .. } | Verdict::Unobserved { alone: Some(episode), .. } => Some(*episode),
            Verdict::Unobserved { alone: None, .. } | Verdict::Suspect | Verdict::Clear => None,
        };
        let is_decided = share(&|verdict| since(verdict).is_some()) * 2 > all;
        let alone = verdicts.iter().filter_map(|(_, verdict)| since(verdict)).min().filter(|_| is_decided);
        return Verdict::Unobserved { guard: *guard, alone };
    }
    if verdicts.iter().all(|(_, verdict)| *verdict == Verdict::Clear) { Verdict::Clear } else { Verdict::Suspect }
}

/// What each port carried within the last minute. One node counts at most as much as all others together, where there
/// are others: a retry loop, or a lie, makes no port the one that matters.
fn shares(targets: &[&Target], now: Time) -> Vec<u64> {
    let mut nodes: BTreeMap<NodeId, u128> = BTreeMap::new();
    for (node, attempts) in targets.iter().flat_map(|target| target.attempts_by_node(now)) {
        *nodes.entry(node).or_default() += u128::from(attempts);
    }
    let all: u128 = nodes.values().sum();
    let capped = |(node, attempts): (NodeId, u64)| {
        let of_node = nodes.get(&node).copied().unwrap_or(0);
        let others = all - of_node;
        let cap = if others == 0 { of_node } else { of_node.min(others) };
        u64::try_from(u128::from(attempts) * cap / of_node.max(1)).unwrap_or(u64::MAX)
    };
    targets.iter().map(|target| target.attempts_by_node(now).map(capped).sum()).collect()
}

const fn is_condemned(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Condemned { .. })
}

const fn health_name(health: &Health) -> &'static str {
    match health.verdict {
        _ if !health.ready => "unready",
        Verdict::Condemned { .. } => "condemned",
        _ if health.suspect => "suspect",
        Verdict::Clear | Verdict::Suspect | Verdict::Unobserved { .. } => {
            if health.healthy {
                "healthy"
            } else {
                "unknown"
            }
        }
    }
}

fn not_applied(write: WriteId, error: &str) -> TransitionKind {
    TransitionKind::NotApplied { write, error: error.to_owned() }
}

/// The texts that linkerd-failover uses; none for a step of a ramp.
fn event_note(name: &str, direction: Direction) -> Option<String> {
    match direction {
        Direction::Failover | Direction::Spread => Some(format!("trafficsplit/{name} failing over to fallbacks")),
        Direction::Ramp => None,
        Direction::Failback => Some(format!("trafficsplit/{name} switching traffic to primary")),
    }
}
