//! What is an attempt, how it ended, and of which cause.
//!
//! An attempt begins at the transition to SYN_SENT and is settled once, by whichever comes first: the transition out of
//! it, or an ICMP error. Both write the socket's storage; the one that moves `state` away from `Outstanding` counts.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use probe_common::{
    abi::{Attempt, AttemptState, DestinationKey, DestinationValue, Loss},
    cause::FailureCause,
};

use crate::{
    atomic, count,
    maps::{DESTINATIONS, lose},
    mesh, scope,
    socket::{Socket, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_SYN_RECV},
};

// The errors that tell causes apart: <https://github.com/torvalds/linux/blob/v6.12/include/uapi/asm-generic/errno.h>.
const EPIPE: i32 = 32;
const ECONNABORTED: i32 = 103;
const ECONNRESET: i32 = 104;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;

/// How an attempt ended.
#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    /// The handshake was completed.
    Established,
    /// The client gave up, or never sent: nobody's failure, unless it was late by then.
    Cancelled,
    /// It failed.
    Failed(FailureCause),
}

/// The socket goes to SYN_SENT.
#[inline(always)]
pub(crate) fn on_start(socket: Socket) {
    if socket.is_proxys() {
        mesh::on_proxy(socket);
    }
    let Some(destination) = counted_destination(socket) else { return };
    let Some(attempt) = socket.attempt_or_new() else {
        lose(Loss::NoStorage);
        return;
    };
    // SAFETY: the storage is a map value of this type.
    if unsafe { (*attempt).state } == AttemptState::Exempt as u32 {
        return;
    }
    // SAFETY: a helper of the kernel without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if claim(attempt, AttemptState::Outstanding, AttemptState::Settled) {
        // A socket can be connected again only after it left SYN_SENT: that end was missed.
        lose(Loss::Repaired);
        count::settle(attempt, Outcome::Cancelled, now_ns);
    }
    let client = socket.client();
    // SAFETY: the storage is this socket's, and a socket in connect() is locked by its caller.
    unsafe {
        (*attempt).started_ns = now_ns;
        (*attempt).index = destination.index;
        (*attempt).generation = destination.generation;
        (*attempt).late_slots = destination.late_slots;
        (*attempt).client = client;
    }
    if count::begin(attempt, now_ns) {
        // SAFETY: as above. Last, so that nobody settles what was not begun.
        unsafe { (&raw mut (*attempt).state).write_volatile(AttemptState::Outstanding as u32) };
    }
}

/// The socket leaves SYN_SENT for `new`.
#[inline(always)]
pub(crate) fn on_end(socket: Socket, new: i32) {
    if new == TCP_SYN_RECV {
        // Both sides dialled each other at once: the handshake goes on, and leaving ESTABLISHED will settle it.
        return;
    }
    let Some(attempt) = socket.attempt() else {
        if counted_destination(socket).is_some() {
            lose(Loss::EndWithoutStart);
        }
        return;
    };
    let (outcome, state) = if new == TCP_ESTABLISHED {
        (Outcome::Established, AttemptState::Flowing)
    } else {
        (outcome_of(socket.error()), AttemptState::Settled)
    };
    if claim(attempt, AttemptState::Outstanding, state) {
        // SAFETY: a helper of the kernel without arguments.
        count::settle(attempt, outcome, unsafe { bpf_ktime_get_ns() });
    }
}

/// An ICMP error reached a socket in SYN_SENT: the kernel will go on trying, but the answer is known.
#[inline(always)]
pub(crate) fn on_unreachable(socket: Socket) {
    let Some(attempt) = socket.attempt() else { return };
    if claim(attempt, AttemptState::Outstanding, AttemptState::Settled) {
        // SAFETY: a helper of the kernel without arguments.
        count::settle(attempt, Outcome::Failed(FailureCause::Unreachable), unsafe { bpf_ktime_get_ns() });
    }
}

/// The socket is in CLOSE and its error was told, or it is destroyed: an end that was missed is made good. What can be
/// missed came in a softirq; a client that gives up does so in its own call, which interrupts nobody.
#[inline(always)]
pub(crate) fn on_gone(socket: Socket) {
    let Some(attempt) = socket.attempt() else { return };
    if !claim(attempt, AttemptState::Outstanding, AttemptState::Settled) {
        return;
    }
    lose(Loss::Repaired);
    let cause = match outcome_of(socket.error()) {
        Outcome::Failed(cause) => cause,
        // The client has taken the error already. It was a RST's: the other errors of a handshake come so seldom that
        // missing the transition and losing the error do not meet.
        Outcome::Established | Outcome::Cancelled => FailureCause::Refused,
    };
    // SAFETY: a helper of the kernel without arguments.
    count::settle(attempt, Outcome::Failed(cause), unsafe { bpf_ktime_get_ns() });
}

/// The socket leaves ESTABLISHED for `new`. What comes later (an answer after our half-close, a reset after the peer's)
/// is not looked at: a connection is one sample, taken here.
#[inline(always)]
pub(crate) fn on_flow_end(socket: Socket, new: i32) {
    let Some(attempt) = socket.attempt() else { return };
    if claim(attempt, AttemptState::Outstanding, AttemptState::Flowing) {
        lose(Loss::Repaired);
        // SAFETY: a helper of the kernel without arguments.
        count::settle(attempt, Outcome::Established, unsafe { bpf_ktime_get_ns() });
    }
    if !claim(attempt, AttemptState::Flowing, AttemptState::Settled) {
        return;
    }
    let Some(traffic) = socket.traffic() else { return };
    // A FIN took one number of the sequence, and was counted before the socket went to CLOSE_WAIT
    // (`tcp_data_queue` in <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_input.c>).
    let fin = if new == TCP_CLOSE_WAIT { 1 } else { 0 };
    if traffic.received > fin {
        count::answered(attempt);
    } else if traffic.sent > 0 && is_reset(socket.error()) {
        // SAFETY: a helper of the kernel without arguments.
        count::reset(attempt, unsafe { bpf_ktime_get_ns() });
    }
}

/// The entry of the socket's destination, if attempts of this kind to it are counted and the socket is this node's. What
/// is a matter between an application and its own proxy, or between a process and itself, is nobody's evidence.
#[inline(always)]
fn counted_destination(socket: Socket) -> Option<DestinationValue> {
    let mut key = socket.destination()?;
    let is_proxys = socket.is_proxys();
    if is_proxys && socket.is_to_itself() {
        key.0.kind = DestinationKey::SELF_HOP;
    }
    // SAFETY: the map is not preallocated, so that an entry is not reused before the program has ended.
    let destination = *unsafe { DESTINATIONS.get(&key.0) }?;
    if !scope::is_ours(socket) {
        return None;
    }
    let is_nobodys = !is_proxys && (socket.is_to_itself() || mesh::is_behind_proxy(socket));
    if is_nobodys { None } else { Some(destination) }
}

/// Moves the attempt's state on; false when someone else did, or when it is not in `from`.
#[inline(always)]
fn claim(attempt: *mut Attempt, from: AttemptState, to: AttemptState) -> bool {
    // SAFETY: the storage is a map value of this type.
    let state = unsafe { &raw mut (*attempt).state };
    // SAFETY: as above. The look before saves the locked instruction for the sockets that are settled already.
    (unsafe { state.read_volatile() }) == from as u32 && atomic::swap32(state, from as u32, to as u32)
}

/// What `sk_err` at the way out of SYN_SENT says. The kernel's table of ICMP errors is `icmp_err_convert` in
/// <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/icmp.c>.
#[inline(always)]
fn outcome_of(error: i32) -> Outcome {
    match error {
        // Closed by its owner, or no local port was free.
        0 => Outcome::Cancelled,
        // Destroyed from outside (`ss -K`, a CNI that drops sockets to a removed backend), or left from an earlier
        // connect of this socket: a RST in SYN_SENT says ECONNREFUSED.
        ECONNABORTED | ECONNRESET => Outcome::Cancelled,
        ECONNREFUSED => Outcome::Failed(FailureCause::Refused),
        ETIMEDOUT => Outcome::Failed(FailureCause::NoAnswer),
        _ => Outcome::Failed(FailureCause::Unreachable),
    }
}

/// Whether an established connection ended by the peer's RST
/// (`tcp_reset` in <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_input.c>).
#[inline(always)]
fn is_reset(error: i32) -> bool {
    error == ECONNRESET || error == EPIPE
}
