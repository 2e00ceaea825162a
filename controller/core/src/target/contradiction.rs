//! Checks and connections that contradict each other: a check may take another way than users' connections do. Pure.
//!
//! Where checks pass and nearly every connection of every client node fails for long enough, the connections are right.
//! Where checks fail and connections pass, with hardly a failure, they are right at once.

use std::collections::BTreeMap;
use std::time::Duration;

use probe_common::wire::Row;

use crate::agents::NodeId;
use crate::time::Time;

/// How long a node's connections have to fail.
const LASTING: Duration = Duration::from_secs(5);

/// A node without a settled connection for this long has no say.
const SILENT_AFTER: Duration = Duration::from_secs(1);

/// How many connections of a node it takes: one in 10^10 such runs would be noise at p0 = 10 %.
const CONNECTIONS: u64 = 10;

/// An unbroken run of failures of one node: at least nine of ten, at every moment of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    since: Time,
    last: Time,
    settled: u64,
    failed: u64,
}

/// Connections that passed are believed for this long.
const PASSED_FOR: Duration = Duration::from_secs(10);

/// The share of failures is taken over this long, and up to twice as long.
const WINDOW: Duration = Duration::from_millis(100);

/// The connections of all client nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contradiction {
    runs: BTreeMap<NodeId, Run>,
    /// When one last succeeded, at the latest.
    passed: Option<Time>,
    /// Begin of a window, and how many passed and failed in it; the latest first.
    windows: [(Time, u64, u64); 2],
}

impl Contradiction {
    /// A node's row; `answered`: when the last success in it was there.
    pub(super) fn on_traffic(&mut self, node: NodeId, row: &Row, answered: Time, now: Time) {
        if row.established > 0 {
            self.passed = self.passed.max(Some(answered));
        }
        if now.since(self.windows[0].0) >= WINDOW {
            self.windows = [(now, 0, 0), self.windows[0]];
        }
        let (_, passed, failed) = &mut self.windows[0];
        *passed = passed.saturating_add(row.established);
        *failed = failed.saturating_add(row.failed());
        let settled = row.established.saturating_add(row.failed());
        if settled == 0 {
            return;
        }
        let run = self.runs.entry(node).or_insert(Run { since: now, last: now, settled: 0, failed: 0 });
        run.settled = run.settled.saturating_add(settled);
        run.failed = run.failed.saturating_add(row.failed());
        run.last = now;
        if run.failed.saturating_mul(10) < run.settled.saturating_mul(9) {
            *run = Run { since: now, last: now, settled: 0, failed: 0 };
        }
    }

    pub(super) fn forget_node(&mut self, node: NodeId) {
        self.runs.remove(&node);
    }

    /// Whether connections have passed since an outage is said to have begun.
    pub(super) fn has_passed_since(&self, began: Time, now: Time) -> bool {
        self.passed.is_some_and(|at| at > began && now.since(at) <= PASSED_FOR)
    }

    /// Whether fewer than a fifth of the connections failed of late.
    pub(super) fn fails_seldom(&self, now: Time) -> bool {
        let lately = self.windows.iter().filter(|(begin, ..)| now.since(*begin) <= WINDOW * 2);
        let (passed, failed) = lately.fold((0u64, 0u64), |(passed, failed), (_, of_passed, of_failed)| {
            (passed.saturating_add(*of_passed), failed.saturating_add(*of_failed))
        });
        failed.saturating_mul(4) < passed
    }

    /// Whether at least two nodes connect to it, and every one of them has failed for long enough.
    pub(super) fn is_settled(&self, now: Time) -> bool {
        let mut speaking = self.runs.values().filter(|run| now.since(run.last) <= SILENT_AFTER);
        let lasting = |run: &&Run| run.last.since(run.since) >= LASTING && run.settled >= CONNECTIONS;
        let mut nodes = 0;
        speaking.all(|run| {
            nodes += 1;
            lasting(&run)
        }) && nodes >= 2
    }
}
