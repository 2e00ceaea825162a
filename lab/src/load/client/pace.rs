//! When the next connection begins. In: a rate. Out: due times, kept on the clock rather than counted from the last
//! start, so that a late start is followed by a shorter gap. Pure.

use rand::{Rng, RngCore};

/// A sequence of due times, raw CLOCK_MONOTONIC; one of rate 0 is never due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    due_ns: u64,
    mean_gap_ns: f64,
    exponential: bool,
}

impl Pace {
    /// Independent gaps, as of many users: a Poisson stream.
    pub(super) fn exponential(per_second: f64, now_ns: u64, rng: &mut impl RngCore) -> Pace {
        let mut pace = Pace { exponential: true, ..Pace::steady(per_second, now_ns) };
        if pace.due_ns != u64::MAX {
            pace.due_ns = now_ns;
            pace.advance(rng);
        }
        pace
    }

    /// Equal gaps, as of a loop.
    pub(super) fn steady(per_second: f64, now_ns: u64) -> Pace {
        let sends = per_second.is_finite() && per_second > 0.0;
        let due_ns = if sends { now_ns } else { u64::MAX };
        Pace { due_ns, mean_gap_ns: if sends { 1e9 / per_second } else { 0.0 }, exponential: false }
    }

    /// `u64::MAX` for never.
    pub(super) fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// On to the next.
    pub(super) fn advance(&mut self, rng: &mut impl RngCore) {
        let factor = if self.exponential { -(1.0 - rng.random::<f64>()).ln() } else { 1.0 };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and a gap of centuries may saturate"
        )]
        let gap_ns = (self.mean_gap_ns * factor) as u64;
        self.due_ns = self.due_ns.saturating_add(gap_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn a_poisson_stream_has_its_rate_and_its_spread() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut pace = Pace::exponential(1000.0, 0, &mut rng);
        let mut gaps = Vec::new();
        for _ in 0..20_000 {
            let before = pace.due_ns();
            pace.advance(&mut rng);
            gaps.push((pace.due_ns() - before) as f64);
        }
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean / 1e6 - 1.0).abs() < 0.03, "mean gap {mean} ns");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "an exponential's deviation equals its mean");
    }

    #[test]
    fn equal_seeds_give_equal_streams() {
        let stream = |seed| {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut pace = Pace::exponential(10.0, 5, &mut rng);
            pace.advance(&mut rng);
            pace.due_ns()
        };
        assert_eq!(stream(7), stream(7));
        assert_ne!(stream(7), stream(8));
    }

    #[test]
    fn a_rate_of_zero_is_never_due() {
        let mut rng = SmallRng::seed_from_u64(1);
        assert_eq!(Pace::exponential(0.0, 5, &mut rng).due_ns(), u64::MAX);
        assert_eq!(Pace::steady(f64::NAN, 5).due_ns(), u64::MAX);
    }
}
