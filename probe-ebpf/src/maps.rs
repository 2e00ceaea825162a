//! The maps, as `probe_common::abi::maps` describes them. The sizes here are placeholders where user space sets them at
//! load; who may write what is said in the abi's header.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use probe_common::abi::{
    Attempt, Cold, Control, DestinationKey, DestinationValue, Hot, Loss, PROXY_ADDRESSES_LIMIT, PROXY_SPACES_LIMIT,
    Stamps,
};

use crate::atomic;

/// Not preallocated: a lookup then never sees an entry that was recycled for another key, and memory follows use.
#[map]
pub(crate) static DESTINATIONS: HashMap<DestinationKey, DestinationValue> =
    HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static GENERATIONS: Array<u32> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static HOT: PerCpuArray<Hot> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub(crate) static COLD: Array<Cold> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static STAMPS: Array<Stamps> = Array::with_max_entries(1, 0);

/// 256 KiB hold 6,553 records of 40 bytes with their headers: every destination of a 4,096-destination node failing
/// first within one read round, and half as many again on other CPUs. What does not fit is counted.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

#[map]
pub(crate) static LOSSES: PerCpuArray<[u64; Loss::COUNT]> = PerCpuArray::with_max_entries(1, 0);

/// Freed with its socket: nothing leaks, nothing fills, and a reused address meets no old entry.
#[btf_map]
pub(crate) static ATTEMPTS: SkStorage<Attempt> = SkStorage::new();

/// Forgets by itself what was not asked for: nothing tells the programs that a namespace is gone.
#[map]
pub(crate) static PROXY_SPACES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(PROXY_SPACES_LIMIT, 0);

#[map]
pub(crate) static PROXY_ADDRESSES: LruHashMap<[u8; 16], u64> = LruHashMap::with_max_entries(PROXY_ADDRESSES_LIMIT, 0);

/// Counts what could not be counted. Out of line: rare, and it keeps the paths that call it short.
#[inline(never)]
pub(crate) fn lose(loss: Loss) {
    if let Some(losses) = LOSSES.get_ptr_mut(0) {
        let counter = losses.cast::<u64>().wrapping_add(loss as usize);
        atomic::add64(counter, 1);
    }
}
