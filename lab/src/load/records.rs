//! What all clients of a run saw, in one bounded place. In: each client's stream of ended connections. Out: counts and
//! times since a moment. It forgets the oldest connections when full, and says so; totals are never forgotten.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::outcome::Outcome;
use super::wire::{CONVERSATION, EXTRA_LOOP, Row};

/// Connections kept in full: 24 bytes each, so at most 24 MiB, which are 17 minutes at 1,000 connections a second.
const KEPT: usize = 1 << 20;

/// A shared handle; clones see the same records.
#[derive(Clone, Debug, Default)]
pub struct Records {
    inner: Arc<Mutex<Inner>>,
}

/// Connections that began at or after a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// False when the record no longer reaches back to the moment: the counts are then too low.
    pub complete: bool,
    /// All that ended.
    pub sent: u64,
    /// Of these, all without their byte.
    pub failed: u64,
    /// When the first of the failed ended, raw CLOCK_MONOTONIC.
    pub first_failure_ns: Option<u64>,
    /// When the last of the failed ended.
    pub last_failure_ns: Option<u64>,
    /// By outcome's name.
    pub by_outcome: BTreeMap<String, u64>,
    /// By leaf: sent and failed.
    pub by_leaf: BTreeMap<String, (u64, u64)>,
}

/// One client's whole life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// All that ended, by leaf and outcome's name; the extra loop under its own leaf.
    pub by_leaf_and_outcome: BTreeMap<(String, String), u64>,
    /// Records that the client itself had to drop.
    pub lost: u64,
}

#[derive(Debug, Default)]
struct Inner {
    rows: VecDeque<Kept>,
    /// The latest start among the forgotten: the record is complete for moments after it.
    forgotten_until_ns: u64,
    clients: Vec<Client>,
    /// Names of leaves, shared by all clients; a kept row holds an index into it.
    leaves: Vec<String>,
}

#[derive(Debug)]
struct Client {
    name: String,
    /// The client's own numbers for leaves, to ours.
    leaves: BTreeMap<u16, u16>,
    totals: BTreeMap<(u16, Outcome), u64>,
    lost: u64,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    start_ns: u64,
    elapsed_us: u32,
    leaf: u16,
    outcome: Outcome,
}

/// Feeds one client's stream; its numbers for leaves are its own.
#[derive(Debug)]
pub struct Feed {
    records: Records,
    client: usize,
}

impl Records {
    /// An empty record.
    #[must_use]
    pub fn new() -> Records {
        Records::default()
    }

    /// A stream of the client called `name`; a client that restarts opens another of the same name.
    #[must_use]
    pub fn feed(&self, name: &str) -> Feed {
        let mut inner = self.lock();
        inner.clients.push(Client { name: name.to_owned(), leaves: BTreeMap::new(), totals: BTreeMap::new(), lost: 0 });
        Feed { records: self.clone(), client: inner.clients.len() - 1 }
    }

    /// What became of the connections that began at or after `moment_ns`, without what runs beside the load.
    #[must_use]
    pub fn since(&self, moment_ns: u64) -> Since {
        let inner = self.lock();
        let mut since = Since { complete: moment_ns > inner.forgotten_until_ns, ..Since::default() };
        let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
        let mut leaves: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
        for row in inner.counted().filter(|row| row.start_ns >= moment_ns) {
            let leaf = leaves.entry(row.leaf).or_default();
            since.sent += 1;
            leaf.0 += 1;
            *outcomes.entry(row.outcome).or_default() += 1;
            if row.outcome.is_failure() {
                since.failed += 1;
                leaf.1 += 1;
                let end_ns = row.end_ns();
                since.first_failure_ns = Some(since.first_failure_ns.map_or(end_ns, |first| first.min(end_ns)));
                since.last_failure_ns = since.last_failure_ns.max(Some(end_ns));
            }
        }
        since.by_outcome = outcomes.into_iter().map(|(outcome, count)| (outcome.to_string(), count)).collect();
        since.by_leaf = leaves.into_iter().map(|(leaf, counts)| (inner.leaf_name(leaf), counts)).collect();
        since
    }

    /// The first start of a connection to `leaf` at or after `moment_ns`.
    #[must_use]
    pub fn first_start_to(&self, leaf: &str, moment_ns: u64) -> Option<u64> {
        let inner = self.lock();
        let index = inner.leaves.iter().position(|name| name == leaf)?;
        let to_leaf = inner.rows.iter().filter(|row| usize::from(row.leaf) == index && row.start_ns >= moment_ns);
        to_leaf.map(|row| row.start_ns).min()
    }

    /// The last start of a connection to `leaf` that did not begin after `moment_ns`.
    #[must_use]
    pub fn last_start_to(&self, leaf: &str, moment_ns: u64) -> Option<u64> {
        let inner = self.lock();
        let index = inner.leaves.iter().position(|name| name == leaf)?;
        let to_leaf = inner.rows.iter().filter(|row| usize::from(row.leaf) == index && row.start_ns <= moment_ns);
        to_leaf.map(|row| row.start_ns).max()
    }

    /// Ends of connections to `leaf` at or after `moment_ns`: when and how, in order.
    #[must_use]
    pub fn ends_of(&self, leaf: &str, moment_ns: u64) -> Vec<(u64, Outcome)> {
        let inner = self.lock();
        let Some(index) = inner.leaf_index(leaf) else { return Vec::new() };
        let of_leaf = inner.rows.iter().filter(|row| row.leaf == index && row.end_ns() >= moment_ns);
        let mut ends: Vec<(u64, Outcome)> = of_leaf.map(|row| (row.end_ns(), row.outcome)).collect();
        ends.sort_unstable();
        ends
    }

    /// Whole lives, by client.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<String, Totals> {
        let inner = self.lock();
        let mut all: BTreeMap<String, Totals> = BTreeMap::new();
        for client in &inner.clients {
            let totals = all.entry(client.name.clone()).or_default();
            totals.lost += client.lost;
            for ((leaf, outcome), count) in &client.totals {
                let key = (inner.leaf_name(*leaf), outcome.to_string());
                *totals.by_leaf_and_outcome.entry(key).or_default() += count;
            }
        }
        all
    }

    /// Connections of the load that ended so far.
    #[must_use]
    pub fn ended(&self) -> u64 {
        let inner = self.lock();
        let beside = inner.beside();
        let of_client = |client: &Client| -> u64 {
            client.totals.iter().filter(|((leaf, _), _)| !beside.contains(&Some(*leaf))).map(|(_, count)| count).sum()
        };
        inner.clients.iter().map(of_client).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    /// The client announced a leaf.
    pub fn leaf(&self, index: u16, name: &str) {
        let mut inner = self.records.lock();
        let ours = inner.intern(name);
        inner.clients[self.client].leaves.insert(index, ours);
    }

    /// The client sent records; rows with an unannounced leaf are filed under a leaf of their own.
    pub fn rows(&self, rows: &[Row]) {
        let mut inner = self.records.lock();
        let unknown = inner.intern("(unknown)");
        for row in rows {
            let client = &mut inner.clients[self.client];
            let leaf = client.leaves.get(&row.leaf).copied().unwrap_or(unknown);
            *client.totals.entry((leaf, row.outcome)).or_default() += 1;
            inner.keep(Kept { start_ns: row.start_ns, elapsed_us: row.elapsed_us, leaf, outcome: row.outcome });
        }
    }

    /// The client dropped so many records since its start.
    pub fn lost(&self, records: u64) {
        self.records.lock().clients[self.client].lost = records;
    }
}

impl Inner {
    fn keep(&mut self, row: Kept) {
        if self.rows.len() >= KEPT
            && let Some(oldest) = self.rows.pop_front()
        {
            self.forgotten_until_ns = self.forgotten_until_ns.max(oldest.start_ns);
        }
        self.rows.push_back(row);
    }

    fn intern(&mut self, name: &str) -> u16 {
        if let Some(index) = self.leaf_index(name) {
            return index;
        }
        // A split names a handful of backends; a stream with 65,000 names is broken and folds into the last.
        let index = u16::try_from(self.leaves.len()).unwrap_or(u16::MAX - 1);
        self.leaves.push(name.to_owned());
        index
    }

    fn leaf_index(&self, name: &str) -> Option<u16> {
        self.leaves.iter().position(|known| known == name).and_then(|index| u16::try_from(index).ok())
    }

    fn leaf_name(&self, leaf: u16) -> String {
        self.leaves.get(usize::from(leaf)).cloned().unwrap_or_default()
    }

    fn counted(&self) -> impl Iterator<Item = &Kept> {
        let beside = self.beside();
        self.rows.iter().filter(move |row| !beside.contains(&Some(row.leaf)))
    }

    /// Leaves of what runs beside the load.
    fn beside(&self) -> [Option<u16>; 2] {
        [EXTRA_LOOP, CONVERSATION].map(|name| self.leaf_index(name))
    }
}

impl Kept {
    fn end_ns(self) -> u64 {
        self.start_ns + u64::from(self.elapsed_us) * 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_row(start_ns: u64, elapsed_us: u32, leaf: u16, outcome: Outcome) -> Row {
        Row { start_ns, elapsed_us, leaf, outcome }
    }

    #[test]
    fn only_connections_that_began_since_the_moment_count() {
        let records = Records::new();
        let feed = records.feed("client-1");
        feed.leaf(0, "east");
        feed.rows(&[
            mk_row(1_000, 5_000, 0, Outcome::REFUSED),
            mk_row(2_000, 3, 0, Outcome::REFUSED),
            mk_row(2_500, 1, 0, Outcome::NoAnswer),
            mk_row(3_000, 1, 0, Outcome::Ok),
        ]);
        let since = records.since(2_000);
        assert!(since.complete);
        assert_eq!((since.sent, since.failed), (3, 2));
        assert_eq!((since.first_failure_ns, since.last_failure_ns), (Some(3_500), Some(5_000)));
        assert_eq!(since.by_outcome["ECONNREFUSED"], 1);
        assert_eq!(since.by_leaf["east"], (3, 2));
    }

    #[test]
    fn the_first_start_to_a_leaf_is_the_earliest_not_the_first_reported() {
        let records = Records::new();
        let (one, two) = (records.feed("client-1"), records.feed("client-2"));
        one.leaf(0, "west");
        two.leaf(0, "east");
        two.leaf(1, "west");
        one.rows(&[mk_row(900, 1, 0, Outcome::Ok), mk_row(2_000, 1, 0, Outcome::Ok)]);
        two.rows(&[mk_row(1_200, 1, 0, Outcome::Ok), mk_row(1_500, 1, 1, Outcome::Ok)]);
        assert_eq!(records.first_start_to("west", 1_000), Some(1_500));
        assert_eq!(records.last_start_to("west", 1_000), Some(900));
        assert_eq!(records.first_start_to("nowhere", 0), None);
    }

    #[test]
    fn the_extra_loop_counts_in_totals_only() {
        let records = Records::new();
        let feed = records.feed("client-1");
        feed.leaf(3, EXTRA_LOOP);
        feed.leaf(0, "east");
        feed.rows(&[mk_row(1, 1, 3, Outcome::REFUSED), mk_row(1, 1, 0, Outcome::Ok)]);
        assert_eq!(records.since(0).sent, 1);
        assert_eq!(records.ended(), 1);
        let totals = &records.totals()["client-1"];
        assert_eq!(totals.by_leaf_and_outcome[&(EXTRA_LOOP.to_owned(), "ECONNREFUSED".to_owned())], 1);
    }

    #[test]
    fn conversations_are_told_by_their_ends_and_counted_nowhere() {
        let records = Records::new();
        let feed = records.feed("client-1");
        feed.leaf(0, CONVERSATION);
        feed.rows(&[mk_row(1_000, 9_000, 0, Outcome::Errno(104)), mk_row(1_000, 3, 0, Outcome::Ended)]);
        assert_eq!(records.ends_of(CONVERSATION, 5_000), [(9_001_000, Outcome::Errno(104))]);
        assert!(records.ends_of("east", 0).is_empty());
        assert_eq!((records.since(0).sent, records.ended()), (0, 0));
    }

    #[test]
    fn a_full_record_forgets_the_oldest_and_says_so() {
        let records = Records::new();
        let feed = records.feed("client-1");
        feed.leaf(0, "east");
        let rows: Vec<Row> = (1..=u64::try_from(KEPT).unwrap() + 10).map(|at| mk_row(at, 1, 0, Outcome::Ok)).collect();
        feed.rows(&rows);
        assert!(!records.since(10).complete);
        let since = records.since(11);
        assert!(since.complete);
        assert_eq!(since.sent, u64::try_from(KEPT).unwrap());
        assert_eq!(records.ended(), u64::try_from(KEPT).unwrap() + 10);
    }
}
