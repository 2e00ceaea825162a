//! Pauses between tries: 50 ms, doubling to 500 ms, each with jitter. Pure.
//!
//! In: a seed. Out: pauses. It does not sleep, and it does not know what is tried: the streams to the controllers and
//! the watches of the API server share it, since the same outage ends for all agents of a cluster at the same moment.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

/// The first pause: a restarted peer is back in less than a second, and evidence waits for it.
const FIRST: Duration = Duration::from_millis(50);

/// The longest pause: 5,000 agents at twice a second are 10,000 connects a second on a peer that just came back, spread
/// by the jitter; longer would add to the time in which nobody is watching.
const LONGEST: Duration = Duration::from_millis(500);

/// An endless sequence of pauses.
#[derive(Debug)]
pub struct Pauses {
    next: Duration,
    random: SmallRng,
}

impl Pauses {
    /// The same seed gives the same pauses.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { next: FIRST, random: SmallRng::seed_from_u64(seed) }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    /// Between half of the current pause and all of it.
    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        Some(pause.mul_f64(self.random.random_range(0.5..=1.0)))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_begin_anew() {
        let mut pauses = Pauses::new(1);
        for full_ms in [50, 100, 200, 400, 500, 500] {
            let pause = pauses.next().expect("endless");
            let full = Duration::from_millis(full_ms);
            assert!(pause >= full / 2 && pause <= full, "{pause:?} of {full:?}");
        }
        pauses.reset();
        assert!(pauses.next().expect("endless") <= FIRST);
    }
}
