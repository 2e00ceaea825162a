//! Agents: who reports, how fresh, how much their evidence weighs. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use probe_common::wire::{Hello, MESHED_FOR_NS, MESHED_LIMIT};

use crate::Config;
use crate::output::Freshness;
use crate::time::Time;

/// A node's number: evidence is kept per node, and a number is cheaper than a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

/// The weight of a fresh agent's evidence; less while its silence grows.
pub const FULL_WEIGHT: u64 = 200;

/// How long a (re)started agent's node is unknown: its first reads have no read before them.
const UNKNOWN_FOR: Duration = Duration::from_millis(300);

/// An agent that was fresh within this span belongs to the set of which more than half must be fresh.
const MEMBER_FOR: Duration = Duration::from_secs(600);

/// How long the totals of expected agents are waited for after the first agent's.
const TOTALS_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Agent {
    stream: Option<u64>,
    incarnation: u64,
    blind: Option<String>,
    known_from: Time,
    last_report: Option<Time>,
    last_fresh: Option<Time>,
    totals_complete: bool,
    told: Freshness,
    /// Endpoints that it says stand behind a mesh's proxy; believed of those on its own node.
    meshed: BTreeSet<IpAddr>,
}

/// Every agent that ever said Hello.
#[derive(Debug, Default)]
pub struct Agents {
    ids: BTreeMap<String, NodeId>,
    names: BTreeMap<NodeId, String>,
    next: u32,
    agents: BTreeMap<NodeId, Agent>,
    expected: BTreeSet<String>,
    first_totals: Option<Time>,
}

/// What a Hello means for what is known of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// The same agent on a new stream: its counters went on.
    Continues(NodeId),
    /// A new or restarted agent: its counters begin anew.
    BeginsAnew(NodeId),
}

impl Agents {
    /// A stream's first frame. A stream number below the node's newest is a late word of the dead: `None`.
    pub fn on_hello(&mut self, node: &str, stream: u64, hello: &Hello, now: Time) -> Option<Welcome> {
        let id = self.intern(node);
        let agent = self.agents.entry(id).or_insert_with(|| Agent {
            stream: None,
            incarnation: hello.incarnation.wrapping_add(1),
            blind: None,
            known_from: now,
            last_report: None,
            last_fresh: None,
            totals_complete: false,
            told: Freshness::Stale,
            meshed: BTreeSet::new(),
        });
        if agent.stream.is_some_and(|current| current > stream) {
            return None;
        }
        agent.stream = Some(stream);
        agent.blind.clone_from(&hello.blind);
        agent.last_report = Some(now);
        if agent.incarnation == hello.incarnation {
            return Some(Welcome::Continues(id));
        }
        agent.incarnation = hello.incarnation;
        agent.known_from = now + UNKNOWN_FOR;
        agent.totals_complete = false;
        Some(Welcome::BeginsAnew(id))
    }

    /// A stream ended. Its node turns stale by its silence, not at once: it may be reconnecting.
    pub fn on_gone(&mut self, node: &str, stream: u64) {
        if let Some(agent) = self.ids.get(node).and_then(|id| self.agents.get_mut(id))
            && agent.stream == Some(stream)
        {
            agent.stream = None;
        }
    }

    /// A report arrived. `None` when it is not from the node's current stream.
    pub fn on_report(&mut self, node: &str, stream: u64, blind: Option<&String>, now: Time) -> Option<NodeId> {
        let id = self.current(node, stream)?;
        let agent = self.agents.get_mut(&id).expect("current() found it");
        agent.blind = blind.cloned();
        agent.last_report = Some(now);
        Some(id)
    }

    /// An agent says which endpoints on its node are meshed, in place of what it said before.
    pub fn on_meshed(&mut self, node: NodeId, endpoints: &[IpAddr]) {
        if let Some(agent) = self.agents.get_mut(&node) {
            agent.meshed = endpoints.iter().take(MESHED_LIMIT).copied().collect();
        }
    }

    /// Whether the agent of that node says so of that address, and was heard within the time for which it holds.
    #[must_use]
    pub fn says_meshed(&self, node: &str, address: IpAddr, now: Time) -> bool {
        let Some(agent) = self.ids.get(node).and_then(|id| self.agents.get(id)) else { return false };
        let heard = agent.last_report.is_some_and(|at| now.since(at) <= Duration::from_nanos(MESHED_FOR_NS));
        heard && agent.meshed.contains(&address)
    }

    /// The last frame of an agent's totals arrived.
    pub fn on_totals_complete(&mut self, node: NodeId, now: Time) {
        if let Some(agent) = self.agents.get_mut(&node) {
            agent.totals_complete = true;
            self.first_totals.get_or_insert(now);
        }
    }

    /// The nodes that the agents' headless Service names.
    pub fn on_expected(&mut self, expected: BTreeSet<String>) {
        self.expected = expected;
    }

    /// The node, if `stream` is its current one.
    #[must_use]
    pub fn current(&self, node: &str, stream: u64) -> Option<NodeId> {
        let id = *self.ids.get(node)?;
        (self.agents.get(&id)?.stream == Some(stream)).then_some(id)
    }

    /// What an agent's evidence is worth.
    #[must_use]
    pub fn freshness(&self, node: NodeId, config: &Config, now: Time) -> Freshness {
        let Some(agent) = self.agents.get(&node) else { return Freshness::Unknown };
        match agent.last_report {
            _ if agent.blind.is_some() => Freshness::Blind,
            None => Freshness::Stale,
            Some(at) if now.since(at) > config.stale_after => Freshness::Stale,
            Some(_) if now < agent.known_from => Freshness::Unknown,
            Some(_) => Freshness::Fresh,
        }
    }

    /// How much a node's evidence weighs, of [`FULL_WEIGHT`]: falling from `decay_from` to nothing at `stale_after`.
    #[must_use]
    pub fn weight(&self, node: NodeId, config: &Config, now: Time) -> u64 {
        if self.freshness(node, config, now) != Freshness::Fresh {
            return 0;
        }
        let silence = self.silence(node, now);
        let (from, to) = (config.decay_from.as_micros(), config.stale_after.as_micros());
        let silence = silence.as_micros();
        if silence <= from || to <= from {
            return FULL_WEIGHT;
        }
        u64::try_from(to.saturating_sub(silence) * u128::from(FULL_WEIGHT) / (to - from)).expect("at most FULL_WEIGHT")
    }

    /// How long ago an agent reported last.
    #[must_use]
    pub fn silence(&self, node: NodeId, now: Time) -> Duration {
        self.agents.get(&node).and_then(|agent| agent.last_report).map_or(Duration::MAX, |at| now.since(at))
    }

    /// Whether an agent takes frames: it has a stream and is not stale. A blind agent still makes checks.
    #[must_use]
    pub fn can_check(&self, node: NodeId, config: &Config, now: Time) -> bool {
        match self.freshness(node, config, now) {
            Freshness::Fresh | Freshness::Blind | Freshness::Unknown => self.stream(node).is_some(),
            Freshness::Stale => false,
        }
    }

    /// The number of a node of that name.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<NodeId> {
        self.ids.get(name).copied()
    }

    /// A node's current stream.
    #[must_use]
    pub fn stream(&self, node: NodeId) -> Option<u64> {
        self.agents.get(&node)?.stream
    }

    /// Its name; empty for one that is forgotten.
    #[must_use]
    pub fn name(&self, node: NodeId) -> &str {
        self.names.get(&node).map_or("", String::as_str)
    }

    /// Every node whose agent ever said Hello.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.agents.keys().copied()
    }

    /// Whether more than half of the agents are fresh: of those that were fresh lately, or that are expected. Two
    /// disjoint parts of a cluster cannot both have that.
    #[must_use]
    pub fn majority_is_fresh(&self, config: &Config, now: Time) -> bool {
        let fresh = self.nodes().filter(|node| self.freshness(*node, config, now) == Freshness::Fresh).count();
        let members =
            self.agents.iter().filter(|(_, agent)| agent.last_fresh.is_some_and(|at| now.since(at) <= MEMBER_FOR));
        let mut names: BTreeSet<&str> = members.map(|(node, _)| self.name(*node)).collect();
        names.extend(self.expected.iter().map(String::as_str));
        fresh * 2 > names.len()
    }

    /// Whether the history of all expected agents is in, or was waited for long enough.
    #[must_use]
    pub fn are_warm(&self, now: Time) -> bool {
        let Some(first) = self.first_totals else { return false };
        let complete = |name: &String| {
            self.ids.get(name).and_then(|id| self.agents.get(id)).is_some_and(|agent| agent.totals_complete)
        };
        now.since(first) >= TOTALS_GRACE || (!self.expected.is_empty() && self.expected.iter().all(complete))
    }

    /// Forgets agents that are expected no more and were heard so long ago that nothing follows from them; says which.
    pub fn forget_gone(&mut self, now: Time) -> Vec<NodeId> {
        let is_gone = |(node, agent): (&NodeId, &Agent)| {
            let silent = agent.last_report.is_none_or(|at| now.since(at) > MEMBER_FOR);
            let expected = self.names.get(node).is_some_and(|name| self.expected.contains(name));
            (silent && agent.stream.is_none() && !expected).then_some(*node)
        };
        let gone: Vec<NodeId> = self.agents.iter().filter_map(is_gone).collect();
        for node in &gone {
            self.agents.remove(node);
            if let Some(name) = self.names.remove(node) {
                self.ids.remove(&name);
            }
        }
        gone
    }

    /// Moves every agent's freshness along; says which changed.
    pub fn step(&mut self, config: &Config, now: Time) -> Vec<(NodeId, Freshness)> {
        let seen: Vec<_> = self.nodes().map(|node| (node, self.freshness(node, config, now))).collect();
        let mut changed = Vec::new();
        for (node, freshness) in seen {
            let agent = self.agents.get_mut(&node).expect("listed above");
            if freshness == Freshness::Fresh {
                agent.last_fresh = Some(now);
            }
            if agent.told != freshness {
                agent.told = freshness;
                changed.push((node, freshness));
            }
        }
        changed
    }

    fn intern(&mut self, node: &str) -> NodeId {
        if let Some(id) = self.ids.get(node) {
            return *id;
        }
        let id = NodeId(self.next);
        self.next = self.next.checked_add(1).expect("fewer nodes than 2^32 in a controller's life");
        self.names.insert(id, node.to_owned());
        self.ids.insert(node.to_owned(), id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_hello(incarnation: u64) -> Hello {
        Hello { node: "n".into(), incarnation, version: String::new(), now_ns: 0, blind: None }
    }

    fn ms(at: u64) -> Time {
        Time(at * 1_000_000)
    }

    #[test]
    fn weight_falls_with_silence_and_ends_at_stale() {
        let (mut agents, config) = (Agents::default(), Config::default());
        let Some(Welcome::BeginsAnew(node)) = agents.on_hello("n", 1, &mk_hello(7), ms(0)) else { panic!("new agent") };
        agents.on_report("n", 1, None, ms(1000)).expect("current stream");
        let at = |at| agents.weight(node, &config, ms(at));
        assert_eq!((at(1000), at(1150), at(1250), at(1350), at(1400)), (200, 200, 100, 0, 0));
        assert_eq!(agents.freshness(node, &config, ms(1351)), Freshness::Stale);
    }

    #[test]
    fn a_restarted_agent_is_unknown_for_a_while_and_a_reconnected_one_is_not() {
        let (mut agents, config) = (Agents::default(), Config::default());
        let Some(Welcome::BeginsAnew(node)) = agents.on_hello("n", 1, &mk_hello(7), ms(0)) else { panic!("new agent") };
        assert_eq!(agents.freshness(node, &config, ms(299)), Freshness::Unknown);
        assert_eq!(agents.freshness(node, &config, ms(300)), Freshness::Fresh);
        assert_eq!(agents.on_hello("n", 2, &mk_hello(7), ms(400)), Some(Welcome::Continues(node)));
        assert_eq!(agents.freshness(node, &config, ms(400)), Freshness::Fresh);
        assert_eq!(agents.on_hello("n", 3, &mk_hello(8), ms(500)), Some(Welcome::BeginsAnew(node)));
        assert_eq!(agents.freshness(node, &config, ms(500)), Freshness::Unknown);
    }

    #[test]
    fn a_replaced_stream_is_not_heard_any_more() {
        let mut agents = Agents::default();
        agents.on_hello("n", 5, &mk_hello(7), ms(0));
        assert_eq!(agents.on_hello("n", 4, &mk_hello(7), ms(1)), None);
        assert_eq!(agents.on_report("n", 4, None, ms(2)), None);
        agents.on_gone("n", 4);
        assert!(agents.on_report("n", 5, None, ms(3)).is_some());
    }

    #[test]
    fn half_of_the_agents_is_no_majority() {
        let (mut agents, config) = (Agents::default(), Config::default());
        for (stream, node) in ["a", "b"].into_iter().enumerate() {
            agents.on_hello(node, stream as u64, &mk_hello(7), ms(0));
        }
        agents.step(&config, ms(300));
        assert!(agents.majority_is_fresh(&config, ms(300)));
        agents.on_report("a", 0, None, ms(700));
        agents.step(&config, ms(700));
        assert!(!agents.majority_is_fresh(&config, ms(700)), "b is stale, and was fresh within ten minutes");
        agents.on_expected(["a", "b", "c"].map(String::from).into());
        assert!(!agents.majority_is_fresh(&config, ms(700)));
    }
}
