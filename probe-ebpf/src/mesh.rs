//! Which pods stand behind a mesh's proxy, as that proxy's own sockets show.
//!
//! In: sockets of the proxy's user that begin a connect or have taken a connection. Out: when each network namespace and
//! each address was last seen so, for the agent to read and for [`is_behind_proxy`]. It judges no connection.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use probe_common::abi::{PROXY_RENEWED_NS, PROXY_SEEN_FOR_NS};

use crate::{
    maps::{PROXY_ADDRESSES, PROXY_SPACES},
    scope,
    socket::Socket,
};

/// A socket of the proxy's is at work. Looks first: that is all that nearly every connection of a proxy costs.
#[inline(never)]
pub(crate) fn on_proxy(socket: Socket) {
    let Some(address) = socket.source() else { return };
    // What an application dials is redirected to loopback, and arrives at an address that says nothing.
    let is_loopback = address.is_loopback();
    let space = socket.space();
    let seen = if is_loopback { PROXY_SPACES.get_ptr(&space) } else { PROXY_ADDRESSES.get_ptr(address.bytes()) };
    // SAFETY: a helper of the kernel without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if is_younger(seen, now_ns, PROXY_RENEWED_NS) || !scope::is_ours(socket) {
        return;
    }
    // An entry that finds no room is tried again with the proxy's next connection.
    PROXY_SPACES.insert(&space, &now_ns, 0).ok();
    if !is_loopback {
        PROXY_ADDRESSES.insert(address.bytes(), &now_ns, 0).ok();
    }
}

/// Whether what an application in the socket's network namespace dials goes to a proxy.
#[inline(always)]
pub(crate) fn is_behind_proxy(socket: Socket) -> bool {
    let seen = PROXY_SPACES.get_ptr(&socket.space());
    // SAFETY: a helper of the kernel without arguments.
    seen.is_some() && is_younger(seen, unsafe { bpf_ktime_get_ns() }, PROXY_SEEN_FOR_NS)
}

/// Whether there is a sighting, less than `limit_ns` ago.
#[inline(always)]
fn is_younger(seen: Option<*const u64>, now_ns: u64, limit_ns: u64) -> bool {
    // SAFETY: a map value. The entry may have been given to another key since: then a sighting just as real is read.
    seen.is_some_and(|seen| now_ns.saturating_sub(unsafe { seen.read_volatile() }) < limit_ns)
}
