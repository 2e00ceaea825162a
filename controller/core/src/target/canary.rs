//! Canaries: a few checks all the time, so that an idle or waiting backend is known to answer, and so that nodes earn
//! the right to be believed when a check of theirs fails. Pure.

use std::time::Duration;

use probe_common::wire::Destination;

use super::volley::lot;
use super::{Order, Shape, Sight};
use crate::agents::NodeId;
use crate::time::Time;

/// How many nodes take turns: enough that three are left that do not share a suspicion of three client nodes.
const PANEL: usize = 6;

/// The intervals in the settings are per node of a panel of three.
const INTERVAL_PANEL: u32 = 3;

/// Until every pair of node and endpoint had its first turn, one canary per this span.
const INTRODUCTION: Duration = Duration::from_millis(20);

/// Every pair has a turn within this span, whatever the intervals: a third of the time for which it is believed.
const ROUND: Duration = Duration::from_secs(20);

/// How often the panel is chosen anew.
const PANEL_FOR: Duration = Duration::from_secs(1);

/// Without anyone who could check, look again after this.
const RETRY: Duration = Duration::from_millis(100);

/// A canary's time-out is the destination's own, but no less than this: it is the traffic that measures lateness.
const TIMEOUT_FLOOR: Duration = Duration::from_millis(25);

/// The canaries of one target.
#[derive(Debug)]
pub(super) struct Canaries {
    due: Time,
    turn: usize,
    introduced: usize,
    panel: Vec<NodeId>,
    chosen: Option<Time>,
}

impl Canaries {
    pub(super) const fn new(now: Time) -> Self {
        Self { due: now, turn: 0, introduced: 0, panel: Vec::new(), chosen: None }
    }

    /// There are other endpoints: everybody has to meet them first.
    pub(super) const fn begin_anew(&mut self, now: Time) {
        self.introduced = 0;
        self.due = now;
    }

    pub(super) const fn due(&self) -> Time {
        self.due
    }

    #[expect(clippy::too_many_arguments, reason = "one call; a struct for it would be its parameter list again")]
    pub(super) fn step(
        &mut self,
        shape: &Shape,
        idle: bool,
        sight: Sight<'_>,
        timeout: Duration,
        budget: &mut Budget,
        ids: &mut u64,
        orders: &mut Vec<Order>,
    ) {
        if sight.now < self.due {
            return;
        }
        self.choose_panel(shape, sight);
        let pairs = if shape.unchecked { 0 } else { self.panel.len() * shape.endpoints.len() };
        if pairs == 0 {
            self.due = sight.now + RETRY;
            return;
        }
        self.due = sight.now + self.interval(pairs, idle, sight).max(budget.canary_spacing());
        let node = self.panel[self.turn % self.panel.len()];
        // Every family of an endpoint has its turn.
        let round = self.turn / pairs;
        let endpoint = shape.endpoints.values().nth(self.turn / self.panel.len() % shape.endpoints.len());
        self.turn = self.turn.wrapping_add(1);
        let Some(to) = endpoint.and_then(|to| to.get(round % to.len().max(1))) else { return };
        if budget.take_canary(sight.now) {
            *ids += 1;
            self.introduced = self.introduced.saturating_add(1);
            orders.push(Order { id: *ids, node, destinations: vec![*to], timeout: timeout.max(TIMEOUT_FLOOR) });
        }
    }

    fn interval(&self, pairs: usize, idle: bool, sight: Sight<'_>) -> Duration {
        if self.introduced < pairs {
            return INTRODUCTION;
        }
        let per_node = if idle { sight.config.canary_interval } else { sight.config.canary_interval_busy };
        let round = ROUND / u32::try_from(pairs).unwrap_or(u32::MAX);
        (per_node / INTERVAL_PANEL).min(round)
    }

    fn choose_panel(&mut self, shape: &Shape, sight: Sight<'_>) {
        let able = |node: &NodeId| sight.agents.can_check(*node, sight.config, sight.now);
        if self.chosen.is_some_and(|at| sight.now.since(at) < PANEL_FOR)
            && !self.panel.is_empty()
            && self.panel.iter().all(able)
        {
            return;
        }
        // The same nodes as long as they live: by the name of the target's first address, not by time.
        let seed = shape.endpoints.values().flatten().next().map_or(0, |to: &Destination| u64::from(to.port()));
        let site = shape.endpoints.keys().next().map_or(0, |identity| lot(seed, identity.as_bytes()));
        let mut nodes: Vec<_> = sight
            .agents
            .nodes()
            .filter(able)
            .map(|node| (lot(site, sight.agents.name(node).as_bytes()), node))
            .collect();
        nodes.sort_unstable();
        nodes.truncate(PANEL);
        let panel: Vec<_> = nodes.into_iter().map(|(_, node)| node).collect();
        if panel != self.panel {
            self.introduced = 0;
            self.panel = panel;
        }
        self.chosen = Some(sight.now);
    }
}

/// How many checks may leave, of all targets together: a token bucket that holds one second's worth.
#[derive(Debug)]
pub struct Budget {
    per_second: u64,
    micro_tokens: u64,
    filled: Time,
    targets: u32,
}

impl Budget {
    /// A full bucket.
    #[must_use]
    pub const fn new(per_second: u32, now: Time) -> Self {
        Self { per_second: per_second as u64, micro_tokens: per_second as u64 * 1_000_000, filled: now, targets: 1 }
    }

    /// So many targets share it.
    pub fn set_targets(&mut self, targets: usize) {
        self.targets = u32::try_from(targets).unwrap_or(u32::MAX).max(1);
    }

    /// From a target's canary to its next, at least: together all targets use half of the rate. Without this those
    /// that come first in order would take all of it, every time.
    fn canary_spacing(&self) -> Duration {
        Duration::from_secs(1).saturating_mul(self.targets.saturating_mul(2))
            / u32::try_from(self.per_second).unwrap_or(u32::MAX).max(1)
    }

    /// Takes one check if half of the bucket is left after it: a volley comes in one piece and would else never find
    /// enough between canaries.
    fn take_canary(&mut self, now: Time) -> bool {
        self.take(0, now) && self.micro_tokens >= self.per_second * 500_000 + 1_000_000 && self.take(1, now)
    }

    /// Whether there is plenty: a quarter more than what canaries leave for volleys.
    pub fn is_ample(&mut self, now: Time) -> bool {
        self.take(0, now) && self.micro_tokens >= self.per_second * 750_000
    }

    /// Takes so many checks, or none.
    pub fn take(&mut self, checks: u64, now: Time) -> bool {
        let elapsed_us = u64::try_from(now.since(self.filled).as_micros()).unwrap_or(u64::MAX);
        self.filled = self.filled.max(Time(self.filled.0.saturating_add(elapsed_us.saturating_mul(1000))));
        let full = self.per_second * 1_000_000;
        self.micro_tokens = self.micro_tokens.saturating_add(elapsed_us.saturating_mul(self.per_second)).min(full);
        match self.micro_tokens.checked_sub(checks.saturating_mul(1_000_000)) {
            Some(left) => {
                self.micro_tokens = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_second_of_burst_and_then_its_rate() {
        let mut budget = Budget::new(100, Time(0));
        assert!(budget.take(100, Time(0)));
        assert!(!budget.take(1, Time(9_000_000)));
        assert!(budget.take(1, Time(10_000_000)));
        assert!(!budget.take(1, Time(10_000_000)));
        assert!(budget.take(100, Time(5_000_000_000)));
        assert!(!budget.take(1, Time(5_000_000_000)));
    }
}
