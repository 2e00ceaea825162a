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
    spent: Vec<Spent>,
    next_receipt: u64,
}

/// One group's share of the budget.
#[derive(Debug)]
struct Spent {
    receipt: Receipt,
    at: Time,
    group: Group,
    moves: u32,
}

/// Names a spending, to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt(u64);

impl GroupBudget {
    /// Nothing spent yet.
    #[must_use]
    pub const fn new(spacing: Duration, limit: u32, window: Duration) -> Self {
        Self { spacing, limit, window, spent: Vec::new(), next_receipt: 0 }
    }

    /// Whether a failover of this group has room.
    #[must_use]
    pub fn allows(&self, group: &Group, now: Time) -> bool {
        if self.relative(group, now).is_some() {
            return true;
        }
        let within = |span: Duration| self.spent.iter().filter(|spent| now.since(spent.at) < span).count();
        within(self.spacing) == 0 && within(self.window) < self.limit as usize
    }

    /// A failover of this group was decided.
    pub fn spend(&mut self, group: Group, now: Time) -> Receipt {
        self.spent.retain(|spent| now.since(spent.at) < self.window);
        if let Some(index) = self.relative(&group, now) {
            let spent = &mut self.spent[index];
            // It joins: what is related to it is related to the whole.
            spent.group.extend(group);
            spent.moves = spent.moves.saturating_add(1);
            return spent.receipt;
        }
        self.next_receipt += 1;
        let receipt = Receipt(self.next_receipt);
        self.spent.push(Spent { receipt, at: now, group, moves: 1 });
        receipt
    }

    /// That failover was not written after all. Else an API server that is away for half a minute, or that refuses one
    /// object, would use up what is meant for moves.
    pub fn refund(&mut self, receipt: Receipt) {
        for spent in self.spent.iter_mut().filter(|spent| spent.receipt == receipt) {
            spent.moves = spent.moves.saturating_sub(1);
        }
        self.spent.retain(|spent| spent.moves > 0);
    }

    /// A group that failed over lately and shares a place with this one.
    fn relative(&self, group: &Group, now: Time) -> Option<usize> {
        self.spent.iter().position(|spent| now.since(spent.at) < self.spacing && !spent.group.is_disjoint(group))
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

    #[test]
    fn what_was_not_written_is_given_back_unless_a_relative_was() {
        let mut budget = GroupBudget::new(Duration::from_secs(10), 3, Duration::from_secs(600));
        let first = budget.spend(mk_group(&["n1"]), seconds(0));
        let second = budget.spend(mk_group(&["n1", "n2"]), seconds(1));
        budget.refund(second);
        assert!(!budget.allows(&mk_group(&["n4"]), seconds(2)));
        budget.refund(first);
        assert!(budget.allows(&mk_group(&["n4"]), seconds(2)));
    }
}
