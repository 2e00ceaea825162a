//! How many frames one stream may bring. Pure.
//!
//! In: the time of each frame. Out: how long to wait before it is taken. Waiting instead of dropping: the stream's own
//! window fills up, the agent's own queue drops its oldest and says so in its next report, and nobody else is slowed.

use std::time::Duration;

use controller_core::Time;
use probe_common::wire::MESSAGES_PER_SECOND;

/// One frame's worth of time.
const INTERVAL_NS: u64 = 1_000_000_000 / MESSAGES_PER_SECOND as u64;

/// Frames that may come at once after a quiet second: the first totals of a stream do.
const BURST: u64 = MESSAGES_PER_SECOND as u64;

/// A stream's allowance, as the time at which it would be whole again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Allowance {
    whole_at: Time,
}

impl Allowance {
    /// Takes one frame at `now`; how long it has to wait, zero within the allowance.
    pub(super) fn take(&mut self, now: Time) -> Duration {
        self.whole_at = self.whole_at.max(now) + Duration::from_nanos(INTERVAL_NS);
        self.whole_at.since(now).saturating_sub(Duration::from_nanos(BURST * INTERVAL_NS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_000_000_000_000);

    #[test]
    fn an_honest_agent_never_waits() {
        let mut allowance = Allowance::default();
        for frame in 0..10_000_u64 {
            assert_eq!(allowance.take(START + Duration::from_millis(5 * frame)), Duration::ZERO, "frame {frame}");
        }
    }

    #[test]
    fn a_flood_is_slowed_to_the_rate_after_its_burst() {
        let mut allowance = Allowance::default();
        let mut now = START;
        for _ in 0..BURST + 1_000 {
            now = now + allowance.take(now);
        }
        assert_eq!(now.since(START), Duration::from_secs(4), "1,000 frames over the burst at 250 a second");
    }

    #[test]
    fn a_quiet_second_gives_the_burst_back() {
        let mut allowance = Allowance::default();
        for _ in 0..BURST {
            assert_eq!(allowance.take(START), Duration::ZERO);
        }
        assert!(allowance.take(START) > Duration::ZERO);
        let later = START + Duration::from_secs(2);
        assert_eq!(allowance.take(later), Duration::ZERO);
    }
}
