//! Self-hops: what a mesh's proxy meets when it dials the application of its own pod. Pure.
//!
//! Behind a proxy an application can die without any connection from outside failing: the proxy goes on accepting. Only
//! the proxy's own dial, from the pod's address to itself, is refused, and only that pod's node sees it. So this one
//! node's word on this one endpoint is enough: two refusals, at least one hold apart, with no success between.

use std::collections::BTreeMap;
use std::time::Duration;

use probe_common::wire::Destination;

use super::Shape;
use crate::time::Time;

/// A refusal is news for this long: after it, it neither condemns nor is the first of a pair. A proxy that is refused
/// again and again dials after 0.1, 0.3, 0.7, 1.5, 3.1 and 6.3 s.
const MEMORY: Duration = Duration::from_secs(10);

/// Refusals since the last success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusals {
    first: Time,
    last: Time,
}

/// Of all endpoints of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SelfHops {
    refused: BTreeMap<Destination, Refusals>,
    last_refused: Option<Time>,
}

impl SelfHops {
    /// A row of self-hops: attempts that the application took, and refused ones, the oldest of which began at `started`.
    /// Within a row nobody knows the order: failures last, as for evidence.
    pub(super) fn on_row(&mut self, to: Destination, succeeded: bool, refused: Option<Time>) {
        if succeeded {
            self.refused.remove(&to);
        }
        let Some(at) = refused else { return };
        self.last_refused = self.last_refused.max(Some(at));
        match self.refused.get_mut(&to) {
            Some(known) if at.since(known.last) <= MEMORY => known.last = known.last.max(at),
            Some(_) | None => {
                self.refused.insert(to, Refusals { first: at, last: at });
            }
        }
    }

    /// Endpoints of which two refusals lie `hold` apart, and the last is news; with the first of the two. Only by the word
    /// of a node that is fresh. An endpoint of
    /// two families is condemned on either: its application listens on both, or it is half dead.
    pub(super) fn condemned(
        &self,
        shape: &Shape,
        hold: Duration,
        now: Time,
        is_fresh: impl Fn(&Destination) -> bool,
    ) -> BTreeMap<String, Time> {
        let of_endpoint = |(identity, to): (&String, &Vec<Destination>)| {
            let known = to.iter().filter(|to| is_fresh(to)).filter_map(|to| self.refused.get(to));
            let condemning = known.filter(|it| it.last.since(it.first) >= hold && now.since(it.last) <= MEMORY);
            Some((identity.clone(), condemning.map(|it| it.first).min()?))
        };
        if self.refused.is_empty() { BTreeMap::new() } else { shape.endpoints.iter().filter_map(of_endpoint).collect() }
    }

    /// Endpoints with a refusal that is news, condemned or not.
    pub(super) fn suspect(&self, shape: &Shape, now: Time) -> usize {
        let is_news = |to: &Destination| self.refused.get(to).is_some_and(|it| now.since(it.last) <= MEMORY);
        if self.refused.is_empty() { 0 } else { shape.endpoints.values().filter(|to| to.iter().any(is_news)).count() }
    }

    /// When the last refusal of any endpoint began.
    pub(super) const fn last_refused(&self) -> Option<Time> {
        self.last_refused
    }

    pub(super) fn retain(&mut self, stays: impl Fn(&Destination) -> bool) {
        self.refused.retain(|to, _| stays(to));
    }

    pub(super) fn settle(&mut self) {
        self.refused.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_millis(100);

    fn ms(at: u64) -> Time {
        Time(at * 1_000_000)
    }

    fn to() -> Destination {
        Destination::from(([198, 18, 1, 1], 80))
    }

    /// Plays `(ms, refused)`; whether the endpoint is condemned at `at`.
    fn is_condemned(rows: &[(u64, bool)], at: u64) -> bool {
        let mut hops = SelfHops::default();
        for (at, refused) in rows {
            hops.on_row(to(), !refused, refused.then_some(ms(*at)));
        }
        let shape = Shape { endpoints: BTreeMap::from([("a".to_owned(), vec![to()])]), ..Shape::default() };
        !hops.condemned(&shape, HOLD, ms(at), |_| true).is_empty()
    }

    #[test]
    fn two_refusals_one_hold_apart_condemn_an_endpoint() {
        assert!(is_condemned(&[(0, true), (100, true)], 100));
        assert!(is_condemned(&[(0, true), (40, true), (110, true)], 110));
    }

    #[test]
    fn less_than_that_does_not() {
        assert!(!is_condemned(&[(0, true)], 500), "one refusal, however long ago");
        assert!(!is_condemned(&[(0, true), (99, true)], 99), "within the hold");
        assert!(!is_condemned(&[(0, true), (50, false), (120, true)], 120), "a success between");
        assert!(
            !is_condemned(&[(0, true), (11_000, true)], 11_000),
            "two refusals that have nothing to do with another"
        );
        assert!(!is_condemned(&[(0, true), (100, true)], 10_101), "yesterday's news");
    }
}
