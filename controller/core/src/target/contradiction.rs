//! Checks that pass while connections fail: a check may take another way than users' connections do. Pure.
//!
//! Where nearly every connection of every client node fails for long enough, the connections are right.

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

/// The runs of all client nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contradiction {
    runs: BTreeMap<NodeId, Run>,
}

impl Contradiction {
    pub(super) fn on_traffic(&mut self, node: NodeId, row: &Row, now: Time) {
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
