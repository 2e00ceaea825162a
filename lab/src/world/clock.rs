//! The one clock of a drill: raw `CLOCK_MONOTONIC` in nanoseconds, which `bpf_ktime_get_ns` also reads, so that times of
//! the kernel, of the agents and of the lab compare without conversion. Nothing here knows the wall clock.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns` (kernel/bpf/helpers.c reads `ktime_get_mono_fast_ns`).
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Blocks this thread. Only for threads that wait for the kernel and have nothing else to do.
#[expect(
    clippy::disallowed_methods,
    reason = "the lab's set-up thread waits for the kernel with a deadline of its own"
)]
pub(crate) fn pause(length: Duration) {
    std::thread::sleep(length);
}

/// Asks `done` each millisecond until it says yes; false when `limit` passed first.
pub(crate) fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline_ns = now_ns().saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
    loop {
        if done() {
            return true;
        }
        if now_ns() >= deadline_ns {
            return false;
        }
        pause(Duration::from_millis(1));
    }
}
