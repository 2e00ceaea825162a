//! How a watch in trouble is tried again, and how often it is told. Pure but for the pause itself.
//!
//! In: errors and answers. Out: pauses, and which errors are news.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// First pause after an error.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);

/// Longest pause: an API server that is back is noticed within half a second. kube's own default goes up to 30 s.
const BACKOFF_LAST: Duration = Duration::from_millis(500);

/// Different errors that are told of one watch before it runs again. An outage has two or three.
const TROUBLES: usize = 8;

/// What was told of a watch that is in trouble: each thing once, until it runs again.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    told: BTreeSet<String>,
}

impl Troubles {
    /// Whether `error` is news.
    pub(super) fn is_news(&mut self, error: &str) -> bool {
        self.told.len() < TROUBLES && self.told.insert(error.to_owned())
    }

    /// The watch was answered; whether that is news.
    pub(super) fn end(&mut self) -> bool {
        let were_some = !self.told.is_empty();
        self.told.clear();
        were_some
    }
}

/// Doubling pauses, each shortened at random by up to half, so that watches and replicas do not come back in step.
pub(super) struct Backoff {
    next: Duration,
    random: SmallRng,
}

impl Backoff {
    pub(super) fn new(seed: u64) -> Self {
        Self { next: BACKOFF_FIRST, random: SmallRng::seed_from_u64(seed) }
    }

    /// The server answered.
    pub(super) fn reset(&mut self) {
        self.next = BACKOFF_FIRST;
    }

    /// How long to wait now.
    pub(super) fn step(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(BACKOFF_LAST);
        whole.mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// Waits that long.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.step()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_is_told_once_until_the_watch_runs_again() {
        let mut troubles = Troubles::default();
        assert!(!troubles.end(), "nothing was wrong");
        let told = ["refused", "reset", "refused", "reset"].map(|error| troubles.is_news(error));
        assert_eq!(told, [true, true, false, false]);
        assert!(troubles.end());
        assert!(!troubles.end());
        assert!(troubles.is_news("refused"));
        let news = (0..100).filter(|number| troubles.is_news(&number.to_string())).count();
        assert_eq!(news, TROUBLES - 1, "whatever a server makes up");
    }

    #[test]
    fn pauses_grow_to_half_a_second_and_start_anew_after_an_answer() {
        for seed in 0..100 {
            let mut backoff = Backoff::new(seed);
            for whole_ms in [50, 100, 200, 400, 500, 500] {
                let step = backoff.step();
                let whole = Duration::from_millis(whole_ms);
                assert!(step <= whole && step >= whole / 2, "seed {seed}: {step:?} of {whole:?}");
            }
            backoff.reset();
            assert!(backoff.step() <= BACKOFF_FIRST);
        }
    }
}
