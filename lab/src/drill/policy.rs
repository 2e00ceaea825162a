//! The controller's settings in a drill. In: a scenario's expectation. Out: the documented flags that the controller is
//! started with and the same values for the report, so that the two cannot differ. Pure.

use std::time::Duration;

use serde::Serialize;

use crate::drill::scenario::Expect;

/// The settings that a report names; every one is also a flag of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// How long a failover lasts at least.
    pub dwell_ms: u64,
    /// The longest that repeated failovers make it.
    pub dwell_max_ms: u64,
    /// Moves caused by readiness alone go back when it has held for this long.
    pub readiness_hold_ms: u64,
    /// Straight successful checks before the way back.
    pub recovery_successes: u32,
    /// And over at least this long.
    pub recovery_span_ms: u64,
    /// The primary's shares on the way back, in thousandths.
    pub ramp: Vec<u16>,
    /// How long each lasts.
    pub ramp_step_ms: u64,
    /// From one failing group of backends to the next that may move.
    pub group_spacing_ms: u64,
    /// How many groups may move per window.
    pub group_limit: u32,
    /// The window.
    pub group_window_ms: u64,
}

impl Policy {
    /// As the controller is shipped (the defaults of its flags), but where waiting for them would only cost time: the way
    /// back is drilled with a short dwell, span and ramp step.
    #[must_use]
    pub fn of(expect: Expect) -> Self {
        let shipped = Self {
            dwell_ms: 30_000,
            dwell_max_ms: 900_000,
            readiness_hold_ms: 5_000,
            recovery_successes: 21,
            recovery_span_ms: 5_000,
            ramp: vec![50, 250, 500],
            ramp_step_ms: 5_000,
            group_spacing_ms: 10_000,
            group_limit: 3,
            group_window_ms: 600_000,
        };
        match expect {
            Expect::Failover | Expect::None | Expect::Report => shipped,
            // So short that a minute holds several of them.
            Expect::Bound => Self { dwell_ms: 2_000, ..shipped },
            Expect::Failback => Self { dwell_ms: 2_000, recovery_span_ms: 1_000, ramp_step_ms: 500, ..shipped },
        }
    }

    /// The controller's flags.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        let ms = |value: u64| format!("{value}ms");
        let ramp: Vec<String> = self.ramp.iter().map(u16::to_string).collect();
        [
            ("--dwell", ms(self.dwell_ms)),
            ("--dwell-max", ms(self.dwell_max_ms)),
            ("--readiness-hold", ms(self.readiness_hold_ms)),
            ("--recovery-successes", self.recovery_successes.to_string()),
            ("--recovery-span", ms(self.recovery_span_ms)),
            ("--ramp", ramp.join(",")),
            ("--ramp-step", ms(self.ramp_step_ms)),
            ("--group-spacing", ms(self.group_spacing_ms)),
            ("--group-limit", self.group_limit.to_string()),
            ("--group-window", ms(self.group_window_ms)),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// How long the `failover`-th failover in a row lasts at least, counted from 1: each twice as long as the one before.
    #[must_use]
    pub fn dwell_after(&self, failover: u32) -> u64 {
        let doublings = failover.saturating_sub(1).min(63);
        self.dwell_ms.saturating_mul(1 << doublings).min(self.dwell_max_ms)
    }

    /// The most failovers that may begin within a span of that length, however often a backend fails and recovers: one
    /// at its begin, and one after each dwell that ends within it. With the shipped settings these are the 8 of a first
    /// hour that the detection's design promises.
    #[must_use]
    pub fn most_failovers(&self, span_ms: u64) -> u32 {
        if self.dwell_ms.min(self.dwell_max_ms) == 0 {
            return u32::MAX;
        }
        let mut at_ms = 0_u64;
        let mut failovers = 0;
        while at_ms < span_ms {
            failovers += 1;
            at_ms = at_ms.saturating_add(self.dwell_after(failovers));
        }
        failovers
    }

    /// The longest that a way back may take after its fault was healed: the rest of the dwell, the checks that prove the
    /// recovery (a canary of each node every 250 ms), every step of the ramp, and as much again as slack.
    #[must_use]
    pub fn way_back(&self) -> Duration {
        let steps = u64::try_from(self.ramp.len()).unwrap_or(u64::MAX);
        let checks = self.recovery_span_ms.max(u64::from(self.recovery_successes) * 250);
        Duration::from_millis(2 * (self.dwell_ms + checks + steps * self.ramp_step_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_fails_again_and_again_is_left_for_twice_as_long_each_time() {
        let policy = Policy { dwell_ms: 2_000, dwell_max_ms: 9_000, ..Policy::of(Expect::Failover) };
        let dwells: Vec<u64> = (1..=5).map(|failover| policy.dwell_after(failover)).collect();
        assert_eq!(dwells, [2_000, 4_000, 8_000, 9_000, 9_000]);
        assert_eq!(policy.dwell_after(u32::MAX), 9_000);
    }

    #[test]
    fn the_bound_counts_the_failovers_for_which_the_dwells_leave_room() {
        let check = |dwell_ms, dwell_max_ms, span_ms, bound| {
            let policy = Policy { dwell_ms, dwell_max_ms, ..Policy::of(Expect::Bound) };
            assert_eq!(policy.most_failovers(span_ms), bound, "{dwell_ms} {span_ms}");
        };
        // At 0, 2, 6, 14 and 30 s; the sixth could come at 62 s.
        check(2_000, 900_000, 60_000, 5);
        // As shipped, in the first hour: at 0, 30, 90, 210, 450, 930, 1830 (the longest dwell from here) and 2730 s.
        check(30_000, 900_000, 3_600_000, 8);
        check(2_000, 900_000, 0, 0);
        check(0, 0, 60_000, u32::MAX);
    }

    #[test]
    fn the_flags_say_what_the_report_says() {
        let flags = Policy::of(Expect::Failback).flags().join(" ");
        assert_eq!(
            flags,
            "--dwell 2000ms --dwell-max 900000ms --readiness-hold 5000ms --recovery-successes 21 --recovery-span 1000ms \
             --ramp 50,250,500 --ramp-step 500ms --group-spacing 10000ms --group-limit 3 --group-window 600000ms"
        );
    }
}
