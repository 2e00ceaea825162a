//! How much traffic a node sends to a target. Pure.

use std::time::Duration;

use crate::time::Time;

/// Attempts of the last minute, in six buckets of ten seconds.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    buckets: [u64; 6],
    latest: u64,
}

impl Traffic {
    const SPAN: Duration = Duration::from_secs(10);

    /// Less than this many attempts in about ten seconds is idle: 20 a second.
    pub(super) const IDLE: u64 = 200;

    /// Where a bucket stops counting: an agent may say any number, and sums over buckets and ports must not overflow.
    const LIMIT: u64 = 1 << 48;

    fn turn(now: Time) -> u64 {
        now.0 / u64::try_from(Self::SPAN.as_nanos()).expect("ten seconds")
    }

    pub(super) fn on_attempts(&mut self, attempts: u64, now: Time) {
        let turn = Self::turn(now);
        let stale = turn.saturating_sub(self.latest).min(self.buckets.len() as u64);
        for back in 0..stale {
            self.buckets[((turn - back) % 6) as usize] = 0;
        }
        self.latest = self.latest.max(turn);
        let bucket = &mut self.buckets[(turn % 6) as usize];
        *bucket = bucket.saturating_add(attempts).min(Self::LIMIT);
    }

    fn of_turn(&self, turn: u64) -> u64 {
        if turn <= self.latest && turn + 6 > self.latest { self.buckets[(turn % 6) as usize] } else { 0 }
    }

    pub(super) fn last_minute(&self, now: Time) -> u64 {
        let turn = Self::turn(now);
        (0..6).fold(0, |sum, back| sum + turn.checked_sub(back).map_or(0, |turn| self.of_turn(turn)))
    }

    pub(super) fn last_two(&self, now: Time) -> u64 {
        let turn = Self::turn(now);
        self.of_turn(turn) + turn.checked_sub(1).map_or(0, |turn| self.of_turn(turn))
    }
}
