//! The budget of cause groups (C6): how many unrelated things may fail over within a span. Pure.
//!
//! When everything fails at once, the fault is more likely in the network, or in us, than in every backend. What fails
//! together, on the same nodes or behind the same gateway, counts once.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::time::Time;

/// Which places a group is made of: nodes and gateways.
pub type Group = BTreeSet<String>;

/// See the module header.
#[derive(Debug)]
pub struct GroupBudget {
    spacing: Duration,
    limit: u32,
    window: Duration,
    spent: Vec<(Time, Group)>,
}

impl GroupBudget {
    /// Nothing spent yet.
    #[must_use]
    pub const fn new(spacing: Duration, limit: u32, window: Duration) -> Self {
        Self { spacing, limit, window, spent: Vec::new() }
    }

    /// Whether a failover of this group has room.
    #[must_use]
    pub fn allows(&self, group: &Group, now: Time) -> bool {
        if self.relative(group, now).is_some() {
            return true;
        }
        let within = |span: Duration| self.spent.iter().filter(|(at, _)| now.since(*at) < span).count();
        within(self.spacing) == 0 && within(self.window) < self.limit as usize
    }

    /// A failover of this group was decided.
    pub fn spend(&mut self, group: Group, now: Time) {
        self.spent.retain(|(at, _)| now.since(*at) < self.window);
        match self.relative(&group, now) {
            // It joins: what is related to it is related to the whole.
            Some(index) => self.spent[index].1.extend(group),
            None => self.spent.push((now, group)),
        }
    }

    /// A group that failed over lately and shares a place with this one.
    fn relative(&self, group: &Group, now: Time) -> Option<usize> {
        self.spent.iter().position(|(at, other)| now.since(*at) < self.spacing && !other.is_disjoint(group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_group(places: &[&str]) -> Group {
        places.iter().map(|place| (*place).to_owned()).collect()
    }

    fn seconds(at: u64) -> Time {
        Time(at * 1_000_000_000)
    }

    #[test]
    fn what_shares_a_place_is_one_group_and_moves_together() {
        let mut budget = GroupBudget::new(Duration::from_secs(10), 3, Duration::from_secs(600));
        budget.spend(mk_group(&["n1", "n2"]), seconds(0));
        assert!(budget.allows(&mk_group(&["n2", "n3"]), seconds(1)));
        assert!(!budget.allows(&mk_group(&["n4"]), seconds(1)));
        assert!(budget.allows(&mk_group(&["n4"]), seconds(10)));
    }

    #[test]
    fn a_window_takes_its_limit_and_no_more() {
        let mut budget = GroupBudget::new(Duration::from_secs(10), 3, Duration::from_secs(600));
        for (index, place) in ["a", "b", "c"].into_iter().enumerate() {
            let at = seconds(index as u64 * 20);
            assert!(budget.allows(&mk_group(&[place]), at));
            budget.spend(mk_group(&[place]), at);
        }
        assert!(!budget.allows(&mk_group(&["d"]), seconds(100)));
        assert!(budget.allows(&mk_group(&["d"]), seconds(600)));
    }
}
