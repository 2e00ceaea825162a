//! Two snapshots of one destination's counters in, what happened between them out. Pure.
//!
//! In: the counters of one index on every CPU, read while the kernel goes on counting, and the times around the read.
//! Out: one [`Row`] per read in which something happened, exact sums, and when the next outstanding attempt will be
//! late. It does not judge whether that is much.
//!
//! # What a read may rely on
//!
//! The CPUs' values are copied one after the other while attempts begin and end, so a snapshot is no instant. Counters
//! only grow, and the kernel takes an attempt out of its age slot before it adds it to an end's counter; so a snapshot
//! may miss an attempt that is on its way from a slot to a counter, and never shows one twice. Hence "late so far" (see
//! `probe_common::abi`) is only ever too low for a moment, and its maximum over all reads is what was reported.

use core::net::SocketAddr;

use probe_common::abi::{self, FailureWindow, Hot, SLOT_SHIFT, SLOTS};
use probe_common::cause::FailureCause;
use probe_common::wire::{First, Row};

/// How far back from the begin of a read lateness is judged. A kernel program takes its time first and writes some
/// hundred nanoseconds later; without this an attempt that ended in time, but is still being written, would count as
/// late. A fifth of a millisecond also covers a program that an interrupt handler delays.
pub const LATE_MARGIN_NS: u64 = 200_000;

/// The largest lateness that age slots can tell: one slot less than a lap, and one for the slot that begins during a
/// read.
pub const LATE_SLOTS_LIMIT: u32 = SLOTS as u32 - 2;

/// What one read of one destination brought.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// CLOCK_MONOTONIC before the first byte was read.
    pub before_ns: u64,
    /// CLOCK_MONOTONIC after the last.
    pub after_ns: u64,
    /// The round that had ended before the read.
    pub round: u64,
    /// One value per possible CPU.
    pub per_cpu: &'a [Hot],
}

/// Sums over all CPUs since the destination got its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempts begun.
    pub attempts: u64,
    /// Established in time.
    pub established: u64,
    /// Given up by the client in time.
    pub cancelled: u64,
    /// Failed in time, by cause; `Reset` holds flows, not attempts.
    pub failed: [u64; FailureCause::COUNT],
    /// Attempts that became late, whatever became of them.
    pub late: u64,
    /// Of the late ones: established after all.
    pub established_late: u64,
    /// Of the late ones: given up by the client.
    pub cancelled_late: u64,
    /// Of the late ones: failed after all, by cause.
    pub failed_late: [u64; FailureCause::COUNT],
    /// Flows that ended with an answer.
    pub answered: u64,
    /// Attempts outstanding that are not late.
    pub young: i64,
}

/// What became of one destination's counters since the read before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened; may be [empty](Row::is_empty).
    pub row: Row,
    /// When the oldest outstanding attempt becomes late, if any is outstanding and young.
    pub next_late_ns: Option<u64>,
}

/// The counters of one destination as last read.
#[derive(Debug)]
pub struct Tally {
    to: SocketAddr,
    late_slots: u32,
    counts: Counts,
    /// Attempts that started before this slot were late at the read before.
    late_before: u32,
    /// Clients of the failure windows as last read, by round modulo 2.
    seen: [(u64, u64); 2],
    read_ns: u64,
    last_established_ns: Option<u64>,
}

/// What the age slots say at one moment.
#[derive(Default)]
struct Ages {
    young: i64,
    late: i64,
    oldest_young: Option<u32>,
    first_newly_late: Option<u32>,
    clients: u32,
}

impl Tally {
    /// A destination that gets an index now: every counter begins at zero.
    #[must_use]
    pub fn new(to: SocketAddr, late_slots: u32, now_ns: u64) -> Self {
        let late_slots = late_slots.clamp(1, LATE_SLOTS_LIMIT);
        let late_before = abi::slot_of(now_ns).wrapping_sub(late_slots);
        let counts = Counts::default();
        Self { to, late_slots, counts, late_before, seen: [(0, 0); 2], read_ns: now_ns, last_established_ns: None }
    }

    /// Whom it counts.
    #[must_use]
    pub const fn to(&self) -> SocketAddr {
        self.to
    }

    /// Sums as of the last read.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// After how many slots an attempt is late.
    #[must_use]
    pub const fn late_slots(&self) -> u32 {
        self.late_slots
    }

    /// The read after which an established attempt was last seen.
    #[must_use]
    pub const fn last_established_ns(&self) -> Option<u64> {
        self.last_established_ns
    }

    /// Whether an attempt was outstanding at the last read, so that time alone may change what is to be told.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        self.counts.young > 0
    }

    /// Takes a read. `quiet_until_ns` is the latest time until which the destination is known to have had nothing new.
    pub fn read(&mut self, snapshot: &Snapshot<'_>, quiet_until_ns: u64) -> Change {
        let judged_ns = snapshot.before_ns.saturating_sub(LATE_MARGIN_NS);
        let late_from = abi::slot_of(judged_ns).wrapping_sub(self.late_slots).wrapping_add(1);
        let ages = self.ages(snapshot, late_from);
        let (mut now, late_ends) = sum(snapshot.per_cpu);
        now.young = ages.young.max(0);
        now.late = self.counts.late.max(u64::try_from(ages.late).unwrap_or(0) + late_ends);
        let row = self.row(snapshot, &now, &ages, quiet_until_ns);
        if row.established > 0 || row.recovered > 0 {
            self.last_established_ns = Some(snapshot.before_ns);
        }
        self.counts = now;
        self.late_before = late_from;
        self.read_ns = snapshot.before_ns;
        for window in snapshot.per_cpu.iter().flat_map(|hot| hot.failing) {
            let seen = &mut self.seen[(window.round % 2) as usize];
            match window.round.cmp(&seen.0) {
                core::cmp::Ordering::Less => {}
                core::cmp::Ordering::Equal => seen.1 |= window.clients,
                core::cmp::Ordering::Greater => *seen = (window.round, window.clients),
            }
        }
        let next_late_ns =
            ages.oldest_young.map(|start| begin_of(start.wrapping_add(self.late_slots)) + LATE_MARGIN_NS);
        Change { row, next_late_ns }
    }

    fn ages(&self, snapshot: &Snapshot<'_>, late_from: u32) -> Ages {
        // A slot may begin during the read: laps are told apart from the newest slot that can have been written.
        let newest = abi::slot_of(snapshot.after_ns);
        let mut ages = Ages { late: snapshot.per_cpu.iter().map(|hot| hot.older).sum(), ..Ages::default() };
        for position in 0..SLOTS as u32 {
            let age = newest.wrapping_sub(position) % SLOTS as u32;
            let start = newest.wrapping_sub(age);
            // `last_slot` is copied before the slots: a cell written in between is newer than it says.
            let is_recent = !is_before(start, abi::slot_of(snapshot.before_ns).wrapping_sub(1));
            let mut outstanding = 0;
            let mut clients = 0;
            for hot in snapshot.per_cpu {
                let cell = hot.slots[position as usize];
                if cell == 0 {
                    continue;
                }
                let count = i64::from(abi::cell_count(cell));
                if abi::cell_epoch(cell) == abi::epoch_of(start) && (is_recent || !is_before(hot.last_slot, start)) {
                    outstanding += count;
                    clients |= hot.slot_clients[position as usize];
                } else {
                    // Left over from a lap before, by epoch or by `Hot::last_slot`: later than any limit.
                    ages.late += count;
                }
            }
            if is_before(start, late_from) {
                ages.late += outstanding;
                if outstanding > 0 && !is_before(start, self.late_before) {
                    ages.clients |= clients;
                    ages.first_newly_late = Some(earlier(ages.first_newly_late, start));
                }
            } else {
                ages.young += outstanding;
                if outstanding > 0 {
                    ages.oldest_young = Some(earlier(ages.oldest_young, start));
                }
            }
        }
        ages
    }

    fn row(&self, snapshot: &Snapshot<'_>, now: &Counts, ages: &Ages, quiet_until_ns: u64) -> Row {
        let was = &self.counts;
        let failed = |cause: FailureCause| now.failed[cause.index()].saturating_sub(was.failed[cause.index()]);
        let newly_late = now.late - was.late;
        let mut row = Row {
            attempts: now.attempts.saturating_sub(was.attempts),
            established: now.established.saturating_sub(was.established),
            refused: failed(FailureCause::Refused),
            unreachable: failed(FailureCause::Unreachable),
            // The kernel's own time-out before ours is an answer that did not come, too.
            late: newly_late + failed(FailureCause::NoAnswer),
            recovered: now.established_late.saturating_sub(was.established_late),
            cancelled: now.cancelled.saturating_sub(was.cancelled),
            answered: now.answered.saturating_sub(was.answered),
            reset: failed(FailureCause::Reset),
            ..Row::empty(self.to, self.read_ns.max(quiet_until_ns.min(snapshot.before_ns)), snapshot.before_ns)
        };
        let failures = row.failed() + row.reset;
        if failures > 0 {
            let (clients, first) = self.windows(snapshot);
            let distinct = clients.count_ones().max((halved(clients) | ages.clients).count_ones());
            row.clients = distinct.clamp(1, u32::try_from(failures).unwrap_or(u32::MAX));
            row.first = earliest(first, (newly_late > 0).then(|| self.first_late(ages)));
        }
        row
    }

    /// Clients and the first failure of the windows, as far as they are new since the read before.
    fn windows(&self, snapshot: &Snapshot<'_>) -> (u64, Option<First>) {
        let mut clients = 0;
        let mut first = None;
        let is_recent = |window: &&FailureWindow| window.round + 1 >= snapshot.round && window.round > 0;
        for window in snapshot.per_cpu.iter().flat_map(|hot| &hot.failing).filter(is_recent) {
            let (round, seen) = self.seen[(window.round % 2) as usize];
            if round == window.round && window.clients & !seen == 0 {
                continue;
            }
            clients |= window.clients;
            let failed = First { started_ns: window.oldest_start_ns, failed_ns: window.first_failed_ns };
            first = earliest(first, Some(failed));
        }
        (clients, first)
    }

    /// Begin and lateness of the oldest attempt that became late. One that also ended since the read before is no
    /// longer in its slot; it began after those that were late already.
    fn first_late(&self, ages: &Ages) -> First {
        let start = ages.first_newly_late.unwrap_or(self.late_before);
        First { started_ns: begin_of(start), failed_ns: begin_of(start.wrapping_add(self.late_slots)) }
    }
}

/// Sums of the counters, without the age slots; and how many late attempts ended.
fn sum(per_cpu: &[Hot]) -> (Counts, u64) {
    let mut sum = Counts::default();
    for hot in per_cpu {
        sum.attempts += hot.attempts;
        sum.established += hot.established;
        sum.cancelled += hot.cancelled;
        sum.established_late += hot.established_late;
        sum.cancelled_late += hot.cancelled_late;
        sum.answered += hot.flows_answered;
        for cause in FailureCause::ALL {
            sum.failed[cause.index()] += hot.failed[cause.index()];
            sum.failed_late[cause.index()] += hot.failed_late[cause.index()];
        }
    }
    let late_ends = sum.established_late + sum.cancelled_late + sum.failed_late.iter().sum::<u64>();
    (sum, late_ends)
}

/// The 64 bits of a window as the 32 bits that a slot keeps: the kernel takes the upper 6 or 5 bits of one hash.
fn halved(clients: u64) -> u32 {
    (0..32).filter(|bit| clients >> (2 * bit) & 0b11 != 0).fold(0, |halved, bit| halved | 1 << bit)
}

const fn begin_of(slot: u32) -> u64 {
    (slot as u64) << SLOT_SHIFT
}

/// Whether `slot` is earlier than `other`, for slots less than half of the number range apart.
const fn is_before(slot: u32, other: u32) -> bool {
    (slot.wrapping_sub(other) as i32) < 0
}

fn earlier(known: Option<u32>, slot: u32) -> u32 {
    known.map_or(slot, |known| if is_before(slot, known) { slot } else { known })
}

/// The earlier start and the earlier failure of two.
fn earliest(one: Option<First>, other: Option<First>) -> Option<First> {
    match (one, other) {
        (Some(one), Some(other)) => Some(First {
            started_ns: one.started_ns.min(other.started_ns),
            failed_ns: one.failed_ns.min(other.failed_ns),
        }),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
