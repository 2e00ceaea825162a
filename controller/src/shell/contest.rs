//! Two agents that speak for one node. Pure.
//!
//! In: streams of a node that begin while an older one lives. Out: whether to tell. The newer stream wins each time, so two
//! agents (a second DaemonSet, a node's name set by hand) push each other out for as long as both run, and neither's counts
//! can be trusted. One agent whose connection broke replaces its own stream too, but not again and again.

use std::time::Duration;

use controller_core::Time;

/// So many replacements...
const REPLACEMENTS: usize = 3;

/// ...within this span are two agents.
const WITHIN: Duration = Duration::from_secs(30);

/// From one line about a node to the next.
const QUIET: Duration = Duration::from_secs(60);

/// One node's.
#[derive(Clone, Debug, Default)]
pub(super) struct Contest {
    replaced: Vec<Time>,
    told: Option<Time>,
}

impl Contest {
    /// A live stream was replaced; whether that is to be told.
    pub(super) fn on_replaced(&mut self, now: Time) -> bool {
        self.replaced.retain(|at| now.since(*at) < WITHIN);
        if self.replaced.len() == REPLACEMENTS {
            self.replaced.remove(0);
        }
        self.replaced.push(now);
        let is_contest = self.replaced.len() == REPLACEMENTS;
        let is_news = self.told.is_none_or(|at| now.since(at) >= QUIET);
        if is_contest && is_news {
            self.told = Some(now);
        }
        is_contest && is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(1_000_000_000) + Duration::from_millis(ms)
    }

    #[test]
    fn an_agent_that_comes_back_is_no_contest() {
        let mut contest = Contest::default();
        assert!(![0, 1_000, 31_500, 70_000].into_iter().any(|ms| contest.on_replaced(at(ms))));
    }

    #[test]
    fn two_agents_are_told_once_a_minute() {
        let mut contest = Contest::default();
        let told: Vec<u64> = (0..1_300).filter(|turn| contest.on_replaced(at(turn * 100))).collect();
        assert_eq!(told, [2, 602, 1_202]);
        assert!(contest.replaced.len() <= REPLACEMENTS);
    }
}
