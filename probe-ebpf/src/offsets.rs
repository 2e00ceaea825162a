//! Reading the running kernel's structures at offsets that user space looked up in its BTF.
//!
//! Each constant lies in `.rodata`, is set before loading, and is known to the verifier by value, which therefore checks
//! every load against the kernel's own types (`PTR_TO_BTF_ID`): a wrong offset is refused at load, never misread. A load
//! through a pointer that went stale reads zero instead of faulting
//! (<https://docs.kernel.org/bpf/prog_lsm.html> shows such direct loads; `check_ptr_to_btf_access` in
//! <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/verifier.c>).

use core::{marker::PhantomData, ptr};

/// A pointer that the kernel gave, to a structure that the verifier knows.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Kernel(pub(crate) *const u8);

impl Kernel {
    /// Whether there is nothing to read.
    #[inline(always)]
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }
}

/// Where a member of type `T` lies in its structure: one of `probe_common::abi::members`.
#[repr(transparent)]
pub(crate) struct Offset<T>(u64, PhantomData<fn() -> T>);

impl<T: Copy> Offset<T> {
    const UNSET: Self = Self(0, PhantomData);

    /// Bytes from the start of the structure.
    #[inline(always)]
    fn bytes(&'static self) -> usize {
        // SAFETY: a shared reference to a static. Volatile, because user space replaces the value before loading.
        unsafe { ptr::read_volatile(&raw const self.0) as usize }
    }

    /// The member's value.
    #[inline(always)]
    pub(crate) fn load(&'static self, base: Kernel) -> T {
        self.load_at(base, 0)
    }

    /// The `index`-th `T` of a member that is an array of them.
    #[inline(always)]
    pub(crate) fn load_at(&'static self, base: Kernel, index: usize) -> T {
        // SAFETY: the verifier has checked that a `T` can be loaded there. Volatile, so that it is loaded once, whole.
        unsafe { ptr::read_volatile(base.0.add(self.bytes()).cast::<T>().add(index)) }
    }
}

macro_rules! members {
    ($($name:ident: $type:ty),+ $(,)?) => {
        $(
            #[unsafe(no_mangle)]
            pub(crate) static $name: Offset<$type> = Offset::UNSET;
        )+
    };
}

members! {
    O_SOCK_FAMILY: u16,
    O_SOCK_STATE: u8,
    O_SOCK_PORT: u16,
    O_SOCK_ADDRESS4: u32,
    O_SOCK_ADDRESS6: u32,
    O_SOCK_SOURCE4: u32,
    O_SOCK_SOURCE6: u32,
    O_SOCK_UID: u32,
    O_SOCK_NET: Kernel,
    O_SOCK_PROTOCOL: u16,
    O_SOCK_ERROR: i32,
    O_SOCK_CGROUP: Kernel,
    O_NET_COOKIE: u64,
    O_CGROUP_NODE: Kernel,
    O_CGROUP_PARENT: Kernel,
    O_STATE_CGROUP: Kernel,
    O_NODE_ID: u64,
    O_TCP_RECEIVED: u64,
    O_TCP_SENT: u64,
}

/// A number that user space sets before loading: one of `probe_common::abi::constants`.
#[repr(transparent)]
pub(crate) struct Constant<T>(T);

impl<T: Copy> Constant<T> {
    /// Its value.
    #[inline(always)]
    pub(crate) fn get(&'static self) -> T {
        // SAFETY: as in `Offset::bytes`.
        unsafe { ptr::read_volatile(&raw const self.0) }
    }
}

#[unsafe(no_mangle)]
pub(crate) static NODE_CGROUP: Constant<u64> = Constant(0);

#[unsafe(no_mangle)]
pub(crate) static HOT_CAPACITY: Constant<u32> = Constant(0);

#[unsafe(no_mangle)]
pub(crate) static COLD_CAPACITY: Constant<u32> = Constant(0);

#[unsafe(no_mangle)]
pub(crate) static PROXY_UID: Constant<u32> = Constant(0);
