//! Kernel event to count: one short entry point per hook.
//!
//! In: three BTF tracepoints, and what user space says in the maps (which destinations, which round, which cgroup). Out:
//! counters, age slots and first-failure records as `probe_common::abi` describes them.
//!
//! The programs alter nothing: they read sockets and write their own maps. They wait for nothing, allocate nothing but a
//! socket's storage, and leave whatever they cannot count in [`maps::LOSSES`].
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod connect;
mod count;
mod maps;
mod mesh;
mod offsets;
mod scope;
mod socket;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::socket::{Socket, TCP_CLOSE, TCP_ESTABLISHED, TCP_SYN_RECV, TCP_SYN_SENT};

/// `TP_PROTO(const struct sock *sk, const int oldstate, const int newstate)`
/// (<https://github.com/torvalds/linux/blob/v6.12/include/trace/events/sock.h>), before the new state is stored.
///
/// Seven of ten transitions of a connection are none of ours: they leave after a few comparisons. One more is of interest
/// only where it is a mesh's proxy's: the begin of a connection that was accepted.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let is_accepted = old == TCP_SYN_RECV && new == TCP_ESTABLISHED;
    if new != TCP_SYN_SENT && old != TCP_SYN_SENT && old != TCP_ESTABLISHED && !is_accepted {
        return 0;
    }
    let socket = Socket::new(ctx.arg(0));
    if !socket.is_tcp() {
        return 0;
    }
    if new == TCP_SYN_SENT {
        connect::on_start(socket);
    } else if old == TCP_SYN_SENT {
        connect::on_end(socket, new);
    } else if is_accepted {
        if socket.is_proxys() {
            mesh::on_proxy(socket);
        }
    } else {
        connect::on_flow_end(socket, new);
    }
    0
}

/// `TP_PROTO(const struct sock *sk)`
/// (<https://github.com/torvalds/linux/blob/v6.12/include/trace/events/sock.h>).
///
/// For an ICMP error that meets a socket in use (a connect in progress holds it), the kernel queues the error and
/// reports it while `sk_err` is still 0; the socket stays in SYN_SENT until the application closes it
/// (`tcp_v4_err` in <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_ipv4.c>). So this report is the only sign.
///
/// An error that ends a connection is reported right after the transition to CLOSE (`tcp_done_with_error` in
/// <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp.c>). The kernel keeps that transition from the other
/// program when the softirq that brought it has interrupted that very program, but not from this one.
#[btf_tracepoint(function = "inet_sk_error_report")]
pub(crate) fn inet_sk_error_report(ctx: BtfTracePointContext) -> i32 {
    let socket = Socket::new(ctx.arg(0));
    let state = socket.state();
    if state == TCP_SYN_SENT && socket.error() == 0 && socket.is_tcp() {
        connect::on_unreachable(socket);
    } else if state == TCP_CLOSE && socket.is_tcp() {
        connect::on_gone(socket);
    }
    0
}

/// `TP_PROTO(struct sock *sk)`
/// (<https://github.com/torvalds/linux/blob/v6.12/include/trace/events/tcp.h>), once per socket, with its storage still
/// there (`tcp_v4_destroy_sock` in <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_ipv4.c> comes before
/// `__sk_destruct`, which frees it). The last occasion to make good an end that both programs above were kept from.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let socket = Socket::new(ctx.arg(0));
    if socket.is_tcp() {
        connect::on_gone(socket);
    }
    0
}

/// The kernel gives its tracing helpers, and the walk through its structures, to GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Never reached: a path to it would be a program without an exit, which the verifier refuses to load.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
