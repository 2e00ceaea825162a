//! When an application that refused is dialled again. In: refusals and random numbers. Out: pauses. Pure.

use std::time::Duration;

/// Linkerd's inbound proxy begins with this (`DEFAULT_INBOUND_CONNECT_BACKOFF`, linkerd2-proxy app/src/env.rs).
const FIRST: Duration = Duration::from_millis(100);
/// And never waits longer.
const LONGEST: Duration = Duration::from_secs(10);
/// Added at random, so that proxies that began together do not stay together.
const JITTER_PERMILLE: u64 = 100;

/// How often in a row the application refused.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    refusals: u32,
}

impl Backoff {
    /// The pause after one more refusal: doubled each time, with up to a tenth more.
    pub(super) fn after_refusal(&mut self, random: u64) -> Duration {
        let doubled = FIRST.saturating_mul(1_u32.checked_shl(self.refusals).unwrap_or(u32::MAX));
        self.refusals = self.refusals.saturating_add(1);
        let base = doubled.min(LONGEST);
        let base_us = u64::try_from(base.as_micros()).unwrap_or(u64::MAX);
        let jitter_us = random.checked_rem(base_us * JITTER_PERMILLE / 1000 + 1).unwrap_or(0);
        (base + Duration::from_micros(jitter_us)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_a_tenth_of_a_second_to_ten_seconds() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..9).map(|_| backoff.after_refusal(0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
    }

    #[test]
    fn a_tenth_at_most_is_added() {
        for random in [0, 1, 9_999, 10_000, 10_001, u64::MAX] {
            let pause = Backoff::default().after_refusal(random);
            assert!((FIRST..=FIRST * 11 / 10).contains(&pause), "{pause:?}");
        }
        let mut late = Backoff { refusals: 40 };
        assert_eq!(late.after_refusal(u64::MAX), LONGEST);
    }
}
