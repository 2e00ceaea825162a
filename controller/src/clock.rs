//! The controller's two clocks, and the only place that reads them.
//!
//! In: nothing. Out: [`monotonic`], the core's clock, on which every duration and every published time stands; [`wall`],
//! for the annotation and the Events that people and other replicas read. It deliberately has no virtual time: what needs
//! that takes `now` as an argument.

use controller_core::Time;
use k8s_openapi::jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Raw CLOCK_MONOTONIC in nanoseconds: the clock of `bpf_ktime_get_ns`, so that the drill compares without conversion.
pub(crate) fn monotonic() -> Time {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    Time(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

/// The wall clock. It may step: only for what is read outside this binary.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock; callers take it as an argument"
)]
pub(crate) fn wall() -> Timestamp {
    Timestamp::try_from(std::time::SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH)
}
