//! A small cluster in virtual time around a real [`Core`]: nodes with agents that count, check and report as agents do,
//! endpoints that answer as a test says, an API server that takes writes. Ticks of one millisecond, no randomness but a
//! seeded generator.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use controller_core::facts::{BackendFacts, EndpointFacts, ObjectId, Record, ServiceFacts, ServicePort, SplitFacts};
use controller_core::input::WriteOutcome;
use controller_core::output::{Transition, TransitionKind, Write};
use controller_core::weights::Weight;
use controller_core::{Config, Core, Input, Output, Time};
use probe_common::cause::FailureCause;
use probe_common::wire::{
    AgentFrame, CheckOutcome, CheckRequest, CheckResult, CheckResults, ControllerFrame, Destination, First, Hello,
    Meshed, Report, Row, Totals,
};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const PORT: u16 = 8080;

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Established,
    Refused,
    Nothing,
}

/// What a node's attempt at a destination meets, at a millisecond.
pub(crate) type World = Box<dyn Fn(&str, Destination, u64, &mut Lots) -> Answer>;

/// A seeded generator (xorshift64*).
#[derive(Clone, Debug)]
pub(crate) struct Lots(pub u64);

impl Lots {
    pub(crate) fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}

struct Node {
    name: String,
    clients: u32,
    stream: u64,
    seq: u64,
    alive: bool,
    /// By destination, and whether they are self-hops.
    rows: BTreeMap<(Destination, bool), Row>,
    outstanding: Vec<(u64, Destination)>,
    last_report: u64,
    checks: Vec<(u64, CheckRequest)>,
}

pub(crate) struct Cluster {
    pub(crate) core: Core,
    pub(crate) now_ms: u64,
    pub(crate) rate: u64,
    pub(crate) world: World,
    /// What checks meet, where that is not what connections meet.
    pub(crate) world_of_checks: Option<World>,
    pub(crate) lots: Lots,
    /// Each client node has one client pod instead of two.
    pub(crate) one_client: bool,
    pub(crate) written: Vec<(u64, Write)>,
    pub(crate) transitions: Vec<Transition>,
    pub(crate) notices: Vec<(u64, String)>,
    pub(crate) log: Vec<String>,
    /// What the API server answers to the next writes; applied when empty.
    pub(crate) outcomes: Vec<WriteOutcome>,
    pub(crate) splits: BTreeMap<ObjectId, SplitFacts>,
    pub(crate) endpoints: BTreeMap<ObjectId, Vec<EndpointFacts>>,
    nodes: Vec<Node>,
    version: u64,
}

pub(crate) fn id(name: &str) -> ObjectId {
    ObjectId::new("emojivoto", name)
}

pub(crate) fn mk_endpoint(service: u8, index: u8, node: &str) -> EndpointFacts {
    EndpointFacts {
        identity: format!("pod-{service}-{index}"),
        addresses: vec![[198, 18, service, index].into()],
        ports: BTreeMap::from([("http".to_owned(), PORT)]),
        node: Some(node.to_owned()),
        zone: None,
        ready: true,
    }
}

pub(crate) fn mk_service(last: u8, mirror: bool) -> ServiceFacts {
    ServiceFacts {
        cluster_ips: vec![[203, 0, 113, last].into()],
        ports: vec![ServicePort { name: "http".into(), port: PORT, app_protocol: None }],
        mirror,
    }
}

pub(crate) fn mk_split(weights: &[(&str, u32)]) -> SplitFacts {
    SplitFacts {
        uid: "uid-1".into(),
        resource_version: "1".into(),
        generation: 1,
        service: "emoji-svc".into(),
        backends: weights
            .iter()
            .map(|(name, weight)| BackendFacts { service: (*name).into(), weight: Weight::whole(*weight) })
            .collect(),
        primary: None,
        port: None,
        single_node: false,
        check_all_ports: false,
        record: None,
    }
}

/// What a layout is made of.
pub(crate) struct Layout {
    pub(crate) client_nodes: u8,
    pub(crate) backend_nodes: u8,
    pub(crate) endpoints: u8,
    pub(crate) rate: u64,
    pub(crate) config: Config,
}

impl Default for Layout {
    fn default() -> Self {
        Self { client_nodes: 3, backend_nodes: 3, endpoints: 6, rate: 1000, config: Config::default() }
    }
}

impl Cluster {
    /// The standard shape: emoji-svc here, emoji-svc-west behind a gateway, traffic to the primary.
    pub(crate) fn new(layout: Layout) -> Self {
        let mut cluster = Self::without_objects(&layout);
        let node = |index: u8| match (layout.backend_nodes, layout.client_nodes) {
            // Small clusters have no nodes of their own for backends.
            (0, clients) => format!("client-{}", index % clients.max(1)),
            (backends, _) => format!("backend-{}", index % backends),
        };
        let primary = (0..layout.endpoints).map(|index| mk_endpoint(1, index + 1, &node(index))).collect();
        let gateway = EndpointFacts {
            identity: "198.51.100.7".into(),
            addresses: vec![[198, 51, 100, 7].into()],
            node: None,
            ..mk_endpoint(9, 1, "")
        };
        cluster.input(Input::Service(id("emoji-svc"), mk_service(1, false)));
        cluster.input(Input::Service(id("emoji-svc-west"), mk_service(2, true)));
        cluster.set_endpoints("emoji-svc", primary);
        cluster.set_endpoints("emoji-svc-west", vec![gateway]);
        cluster.set_split("emoji-svc", mk_split(&[("emoji-svc", 1), ("emoji-svc-west", 0)]));
        cluster
    }

    pub(crate) fn without_objects(layout: &Layout) -> Self {
        let mk = |name: String, clients| Node {
            name,
            clients,
            stream: 1,
            seq: 0,
            alive: true,
            rows: BTreeMap::new(),
            outstanding: Vec::new(),
            last_report: 0,
            checks: Vec::new(),
        };
        let clients = (0..layout.client_nodes).map(|index| mk(format!("client-{index}"), 2));
        let backends = (0..layout.backend_nodes).map(|index| mk(format!("backend-{index}"), 0));
        Self {
            core: Core::new(layout.config.clone()),
            now_ms: 1_000,
            rate: layout.rate,
            world: Box::new(|_, _, _, _| Answer::Established),
            world_of_checks: None,
            lots: Lots(0x5eed),
            one_client: false,
            written: Vec::new(),
            transitions: Vec::new(),
            notices: Vec::new(),
            log: Vec::new(),
            outcomes: Vec::new(),
            splits: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            nodes: clients.chain(backends).collect(),
            version: 1,
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time(self.now_ms * MS)
    }

    /// Caches complete, agents connected, two seconds of healthy traffic.
    pub(crate) fn warm_up(mut self) -> Self {
        if self.one_client {
            for node in self.nodes.iter_mut().filter(|node| node.clients > 0) {
                node.clients = 1;
            }
        }
        self.connect_agents();
        self.input(Input::CachesComplete);
        self.run(2_500);
        self
    }

    pub(crate) fn connect_agents(&mut self) {
        let names: BTreeSet<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        self.input(Input::ExpectedAgents(names));
        for index in 0..self.nodes.len() {
            self.connect(index, 7);
        }
    }

    fn connect(&mut self, index: usize, incarnation: u64) {
        let (node, stream) = (self.nodes[index].name.clone(), self.nodes[index].stream);
        let hello =
            Hello { node: node.clone(), incarnation, version: String::new(), now_ns: self.now_ms * MS, blind: None };
        self.input(Input::Agent { node: node.clone(), stream, frame: AgentFrame::Hello(hello) });
        let totals = Totals { now_ns: self.now_ms * MS, complete: true, rows: Vec::new() };
        self.input(Input::Agent { node, stream, frame: AgentFrame::Totals(totals) });
    }

    pub(crate) fn set_agent_alive(&mut self, name: &str, alive: bool) {
        for node in self.nodes.iter_mut().filter(|node| node.name == name || name == "*") {
            node.alive = alive;
        }
    }

    pub(crate) fn restart_controller(&mut self, config: Config) {
        self.core = Core::new(config);
        for (service, endpoints) in self.endpoints.clone() {
            self.input(Input::Endpoints(service, endpoints));
        }
        self.input(Input::Service(id("emoji-svc"), mk_service(1, false)));
        self.input(Input::Service(id("emoji-svc-west"), mk_service(2, true)));
        for (split, facts) in self.splits.clone() {
            self.input(Input::Split(split, facts));
        }
        for node in &mut self.nodes {
            node.stream += 1;
        }
        self.connect_agents();
        self.input(Input::CachesComplete);
    }

    pub(crate) fn set_split(&mut self, name: &str, mut facts: SplitFacts) {
        self.version += 1;
        facts.resource_version = self.version.to_string();
        self.splits.insert(id(name), facts.clone());
        self.input(Input::Split(id(name), facts));
    }

    pub(crate) fn set_endpoints(&mut self, service: &str, endpoints: Vec<EndpointFacts>) {
        self.endpoints.insert(id(service), endpoints.clone());
        self.input(Input::Endpoints(id(service), endpoints));
    }

    pub(crate) fn set_ready(&mut self, service: &str, ready: bool) {
        let mut endpoints = self.endpoints[&id(service)].clone();
        for endpoint in &mut endpoints {
            endpoint.ready = ready;
        }
        self.set_endpoints(service, endpoints);
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.core.handle(input, self.now());
        self.drain();
    }

    /// Runs so many milliseconds.
    pub(crate) fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now_ms += 1;
            self.tick();
            while self.core.deadline().is_some_and(|at| at <= self.now()) {
                self.core.handle_timeout(self.now());
                self.drain();
            }
        }
    }

    /// Runs until something was written, at most so long; how long it took.
    pub(crate) fn run_until_written(&mut self, at_most_ms: u64) -> Option<u64> {
        let (from, writes) = (self.now_ms, self.written.len());
        while self.written.len() == writes {
            if self.now_ms - from >= at_most_ms {
                return None;
            }
            self.run(1);
        }
        Some(self.now_ms - from)
    }

    fn tick(&mut self) {
        let now_ms = self.now_ms;
        for index in 0..self.nodes.len() {
            let client_nodes = self.nodes.iter().filter(|node| node.clients > 0).count() as u64;
            if self.nodes[index].clients > 0
                && self.lots.below(1000 * client_nodes) < self.rate
                && let Some(to) = self.dialled()
            {
                attempt(&mut self.nodes[index], to, now_ms, &self.world, &mut self.lots);
            }
            let node = &mut self.nodes[index];
            settle_late(node, now_ms);
            let failing = node.rows.values().any(|row| row.failed() > 0);
            let due = now_ms - node.last_report >= if failing { 5 } else { 100 };
            if node.alive && due {
                node.last_report = now_ms;
                node.seq += 1;
                let read = |row: Row| Row { established_ns: row.established_ns.map(|at| at.min(now_ms * MS)), ..row };
                let rows = std::mem::take(&mut node.rows).into_values().map(read).collect();
                let report = Report { seq: node.seq, now_ns: now_ms * MS, rows, ..Report::default() };
                let (name, stream) = (node.name.clone(), node.stream);
                self.input(Input::Agent { node: name, stream, frame: AgentFrame::Report(report) });
            }
            self.answer_checks(index);
        }
    }

    /// One attempt of a client on `node`, beside the load.
    pub(crate) fn dial(&mut self, node: &str, to: Destination) {
        let node = self.nodes.iter_mut().find(|other| other.name == node).expect("a node that exists");
        attempt(node, to, self.now_ms, &self.world, &mut self.lots);
    }

    /// The mesh's proxy of an endpoint on `node` dials its application.
    pub(crate) fn self_hop(&mut self, node: &str, to: Destination, refused: bool) {
        let now_ms = self.now_ms;
        let node = self.nodes.iter_mut().find(|other| other.name == node).expect("a node that exists");
        let row = node
            .rows
            .entry((to, true))
            .or_insert_with(|| Row { self_hop: true, ..Row::empty(to, now_ms * MS, now_ms * MS) });
        row.attempts += 1;
        row.to_ns = now_ms * MS;
        if refused {
            row.refused += 1;
            row.clients = 1;
            row.first.get_or_insert(First { started_ns: now_ms * MS, failed_ns: now_ms * MS });
        } else {
            row.established += 1;
        }
    }

    /// The application takes the dial of its proxy, and resets it before it answers.
    pub(crate) fn self_hop_reset(&mut self, node: &str, to: Destination) {
        self.self_hop(node, to, false);
        let now_ms = self.now_ms;
        let node = self.nodes.iter_mut().find(|other| other.name == node).expect("a node that exists");
        let row = node.rows.get_mut(&(to, true)).expect("dialled just now");
        row.reset += 1;
        row.clients = 1;
        row.first.get_or_insert(First { started_ns: now_ms * MS, failed_ns: now_ms * MS });
    }

    /// A node's agent says which endpoints on it are meshed.
    pub(crate) fn say_meshed(&mut self, node: &str, endpoints: &[Destination]) {
        let endpoints = endpoints.iter().map(Destination::ip).collect();
        let frame = AgentFrame::Meshed(Meshed { now_ns: self.now_ms * MS, endpoints });
        let stream = self.nodes.iter().find(|other| other.name == node).expect("a node that exists").stream;
        self.input(Input::Agent { node: node.into(), stream, frame });
    }

    /// What a client dials: a backend by weight, then one of its ready endpoints.
    fn dialled(&mut self) -> Option<Destination> {
        let split = self.splits.values().next()?;
        let sum: u64 = split.backends.iter().map(|backend| backend.weight.milli()).sum();
        let mut lot = self.lots.below(sum);
        let backend = split.backends.iter().find(|backend| match lot.checked_sub(backend.weight.milli()) {
            Some(rest) => {
                lot = rest;
                false
            }
            None => true,
        })?;
        let endpoints = self.endpoints.get(&id(&backend.service))?;
        let ready: Vec<_> = endpoints.iter().filter(|endpoint| endpoint.ready).collect();
        let endpoint = ready.get(self.lots.below(ready.len().max(1) as u64) as usize)?;
        Some(Destination::new(endpoint.addresses[0], PORT))
    }

    fn answer_checks(&mut self, index: usize) {
        let now_ms = self.now_ms;
        let mut results = Vec::new();
        let node = &mut self.nodes[index];
        for (asked, request) in std::mem::take(&mut node.checks) {
            let mut left = request.clone();
            left.targets.retain(|target| {
                let world = self.world_of_checks.as_ref().unwrap_or(&self.world);
                let answer = world(&node.name, target.to, asked, &mut self.lots);
                let takes = if answer == Answer::Nothing { u64::from(target.timeout_ms) } else { 1 };
                let ended = now_ms >= asked + takes;
                if ended {
                    let outcome = match answer {
                        Answer::Established => CheckOutcome::Passed,
                        Answer::Refused => CheckOutcome::Failed(FailureCause::Refused),
                        Answer::Nothing => CheckOutcome::Failed(FailureCause::NoAnswer),
                    };
                    results.push(CheckResult {
                        id: request.id,
                        to: target.to,
                        started_ns: asked * MS,
                        ended_ns: now_ms * MS,
                        outcome,
                    });
                }
                !ended
            });
            if !left.targets.is_empty() {
                node.checks.push((asked, left));
            }
        }
        if node.alive && !results.is_empty() {
            let (name, stream) = (node.name.clone(), node.stream);
            self.input(Input::Agent {
                node: name,
                stream,
                frame: AgentFrame::CheckResults(CheckResults { now_ns: now_ms * MS, results }),
            });
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll() {
            self.log.push(format!("{} {output:?}", self.now_ms));
            match output {
                Output::Write(write) => self.take_write(write),
                Output::Send { node, frame: ControllerFrame::Checks(request), .. } => {
                    let now_ms = self.now_ms;
                    let node =
                        self.nodes.iter_mut().find(|other| other.name == node).expect("asked a node that exists");
                    node.checks.push((now_ms, request));
                }
                Output::Send { .. } => {}
                Output::Notice { note, .. } => self.notices.push((self.now_ms, note)),
                Output::Transition(transition) => self.transitions.push(transition),
            }
        }
    }

    fn take_write(&mut self, write: Write) {
        let facts = self.splits.get_mut(&write.split).expect("writes name splits that exist");
        let names: Vec<_> = facts.backends.iter().map(|backend| backend.service.clone()).collect();
        let written: Vec<_> = write.weights.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, written, "only the backends that the object names, in its order");
        assert!(write.weights.iter().any(|(_, weight)| !weight.is_zero()), "all zeros");
        self.written.push((self.now_ms, write.clone()));
        let outcome = if self.outcomes.is_empty() {
            assert_eq!(facts.resource_version, write.resource_version, "the guard would hold here");
            self.version += 1;
            facts.resource_version = self.version.to_string();
            facts.record = write.record.clone();
            for (backend, (_, weight)) in facts.backends.iter_mut().zip(&write.weights) {
                backend.weight = *weight;
            }
            WriteOutcome::Applied {
                acknowledged: Time(self.now_ms * MS),
                resource_version: facts.resource_version.clone(),
            }
        } else {
            self.outcomes.remove(0)
        };
        let (split, facts) = (write.split.clone(), facts.clone());
        self.core.handle(Input::WriteDone { id: write.id, outcome }, self.now());
        self.core.handle(Input::Split(split, facts), self.now());
    }

    /// The weights that the API server holds.
    pub(crate) fn weights(&self) -> Vec<u64> {
        self.splits[&id("emoji-svc")].backends.iter().map(|backend| backend.weight.milli() / 1000).collect()
    }

    pub(crate) fn record(&self) -> Option<&Record> {
        self.splits[&id("emoji-svc")].record.as_ref()
    }

    pub(crate) fn held(&self) -> Vec<&'static str> {
        let mut held = Vec::new();
        for transition in &self.transitions {
            if let TransitionKind::Held { guard, .. } = &transition.kind {
                held.push(guard.as_str());
            }
        }
        held
    }

    pub(crate) fn span(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }
}

fn attempt(node: &mut Node, to: Destination, now_ms: u64, world: &World, lots: &mut Lots) {
    let answer = world(&node.name, to, now_ms, lots);
    let row = node.rows.entry((to, false)).or_insert_with(|| Row::empty(to, now_ms * MS, now_ms * MS));
    row.attempts += 1;
    row.to_ns = now_ms * MS;
    match answer {
        Answer::Established => {
            row.established += 1;
            // Agents read every 20 ms while nothing fails: an answer is known to have been there by the next read.
            row.established_ns = Some((now_ms / 20 + 1) * 20 * MS);
        }
        Answer::Refused => {
            row.refused += 1;
            row.clients = node.clients;
            row.first.get_or_insert(First { started_ns: now_ms * MS, failed_ns: now_ms * MS });
        }
        Answer::Nothing => node.outstanding.push((now_ms, to)),
    }
}

fn settle_late(node: &mut Node, now_ms: u64) {
    const LATE_MS: u64 = 33;
    let clients = node.clients;
    let rows = &mut node.rows;
    node.outstanding.retain(|(started, to)| {
        if now_ms < started + LATE_MS {
            return true;
        }
        let row = rows.entry((*to, false)).or_insert_with(|| Row::empty(*to, now_ms * MS, now_ms * MS));
        row.late += 1;
        row.clients = clients;
        row.first.get_or_insert(First { started_ns: started * MS, failed_ns: now_ms * MS });
        false
    });
}

/// The primary's endpoints.
pub(crate) fn is_primary(to: Destination) -> bool {
    matches!(to.ip(), std::net::IpAddr::V4(address) if address.octets()[..3] == [198, 18, 1])
}
