//! A budget per second: who asks gets a yes or the time of the next one. Pure.
//!
//! In: times in nanoseconds of one monotonic clock. It neither sleeps nor queues: what to do about a no is the caller's.

const SECOND_NS: u64 = 1_000_000_000;

/// So many a second, evenly, with a burst after quiet.
#[derive(Debug)]
pub struct Budget {
    interval_ns: u64,
    burst_ns: u64,
    /// When the budget is untouched again. One take moves it by one interval; it may run ahead of now by the burst.
    full_ns: u64,
}

impl Budget {
    /// `per_second` and `burst` are at least 1, whatever is asked for.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval_ns = SECOND_NS / u64::from(per_second.max(1));
        Self { interval_ns, burst_ns: interval_ns * u64::from(burst.max(1)), full_ns: 0 }
    }

    /// Takes one.
    ///
    /// # Errors
    ///
    /// When the budget is spent: the earliest time at which there is one again.
    pub fn take(&mut self, now_ns: u64) -> Result<(), u64> {
        let full_ns = self.full_ns.max(now_ns) + self.interval_ns;
        if full_ns > now_ns + self.burst_ns {
            return Err(full_ns - self.burst_ns);
        }
        self.full_ns = full_ns;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_brings_the_rate_and_quiet_the_burst_and_never_more() {
        let mut budget = Budget::new(250, 10);
        let start = 5 * SECOND_NS;
        let at_once = (0..100).filter(|_| budget.take(start).is_ok()).count();
        assert_eq!(at_once, 10);
        let within_a_second = (1..=1000).filter(|ms| budget.take(start + ms * 1_000_000).is_ok()).count();
        assert_eq!(within_a_second, 250);
    }

    #[test]
    fn a_no_names_the_time_of_the_next_yes() {
        let mut budget = Budget::new(10, 1);
        assert_eq!(budget.take(1_000), Ok(()));
        let next = budget.take(2_000).expect_err("spent");
        assert_eq!(next, 1_000 + SECOND_NS / 10);
        assert!(budget.take(next - 1).is_err());
        assert_eq!(budget.take(next), Ok(()));
    }
}
