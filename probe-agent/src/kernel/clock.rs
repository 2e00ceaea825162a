//! The kernel's monotonic clock: the one that `bpf_ktime_get_ns` reads, so that kernel and agent share one axis of time.

use rustix::time::{ClockId, clock_gettime};

/// See [`super::now_ns`].
pub(super) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
