//! Reports about destinations that no split has. Pure.
//!
//! In: how many such rows an agent's frame had. Out: whether to tell, and whether it is over. An endpoint that just went is
//! reported of for some milliseconds more, which is nobody's mistake; an agent that goes on for seconds does not know what it
//! speaks of. Deliberately no judgement: the core makes nothing of such rows in any case.

use std::time::Duration;

use controller_core::Time;

/// For how long an agent has to go on before it is told: it knows of a change within a round trip.
const TOLD_AFTER: Duration = Duration::from_secs(2);

/// Without such rows for this long it is over.
const OVER_AFTER: Duration = Duration::from_secs(5);

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It goes on, with so many rows until now.
    GoesOn(u64),
    /// It is over.
    Over,
}

/// One agent's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Strays {
    since: Option<Time>,
    last: Time,
    rows: u64,
    told: bool,
}

impl Strays {
    /// A frame had so many rows about nothing.
    pub(super) fn on_frame(&mut self, rows: u64, now: Time) -> Option<Word> {
        if rows == 0 {
            let over = self.since.is_some() && now.since(self.last) >= OVER_AFTER;
            let ended = if over { std::mem::take(self) } else { return None };
            return ended.told.then_some(Word::Over);
        }
        let since = *self.since.get_or_insert(now);
        self.last = now;
        self.rows += rows;
        if self.told || now.since(since) < TOLD_AFTER {
            return None;
        }
        self.told = true;
        Some(Word::GoesOn(self.rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(1_000_000_000) + Duration::from_millis(ms)
    }

    #[test]
    fn an_endpoint_that_just_went_is_no_mistake() {
        let mut strays = Strays::default();
        assert_eq!((0..10).filter_map(|turn| strays.on_frame(3, at(turn * 10))).count(), 0);
        assert_eq!((1..200).filter_map(|turn| strays.on_frame(0, at(turn * 100))).count(), 0);
        assert_eq!(strays.on_frame(3, at(30_000)), None, "an hour of such moments is no mistake either");
    }

    #[test]
    fn an_agent_that_goes_on_is_told_once_and_once_more_when_it_stops() {
        let mut strays = Strays::default();
        let words: Vec<_> = (0..1_000).filter_map(|turn| strays.on_frame(1, at(turn * 10))).collect();
        assert_eq!(words, [Word::GoesOn(201)]);
        let words: Vec<_> = (1_000..2_000).filter_map(|turn| strays.on_frame(0, at(turn * 10))).collect();
        assert_eq!(words, [Word::Over]);
    }
}
