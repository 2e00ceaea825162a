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
            Expect::Failover | Expect::None => shipped,
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
    fn the_flags_say_what_the_report_says() {
        let flags = Policy::of(Expect::Failback).flags().join(" ");
        assert_eq!(
            flags,
            "--dwell 2000ms --dwell-max 900000ms --readiness-hold 5000ms --recovery-successes 21 --recovery-span 1000ms \
             --ramp 50,250,500 --ramp-step 500ms --group-spacing 10000ms --group-limit 3 --group-window 600000ms"
        );
    }
}
