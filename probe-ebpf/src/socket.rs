//! A socket as the programs see it: its state, its destination, its network namespace, its bytes.

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    cty::c_void,
    helpers::generated::{bpf_sk_storage_get, bpf_skc_to_tcp_sock},
};
use probe_common::abi::{Attempt, DestinationKey};

use crate::{
    maps::ATTEMPTS,
    offsets::{
        Kernel, O_NET_COOKIE, O_SOCK_ADDRESS4, O_SOCK_ADDRESS6, O_SOCK_CGROUP, O_SOCK_ERROR, O_SOCK_FAMILY, O_SOCK_NET,
        O_SOCK_PORT, O_SOCK_PROTOCOL, O_SOCK_STATE, O_TCP_RECEIVED, O_TCP_SENT,
    },
};

// TCP states: <https://github.com/torvalds/linux/blob/v6.12/include/net/tcp_states.h>.
pub(crate) const TCP_ESTABLISHED: i32 = 1;
pub(crate) const TCP_SYN_SENT: i32 = 2;
pub(crate) const TCP_SYN_RECV: i32 = 3;
pub(crate) const TCP_CLOSE: i32 = 7;
pub(crate) const TCP_CLOSE_WAIT: i32 = 8;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u8 = 6;

/// The third word of a v4-mapped IPv6 address, in memory order.
const MAPPED: u32 = 0xffff_u32.to_be();

/// `struct sock` of a tracepoint's argument.
#[derive(Clone, Copy)]
pub(crate) struct Socket(Kernel);

/// A key that can be written word by word: the verifier refuses misaligned stores to the stack.
#[repr(C, align(4))]
pub(crate) struct AlignedKey(pub(crate) DestinationKey);

/// Payload bytes of an established connection so far.
pub(crate) struct Traffic {
    /// Received in order; a FIN counts one.
    pub(crate) received: u64,
    /// Sent at least once.
    pub(crate) sent: u64,
}

impl Socket {
    #[inline(always)]
    pub(crate) fn new(pointer: *const c_void) -> Self {
        Self(Kernel(pointer.cast()))
    }

    /// Not MPTCP's parent socket, whose transitions repeat those of its subflows.
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        O_SOCK_PROTOCOL.load(self.0) == u16::from(IPPROTO_TCP)
    }

    #[inline(always)]
    pub(crate) fn state(self) -> i32 {
        i32::from(O_SOCK_STATE.load(self.0))
    }

    /// `sk_err`: an errno, positive.
    #[inline(always)]
    pub(crate) fn error(self) -> i32 {
        O_SOCK_ERROR.load(self.0)
    }

    /// The cgroup in which the socket was created. The current task's is another one in softirqs.
    #[inline(always)]
    pub(crate) fn cgroup(self) -> Kernel {
        O_SOCK_CGROUP.load(self.0)
    }

    /// Where it connects to; `None` for another address family. An IPv6 socket's IPv4 members hold junk.
    #[inline(always)]
    pub(crate) fn destination(self) -> Option<AlignedKey> {
        let port = u16::from_be(O_SOCK_PORT.load(self.0));
        let mut key = AlignedKey(DestinationKey { address: [0; 16], port, protocol: IPPROTO_TCP, padding: 0 });
        let words = (&raw mut key.0.address).cast::<u32>();
        let address = match O_SOCK_FAMILY.load(self.0) {
            AF_INET => [0, 0, MAPPED, O_SOCK_ADDRESS4.load(self.0)],
            AF_INET6 => [
                O_SOCK_ADDRESS6.load_at(self.0, 0),
                O_SOCK_ADDRESS6.load_at(self.0, 1),
                O_SOCK_ADDRESS6.load_at(self.0, 2),
                O_SOCK_ADDRESS6.load_at(self.0, 3),
            ],
            _ => return None,
        };
        // SAFETY: `words` points at the 16 bytes of `address`, aligned to 4 by `AlignedKey`.
        unsafe {
            words.write(address[0]);
            words.add(1).write(address[1]);
            words.add(2).write(address[2]);
            words.add(3).write(address[3]);
        }
        Some(key)
    }

    /// A hash of the client's network namespace, which for a pod means of the pod.
    ///
    /// Cookies are small consecutive numbers; the multiplier (2^64 divided by the golden ratio) spreads neighbours over
    /// the whole range, of which the readers take the top bits.
    #[inline(always)]
    pub(crate) fn client(self) -> u32 {
        let cookie = O_NET_COOKIE.load(O_SOCK_NET.load(self.0));
        (cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }

    /// Payload counters; `None` when the kernel says that this is no full TCP socket.
    #[inline(always)]
    pub(crate) fn traffic(self) -> Option<Traffic> {
        // SAFETY: the helper checks the socket's kind itself.
        let tcp = Kernel(unsafe { bpf_skc_to_tcp_sock(self.0.0.cast_mut().cast()) }.cast_const().cast());
        if tcp.is_null() {
            return None;
        }
        Some(Traffic { received: O_TCP_RECEIVED.load(tcp), sent: O_TCP_SENT.load(tcp) })
    }

    /// What the socket remembers of its attempt, if it began one that is counted.
    #[inline(always)]
    pub(crate) fn attempt(self) -> Option<*mut Attempt> {
        self.storage(0)
    }

    /// The same, made (all zero) where there is none. `None` when there is no memory for it.
    #[inline(always)]
    pub(crate) fn attempt_or_new(self) -> Option<*mut Attempt> {
        self.storage(u64::from(BPF_SK_STORAGE_GET_F_CREATE))
    }

    #[inline(always)]
    fn storage(self, flags: u64) -> Option<*mut Attempt> {
        let map = (&raw const ATTEMPTS).cast_mut().cast();
        // SAFETY: the map is a socket storage of `Attempt`; the verifier knows the pointer as a socket.
        let storage = unsafe { bpf_sk_storage_get(map, self.0.0.cast_mut().cast(), core::ptr::null_mut(), flags) }
            .cast::<Attempt>();
        if storage.is_null() { None } else { Some(storage) }
    }
}
