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
        O_SOCK_PORT, O_SOCK_PROTOCOL, O_SOCK_SOURCE4, O_SOCK_SOURCE6, O_SOCK_STATE, O_SOCK_UID, O_TCP_RECEIVED,
        O_TCP_SENT, Offset, PROXY_UID,
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

/// An address as a destination's: v4-mapped for IPv4, in memory order.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
pub(crate) struct Address([u32; 4]);

impl Address {
    /// As a key of a map.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> &[u8; 16] {
        // SAFETY: sixteen bytes, each of which is a value.
        unsafe { &*(&raw const self.0).cast::<[u8; 16]>() }
    }

    /// Of 127.0.0.0/8 or ::1: no pod's address.
    #[inline(always)]
    pub(crate) fn is_loopback(&self) -> bool {
        let [first, second, third, last] = self.0;
        if first != 0 || second != 0 {
            return false;
        }
        let last = u32::from_be(last);
        (third == MAPPED && last >> 24 == 127) || (third == 0 && last == 1)
    }
}

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

    /// Whether it is a mesh's proxy's. A socket that a listener made is its listener's user's
    /// (`sk_clone_lock` in <https://github.com/torvalds/linux/blob/v6.12/net/core/sock.c> copies it).
    #[inline(always)]
    pub(crate) fn is_proxys(self) -> bool {
        O_SOCK_UID.load(self.0) == PROXY_UID.get()
    }

    /// Where it connects to; `None` for another address family.
    #[inline(always)]
    pub(crate) fn destination(self) -> Option<AlignedKey> {
        let port = u16::from_be(O_SOCK_PORT.load(self.0));
        let kind = DestinationKey::ORDINARY;
        let mut key = AlignedKey(DestinationKey { address: [0; 16], port, protocol: IPPROTO_TCP, kind });
        let Address(address) = self.address(&O_SOCK_ADDRESS4, &O_SOCK_ADDRESS6)?;
        let words = (&raw mut key.0.address).cast::<u32>();
        // SAFETY: `words` points at the 16 bytes of `address`, aligned to 4 by `AlignedKey`.
        unsafe {
            words.write(address[0]);
            words.add(1).write(address[1]);
            words.add(2).write(address[2]);
            words.add(3).write(address[3]);
        }
        Some(key)
    }

    /// Its own address. A connect has chosen it, but not yet its port, when it comes to SYN_SENT
    /// (`tcp_v4_connect` in <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_ipv4.c>).
    #[inline(always)]
    pub(crate) fn source(self) -> Option<Address> {
        self.address(&O_SOCK_SOURCE4, &O_SOCK_SOURCE6)
    }

    /// Whether it connects to its own address, and that is one that others can reach. Out of line: inlined with what calls
    /// it, the compiler keeps halves of pointers on the stack, which the verifier refuses.
    #[inline(never)]
    pub(crate) fn is_to_itself(self) -> bool {
        match O_SOCK_FAMILY.load(self.0) {
            AF_INET => {
                let to = O_SOCK_ADDRESS4.load(self.0);
                to == O_SOCK_SOURCE4.load(self.0) && !Address([0, 0, MAPPED, to]).is_loopback()
            }
            AF_INET6 => {
                let to = |word| O_SOCK_ADDRESS6.load_at(self.0, word);
                let is_same = |word| to(word) == O_SOCK_SOURCE6.load_at(self.0, word);
                // The last word differs most often.
                is_same(3)
                    && is_same(2)
                    && is_same(1)
                    && is_same(0)
                    && !Address([to(0), to(1), to(2), to(3)]).is_loopback()
            }
            _ => false,
        }
    }

    /// An IPv6 socket's IPv4 members hold junk.
    #[inline(always)]
    fn address(self, member4: &'static Offset<u32>, member6: &'static Offset<u32>) -> Option<Address> {
        match O_SOCK_FAMILY.load(self.0) {
            AF_INET => Some(Address([0, 0, MAPPED, member4.load(self.0)])),
            AF_INET6 => Some(Address([
                member6.load_at(self.0, 0),
                member6.load_at(self.0, 1),
                member6.load_at(self.0, 2),
                member6.load_at(self.0, 3),
            ])),
            _ => None,
        }
    }

    /// The cookie of its network namespace, which for a pod means of the pod.
    #[inline(always)]
    pub(crate) fn space(self) -> u64 {
        O_NET_COOKIE.load(O_SOCK_NET.load(self.0))
    }

    /// A hash of the client's network namespace.
    ///
    /// Cookies are small consecutive numbers; the multiplier (2^64 divided by the golden ratio) spreads neighbours over
    /// the whole range, of which the readers take the top bits.
    #[inline(always)]
    pub(crate) fn client(self) -> u32 {
        (self.space().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
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
