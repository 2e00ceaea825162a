//! The course of an outage: since when have more than half of a target's endpoints not answered? Pure.
//!
//! Two answers, and the earlier one is believed. The first is for outages that let something through: an endpoint's
//! [`Episode`] goes on until successes outweigh its failures. The second is for outages that let nothing through, at any
//! rate of traffic: an endpoint is silent from its first failure after its last success. Noise spoils neither: an episode
//! that one failure in a hundred began is over a few successes later, and an endpoint that died an hour ago does not make
//! the others' silence any older. Nor does one node: two have to have seen what began.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use probe_common::wire::Destination;

use super::{Samples, Shape};
use crate::agents::NodeId;
use crate::time::Time;

/// So many straight successes of one endpoint, with no failure for so long, end its episode: after a blip they come at
/// once, of a half-dead endpoint once in 256 runs at most, and hardly ever at rates at which 8 come in a moment.
const STRAIGHT: u64 = 8;
const STRAIGHT_FOR: Duration = Duration::from_millis(40);

/// A run of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Episode {
    pub(super) start: Time,
    failures: u64,
    successes: u64,
    /// Whether any of them was traffic's own.
    pub(super) traffic_failed: bool,
}

impl Episode {
    pub(super) const fn new(start: Time) -> Self {
        Self { start, failures: 0, successes: 0, traffic_failed: false }
    }

    /// Takes samples in; says whether successes have outweighed it.
    pub(super) fn on_samples(&mut self, samples: &Samples) -> bool {
        // A share, not evidence: without the cap on what one client adds, or one client's brownout would seem over.
        let failures = samples.failed.max(samples.bucket.any_failures());
        let successes = samples.bucket.successes;
        if failures > 0 {
            self.start = self.start.min(samples.started);
            self.failures = self.failures.saturating_add(failures);
            self.traffic_failed |= samples.from.is_some();
        }
        // A node without failures reports every 100 ms: what it saw succeed before the episode is no word against it.
        if samples.from.unwrap_or(samples.started) >= self.start {
            self.successes = self.successes.saturating_add(successes);
        }
        self.successes > self.failures.saturating_mul(2).saturating_add(2)
    }
}

/// What one node has seen of one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    episode: Option<Episode>,
    /// The begin of its first attempt that failed since the address last answered anybody.
    silent: Option<Time>,
}

/// What is remembered of one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Address {
    nodes: BTreeMap<NodeId, Seen>,
    /// When it last answered anybody.
    answered: Option<Time>,
    /// Successes of all nodes since the last failure of any.
    straight: u64,
    failed: Option<Time>,
}

impl Address {
    fn on_samples(&mut self, samples: &Samples, now: Time) {
        if samples.bucket.successes > 0 {
            self.answered = self.answered.max(Some(samples.answered));
            self.straight = self.straight.saturating_add(samples.bucket.successes);
        }
        if samples.bucket.any_failure() {
            self.straight = 0;
            self.failed = Some(now);
        }
        let over = self.straight >= STRAIGHT && self.failed.is_none_or(|at| now.since(at) >= STRAIGHT_FOR);
        let answered = self.answered;
        for seen in self.nodes.values_mut() {
            seen.silent = seen.silent.filter(|at| Some(*at) >= answered);
            seen.episode = seen.episode.filter(|_| !over);
        }
        let known = self.nodes.contains_key(&samples.node);
        if samples.bucket.any_failure() {
            let begin = answered.map_or(samples.started, |at| at.max(samples.started));
            let seen = self.nodes.entry(samples.node).or_default();
            seen.silent = Some(seen.silent.map_or(begin, |at| at.min(begin)));
            seen.episode.get_or_insert(Episode::new(samples.started));
        } else if !known {
            return;
        }
        if let Some(seen) = self.nodes.get_mut(&samples.node)
            && seen.episode.as_mut().is_some_and(|episode| episode.on_samples(samples))
        {
            seen.episode = None;
        }
        self.nodes.retain(|_, seen| *seen != Seen::default());
    }
}

/// What several nodes have seen of one endpoint: since when enough of them, where enough do.
struct Endpoint {
    episode: Option<Time>,
    silent: Option<Time>,
    answered: Option<Time>,
}

/// See the module header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Course {
    addresses: BTreeMap<Destination, Address>,
}

impl Course {
    pub(super) fn on_samples(&mut self, samples: &Samples, now: Time) {
        self.addresses.entry(samples.to).or_default().on_samples(samples, now);
    }

    /// The target has other addresses now.
    pub(super) fn retain(&mut self, stays: &BTreeSet<Destination>) {
        self.addresses.retain(|to, _| stays.contains(to));
    }

    pub(super) fn forget_node(&mut self, node: NodeId) {
        for address in self.addresses.values_mut() {
            address.nodes.remove(&node);
        }
    }

    /// When an endpoint last answered anybody.
    pub(super) fn answered(&self, to: &[Destination]) -> Option<Time> {
        to.iter().filter_map(|to| self.addresses.get(to)?.answered).max()
    }

    /// What was held against the target is settled; that it answered stays true.
    pub(super) fn settle(&mut self) {
        for address in self.addresses.values_mut() {
            *address = Address { answered: address.answered, ..Address::default() };
        }
    }

    /// When the outage of more than half of the endpoints began, as `nodes` of them have seen it: one node alone could
    /// keep it going for ever. `condemned` are endpoints with a begin of their own (a self-hop's). `None` while no more
    /// than half have failed.
    pub(super) fn began(&self, shape: &Shape, condemned: &BTreeMap<String, Time>, nodes: usize) -> Option<Time> {
        let most = shape.endpoints.len() / 2;
        let endpoints: Vec<Endpoint> = shape
            .endpoints
            .iter()
            .map(|(identity, to)| self.of_endpoint(to, condemned.get(identity).copied(), nodes))
            .collect();
        let mut episodes: Vec<Time> = endpoints.iter().filter_map(|endpoint| endpoint.episode).collect();
        episodes.sort_unstable();
        let outweighed = episodes.get(most).copied();
        // Never answered is older than any answer.
        let mut answered: Vec<Option<Time>> = endpoints.iter().map(|endpoint| endpoint.answered).collect();
        answered.sort_unstable();
        let last_word = answered.get(most).copied()?;
        let failed = endpoints.iter().filter(|endpoint| endpoint.silent.is_some()).count();
        let mut silent: Vec<Time> =
            endpoints.iter().filter_map(|endpoint| endpoint.silent).filter(|at| Some(*at) >= last_word).collect();
        silent.sort_unstable();
        // One failure just before may be noise; of three and more endpoints two have to be silent.
        let first = silent.get(usize::from(shape.endpoints.len() > 2)).copied().filter(|_| failed > most);
        outweighed.into_iter().chain(first).min()
    }

    /// One endpoint over its families: it answers when any does, and fails since the first that fails.
    fn of_endpoint(&self, to: &[Destination], own: Option<Time>, nodes: usize) -> Endpoint {
        let mut seen: BTreeMap<NodeId, Seen> = BTreeMap::new();
        let mut answered = None;
        for address in to.iter().filter_map(|to| self.addresses.get(to)) {
            answered = answered.max(address.answered);
            for (node, of_node) in &address.nodes {
                let all = seen.entry(*node).or_default();
                all.silent = all.silent.into_iter().chain(of_node.silent).min();
                all.episode = all.episode.into_iter().chain(of_node.episode).min_by_key(|episode| episode.start);
            }
        }
        let enough = |mut times: Vec<Time>| {
            times.sort_unstable();
            times.get(nodes.saturating_sub(1)).copied().into_iter().chain(own).min()
        };
        Endpoint {
            episode: enough(seen.values().filter_map(|seen| seen.episode.map(|it| it.start)).collect()),
            silent: enough(seen.values().filter_map(|seen| seen.silent).collect()),
            answered: if own.is_some() { answered.min(own) } else { answered },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Bucket;

    fn to(endpoint: u8) -> Destination {
        Destination::from(([198, 18, 1, endpoint], 80))
    }

    fn ms(at: u64) -> Time {
        Time(at * 1_000_000)
    }

    fn mk_shape(endpoints: u8) -> Shape {
        let endpoints = (1..=endpoints).map(|endpoint| (endpoint.to_string(), vec![to(endpoint)]));
        Shape { endpoints: endpoints.collect(), ..Shape::default() }
    }

    /// Plays `(ms, endpoint, answered)`; the begin in ms.
    fn began(endpoints: u8, samples: &[(u64, u8, bool)]) -> Option<u64> {
        let mut course = Course::default();
        for (at, endpoint, answered) in samples {
            let bucket = Bucket::check(*answered);
            let at = ms(*at);
            let samples = Samples {
                node: NodeId(1),
                to: to(*endpoint),
                bucket,
                failed: u64::from(!*answered),
                started: at,
                answered: at,
                from: Some(at),
            };
            course.on_samples(&samples, at);
        }
        course.began(&mk_shape(endpoints), &BTreeMap::new(), 1).map(|at| at.0 / 1_000_000)
    }

    #[test]
    fn an_outage_begins_with_the_first_failure_after_most_have_answered_last() {
        let healthy = [(1, 1, true), (2, 2, true), (3, 3, true)];
        let samples = |more: &[(u64, u8, bool)]| healthy.iter().chain(more).copied().collect::<Vec<_>>();
        assert_eq!(began(3, &samples(&[])), None);
        assert_eq!(began(3, &samples(&[(10, 1, false)])), None, "one of three");
        assert_eq!(began(3, &samples(&[(10, 1, false), (60, 2, false), (70, 3, false)])), Some(60));
        assert_eq!(began(2, &samples(&[(10, 1, false), (60, 2, false)])), Some(10));
    }

    #[test]
    fn an_endpoint_that_died_long_ago_does_not_make_the_outage_of_the_rest_older() {
        let samples = [(1, 1, true), (5, 1, false), (900, 2, true), (910, 3, true), (950, 2, false), (970, 3, false)];
        assert_eq!(began(3, &samples), Some(950));
    }

    #[test]
    fn a_success_ends_the_silence_and_a_few_the_episode() {
        let blip = [(1, 1, true), (10, 1, false), (20, 1, false), (30, 1, true)];
        assert_eq!(began(1, &blip), Some(10), "a half-dead endpoint answers, too");
        let after: Vec<_> = blip.iter().copied().chain((31..80).map(|at| (at, 1, true))).collect();
        assert_eq!(began(1, &after), None);
        let again: Vec<_> = after.iter().copied().chain([(90, 1, false)]).collect();
        assert_eq!(began(1, &again), Some(90));
    }

    #[test]
    fn half_of_the_attempts_failing_is_an_outage_that_goes_on() {
        let samples: Vec<_> = (0..200).map(|at| (at, 1, at % 2 == 0)).collect();
        assert_eq!(began(1, &samples), Some(1));
    }
}
