//! What agents say comes in; evidence, and targets that have something to judge, come out. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use probe_common::wire::{
    AgentFrame, CheckOutcome, CheckResults, ControllerFrame, Destination, Hello, MESHED_LIMIT, Meshed, Report, Row,
    SplitsSent, Totals,
};

use super::{CLEAN_AFTER, Core, TargetId};
use crate::Output;
use crate::agents::{NodeId, Welcome};
use crate::evidence::{Bucket, Source};
use crate::output::TransitionKind;
use crate::target::{Checked, OBSERVER_FOR, Samples};
use crate::time::Time;

/// An agent whose loop woke later than this saw answers late that came in time: its lateness is its own.
const LATENESS_LIMIT_US: u32 = 20_000;

/// From one word on a node that speaks for others' endpoints to the next.
const DISBELIEF_TOLD_EVERY: Duration = Duration::from_secs(60);

impl Core {
    pub(super) fn on_agent(&mut self, node: &str, stream: u64, frame: AgentFrame, now: Time) {
        match frame {
            AgentFrame::Hello(hello) => self.on_hello(node, stream, &hello, now),
            AgentFrame::Report(report) => self.on_report(node, stream, &report, now),
            AgentFrame::Totals(totals) => self.on_totals(node, stream, &totals, now),
            AgentFrame::CheckResults(results) => self.on_check_results(node, stream, &results, now),
            AgentFrame::Meshed(meshed) => self.on_meshed(node, stream, &meshed, now),
        }
    }

    fn on_hello(&mut self, node: &str, stream: u64, hello: &Hello, now: Time) {
        let id = match self.agents.on_hello(node, stream, hello, now) {
            None => return,
            Some(Welcome::Continues(id)) => id,
            Some(Welcome::BeginsAnew(id)) => {
                self.begin_node_anew(id);
                id
            }
        };
        self.next_freshness = self.next_freshness.min(now);
        if !self.caches_complete {
            // It learns the splits when they are known.
            return;
        }
        let node = self.agents.name(id).to_owned();
        let splits: Vec<_> = self.views.values().cloned().map(ControllerFrame::Split).collect();
        for frame in splits.into_iter().chain([ControllerFrame::SplitsSent(SplitsSent {})]) {
            self.outputs.push_back(Output::Send { node: node.clone(), stream, frame });
        }
    }

    fn on_report(&mut self, node: &str, stream: u64, report: &Report, now: Time) {
        let Some(id) = self.agents.on_report(node, stream, report.blind.as_ref(), now) else { return };
        if report.blind.is_some() {
            return;
        }
        if report.dropped_rows > 0 {
            // Successes may be among what is missing: what was held against anyone starts anew.
            self.begin_node_anew(id);
        }
        let trust_late = report.lateness_us <= LATENESS_LIMIT_US;
        let mut touched = BTreeSet::new();
        for row in &report.rows {
            self.on_row(id, row, trust_late, report.now_ns, now, &mut touched);
        }
        let touched: Vec<TargetId> = touched.into_iter().collect();
        if !touched.is_empty() {
            self.step_targets(&touched, now);
        }
    }

    /// What a node said has a gap: what follows from it begins anew.
    fn begin_node_anew(&mut self, node: NodeId) {
        self.evidence.reset_node(node);
        let name = self.agents.name(node);
        for target in self.targets.values_mut() {
            target.forget_self_hops(name);
        }
    }

    fn on_row(
        &mut self,
        node: NodeId,
        row: &Row,
        trust_late: bool,
        sent_ns: u64,
        now: Time,
        touched: &mut BTreeSet<TargetId>,
    ) {
        let Some(targets) = self.by_destination.get(&row.to) else {
            self.disbelieved.unknown_destinations += 1;
            self.disbelieved.last_unknown = Some(row.to);
            return;
        };
        let targets = targets.clone();
        if row.self_hop {
            self.on_self_hops(node, row, &targets, sent_ns, now, touched);
            return;
        }
        let bucket = Bucket::of(row, trust_late);
        self.evidence.on_bucket(row.to, node, bucket, Source::Traffic, now);
        let at = |ns: u64| now.before(Duration::from_nanos(sent_ns.saturating_sub(ns)));
        let samples = Samples {
            node,
            to: row.to,
            bucket,
            failed: if trust_late { row.failed() } else { row.refused.saturating_add(row.unreachable) },
            started: at(row.first.map_or(row.to_ns, |first| first.started_ns)),
            answered: at(row.established_ns.unwrap_or(row.to_ns)),
            from: Some(at(row.from_ns)),
        };
        for id in targets {
            let Some(target) = self.targets.get_mut(&id) else { continue };
            target.on_traffic(node, row, samples, now);
            if bucket.any_failure() || target.is_suspect() {
                touched.insert(id);
            }
            if bucket.any_failure() {
                self.tell_reported(id, node, row, now);
            }
        }
    }

    /// What an endpoint's own proxy met: that endpoint's evidence, if the node is the endpoint's.
    fn on_self_hops(
        &mut self,
        node: NodeId,
        row: &Row,
        targets: &[TargetId],
        sent_ns: u64,
        now: Time,
        touched: &mut BTreeSet<TargetId>,
    ) {
        let name = self.agents.name(node).to_owned();
        let mut is_its_own = false;
        for id in targets {
            let Some(target) = self.targets.get_mut(id) else { continue };
            if target.shape().nodes.get(&row.to) != Some(&name) {
                continue;
            }
            is_its_own = true;
            let started_ns = row.first.map_or(row.to_ns, |first| first.started_ns);
            // An application that dies with a request in its hands resets it: the first that is seen of its death.
            let failed = row.refused > 0 || row.reset > 0;
            let refused = failed.then(|| now.before(Duration::from_nanos(sent_ns.saturating_sub(started_ns))));
            target.on_self_hops(row.to, row.established > 0, refused, now);
            if failed || row.established > 0 {
                touched.insert(*id);
            }
            if failed {
                self.tell_reported(*id, node, row, now);
            }
        }
        if !is_its_own {
            self.disbelieve(node, row.to.ip(), now);
        }
    }

    fn on_meshed(&mut self, node: &str, stream: u64, meshed: &Meshed, now: Time) {
        let Some(id) = self.agents.current(node, stream) else { return };
        // Of an address that no slice has yet nothing is known; it may be this node's in a moment.
        let placed = |address: &IpAddr| {
            let ports = Destination::new(*address, 0)..=Destination::new(*address, u16::MAX);
            let targets = self.by_destination.range(ports).flat_map(|(to, ids)| ids.iter().map(move |id| (to, id)));
            let of_target = |(to, id): (&Destination, &TargetId)| self.targets.get(id)?.shape().nodes.get(to);
            let mut nodes = targets.filter_map(of_target).peekable();
            nodes.peek().is_none() || nodes.any(|other| other == node)
        };
        let said = meshed.endpoints.get(..MESHED_LIMIT).unwrap_or(&meshed.endpoints);
        let foreign: Vec<IpAddr> = said.iter().filter(|address| !placed(address)).copied().collect();
        self.agents.on_meshed(id, said);
        for address in foreign {
            self.disbelieve(id, address, now);
        }
    }

    /// An agent spoke for an endpoint of another node: nothing follows from it, and it is told, once a minute and node.
    fn disbelieve(&mut self, node: NodeId, address: IpAddr, now: Time) {
        self.disbelieved.foreign_endpoints += 1;
        let told = self.disbelieved.told.get(&node);
        if told.is_none_or(|at| now.since(*at) >= DISBELIEF_TOLD_EVERY) {
            self.disbelieved.told.insert(node, now);
            let node = self.agents.name(node).to_owned();
            self.tell(now, None, TransitionKind::Disbelieved { node, address });
        }
    }

    /// The first failure of a backend after a clean while.
    fn tell_reported(&mut self, target: TargetId, node: NodeId, row: &Row, now: Time) {
        let mut news = Vec::new();
        for id in self.users.get(&target).into_iter().flatten() {
            let Some(entry) = self.splits.get_mut(id) else { continue };
            let index = entry.backends.iter().position(|links| links.targets.contains(&target));
            let Some(backend) = index.and_then(|index| entry.split.facts().backends.get(index)) else { continue };
            let told = entry.told.entry(backend.service.clone()).or_default();
            let was_clean = told.last_failure.is_none_or(|at| now.since(at) >= CLEAN_AFTER);
            told.last_failure = Some(now);
            if was_clean {
                news.push((id.clone(), backend.service.clone()));
            }
        }
        let Some(first) = row.first else { return };
        let node = self.agents.name(node).to_owned();
        for (split, backend) in news {
            let (started_ns, failed_ns) = (first.started_ns, first.failed_ns);
            let kind =
                TransitionKind::Reported { backend, node: node.clone(), destination: row.to, started_ns, failed_ns };
            self.tell(now, Some(&split), kind);
        }
    }

    fn on_totals(&mut self, node: &str, stream: u64, totals: &Totals, now: Time) {
        let Some(id) = self.agents.current(node, stream) else { return };
        for total in &totals.rows {
            if let Some(age) = total.last_check_age_ns
                && self.by_destination.contains_key(&total.to)
            {
                self.evidence.on_check_passed(total.to, id, now.before(Duration::from_nanos(age)));
            }
            let Some(age) = total.last_success_age_ns else { continue };
            for target in self.by_destination.get(&total.to).into_iter().flatten() {
                if let Some(target) = self.targets.get_mut(target) {
                    target.on_history(Duration::from_nanos(age));
                }
            }
        }
        if totals.complete {
            self.agents.on_totals_complete(id, now);
        }
    }

    fn on_check_results(&mut self, node: &str, stream: u64, results: &CheckResults, now: Time) {
        let Some(id) = self.agents.current(node, stream) else { return };
        let mut touched = BTreeSet::new();
        for result in &results.results {
            // Only what was asked for, and once: an agent cannot vote as often as it likes.
            let Some(asked) = self.asked.get_mut(&(result.id, id)) else { continue };
            if !asked.destinations.remove(&result.to) {
                continue;
            }
            let target_id = asked.target;
            // Its target may be gone meanwhile: evidence about nobody would never be forgotten.
            let Some(target) = self.targets.get_mut(&target_id) else { continue };
            let passed = match result.outcome {
                CheckOutcome::Passed => true,
                CheckOutcome::Failed(_) => false,
                CheckOutcome::NotMade => continue,
            };
            let started = now.before(Duration::from_nanos(results.now_ns.saturating_sub(result.started_ns)));
            let shape = target.shape();
            let node = shape.nodes.get(&result.to);
            if node.is_some_and(|node| self.agents.says_meshed(node, result.to.ip(), now)) {
                if passed {
                    target.on_proxy_answered(id, now);
                }
                touched.insert(target_id);
                continue;
            }
            // Without an earlier success of the same node's, a failure may be this node's own (a NetworkPolicy, say).
            let knows_better = self
                .evidence
                .stream(&result.to, id)
                .is_some_and(|stream| stream.checked_within(OBSERVER_FOR, target.observed_at(now)));
            if !passed && !knows_better {
                continue;
            }
            self.evidence.on_bucket(result.to, id, Bucket::check(passed), Source::Check, now);
            if passed {
                self.evidence.on_check_passed(result.to, id, now);
            }
            target.on_check(Checked { id: result.id, node: id, to: result.to, passed, started }, now);
            touched.insert(target_id);
        }
        let touched: Vec<TargetId> = touched.into_iter().collect();
        self.step_targets(&touched, now);
    }
}
