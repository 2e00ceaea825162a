//! What the kernel programs and the agent share: map names, keys, values, and the slot arithmetic. Pure.
//!
//! One rule holds for every map but [`maps::CONTROL`], [`maps::DESTINATIONS`] and [`maps::GENERATIONS`]: the kernel
//! writes, user space only reads. (A user-space write to a per-CPU value replaces it whole and would lose what the
//! kernel added in between.) The one exception is a value whose index has rested: see [`INDEX_REST_NS`].
//!
//! # Counting one attempt exactly once
//!
//! An attempt starts at the transition to SYN_SENT and ends when the socket leaves it, or at an ICMP error before
//! that. While it is outstanding it is one count in the age slot of its start. With `late_slots` of its destination
//! an attempt is *late* from the moment that [`is_late`] says so; kernel (at the end) and agent (at each read) use
//! that one function, so that both put every attempt on the same side:
//!
//! - timely end: `established` or `failed[cause]` or `cancelled`;
//! - late: the agent counts it when it first sees it late among the outstanding ones ([`Hot::outstanding_late`]); its
//!   end, whatever it is, only moves it from there to `established_late`, `failed_late` or `cancelled_late`.
//!
//! So `late so far = outstanding late now + all the *_late counters`, a number that never falls, and
//! `attempts = established + failed + cancelled + late so far + outstanding young`.

//! # Meshed pods
//!
//! A mesh redirects what an application dials, and what dials the application, to a proxy in the application's own pod.
//! The proxy is known by its user ([`constants::PROXY_UID`]), a meshed pod by its proxy having been seen at work:
//!
//! - the application's own connects end at its proxy and say nothing of whom it dialled: an attempt of another user, in a
//!   network namespace where a proxy was seen within [`PROXY_SEEN_FOR_NS`], is not counted, nor is its flow;
//! - the proxy's connects count as any client's;
//! - but a connect of the proxy from an address to that same address asks the application behind it, and is counted apart,
//!   under [`DestinationKey::SELF_HOP`]; such a connect of any other user is not counted at all. Loopback addresses are
//!   no endpoint's and are left out of this rule.

use crate::cause::FailureCause;

/// Names of programs in the object.
pub mod programs {
    /// BTF tracepoint on `inet_sock_set_state`: starts and ends of attempts, ends of flows.
    pub const SET_STATE: &str = "inet_sock_set_state";
    /// BTF tracepoint on `inet_sk_error_report`: ICMP errors before the handshake ends.
    pub const ERROR_REPORT: &str = "inet_sk_error_report";
    /// BTF tracepoint on `tcp_destroy_sock`: ends that the others were kept from.
    pub const DESTROY: &str = "tcp_destroy_sock";
    /// All of them.
    pub const ALL: [&str; 3] = [SET_STATE, ERROR_REPORT, DESTROY];
}

/// Names of maps in the object.
pub mod maps {
    /// HASH [`super::DestinationKey`] to [`super::DestinationValue`]: which destinations are counted, and where.
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// ARRAY index to the `u32` generation that owns the index now.
    pub const GENERATIONS: &str = "GENERATIONS";
    /// ARRAY of one [`super::Control`].
    pub const CONTROL: &str = "CONTROL";
    /// PERCPU_ARRAY index to [`super::Hot`]: destinations of splits.
    pub const HOT: &str = "HOT";
    /// ARRAY of [`super::Cold`], at `index - HOT_CAPACITY`: every other destination, one shared value each.
    pub const COLD: &str = "COLD";
    /// ARRAY of one [`super::Stamps`].
    pub const STAMPS: &str = "STAMPS";
    /// RINGBUF of [`super::FirstFailure`].
    pub const EVENTS: &str = "EVENTS";
    /// PERCPU_ARRAY of one `[u64; Loss::COUNT]`.
    pub const LOSSES: &str = "LOSSES";
    /// SK_STORAGE of [`super::Attempt`].
    pub const ATTEMPTS: &str = "ATTEMPTS";
    /// LRU_HASH `u64` cookie of a network namespace to `u64` ktime: where a mesh's proxy was last seen at work.
    pub const PROXY_SPACES: &str = "PROXY_SPACES";
    /// LRU_HASH `[u8; 16]` address (as [`super::DestinationKey::address`]) to `u64` ktime: from which, or at which, a mesh's
    /// proxy was last seen at work. Never a loopback address.
    pub const PROXY_ADDRESSES: &str = "PROXY_ADDRESSES";
    /// All of them.
    pub const ALL: [&str; 11] = [
        DESTINATIONS,
        GENERATIONS,
        CONTROL,
        HOT,
        COLD,
        STAMPS,
        EVENTS,
        LOSSES,
        ATTEMPTS,
        PROXY_SPACES,
        PROXY_ADDRESSES,
    ];
}

/// Names of the constants that user space sets before loading (`.rodata`).
pub mod constants {
    /// `u64`: cgroup id (inode of the cgroup2 root that the agent sees) above every socket of this node; 0 = no filter
    /// is never used: without an id the agent does not attach.
    pub const NODE_CGROUP: &str = "NODE_CGROUP";
    /// `u32`: how many indices of [`super::maps::HOT`] this load has.
    pub const HOT_CAPACITY: &str = "HOT_CAPACITY";
    /// `u32`: how many values of [`super::maps::COLD`] this load has.
    pub const COLD_CAPACITY: &str = "COLD_CAPACITY";
    /// `u32`: the user that a mesh's proxies run as, as the initial user namespace numbers it.
    pub const PROXY_UID: &str = "PROXY_UID";
}

/// Where the programs find what they read in the running kernel's structures.
///
/// rustc emits no CO-RE records, so user space looks the offsets up in the kernel's BTF and sets them as constants,
/// which the verifier then checks against the same BTF: a wrong offset is refused at load.
pub mod members {
    /// One member that the programs read.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Member {
        /// The `u64` constant (`.rodata`) that gets its offset in bytes.
        pub constant: &'static str,
        /// The structure that the offset counts from.
        pub structure: &'static str,
        /// The way there, through embedded structures and unions.
        pub path: &'static str,
        /// Its size in bytes, as the programs load it.
        pub size: u32,
    }

    const fn member(constant: &'static str, structure: &'static str, path: &'static str, size: u32) -> Member {
        Member { constant, structure, path, size }
    }

    /// All of them.
    pub const ALL: [Member; 19] = [
        member("O_SOCK_FAMILY", "sock", "__sk_common.skc_family", 2),
        member("O_SOCK_STATE", "sock", "__sk_common.skc_state", 1),
        member("O_SOCK_PORT", "sock", "__sk_common.skc_dport", 2),
        member("O_SOCK_ADDRESS4", "sock", "__sk_common.skc_daddr", 4),
        member("O_SOCK_ADDRESS6", "sock", "__sk_common.skc_v6_daddr", 16),
        member("O_SOCK_SOURCE4", "sock", "__sk_common.skc_rcv_saddr", 4),
        member("O_SOCK_SOURCE6", "sock", "__sk_common.skc_v6_rcv_saddr", 16),
        member("O_SOCK_UID", "sock", "sk_uid", 4),
        member("O_SOCK_NET", "sock", "__sk_common.skc_net.net", 8),
        member("O_SOCK_PROTOCOL", "sock", "sk_protocol", 2),
        member("O_SOCK_ERROR", "sock", "sk_err", 4),
        member("O_SOCK_CGROUP", "sock", "sk_cgrp_data.cgroup", 8),
        member("O_NET_COOKIE", "net", "net_cookie", 8),
        member("O_CGROUP_NODE", "cgroup", "kn", 8),
        member("O_CGROUP_PARENT", "cgroup", "self.parent", 8),
        member("O_STATE_CGROUP", "cgroup_subsys_state", "cgroup", 8),
        member("O_NODE_ID", "kernfs_node", "id", 8),
        member("O_TCP_RECEIVED", "tcp_sock", "bytes_received", 8),
        member("O_TCP_SENT", "tcp_sock", "bytes_sent", 8),
    ];
}

/// The most destinations of splits that one node counts per CPU and by age (design: 4,096).
pub const HOT_LIMIT: u32 = 4096;

/// The most network namespaces with a mesh's proxy that are remembered: forty times the pods that Kubernetes puts on a
/// node by default (<https://kubernetes.io/docs/setup/best-practices/cluster-large/>). Beyond it the one that was silent
/// longest is forgotten, and is known again with its proxy's next connection.
pub const PROXY_SPACES_LIMIT: u32 = 4096;

/// The most addresses with a mesh's proxy that are remembered; as [`PROXY_SPACES_LIMIT`].
pub const PROXY_ADDRESSES_LIMIT: u32 = 4096;

/// How old a sighting of a proxy becomes before the kernel writes it anew: a look, but no write, for every connection.
pub const PROXY_RENEWED_NS: u64 = 1_000_000_000;

/// How long a network namespace counts as a mesh's after its proxy was last seen at work: 10 minutes, as the wire says.
pub const PROXY_SEEN_FOR_NS: u64 = 600_000_000_000;

/// How long an index rests before it may get another generation: a socket may wait in SYN_SENT for 127 s at the
/// kernel's default `tcp_syn_retries` of 6 (<https://docs.kernel.org/networking/ip-sysctl.html>), and 180 s leaves room.
pub const INDEX_REST_NS: u64 = 180_000_000_000;

/// Age slots per destination. 128 slots of 8.39 ms span 1.07 s; older attempts are folded into [`Hot::older`].
pub const SLOTS: usize = 128;

/// An age slot is `2^23` ns = 8.39 ms wide: a shift instead of a division, since this runs per connection.
pub const SLOT_SHIFT: u32 = 23;

/// How deep below the node's cgroup a socket's cgroup may lie. Kubernetes' deepest (kind, systemd driver, a nested
/// container) is 8.
pub const CGROUP_DEPTH: usize = 16;

/// The slot of an instant: a count of slot widths since boot, that fits 32 bits for 1,142 years of uptime.
#[must_use]
#[inline(always)]
pub const fn slot_of(ktime_ns: u64) -> u32 {
    (ktime_ns >> SLOT_SHIFT) as u32
}

/// Whether an attempt of slot `start` counts as late at slot `now`.
#[must_use]
#[inline(always)]
pub const fn is_late(start: u32, now: u32, late_slots: u32) -> bool {
    now.wrapping_sub(start) >= late_slots
}

/// `late_slots` for a time-out: never sooner than it, at most one slot and a bit later.
#[must_use]
pub const fn late_slots_for(timeout_ns: u64) -> u32 {
    ((timeout_ns + (1 << SLOT_SHIFT) - 1) >> SLOT_SHIFT) as u32 + 1
}

/// An age slot's cell: epoch (which lap of the ring) in the high half, count plus [`CELL_ZERO`] in the low half.
///
/// A per-CPU count may be negative: an attempt can start on one CPU and end on another; only the sum means something.
/// The epoch has 16 bits, so a cell that nobody touched for 65,536 laps (19.5 h) looks like one of the current lap;
/// [`Hot::last_slot`] tells the two apart.
pub const CELL_ZERO: u32 = 0x8000;

/// The lap of a slot, as kept in a cell.
#[must_use]
#[inline(always)]
pub const fn epoch_of(slot: u32) -> u32 {
    (slot / SLOTS as u32) & 0xffff
}

/// A cell of that epoch and count.
#[must_use]
#[inline(always)]
pub const fn cell(epoch: u32, count: i32) -> u32 {
    (epoch << 16) | ((CELL_ZERO as i32 + count) as u32 & 0xffff)
}

/// The epoch of a cell.
#[must_use]
#[inline(always)]
pub const fn cell_epoch(cell: u32) -> u32 {
    cell >> 16
}

/// The count of a cell; a cell of all zero bits (never touched) counts nothing.
#[must_use]
#[inline(always)]
pub const fn cell_count(cell: u32) -> i32 {
    if cell == 0 { 0 } else { (cell & 0xffff) as i32 - CELL_ZERO as i32 }
}

/// What adding to an age slot does to its cell on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellStep {
    /// The cell is of the attempt's lap: add to it.
    Add,
    /// The cell is left over from an older lap (or was never touched): its count goes to [`Hot::older`], and the cell
    /// starts anew with the attempt's lap.
    Restart,
    /// The ring has moved on since the attempt's lap: what is added goes to [`Hot::older`].
    Older,
}

/// Which step the cell at `start % SLOTS` needs, when an attempt of slot `start` begins or ends at slot `now` and the
/// CPU's cells were last touched at slot `last`.
#[must_use]
#[inline(always)]
pub const fn cell_step(cell: u32, start: u32, now: u32, last: u32) -> CellStep {
    // Whoever touched the cell in the attempt's lap did so at `start` or later.
    let touched_since_start = last.wrapping_sub(start) as i32 >= 0;
    if cell == 0 || !touched_since_start {
        return CellStep::Restart;
    }
    let now_epoch = epoch_of(now);
    let cell_laps = now_epoch.wrapping_sub(cell_epoch(cell)) & 0xffff;
    let start_laps = now_epoch.wrapping_sub(epoch_of(start)) & 0xffff;
    if cell_laps == start_laps {
        CellStep::Add
    } else if cell_laps > start_laps {
        CellStep::Restart
    } else {
        CellStep::Older
    }
}

/// A destination as the kernel keys it. IPv4 addresses are v4-mapped, so that an AF_INET6 socket to `::ffff:a.b.c.d`
/// and an AF_INET socket to `a.b.c.d` meet the same entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct DestinationKey {
    /// Network byte order, v4-mapped for IPv4.
    pub address: [u8; 16],
    /// Host byte order.
    pub port: u16,
    /// IPPROTO_TCP is the only one today.
    pub protocol: u8,
    /// Whose attempts: [`Self::ORDINARY`] or [`Self::SELF_HOP`].
    pub kind: u8,
}

impl DestinationKey {
    /// Attempts of any client.
    pub const ORDINARY: u8 = 0;
    /// Attempts of a mesh's proxy from the very address that it dials: its hop to the application that it stands before.
    pub const SELF_HOP: u8 = 1;
}

/// Where a destination is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DestinationValue {
    /// Below HOT_CAPACITY: an index of [`maps::HOT`]; from there on, HOT_CAPACITY + index of [`maps::COLD`].
    pub index: u32,
    /// Must equal [`maps::GENERATIONS`] at `index` for a count to be made.
    pub generation: u32,
    /// Slots after which an outstanding attempt is late: [`late_slots_for`].
    pub late_slots: u32,
}

/// What user space tells the kernel at each read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Control {
    /// Number of the read round, from 1. User space raises it, then reads: what is counted under round N is complete
    /// and still there while the round is N + 1.
    pub round: u64,
}

/// Failures of one round: kept twice (round modulo 2), so that the finished one can be read.
///
/// Of attempts that failed in time, and of flows that were reset (which began with their connect, maybe long ago). An
/// attempt that fails when it was late already is not in it: it was evidence when it became late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FailureWindow {
    /// The round this window belongs to; any other round's content is stale.
    pub round: u64,
    /// Bit = hash of the failing client's network namespace: how many distinct clients failed, at least.
    pub clients: u64,
    /// Start of the oldest attempt that failed in the round (ktime).
    pub oldest_start_ns: u64,
    /// When the first failure of the round was seen (ktime).
    pub first_failed_ns: u64,
}

/// Counters and age slots of one destination on one CPU. Field meanings: the module header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Hot {
    /// Transitions to SYN_SENT.
    pub attempts: u64,
    /// Established in time.
    pub established: u64,
    /// Established, but late.
    pub established_late: u64,
    /// Given up by the client in time, or never sent (no local port): nobody's failure.
    pub cancelled: u64,
    /// Given up by the client when it was late already.
    pub cancelled_late: u64,
    /// Failed in time, by [`FailureCause::index`]; `Reset` counts flows, not attempts.
    pub failed: [u64; FailureCause::COUNT],
    /// Failed when late already, by cause.
    pub failed_late: [u64; FailureCause::COUNT],
    /// Established connections that ended with at least one byte of answer.
    pub flows_answered: u64,
    /// How often a slot's leftovers have gone to `older`. A copy is whole when this equals [`Self::folds_begun`].
    pub folds_ended: u64,
    /// Net attempts still outstanding from laps before the ring's current one.
    pub older: i64,
    /// The slot in which a cell of this CPU was last touched: a cell cannot be of a lap after that. What remains is a
    /// cell last touched 19.5 h ago to the slot, seen within a few slots of the first touch after a silence: its
    /// leftover then counts as young for at most `late_slots`.
    pub last_slot: u32,
    /// Zero.
    pub padding: u32,
    /// Failures by round.
    pub failing: [FailureWindow; 2],
    /// Outstanding attempts by start slot: cells.
    pub slots: [u32; SLOTS],
    /// Clients that started an attempt in the slot: bit = hash of the network namespace, 32 of them.
    pub slot_clients: [u32; SLOTS],
    /// How often a slot's leftovers began to go to `older`. The kernel copies a value from its start to its end, so a
    /// copy during such a move sees more of these than of [`Self::folds_ended`]: it is to be made again.
    pub folds_begun: u64,
}

/// Counters of one destination that no split uses: one value for all CPUs, atomically updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Cold {
    /// Transitions to SYN_SENT.
    pub attempts: u64,
    /// Established, at any age.
    pub established: u64,
    /// Given up by the client.
    pub cancelled: u64,
    /// Failed, by cause, at any age.
    pub failed: [u64; FailureCause::COUNT],
}

/// Per hot index, the round in which it was last touched: user space reads an index whose stamp changed.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Stamps {
    /// Low half of [`Control::round`].
    pub rounds: [u32; HOT_LIMIT as usize],
}

/// One record per destination, CPU and round: wakes the agent at the first failure, carries what that one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FirstFailure {
    /// ktime.
    pub failed_ns: u64,
    /// ktime.
    pub started_ns: u64,
    /// See [`DestinationValue`].
    pub index: u32,
    /// See [`DestinationValue`].
    pub generation: u32,
    /// [`FailureCause`].
    pub cause: u32,
    /// Zero.
    pub padding: u32,
}

/// What an attempt's socket remembers.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Attempt {
    /// ktime of SYN_SENT.
    pub started_ns: u64,
    /// See [`DestinationValue`].
    pub index: u32,
    /// See [`DestinationValue`].
    pub generation: u32,
    /// See [`DestinationValue`].
    pub late_slots: u32,
    /// [`AttemptState`].
    pub state: u32,
    /// Hash of the network namespace cookie.
    pub client: u32,
    /// Zero.
    pub padding: u32,
}

/// Where an attempt stands: values of [`Attempt::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttemptState {
    /// In SYN_SENT, one count in its age slot.
    Outstanding = 1,
    /// Ended and counted, and the connection is not established.
    Settled = 2,
    /// Counted as established: the flow is still to be counted.
    Flowing = 3,
    /// The agent's own socket, marked by it before it connects: never counted.
    Exempt = 4,
}

/// What the kernel side had to give up or could not attribute: indices of [`maps::LOSSES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Loss {
    /// A ring record could not be reserved (the counters are right all the same).
    RingFull = 0,
    /// No socket storage could be had: the attempt is not counted.
    NoStorage = 1,
    /// An attempt ended whose start was not seen: begun before the agent, or lost.
    EndWithoutStart = 2,
    /// An attempt ended under another generation of its index.
    Stale = 3,
    /// An end that the program missed, made good at a later transition of the same socket. Not a loss in the end.
    Repaired = 4,
}

impl Loss {
    /// How many kinds there are.
    pub const COUNT: usize = 5;

    /// Every kind, in the order of its index.
    pub const ALL: [Self; Self::COUNT] =
        [Self::RingFull, Self::NoStorage, Self::EndWithoutStart, Self::Stale, Self::Repaired];

    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RingFull => "ring-full",
            Self::NoStorage => "no-storage",
            Self::EndWithoutStart => "end-without-start",
            Self::Stale => "stale",
            Self::Repaired => "repaired",
        }
    }
}

impl Hot {
    /// Nothing counted yet.
    pub const ZERO: Self = Self {
        attempts: 0,
        established: 0,
        established_late: 0,
        cancelled: 0,
        cancelled_late: 0,
        failed: [0; FailureCause::COUNT],
        failed_late: [0; FailureCause::COUNT],
        flows_answered: 0,
        folds_ended: 0,
        older: 0,
        last_slot: 0,
        padding: 0,
        failing: [FailureWindow { round: 0, clients: 0, oldest_start_ns: 0, first_failed_ns: 0 }; 2],
        slots: [0; SLOTS],
        slot_clients: [0; SLOTS],
        folds_begun: 0,
    };

    /// On this CPU: net attempts outstanding that are late at slot `now`. Only the sum over all CPUs means something.
    #[must_use]
    pub fn outstanding_late(&self, now: u32, late_slots: u32) -> i64 {
        let mut sum = self.older;
        for (position, &cell) in self.slots.iter().enumerate() {
            let young = start_of(position as u32, cell, now).is_some_and(|start| {
                let touched_since_start = self.last_slot.wrapping_sub(start) as i32 >= 0;
                touched_since_start && !is_late(start, now, late_slots)
            });
            if !young {
                sum += i64::from(cell_count(cell));
            }
        }
        sum
    }

    /// On this CPU: net attempts outstanding, of any age. Only the sum over all CPUs means something.
    #[must_use]
    pub fn outstanding(&self) -> i64 {
        self.older + self.slots.iter().map(|&cell| i64::from(cell_count(cell))).sum::<i64>()
    }

    /// What the kernel does to the cells when an attempt of slot `start` begins (`count` 1) or ends (-1) at slot `now`:
    /// the model that tests build values with.
    pub fn touch(&mut self, start: u32, count: i32, now: u32) {
        let position = start as usize % SLOTS;
        let old = self.slots[position];
        match cell_step(old, start, now, self.last_slot) {
            CellStep::Add => self.slots[position] = cell(epoch_of(start), cell_count(old) + count),
            CellStep::Restart => {
                self.folds_begun += 1;
                self.folds_ended += 1;
                self.older += i64::from(cell_count(old));
                self.slots[position] = cell(epoch_of(start), count);
                self.slot_clients[position] = 0;
            }
            CellStep::Older => self.older += i64::from(count),
        }
        if now.wrapping_sub(self.last_slot) as i32 > 0 {
            self.last_slot = now;
        }
    }
}

/// The start slot that a cell at `position` stands for, seen at slot `now`; `None` when the cell is of an older lap
/// than the ring spans, and so later than any `late_slots`.
#[must_use]
pub const fn start_of(position: u32, cell: u32, now: u32) -> Option<u32> {
    let age = now.wrapping_sub(position) % SLOTS as u32;
    let start = now.wrapping_sub(age);
    if epoch_of(start) == cell_epoch(cell) { Some(start) } else { None }
}

const _: () = {
    assert!(size_of::<DestinationKey>() == 20);
    assert!(size_of::<DestinationValue>() == 12);
    assert!(size_of::<FailureWindow>() == 32);
    assert!(size_of::<Hot>() == 5 * 8 + 2 * 32 + 2 * 8 + 8 + 2 * 32 + 2 * 4 * SLOTS + 2 * 8);
    assert!(size_of::<Cold>() == 56);
    assert!(size_of::<Stamps>() == 4 * HOT_LIMIT as usize);
    assert!(size_of::<FirstFailure>() == 32);
    assert!(size_of::<Attempt>() == 32);
    assert!(SLOTS.is_power_of_two());
};

#[cfg(feature = "user")]
mod user {
    use super::*;

    // SAFETY: every one is `#[repr(C)]`, holds integers and arrays of them only, and has no implicit padding (the size
    // asserts above), so any bit pattern is a value and every byte is initialised.
    unsafe impl aya::Pod for DestinationKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DestinationValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Control {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Hot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Cold {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Stamps {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Attempt {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FirstFailure {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_keeps_epoch_and_signed_count() {
        for count in [-0x8000, -1, 0, 1, 0x7fff] {
            let cell = cell(0xfffe, count);
            assert_eq!((cell_epoch(cell), cell_count(cell)), (0xfffe, count));
        }
        assert_eq!(cell_count(0), 0, "an untouched cell counts nothing");
    }

    #[test]
    fn late_is_never_sooner_than_the_time_and_at_most_a_slot_and_a_bit_after_it() {
        let timeout = 25_000_000;
        let slots = late_slots_for(timeout);
        for start in (0..1u64 << SLOT_SHIFT).step_by(100_003) {
            let first_late =
                (0..60_000_000).step_by(10_007).find(|age| is_late(slot_of(start), slot_of(start + age), slots));
            let age = first_late.expect("becomes late");
            assert!(age >= timeout, "late after {age} ns");
            assert!(age < timeout + (2 << SLOT_SHIFT), "late only after {age} ns");
        }
    }

    #[test]
    fn outstanding_late_counts_each_lap_once() {
        let late_slots = 4;
        let now = 10 * SLOTS as u32 + 5;
        let mut hot = Hot::ZERO;
        let mut start = |slot: u32, count: i32| hot.slots[slot as usize % SLOTS] = cell(epoch_of(slot), count);
        start(now, 7); // young
        start(now - 3, 5); // young
        start(now - 4, 3); // late, this lap
        start(now - 100, 2); // late, the lap before
        start(now - 2 * SLOTS as u32 - 50, 11); // left over from an older lap
        hot.older = 1;
        hot.last_slot = now;
        assert_eq!(hot.outstanding_late(now, late_slots), 3 + 2 + 11 + 1);
        assert_eq!(hot.outstanding(), 7 + 5 + 3 + 2 + 11 + 1);
    }

    #[test]
    fn what_begins_on_one_cpu_and_ends_on_another_sums_to_nothing_at_any_distance() {
        let laps = SLOTS as u32;
        let far = 65_536 * laps;
        for end in [0, 1, 5, laps - 1, laps, laps + 1, 90 * laps + 3, far - 1, far, far + 7] {
            for between in [None, Some(end / 2), Some(end)] {
                let start = 3 * laps + 17;
                let (mut here, mut there) = (Hot::ZERO, Hot::ZERO);
                here.touch(start, 1, start);
                if let Some(between) = between {
                    for cpu in [&mut here, &mut there] {
                        cpu.touch(start + between, 1, start + between);
                        cpu.touch(start + between, -1, start + between);
                    }
                }
                there.touch(start, -1, start + end);
                assert_eq!(here.outstanding() + there.outstanding(), 0, "end {end} between {between:?}");
            }
        }
    }

    #[test]
    fn a_start_after_any_pause_is_young_and_what_it_finds_there_is_late() {
        for pause in [1, 2, 127, 128, 129, 40_000 * SLOTS as u32, 65_536 * SLOTS as u32] {
            let mut hot = Hot::ZERO;
            let first = 1_000_003;
            hot.touch(first, 1, first);
            let second = first + pause;
            hot.touch(second, 1, second);
            let late = i64::from(is_late(first, second, 4));
            assert_eq!(hot.outstanding_late(second, 4), late, "pause of {pause} slots");
            assert_eq!(hot.outstanding(), 2);
        }
    }

    #[test]
    fn a_forgotten_cell_never_turns_young_again() {
        let mut hot = Hot::ZERO;
        hot.touch(500, 1, 500);
        for lap in [1, 2, 65_535, 65_536, 65_537, 131_072] {
            let again = 500 + lap * SLOTS as u32;
            for now in again - 5..again + 5 {
                assert_eq!(hot.outstanding_late(now, 4), 1, "at slot {now}");
            }
        }
    }
}
