//! The destinations that the kernel counts, and what it counted: writes the wishes of `resolve` into the probe, reads
//! its counters, and hands the rows of each read on. IO through [`Counters`].
//!
//! In: wishes, and the shell's word that it is time to read. Out: rows, sums, and when the next read is needed. It
//! neither sleeps nor sends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;

use probe_common::abi::{self, Cold, DestinationKey, DestinationValue, FirstFailure, Hot, Stamps};
use probe_common::cause::FailureCause;
use probe_common::wire::{First, Row, Total};

use super::cold::ColdSum;
use crate::index::{IndexTable, Place, Tier};
use crate::kernel::{MapError, Probe};
use crate::resolve::{Counted, Wanted, key_of};
use crate::tally::{Counts, LATE_SLOTS_LIMIT, Snapshot, Tally};

/// A destination that fails after so long without a failure is news: the drill and the operator read when it began.
const NEWS_AFTER_NS: u64 = 200_000_000;

/// What the ledger needs of the probe. The probe itself needs a kernel and root; tests bring counters of their own.
pub(super) trait Counters {
    /// See [`Probe::next_round`].
    fn next_round(&mut self) -> Result<u64, MapError>;
    /// See [`Probe::stamps`].
    fn stamps(&self) -> Result<Box<Stamps>, MapError>;
    /// See [`Probe::hot`].
    fn hot(&self, index: u32) -> Result<Vec<Hot>, MapError>;
    /// See [`Probe::cold`].
    fn cold(&self, index: u32) -> Result<Cold, MapError>;
    /// See [`Probe::assign`].
    fn assign(&mut self, key: &DestinationKey, value: &DestinationValue) -> Result<(), MapError>;
    /// See [`Probe::release`].
    fn release(&mut self, key: &DestinationKey) -> Result<(), MapError>;
}

impl Counters for Probe {
    fn next_round(&mut self) -> Result<u64, MapError> {
        Self::next_round(self)
    }

    fn stamps(&self) -> Result<Box<Stamps>, MapError> {
        Self::stamps(self)
    }

    fn hot(&self, index: u32) -> Result<Vec<Hot>, MapError> {
        Self::hot(self, index)
    }

    fn cold(&self, index: u32) -> Result<Cold, MapError> {
        Self::cold(self, index)
    }

    fn assign(&mut self, key: &DestinationKey, value: &DestinationValue) -> Result<(), MapError> {
        Self::assign(self, key, value)
    }

    fn release(&mut self, key: &DestinationKey) -> Result<(), MapError> {
        Self::release(self, key)
    }
}

/// All destinations of one load of the probe.
pub(super) struct Ledger<C> {
    counters: C,
    clock: fn() -> u64,
    table: IndexTable,
    /// By the kernel's key, which is smaller than a socket address: there are 50,000 of them.
    placed: BTreeMap<DestinationKey, Placed>,
    /// Wishes that found no room.
    waiting: BTreeMap<Counted, Wanted>,
    /// By index; one whose destination went away stays until its index has a new owner, since ends still come in.
    hot: BTreeMap<u32, HotEntry>,
    /// Those with an attempt under way, and when that becomes late.
    becoming_late: BTreeMap<u32, u64>,
    swept: u32,
    cold: ColdSum,
    folded: Counts,
    folded_self_hops: Counts,
    abandoned: u64,
    quiet_until_ns: u64,
    map_full: BTreeMap<Tier, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    tier: Tier,
    place: Place,
    late_slots: u32,
}

struct HotEntry {
    counted: Counted,
    tally: Tally,
    generation: u32,
    next_late_ns: Option<u64>,
    /// The ring's record of the last first failure.
    record: Option<FirstFailure>,
    last_failure_ns: Option<u64>,
    last_check_passed_ns: Option<u64>,
}

/// What one read of the counters brought.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// When the read ended.
    pub(super) now_ns: u64,
    /// One per destination in which something happened.
    pub(super) rows: Vec<Row>,
    /// When the next attempt becomes late.
    pub(super) next_late_ns: Option<u64>,
    /// Whether any sum changed.
    pub(super) has_counted: bool,
    /// Destinations that fail after a time without failures.
    pub(super) failing: Vec<Failing>,
    /// What could not be read, if anything: the rest is as told.
    pub(super) error: Option<MapError>,
}

/// A destination that began to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failing {
    /// Which.
    pub(super) to: SocketAddr,
    /// Whether a mesh's proxy failed to reach the application that it stands before.
    pub(super) self_hop: bool,
    /// Of the first failure.
    pub(super) cause: FailureCause,
    /// Of the first failure.
    pub(super) first: First,
    /// When the agent read it.
    pub(super) read_ns: u64,
}

/// Sums over all destinations ever counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Destinations of splits.
    pub(super) hot: Counts,
    /// Self-hops of endpoints on this node; in none of the others.
    pub(super) self_hops: Counts,
    /// Attempts that were outstanding when their index got another owner: they have no end.
    pub(super) abandoned: u64,
    /// Every other destination.
    pub(super) cold: Cold,
}

/// One hot destination, for `/state`.
#[derive(Clone, Copy, Debug)]
pub(super) struct HotView {
    /// Which.
    pub(super) to: SocketAddr,
    /// Whether only its self-hops.
    pub(super) self_hop: bool,
    /// Its index.
    pub(super) index: u32,
    /// After how many slots an attempt is late.
    pub(super) late_slots: u32,
    /// What was counted.
    pub(super) counts: Counts,
}

impl<C: Counters> Ledger<C> {
    /// `counters` were loaded with these capacities and count nothing yet.
    pub(super) fn new(counters: C, hot_capacity: u32, cold_capacity: u32, clock: fn() -> u64) -> Self {
        Self {
            counters,
            clock,
            table: IndexTable::new(hot_capacity, cold_capacity),
            placed: BTreeMap::new(),
            waiting: BTreeMap::new(),
            hot: BTreeMap::new(),
            becoming_late: BTreeMap::new(),
            swept: 0,
            cold: ColdSum::default(),
            folded: Counts::default(),
            folded_self_hops: Counts::default(),
            abandoned: 0,
            quiet_until_ns: clock(),
            map_full: BTreeMap::new(),
        }
    }

    /// The probe.
    pub(super) const fn counters(&self) -> &C {
        &self.counters
    }

    /// Does as wished, and names the destinations that are hot now and were not before.
    ///
    /// # Errors
    ///
    /// When a map cannot be written. The wishes from there on wait for [`retry`](Self::retry).
    pub(super) fn apply(&mut self, wishes: Vec<(Counted, Wanted)>) -> Result<Vec<SocketAddr>, MapError> {
        let mut gained = Vec::new();
        let mut wishes = wishes.into_iter();
        while let Some((counted, wanted)) = wishes.next() {
            self.waiting.remove(&counted);
            match self.fulfil(counted, wanted) {
                // Self-hops have no history to tell.
                Ok(true) if !counted.self_hop => gained.push(counted.to),
                Ok(_) => {}
                Err(error) => {
                    self.waiting.insert(counted, wanted);
                    self.waiting.extend(wishes);
                    return Err(error);
                }
            }
        }
        Ok(gained)
    }

    /// Tries again what found no room.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    pub(super) fn retry(&mut self) -> Result<Vec<SocketAddr>, MapError> {
        let wishes = std::mem::take(&mut self.waiting);
        self.apply(wishes.into_iter().collect())
    }

    /// Notes what the ring said: which failure was the first, to the nanosecond.
    pub(super) fn note_failures(&mut self, records: &[FirstFailure]) {
        for record in records {
            if let Some(entry) = self.hot.get_mut(&record.index)
                && entry.generation == record.generation
                && entry.record.is_none_or(|known| known.failed_ns != record.failed_ns)
            {
                // Of several CPUs' records of one round the earliest is the first.
                let is_later = entry.record.is_some_and(|known| {
                    known.failed_ns < record.failed_ns && record.failed_ns - known.failed_ns < NEWS_AFTER_NS
                });
                if !is_later {
                    entry.record = Some(*record);
                }
            }
        }
    }

    /// Notes that a check of this node passed.
    pub(super) fn note_check_passed(&mut self, to: SocketAddr, ended_ns: u64) {
        let index = self.placed.get(&key_of(to)).map(|placed| placed.place.index);
        if let Some(entry) = index.and_then(|index| self.hot.get_mut(&index)) {
            entry.last_check_passed_ns = Some(ended_ns);
        }
    }

    /// Reads every hot destination that was touched since the read before, or on which time has told; and `sweep` more
    /// in turn, whatever their stamps say.
    pub(super) fn pass(&mut self, sweep: usize) -> Pass {
        let mut pass = Pass::default();
        let began_ns = (self.clock)();
        let read = self.counters.next_round().and_then(|round| Ok((round, self.counters.stamps()?)));
        let (round, stamps) = match read {
            Ok(read) => read,
            Err(error) => return Pass { now_ns: (self.clock)(), error: Some(error), ..pass },
        };
        for index in self.next_indices(round, &stamps, began_ns, sweep) {
            let Some(entry) = self.hot.get_mut(&index) else { continue };
            let before_ns = (self.clock)();
            match self.counters.hot(index) {
                Ok(per_cpu) => {
                    let snapshot = Snapshot { before_ns, after_ns: (self.clock)(), round, per_cpu: &per_cpu };
                    entry.take(&snapshot, self.quiet_until_ns, &self.placed, &mut pass);
                }
                Err(error) => {
                    // Its stamp may be forgotten by the time of the next read.
                    entry.next_late_ns = Some(before_ns);
                    pass.error = Some(error);
                }
            }
            match entry.next_late_ns {
                Some(late_ns) => drop(self.becoming_late.insert(index, late_ns)),
                None => drop(self.becoming_late.remove(&index)),
            }
        }
        pass.next_late_ns = self.becoming_late.values().min().copied();
        self.quiet_until_ns = began_ns;
        pass.now_ns = (self.clock)();
        pass
    }

    /// Touched in this round or the one before (what a program began under that may have been stamped after it was
    /// read), becoming late, or next in turn.
    fn next_indices(&mut self, round: u64, stamps: &Stamps, now_ns: u64, sweep: usize) -> BTreeSet<u32> {
        let used = &stamps.rounds[..(self.table.ever_used(Tier::Hot) as usize).min(stamps.rounds.len())];
        let is_touched = |stamp: &u32| (round as u32).wrapping_sub(*stamp) <= 1;
        let touched = (0..).zip(used).filter(|(_, stamp)| is_touched(stamp)).map(|(index, _)| index);
        let mut next_indices: BTreeSet<u32> = touched.collect();
        next_indices
            .extend(self.becoming_late.iter().filter(|(_, late_ns)| **late_ns <= now_ns).map(|(&index, _)| index));
        let swept = self.next_swept(sweep);
        next_indices.extend(self.hot.range(swept).map(|(&index, _)| index));
        next_indices
    }

    /// The indices of the next `count` hot destinations, in turn.
    fn next_swept(&mut self, count: usize) -> Range<u32> {
        let from = self.swept;
        let last = self.hot.range(from..).take(count).last().map(|(&index, _)| index);
        self.swept = last.map_or(0, |last| last + 1);
        from..self.swept.max(from)
    }

    /// Reads the next `count` cold destinations, in turn.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub(super) fn read_cold(&mut self, count: usize) -> Result<(), MapError> {
        let in_use = self.table.ever_used(Tier::Cold);
        for _ in 0..count.min(in_use as usize) {
            let Some(offset) = self.cold.next(in_use) else { break };
            let value = self.counters.cold(self.table.first_of(Tier::Cold) + offset)?;
            self.cold.on_value(&value);
        }
        Ok(())
    }

    /// Destinations that are counted in a tier.
    pub(super) const fn in_use(&self, tier: Tier) -> u32 {
        self.table.in_use(tier)
    }

    /// How often a wish found its tier full.
    pub(super) fn map_full(&self, tier: Tier) -> u64 {
        self.map_full.get(&tier).copied().unwrap_or(0)
    }

    /// Wishes that wait for room.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sums over everything counted since the probe was loaded.
    pub(super) fn sums(&self) -> Sums {
        let (mut hot, mut self_hops) = (self.folded, self.folded_self_hops);
        for entry in self.hot.values() {
            add(if entry.counted.self_hop { &mut self_hops } else { &mut hot }, entry.tally.counts());
        }
        Sums { hot, self_hops, abandoned: self.abandoned, cold: *self.cold.sums() }
    }

    /// History of the hot destinations among `of`, or of all; self-hops are no part of it.
    pub(super) fn totals(&self, of: Option<&[SocketAddr]>) -> Vec<Total> {
        let now_ns = (self.clock)();
        let of: Option<BTreeSet<&SocketAddr>> = of.map(|of| of.iter().collect());
        let hot = self.placed.values().filter(|placed| placed.tier == Tier::Hot);
        let entries = hot.filter_map(|placed| self.hot.get(&placed.place.index));
        let entries = entries.filter(|entry| !entry.counted.self_hop);
        let asked = entries.filter(|entry| of.as_ref().is_none_or(|of| of.contains(&entry.tally.to())));
        asked.map(|entry| entry.total(now_ns)).collect()
    }

    /// The hot destinations, for people.
    pub(super) fn hot_views(&self) -> Vec<HotView> {
        let placed = self.placed.values().filter(|placed| placed.tier == Tier::Hot);
        let view = |placed: &Placed| {
            let entry = self.hot.get(&placed.place.index)?;
            let (index, late_slots) = (placed.place.index, placed.late_slots);
            let Counted { to, self_hop } = entry.counted;
            Some(HotView { to, self_hop, index, late_slots, counts: *entry.tally.counts() })
        };
        placed.filter_map(view).collect()
    }

    /// Places, moves or removes one destination. True when it is hot now and was not.
    fn fulfil(&mut self, to: Counted, wanted: Wanted) -> Result<bool, MapError> {
        let before = self.placed.get(&key_of(to)).copied();
        let was_hot = before.is_some_and(|placed| placed.tier == Tier::Hot);
        match wanted {
            Wanted::Nothing => {
                if let Some(placed) = before {
                    self.counters.release(&key_of(to))?;
                    self.placed.remove(&key_of(to));
                    self.table.release(placed.tier, placed.place, (self.clock)());
                }
                Ok(false)
            }
            Wanted::Cold if before.is_some_and(|placed| placed.tier == Tier::Cold) => Ok(false),
            Wanted::Cold => {
                self.place(to, Tier::Cold, LATE_SLOTS_LIMIT, wanted)?;
                Ok(false)
            }
            Wanted::Hot { late_slots } => {
                if before.is_some_and(|placed| placed.tier == Tier::Hot && placed.late_slots == late_slots) {
                    return Ok(false);
                }
                let is_placed = self.place(to, Tier::Hot, late_slots, wanted)?;
                if !is_placed && before.is_none() && !to.self_hop {
                    // Better counted coarsely than not at all; the wish goes on waiting.
                    self.place(to, Tier::Cold, LATE_SLOTS_LIMIT, wanted)?;
                }
                Ok(is_placed && !was_hot)
            }
        }
    }

    /// False when the tier is full: the wish waits then.
    fn place(&mut self, to: Counted, tier: Tier, late_slots: u32, wish: Wanted) -> Result<bool, MapError> {
        let Some(place) = self.table.assign(tier, (self.clock)()) else {
            self.refuse(to, tier, wish);
            return Ok(false);
        };
        let value = DestinationValue { index: place.index, generation: place.generation, late_slots };
        let assigned = self.fold(tier, place).and_then(|()| self.counters.assign(&key_of(to), &value));
        if let Err(error) = assigned {
            self.table.release(tier, place, (self.clock)());
            if matches!(error, MapError::Full { .. }) {
                self.refuse(to, tier, wish);
                return Ok(false);
            }
            return Err(error);
        }
        let now_ns = (self.clock)();
        if tier == Tier::Hot {
            self.hot.insert(place.index, HotEntry::new(to, place, late_slots, now_ns));
        }
        // The kernel leads new sockets to the new index from here on, so the old one may begin to rest.
        if let Some(old) = self.placed.insert(key_of(to), Placed { tier, place, late_slots }) {
            self.table.release(old.tier, old.place, now_ns);
        }
        Ok(true)
    }

    fn refuse(&mut self, to: Counted, tier: Tier, wish: Wanted) {
        *self.map_full.entry(tier).or_default() += 1;
        self.waiting.insert(to, wish);
    }

    /// Takes leave of an index's former owner before its value is zeroed.
    fn fold(&mut self, tier: Tier, place: Place) -> Result<(), MapError> {
        if tier == Tier::Cold {
            if place.generation > 1 {
                let last = self.counters.cold(place.index)?;
                self.cold.on_leave(place.index - self.table.first_of(Tier::Cold), &last);
            }
            return Ok(());
        }
        self.becoming_late.remove(&place.index);
        if let Some(former) = self.hot.remove(&place.index) {
            let mut counts = *former.tally.counts();
            self.abandoned += u64::try_from(counts.young).unwrap_or(0);
            counts.young = 0;
            add(if former.counted.self_hop { &mut self.folded_self_hops } else { &mut self.folded }, &counts);
        }
        Ok(())
    }
}

impl HotEntry {
    fn new(counted: Counted, place: Place, late_slots: u32, now_ns: u64) -> Self {
        Self {
            counted,
            tally: Tally::new(counted.to, late_slots, now_ns),
            generation: place.generation,
            next_late_ns: None,
            record: None,
            last_failure_ns: None,
            last_check_passed_ns: None,
        }
    }

    fn take(
        &mut self,
        snapshot: &Snapshot<'_>,
        quiet_until_ns: u64,
        placed: &BTreeMap<DestinationKey, Placed>,
        pass: &mut Pass,
    ) {
        let young = self.tally.counts().young;
        let change = self.tally.read(snapshot, quiet_until_ns);
        self.next_late_ns = change.next_late_ns;
        pass.has_counted |= !change.row.is_empty() || young != self.tally.counts().young;
        let row = Row { self_hop: self.counted.self_hop, ..change.row };
        if row.failed() > 0 {
            if let Some(failing) = self.failing(&row) {
                pass.failing.push(failing);
            }
            self.last_failure_ns = Some(row.to_ns);
        }
        // What ends at an index after its destination ceased to be hot is counted, but is no evidence for anybody.
        if !row.is_empty() && placed.get(&key_of(self.counted)).is_some_and(|placed| placed.tier == Tier::Hot) {
            pass.rows.push(row);
        }
    }

    fn failing(&self, row: &Row) -> Option<Failing> {
        if self.last_failure_ns.is_some_and(|last_ns| row.to_ns - last_ns < NEWS_AFTER_NS) {
            return None;
        }
        let seen = match row {
            Row { refused: 1.., .. } => FailureCause::Refused,
            Row { unreachable: 1.., .. } => FailureCause::Unreachable,
            _ => FailureCause::NoAnswer,
        };
        let fits = |record: &FirstFailure| row.to_ns.saturating_sub(record.failed_ns) < NEWS_AFTER_NS;
        let record = self.record.filter(fits);
        let cause = record.and_then(|record| FailureCause::from_index(record.cause)).unwrap_or(seen);
        let first = record.map(|record| First { started_ns: record.started_ns, failed_ns: record.failed_ns });
        let first = first.or(row.first).unwrap_or(First { started_ns: row.from_ns, failed_ns: row.to_ns });
        Some(Failing { to: row.to, self_hop: row.self_hop, cause, first, read_ns: row.to_ns })
    }

    fn total(&self, now_ns: u64) -> Total {
        let counts = self.tally.counts();
        let last_ns = self.tally.last_established_ns().max(self.last_check_passed_ns);
        Total {
            to: self.tally.to(),
            attempts: counts.attempts,
            established: counts.established + counts.established_late,
            last_success_age_ns: last_ns.map(|last_ns| now_ns.saturating_sub(last_ns)),
            last_check_age_ns: self.last_check_passed_ns.map(|last_ns| now_ns.saturating_sub(last_ns)),
        }
    }
}

fn add(sum: &mut Counts, counts: &Counts) {
    sum.attempts += counts.attempts;
    sum.established += counts.established;
    sum.cancelled += counts.cancelled;
    sum.late += counts.late;
    sum.established_late += counts.established_late;
    sum.cancelled_late += counts.cancelled_late;
    sum.answered += counts.answered;
    sum.young += counts.young;
    for index in 0..FailureCause::COUNT {
        sum.failed[index] += counts.failed[index];
        sum.failed_late[index] += counts.failed_late[index];
    }
}

/// How many slots of `late_slots` are in nanoseconds, for people.
pub(super) const fn late_after_ns(late_slots: u32) -> u64 {
    (late_slots as u64) << abi::SLOT_SHIFT
}

#[cfg(test)]
mod tests;
