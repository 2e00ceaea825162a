//! The loop that owns the core: one input at a time, then everything that the core wants.
//!
//! In: facts of the cluster, frames, answers to writes, readers, and the core's own deadline. Out: writes, frames, Events,
//! transitions. Time never runs backwards here: a frame carries the time at which it was decoded, and a later input may have
//! overtaken it. Deliberately no policy: every `if` in this file is about delivery.

mod counters;
mod log;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use controller_core::facts::ObjectId;
use controller_core::input::WriteOutcome;
use controller_core::output::{Freshness, Transition, TransitionKind, Write};
use controller_core::{Core, Input, Output, Time};
use probe_common::wire::{AgentFrame, ControllerFrame};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

pub(super) use counters::Counters;

use super::Inlets;
use super::contest::Contest;
use super::notices::Notices;
use super::objects::Objects;
use super::strays::{Strays, Word};
use super::unanswered::Unanswered;
use crate::clock;
use crate::cluster::{Observation, SplitObject};
use crate::findings::{Finding, FindingKind, Findings, News, Subject};
use crate::ingest::Arrival;
use crate::state::json::cause_name;
use crate::state::{AgentRow, Ask, SNAPSHOT_AGE, Snapshot, View};
use crate::write::counters::{Counters as WriteCounters, direction_name, outcome_name};
use crate::write::event::{Announcement, FAILOVER, INVALID_POLICY, announce};
use crate::write::{Job, Written};

/// Frames that are taken before a deadline is acted upon: an agent whose report waits here is not silent. More than these
/// wait no longer than the next turn.
const FRAMES_BEFORE_DEADLINE: usize = 256;

/// Longest sleep without a deadline; waking up for nothing once a minute costs nothing.
const IDLE: Duration = Duration::from_secs(60);

/// See the file's header.
pub(super) struct Turn {
    core: Core,
    now: fn() -> Time,
    /// The time of the last input.
    latest: Time,
    objects: Objects,
    findings: Findings,
    notices: Notices,
    unanswered: Unanswered,
    agents: BTreeMap<String, Agent>,
    jobs: Option<mpsc::Sender<Job>>,
    announcements: Option<mpsc::Sender<Announcement>>,
    counters: Counters,
    write_counters: WriteCounters,
    view: Arc<View>,
    snapshot: Arc<Snapshot>,
}

/// What the shell knows of an agent.
struct Agent {
    freshness: Freshness,
    stream: Option<Downstream>,
    strays: Strays,
    contest: Contest,
}

impl Agent {
    fn new() -> Self {
        Self { freshness: Freshness::Unknown, stream: None, strays: Strays::default(), contest: Contest::default() }
    }
}

struct Downstream {
    number: u64,
    began: Time,
    frames: mpsc::Sender<ControllerFrame>,
}

impl Turn {
    pub(super) fn new(
        config: controller_core::Config,
        now: fn() -> Time,
        jobs: mpsc::Sender<Job>,
        announcements: mpsc::Sender<Announcement>,
        (counters, write_counters): (Counters, WriteCounters),
        view: Arc<View>,
    ) -> Self {
        Self {
            core: Core::new(config),
            now,
            latest: Time(0),
            objects: Objects::default(),
            findings: Findings::default(),
            notices: Notices::default(),
            unanswered: Unanswered::default(),
            agents: BTreeMap::new(),
            jobs: Some(jobs),
            announcements: Some(announcements),
            counters,
            write_counters,
            view,
            snapshot: Arc::default(),
        }
    }

    /// Turns until nobody brings inputs any more.
    pub(super) async fn run(&mut self, inlets: &mut Inlets) {
        loop {
            let deadline = self.core.deadline().into_iter().chain(self.findings.due()).min();
            let wait = deadline.map_or(IDLE, |deadline| deadline.since((self.now)()));
            tokio::select! {
                Some(written) = inlets.written.recv() => self.on_written(written),
                Some(arrival) = inlets.arrivals.recv() => self.on_arrival(arrival),
                Some(observation) = inlets.observations.recv() => self.on_observation(observation),
                Some(ask) = inlets.asks.recv() => self.on_ask(&ask),
                () = tokio::time::sleep(wait) => self.on_deadline(inlets),
                else => return,
            }
        }
    }

    /// Takes the answers to the writes under way; asks for no more.
    pub(super) async fn finish(&mut self, inlets: &mut Inlets) {
        self.jobs = None;
        while let Some(written) = inlets.written.recv().await {
            self.on_written(written);
        }
        self.announcements = None;
    }

    fn on_deadline(&mut self, inlets: &mut Inlets) {
        for _ in 0..FRAMES_BEFORE_DEADLINE {
            let Ok(arrival) = inlets.arrivals.try_recv() else { break };
            self.on_arrival(arrival);
        }
        self.latest = self.latest.max((self.now)());
        self.core.handle_timeout(self.latest);
        self.deliver();
        self.tell_findings();
    }

    fn on_observation(&mut self, observation: Observation) {
        let now = (self.now)();
        match observation {
            Observation::Fact(input) => {
                self.before_fact(&input, now);
                self.handle(input, now);
            }
            Observation::Split { input, object } => {
                self.before_split(&input, object, now);
                self.handle(input, now);
            }
            Observation::Service { input, service, outline } => {
                self.findings.on_service(&service, Some(outline), now);
                self.handle(input, now);
            }
            Observation::Slice { slice, service, faults } => self.findings.on_slice(&slice, &service, faults, now),
        }
        self.tell_findings();
    }

    /// What the shell itself keeps of a fact.
    fn before_fact(&mut self, input: &Input, now: Time) {
        match input {
            Input::SplitGone(id) => {
                tracing::info!(
                    namespace = id.namespace,
                    split = id.name,
                    "TrafficSplit is gone or no longer ours: it is left as it is"
                );
                self.objects.on_gone(id);
                self.notices.on_gone(id);
                self.unanswered.on_gone(id);
                self.findings.on_split_gone(id, now);
            }
            Input::ServiceGone(id) => self.findings.on_service(id, None, now),
            Input::CachesComplete => self.findings.on_complete(now),
            Input::ExpectedAgents(nodes) => {
                self.agents.retain(|node, agent| agent.stream.is_some() || nodes.contains(node));
            }
            _ => {}
        }
    }

    /// What the shell itself keeps of a split, and the Event of a write whose answer was lost.
    fn before_split(&mut self, input: &Input, object: SplitObject, now: Time) {
        match input {
            Input::Split(id, facts) => {
                self.objects.on_object(id.clone(), object.clone());
                self.findings.on_split(id, Ok(facts), now);
                if let Some((note, object)) = self.unanswered.on_seen(id, facts, object, now) {
                    self.announce_late(id, object, note);
                }
            }
            Input::SplitInvalid { split, fault } => {
                self.objects.on_object(split.clone(), object);
                self.findings.on_split(split, Err(fault), now);
            }
            _ => {}
        }
    }

    /// Tells what is wrong with the objects, and what no longer is.
    fn tell_findings(&mut self) {
        let now = (self.now)();
        for news in self.findings.step(now) {
            log::finding(&news);
            let News::Found(Finding { subject: Subject::Split(split), kind, text }) = news else { continue };
            // The core has already said so of a split that it cannot understand.
            if kind != FindingKind::Undecodable {
                let note = format!("trafficsplit/{}: {text}", split.name);
                self.notice(&split, INVALID_POLICY, note, now);
            }
        }
    }

    /// An Event that is not about a write, unless the same was published a moment ago.
    fn notice(&mut self, split: &ObjectId, reason: &'static str, note: String, now: Time) {
        if !self.notices.admits(split, &note, now) {
            self.write_counters.event("repeated");
            return;
        }
        let object = self.objects.latest(split).cloned().unwrap_or_default();
        self.announce(split, object, reason, note);
    }

    /// The Event of a write that was taken, as its object shows, although its answer never came.
    fn announce_late(&self, split: &ObjectId, object: SplitObject, note: String) {
        tracing::info!(
            namespace = split.namespace,
            split = split.name,
            "Write was applied although its answer was lost, as the object shows"
        );
        self.announce(split, object, FAILOVER, note);
    }

    fn on_arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Began { node, stream, downstream } => self.on_stream(node, stream, downstream),
            Arrival::Frame { node, stream, frame, decoded } => self.on_frame(node, stream, frame, decoded),
            Arrival::Ended { node, stream } => {
                self.let_go(&node, stream);
                self.handle(Input::AgentGone { node, stream }, (self.now)());
            }
        }
    }

    /// A stream began; an older one of the node ends here, with its sender.
    fn on_stream(&mut self, node: String, number: u64, frames: mpsc::Sender<ControllerFrame>) {
        let now = (self.now)();
        let agent = self.agents.entry(node.clone()).or_insert_with(Agent::new);
        if agent.stream.as_ref().is_some_and(|known| known.number > number) {
            return;
        }
        let replaced = agent.stream.replace(Downstream { number, began: now, frames });
        if replaced.is_some() && agent.contest.on_replaced(now) {
            tracing::warn!(node, "Two agents speak for one node and push each other out: its counts cannot be trusted");
        }
    }

    fn on_frame(&mut self, node: String, stream: u64, frame: AgentFrame, decoded: Time) {
        let before = self.core.sums().unknown_destinations;
        self.handle(Input::Agent { node: node.clone(), stream, frame }, decoded);
        let sums = self.core.sums();
        let Some(agent) = self.agents.get_mut(&node) else { return };
        match agent.strays.on_frame(sums.unknown_destinations - before, self.latest) {
            None => {}
            Some(Word::GoesOn(rows)) => tracing::warn!(
                node,
                destination = sums.last_unknown.map(tracing::field::display),
                rows,
                "Agent reports about destinations that no split has: nothing follows from it"
            ),
            Some(Word::Over) => tracing::info!(node, "Agent reports only about destinations of splits again"),
        }
    }

    fn on_written(&mut self, Written { write, outcome, place, record, in_doubt }: Written) {
        let elapsed = (self.now)().since(write.decided);
        tracing::info!(
            namespace = write.split.namespace,
            split = write.split.name,
            write = write.id.0,
            direction = direction_name(write.direction),
            cause = cause_name(write.cause),
            outcome = outcome_name(&outcome),
            ?elapsed,
            "Write ended"
        );
        if let WriteOutcome::Applied { resource_version, .. } = &outcome {
            let object = SplitObject {
                uid: write.uid.clone(),
                resource_version: resource_version.clone(),
                place: place.unwrap_or_default(),
                record,
            };
            self.unanswered.on_applied(&write.split);
            self.objects.on_object(write.split.clone(), object.clone());
            if let Some(note) = &write.event {
                self.announce(&write.split, object, FAILOVER, note.clone());
            }
        } else if in_doubt && let Some((note, object)) = self.unanswered.on_lost(&write, record, (self.now)()) {
            self.announce_late(&write.split, object, note);
        }
        self.handle(Input::WriteDone { id: write.id, outcome }, (self.now)());
    }

    fn on_ask(&mut self, ask: &Ask) {
        let now = (self.now)();
        if now.since(self.snapshot.at) >= SNAPSHOT_AGE {
            self.snapshot = Arc::new(self.look(now));
        }
        // A reader that has stopped waiting takes the next one.
        ask.try_send(Arc::clone(&self.snapshot)).ok();
    }

    fn look(&self, now: Time) -> Snapshot {
        let row = |(node, agent): (&String, &Agent)| AgentRow {
            node: node.clone(),
            freshness: agent.freshness,
            stream: agent.stream.as_ref().map(|stream| (stream.number, stream.began)),
        };
        let explain = |id: &ObjectId| self.core.explain(id, now).map(|explanation| (id.clone(), explanation));
        Snapshot {
            at: now,
            splits: self.objects.ids().filter_map(explain).collect(),
            agents: self.agents.iter().map(row).collect(),
            findings: self.findings.standing().map(|(finding, since)| (finding.clone(), since)).collect(),
            sums: self.core.sums(),
        }
    }

    fn handle(&mut self, input: Input, at: Time) {
        self.latest = self.latest.max(at);
        self.core.handle(input, self.latest);
        self.deliver();
    }

    /// Carries out every wish of the core.
    fn deliver(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Write(write) => self.write(write),
                Output::Send { node, stream, frame } => self.send(&node, stream, frame),
                Output::Notice { split, reason, note } => self.notice(&split, reason.as_str(), note, self.latest),
                Output::Transition(transition) => self.on_transition(transition),
            }
        }
    }

    fn write(&mut self, write: Write) {
        let Some(jobs) = &self.jobs else { return };
        let id = write.id;
        // Every version that the core knows was observed or answered here; one that is not would be guarded by a guess.
        let refused = match self.objects.place(&write.split, &write.resource_version) {
            None => Some(WriteOutcome::Conflict),
            Some(place) => match jobs.try_send(Job { write, place }) {
                Ok(()) => None,
                Err(TrySendError::Full(_)) => Some(WriteOutcome::Failed("too many writes are under way".to_owned())),
                Err(TrySendError::Closed(_)) => Some(WriteOutcome::Failed("the writer is gone".to_owned())),
            },
        };
        if let Some(outcome) = refused {
            self.core.handle(Input::WriteDone { id, outcome }, self.latest);
        }
    }

    fn send(&mut self, node: &str, stream: u64, frame: ControllerFrame) {
        let known = self.agents.get(node).and_then(|agent| agent.stream.as_ref());
        let Some(downstream) = known.filter(|known| known.number == stream) else { return };
        if downstream.frames.try_send(frame).is_err() {
            tracing::warn!(node, stream, "Agent does not read what it is sent: its stream is ended");
            self.counters.overrun();
            self.let_go(node, stream);
        }
    }

    /// Drops the way back to a stream, which ends it.
    fn let_go(&mut self, node: &str, stream: u64) {
        if let Some(agent) = self.agents.get_mut(node)
            && agent.stream.as_ref().is_some_and(|known| known.number == stream)
        {
            agent.stream = None;
        }
    }

    fn announce(&self, split: &ObjectId, object: SplitObject, reason: &'static str, note: String) {
        let Some(queue) = &self.announcements else { return };
        let announcement = Announcement { split: split.clone(), object, reason, note, at: clock::wall() };
        announce(queue, &self.write_counters, announcement);
    }

    fn on_transition(&mut self, transition: Transition) {
        if let TransitionKind::Agent { node, freshness } = &transition.kind
            && let Some(agent) = self.agents.get_mut(node)
        {
            agent.freshness = *freshness;
        }
        self.counters.on_transition(&transition);
        log::transition(&transition);
        self.view.on_transition(transition);
    }
}

#[cfg(test)]
mod tests;
