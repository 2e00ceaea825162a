//! Where an attempt is counted: per CPU and by age for destinations of splits, in one shared value for all others.
//!
//! Order matters to a reader that copies a value while it changes: an end leaves its age slot before it is counted, so
//! that a copy may miss an attempt for a moment but never holds it twice; counters come before the stamp, so that a
//! value seen as touched is seen whole.

use probe_common::{
    abi::{
        self, Attempt, CellStep, Cold, FailureWindow, FirstFailure, HOT_LIMIT, Hot, Loss, SLOTS, cell, cell_count,
        cell_step, epoch_of, is_late, slot_of,
    },
    cause::FailureCause,
};

use crate::{
    atomic,
    connect::Outcome,
    maps::{COLD, CONTROL, EVENTS, GENERATIONS, HOT, STAMPS, lose},
    offsets::HOT_CAPACITY,
};

/// `BPF_RB_FORCE_WAKEUP`: the agent sleeps in epoll and has to learn at once.
const FORCE_WAKEUP: u64 = 2;

/// How often a slot's cell is tried again. Each failed try means that a softirq counted in between, on this CPU.
const CELL_TRIES: u32 = 4;

/// Where an attempt belongs.
enum Place {
    /// Per CPU and by age.
    Hot(u32, *mut Hot),
    /// Shared.
    Cold(*mut Cold),
}

/// Counts the start. False when the attempt belongs nowhere, and must not be settled.
#[inline(always)]
pub(crate) fn begin(attempt: *mut Attempt, now_ns: u64) -> bool {
    let Some(place) = place_of(attempt) else { return false };
    match place {
        Place::Hot(index, hot) => {
            let slot = slot_of(now_ns);
            // SAFETY: a map value, of this CPU alone; only this program writes `attempts`, and it does not nest.
            unsafe { (*hot).attempts = (*hot).attempts.wrapping_add(1) };
            move_slot(hot, slot, slot, 1);
            // SAFETY: the position is within the array; a set bit lost to a softirq's reset of the same slot is a bit of
            // a lap that is over.
            unsafe {
                let clients = (&raw mut (*hot).slot_clients).cast::<u32>().add(position_of(slot));
                *clients |= 1 << ((*attempt).client >> 27);
            }
            stamp(index, round());
        }
        // SAFETY: a map value; the address of one of its members.
        Place::Cold(cold) => atomic::add64(unsafe { &raw mut (*cold).attempts }, 1),
    }
    true
}

/// Counts the end of a started attempt: the caller has claimed it.
#[inline(always)]
pub(crate) fn settle(attempt: *mut Attempt, outcome: Outcome, now_ns: u64) {
    let Some(place) = place_of(attempt) else { return };
    match place {
        Place::Hot(index, hot) => settle_hot(index, hot, attempt, outcome, now_ns),
        Place::Cold(cold) => {
            // SAFETY: a map value; the address of one of its members.
            let counter = unsafe {
                match outcome {
                    Outcome::Established => &raw mut (*cold).established,
                    Outcome::Cancelled => &raw mut (*cold).cancelled,
                    Outcome::Failed(cause) => by_cause(&raw mut (*cold).failed, cause),
                }
            };
            atomic::add64(counter, 1);
        }
    }
}

/// Counts a flow that brought an answer.
#[inline(always)]
pub(crate) fn answered(attempt: *mut Attempt) {
    if let Some(Place::Hot(index, hot)) = place_of(attempt) {
        // SAFETY: as in `begin`: one writer per CPU.
        unsafe { (*hot).flows_answered = (*hot).flows_answered.wrapping_add(1) };
        stamp(index, round());
    }
}

/// Counts a flow that was reset before it brought an answer.
#[inline(never)]
pub(crate) fn reset(attempt: *mut Attempt, now_ns: u64) {
    match place_of(attempt) {
        Some(Place::Hot(index, hot)) => {
            // SAFETY: a map value; the address of one of its members.
            atomic::add64(by_cause(unsafe { &raw mut (*hot).failed }, FailureCause::Reset), 1);
            note_failure(index, hot, attempt, FailureCause::Reset, now_ns);
        }
        // SAFETY: as above.
        Some(Place::Cold(cold)) => atomic::add64(by_cause(unsafe { &raw mut (*cold).failed }, FailureCause::Reset), 1),
        None => {}
    }
}

#[inline(always)]
fn settle_hot(index: u32, hot: *mut Hot, attempt: *mut Attempt, outcome: Outcome, now_ns: u64) {
    // SAFETY: a socket's storage.
    let (start, late_slots) = unsafe { (slot_of((*attempt).started_ns), (*attempt).late_slots) };
    let now = slot_of(now_ns);
    let late = is_late(start, now, late_slots);
    move_slot(hot, start, now, -1);
    // SAFETY: a map value; the address of one of its members.
    let counter = unsafe {
        match (outcome, late) {
            (Outcome::Established, false) => &raw mut (*hot).established,
            (Outcome::Established, true) => &raw mut (*hot).established_late,
            (Outcome::Cancelled, false) => &raw mut (*hot).cancelled,
            (Outcome::Cancelled, true) => &raw mut (*hot).cancelled_late,
            (Outcome::Failed(cause), false) => by_cause(&raw mut (*hot).failed, cause),
            (Outcome::Failed(cause), true) => by_cause(&raw mut (*hot).failed_late, cause),
        }
    };
    match outcome {
        // Several programs count failures on one CPU.
        Outcome::Failed(_) => atomic::add64(counter, 1),
        // SAFETY: as in `begin`: one writer per CPU.
        Outcome::Established | Outcome::Cancelled => unsafe { *counter = (*counter).wrapping_add(1) },
    }
    match outcome {
        // A late failure was evidence when it became late; it is no second one.
        Outcome::Failed(cause) if !late => note_failure(index, hot, attempt, cause, now_ns),
        _ => stamp(index, round()),
    }
}

/// The attempt's counters; `None` (and a loss) when its index belongs to another destination by now.
#[inline(always)]
fn place_of(attempt: *mut Attempt) -> Option<Place> {
    // SAFETY: a socket's storage.
    let (index, generation) = unsafe { ((*attempt).index, (*attempt).generation) };
    if GENERATIONS.get(index).copied() != Some(generation) {
        lose(Loss::Stale);
        return None;
    }
    let hot_capacity = HOT_CAPACITY.get();
    if index < hot_capacity {
        Some(Place::Hot(index, HOT.get_ptr_mut(index)?))
    } else {
        Some(Place::Cold(COLD.get_ptr_mut(index - hot_capacity)?))
    }
}

/// Adds to the age slot of `start`, seen from slot `now`: the rule is [`abi::cell_step`], here made safe against the
/// other program's softirq on the same CPU.
#[inline(always)]
fn move_slot(hot: *mut Hot, start: u32, now: u32, count: i32) {
    let position = position_of(start);
    // SAFETY: a map value; the addresses of its members, the position being within the arrays.
    let (older, last_slot, cell_at, clients_at) = unsafe {
        (
            (&raw mut (*hot).older).cast::<u64>(),
            &raw mut (*hot).last_slot,
            (&raw mut (*hot).slots).cast::<u32>().add(position),
            (&raw mut (*hot).slot_clients).cast::<u32>().add(position),
        )
    };
    let mut moved = false;
    for _ in 0..CELL_TRIES {
        // SAFETY: as above.
        let (old, last) = unsafe { (cell_at.read_volatile(), last_slot.read_volatile()) };
        match cell_step(old, start, now, last) {
            CellStep::Add => moved = atomic::swap32(cell_at, old, old.wrapping_add_signed(count)),
            CellStep::Restart => moved = restart(hot, cell_at, clients_at, old, cell(epoch_of(start), count)),
            CellStep::Older => break,
        }
        if moved {
            break;
        }
    }
    if !moved {
        atomic::add64(older, i64::from(count) as u64);
    }
    // SAFETY: as above. A softirq between look and store sets it back by a slot at most.
    unsafe {
        if now.wrapping_sub(last_slot.read_volatile()) as i32 > 0 {
            last_slot.write_volatile(now);
        }
    }
}

/// Gives the cell to a new lap, and what the old one left to `older`. A reader that copies the value in between finds
/// `folds_begun` and `folds_ended` apart, and copies again.
#[inline(always)]
fn restart(hot: *mut Hot, cell_at: *mut u32, clients_at: *mut u32, old: u32, new: u32) -> bool {
    // SAFETY: a map value; the addresses of its members.
    let (begun, ended, older) =
        unsafe { (&raw mut (*hot).folds_begun, &raw mut (*hot).folds_ended, (&raw mut (*hot).older).cast::<u64>()) };
    atomic::add64(begun, 1);
    let moved = atomic::swap32(cell_at, old, new);
    if moved {
        // SAFETY: as above.
        unsafe { clients_at.write_volatile(0) };
        atomic::add64(older, i64::from(cell_count(old)) as u64);
    }
    atomic::add64(ended, 1);
    moved
}

/// Marks the failing client, the oldest start, and wakes the agent at the first failure of the round. Stamps, too.
#[inline(never)]
fn note_failure(index: u32, hot: *mut Hot, attempt: *mut Attempt, cause: FailureCause, now_ns: u64) {
    let round = round();
    // SAFETY: a socket's storage.
    let (started_ns, client, generation) = unsafe { ((*attempt).started_ns, (*attempt).client, (*attempt).generation) };
    // SAFETY: a map value; one of its two windows.
    let window = unsafe { (&raw mut (*hot).failing).cast::<FailureWindow>().add((round & 1) as usize) };
    // SAFETY: as above. Two programs may meet here on one CPU: the second then finds the round set, or begins it once
    // more and costs the first its client's bit; the counters are not concerned.
    let first = unsafe {
        let first = (*window).round != round;
        if first {
            (*window).clients = 0;
            (*window).oldest_start_ns = started_ns;
            (*window).first_failed_ns = now_ns;
            (*window).round = round;
        } else if started_ns < (*window).oldest_start_ns {
            (*window).oldest_start_ns = started_ns;
        }
        atomic::or64(&raw mut (*window).clients, 1 << (client >> 26));
        first
    };
    stamp(index, round);
    if first {
        wake(FirstFailure { failed_ns: now_ns, started_ns, index, generation, cause: cause as u32, padding: 0 });
    }
}

#[inline(always)]
fn wake(record: FirstFailure) {
    match EVENTS.reserve::<FirstFailure>(0) {
        Some(mut entry) => {
            entry.write(record);
            entry.submit(FORCE_WAKEUP);
        }
        None => lose(Loss::RingFull),
    }
}

/// The read round. Asked as late as possible: what is stamped with a round that is over is found a second later only.
#[inline(always)]
fn round() -> u64 {
    match CONTROL.get_ptr(0) {
        // SAFETY: a map value; volatile, because user space raises it.
        Some(control) => unsafe { (&raw const (*control).round).read_volatile() },
        None => 0,
    }
}

/// Tells user space that the index changed in this round. Looks before it writes: the line is shared by all CPUs.
#[inline(always)]
fn stamp(index: u32, round: u64) {
    let Some(stamps) = STAMPS.get_ptr_mut(0) else { return };
    let position = (index & (HOT_LIMIT - 1)) as usize;
    // SAFETY: a map value, and a position within its array.
    unsafe {
        let stamp = (&raw mut (*stamps).rounds).cast::<u32>().add(position);
        if stamp.read_volatile() != round as u32 {
            stamp.write_volatile(round as u32);
        }
    }
}

/// The counter of a cause.
#[inline(always)]
fn by_cause(counters: *mut [u64; FailureCause::COUNT], cause: FailureCause) -> *mut u64 {
    counters.cast::<u64>().wrapping_add(cause.index())
}

#[inline(always)]
fn position_of(slot: u32) -> usize {
    (slot & (SLOTS as u32 - 1)) as usize
}

const _: () = assert!(abi::SLOTS.is_power_of_two() && HOT_LIMIT.is_power_of_two());
