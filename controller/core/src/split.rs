//! A split: its backends' health goes in, weights to write come out. Pure.
//!
//! ```text
//!            primary unready or condemned                dwell over and recovered
//!   Steady ------------------------------> Failed -----------------------------> Probation
//!     ^                                     |  ^                                   |  |
//!     |   moved by readiness, held ready    |  |     fails again                   |  |
//!     +-------------------------------------+  +-----------------------------------+  |
//!     +-------------------------------------------------------------------------------+
//!                                   last step of the ramp passed
//! ```
//!
//! A state is entered when its write was *applied*, not when it was decided: a write that fails comes back, and the
//! decision is taken anew on what is true then.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Config;
use crate::config::Mode;
use crate::facts::{MoveCause, Record, RecordedState, SplitFacts};
use crate::guard::Guard;
use crate::input::WriteOutcome;
use crate::output::{Direction, WriteId};
use crate::target::Verdict;
use crate::time::Time;
use crate::weights::{self, Weight};

/// A decision is worth sending for this long; older evidence has to be looked at again.
pub const DECISION_TTL: Duration = Duration::from_secs(1);

/// One quiet span takes one failover off the count that doubles the dwell.
const QUIET: Duration = Duration::from_secs(3600);

/// The first pause after a write that did not arrive; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(20);

/// See [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_secs(1);

/// What one backend looks like now, over all its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// It has a ready endpoint.
    pub ready: bool,
    /// Is it dead?
    pub verdict: Verdict,
    /// It answered lately, and nothing speaks against it (C5).
    pub healthy: bool,
    /// Something speaks against it.
    pub suspect: bool,
    /// There are agents that could check it.
    pub watched: bool,
    /// It has answered long and often enough to get traffic back.
    pub recovered: bool,
    /// It fails too much for a step of the ramp.
    pub fails_probation: bool,
    /// The same by the word of the only node that there is, where a split allows one to decide.
    pub fails_probation_alone: bool,
    /// Somebody saw it healthy once.
    pub was_healthy: bool,
}

/// What the rest of the world says about moving at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates {
    /// Totals of the agents are in (for decisions on connections).
    pub warm: bool,
    /// More than half of the agents are fresh.
    pub majority: bool,
    /// The budget of cause groups has room for the primary's group.
    pub budget: bool,
}

/// What a split wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Stay,
    /// To move, but a guard holds it.
    Hold(Guard),
    /// To be written.
    Move(Move),
}

/// A change of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// In the order of the backends.
    pub weights: Vec<Weight>,
    /// Which way.
    pub direction: Direction,
    /// Why.
    pub cause: MoveCause,
    /// For the failover itself: when the first failing attempt began.
    pub episode: Option<Time>,
    next: State,
    failovers: u32,
}

/// Where the split stands. Each variant holds its own deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Steady,
    Failed { cause: MoveCause, dwell_until: Time, ready_since: Option<Time> },
    Probation { cause: MoveCause, step: usize, until: Time },
}

#[derive(Debug)]
struct Pending {
    id: WriteId,
    planned: Move,
    steady: BTreeMap<String, Weight>,
    /// Of the record that is written with it; zero where none is.
    epoch: u64,
}

/// See the module header.
#[derive(Debug)]
pub struct Split {
    facts: SplitFacts,
    fault: Option<String>,
    state: State,
    /// Of the object's record; zero where it has none.
    epoch: u64,
    failovers: u32,
    last_failover: Option<Time>,
    /// The weights before the failover, by name: the list may change in between.
    steady: BTreeMap<String, Weight>,
    pending: Option<Pending>,
    /// The object changed while a write was pending: another hand's change, or our own before its answer.
    changed_meanwhile: bool,
    not_before: Option<Time>,
    retry: Duration,
    written: Option<String>,
    held: Option<Guard>,
    /// Secondaries that lost their traffic while the primary was off: until when they do not get it back, and how often.
    left: BTreeMap<String, (Time, u32)>,
}

impl Split {
    /// A split as first seen: where its record, or another hand, left it.
    #[must_use]
    pub fn new(facts: SplitFacts, config: &Config, now: Time) -> Self {
        let mut split = Self {
            fault: None,
            state: State::Steady,
            epoch: 0,
            failovers: 0,
            last_failover: None,
            steady: BTreeMap::new(),
            pending: None,
            changed_meanwhile: false,
            not_before: None,
            retry: RETRY_MIN,
            written: None,
            held: None,
            left: BTreeMap::new(),
            facts,
        };
        split.adopt(config, now);
        split
    }

    /// It was observed as `facts` says.
    pub fn on_facts(&mut self, facts: SplitFacts, config: &Config, now: Time) {
        if self.is_behind_our_write(&facts) {
            return;
        }
        self.written = None;
        self.fault = None;
        let changed = facts.resource_version != self.facts.resource_version;
        self.facts = facts;
        if self.pending.is_some() {
            self.changed_meanwhile |= changed;
        } else if changed {
            self.not_before = None;
            self.adopt(config, now);
        }
    }

    /// It cannot be understood: held as it is.
    pub fn on_fault(&mut self, fault: String) {
        self.fault = Some(fault);
    }

    /// The watch is a stream of its own and may deliver what was before our write after the write's answer. Versions
    /// are compared as numbers, as Kubernetes does for its own caches; where one is not a number it is taken as new.
    fn is_behind_our_write(&self, facts: &SplitFacts) -> bool {
        let Some(written) = &self.written else { return false };
        match (facts.resource_version.parse::<u64>(), written.parse::<u64>()) {
            (Ok(seen), Ok(written)) => facts.uid == self.facts.uid && seen < written,
            (Err(_), _) | (_, Err(_)) => false,
        }
    }

    /// Takes the state from the object where another hand than ours set it.
    fn adopt(&mut self, config: &Config, now: Time) {
        let primary = self.primary();
        let off_primary = self.facts.backends.get(primary).is_some_and(|backend| backend.weight.is_zero());
        match &self.facts.record {
            Some(record) if record.epoch != self.epoch || self.epoch == 0 => {
                self.epoch = record.epoch;
                self.failovers = record.failovers;
                self.last_failover = Some(now.before(record.age));
                self.steady.clone_from(&record.steady);
                self.state = match record.state {
                    RecordedState::Steady => State::Steady,
                    RecordedState::Failed => {
                        State::Failed { cause: record.cause, dwell_until: now + record.dwell_left, ready_since: None }
                    }
                    RecordedState::Probation => State::Probation {
                        cause: record.cause,
                        step: self.step_of_weights(config),
                        until: now + config.ramp_step,
                    },
                };
            }
            Some(_) => {}
            None => {
                // The next record's epoch is counted from here, by whoever writes it: none is one that we know.
                self.epoch = 0;
                if !off_primary {
                    self.state = State::Steady;
                }
            }
        }
        match self.state {
            // Off its primary, and not by us: what linkerd-failover would have done for readiness, and goes back so.
            State::Steady if off_primary => {
                self.state = State::Failed { cause: MoveCause::Readiness, dwell_until: now, ready_since: None };
                self.steady.clear();
            }
            // Somebody gave the primary its weight back: theirs is the last word, and the decision is taken anew.
            State::Failed { .. } if !off_primary => self.state = State::Steady,
            State::Steady | State::Failed { .. } | State::Probation { .. } => {}
        }
    }

    fn step_of_weights(&self, config: &Config) -> usize {
        let weight = self.facts.backends.get(self.primary()).map_or(Weight::ZERO, |backend| backend.weight);
        config.ramp.iter().rposition(|share| Weight::whole(u32::from(*share)) <= weight).unwrap_or(0)
    }

    fn observed(&self) -> Vec<Weight> {
        self.facts.backends.iter().map(|backend| backend.weight).collect()
    }

    /// The index of the primary: the one that is named, else the first.
    #[must_use]
    pub fn primary(&self) -> usize {
        let named = |name: &String| self.facts.backends.iter().position(|backend| backend.service == *name);
        self.facts.primary.as_ref().and_then(named).unwrap_or(0)
    }

    /// Looks at its backends and says what it wants. `health` is in the order of the backends.
    pub fn wish(&mut self, health: &[Health], gates: Gates, config: &Config, now: Time) -> Wish {
        let wish = self.wish_now(health, gates, config, now);
        self.held = match &wish {
            Wish::Hold(guard) => Some(*guard),
            Wish::Stay | Wish::Move(_) => None,
        };
        wish
    }

    fn wish_now(&mut self, health: &[Health], gates: Gates, config: &Config, now: Time) -> Wish {
        if self.fault.is_some() || health.is_empty() || health.len() != self.facts.backends.len() {
            return Wish::Stay;
        }
        if self.pending.is_some() || self.not_before.is_some_and(|at| now < at) {
            return Wish::Stay;
        }
        let primary = health[self.primary()];
        let wish = match self.state {
            State::Steady => self.wish_steady(primary, health, gates, config, now),
            State::Failed { cause, dwell_until, ready_since } => {
                let ready_since = if primary.ready { ready_since.or(Some(now)) } else { None };
                self.state = State::Failed { cause, dwell_until, ready_since };
                self.wish_failed((cause, dwell_until, ready_since), health, gates, config, now)
            }
            State::Probation { cause, step, until } => {
                self.wish_probation((cause, step, until), health, gates, config, now)
            }
        };
        match wish {
            Wish::Move(_) if config.mode == Mode::Observe => Wish::Hold(Guard::ObserveMode),
            Wish::Move(planned) if planned.weights == self.observed() && !self.ends_probation(&planned) => Wish::Stay,
            Wish::Move(_) | Wish::Hold(_) | Wish::Stay => wish,
        }
    }

    /// Another hand may have ended the ramp: the weights are there, only our record has to follow.
    const fn ends_probation(&self, planned: &Move) -> bool {
        matches!((self.state, planned.next), (State::Probation { .. }, State::Steady))
    }

    fn wish_steady(&self, primary: Health, health: &[Health], gates: Gates, config: &Config, now: Time) -> Wish {
        if !primary.ready {
            let weights = weights::failover(self.primary(), &self.takers(health), &self.observed());
            let next = State::Failed { cause: MoveCause::Readiness, dwell_until: now, ready_since: None };
            return move_or_hold(weights, |weights| {
                self.planned(weights, Direction::Failover, MoveCause::Readiness, None, next)
            });
        }
        match primary.verdict {
            Verdict::Clear | Verdict::Suspect => Wish::Stay,
            Verdict::Unobserved { guard, alone: None } => Wish::Hold(guard),
            Verdict::Unobserved { guard, alone: Some(_) } if !self.facts.single_node => Wish::Hold(guard),
            Verdict::Condemned { episode, .. } | Verdict::Unobserved { alone: Some(episode), .. } => {
                if let Some(guard) = closed_gate(gates, primary) {
                    return Wish::Hold(guard);
                }
                let proved: Vec<bool> = health.iter().map(|backend| backend.ready && backend.healthy).collect();
                self.fail_over(&proved, &self.observed(), Some(episode), config, now)
            }
        }
    }

    fn fail_over(&self, chosen: &[bool], steady: &[Weight], episode: Option<Time>, config: &Config, now: Time) -> Wish {
        let failovers = self.failovers_in_a_row(now);
        let dwell = doubled(config, failovers);
        let next = State::Failed { cause: MoveCause::Connections, dwell_until: now + dwell, ready_since: None };
        move_or_hold(weights::failover(self.primary(), chosen, steady), |weights| Move {
            failovers: failovers.saturating_add(1),
            ..self.planned(weights, Direction::Failover, MoveCause::Connections, episode, next)
        })
    }

    fn wish_failed(
        &self,
        (cause, dwell_until, ready_since): (MoveCause, Time, Option<Time>),
        health: &[Health],
        gates: Gates,
        config: &Config,
        now: Time,
    ) -> Wish {
        let primary = health[self.primary()];
        let chosen = self.keepers(health, now);
        let nobody = !chosen.contains(&true);
        let may_return = match cause {
            MoveCause::Readiness => {
                // New pods that are ready and refuse everybody are no return; but where nobody may check, nobody ever
                // sees them answer.
                let wait = if primary.healthy || !primary.watched { Duration::ZERO } else { config.dwell };
                ready_since.is_some_and(|since| now.since(since) >= config.readiness_hold + wait) && !primary.suspect
            }
            // Silence is no recovery.
            MoveCause::Connections => now >= dwell_until && primary.ready && primary.recovered && gates.majority,
        };
        // The lesser evil: nobody else is left, and the primary answers. Once it may have its way at once; primary and
        // secondary that take turns would have it for ever.
        let at_once = self.failovers_in_a_row(now) <= 1 || now >= dwell_until;
        if nobody && primary.ready && primary.healthy && at_once {
            return self.fail_back(cause);
        }
        if may_return {
            return match cause {
                MoveCause::Readiness => self.fail_back(cause),
                MoveCause::Connections => self.ramp_up(cause, 0, &chosen, config, now),
            };
        }
        if nobody {
            return Wish::Hold(Guard::NoHealthySecondary);
        }
        match weights::failover(self.primary(), &chosen, &self.recorded_steady()) {
            Some(weights) if self.draws_differ(&weights) => {
                Wish::Move(self.planned(weights, Direction::Spread, cause, None, self.state))
            }
            Some(_) | None => Wish::Stay,
        }
    }

    fn wish_probation(
        &self,
        (cause, step, until): (MoveCause, usize, Time),
        health: &[Health],
        gates: Gates,
        config: &Config,
        now: Time,
    ) -> Wish {
        let primary = health[self.primary()];
        let chosen = self.keepers(health, now);
        let fails = primary.fails_probation || (self.facts.single_node && primary.fails_probation_alone);
        if !primary.ready || fails {
            return self.fail_over(&chosen, &self.recorded_steady(), None, config, now);
        }
        let is_whole = self.steady_weights().is_some_and(|weights| weights == self.observed());
        if !chosen.contains(&true) || is_whole {
            return self.fail_back(cause);
        }
        // A step that nobody watches is no test.
        if now < until || !gates.majority {
            return Wish::Stay;
        }
        self.ramp_up(cause, step + 1, &chosen, config, now)
    }

    fn ramp_up(&self, cause: MoveCause, step: usize, chosen: &[bool], config: &Config, now: Time) -> Wish {
        let Some(share) = config.ramp.get(step) else { return self.fail_back(cause) };
        let next = State::Probation { cause, step, until: now + config.ramp_step };
        move_or_hold(weights::ramp(self.primary(), chosen, *share), |weights| {
            self.planned(weights, Direction::Ramp, cause, None, next)
        })
    }

    fn fail_back(&self, cause: MoveCause) -> Wish {
        move_or_hold(self.steady_weights(), |weights| {
            self.planned(weights, Direction::Failback, cause, None, State::Steady)
        })
    }

    fn steady_weights(&self) -> Option<Vec<Weight>> {
        weights::steady(self.primary(), &self.recorded_steady())
    }

    fn planned(
        &self,
        weights: Vec<Weight>,
        direction: Direction,
        cause: MoveCause,
        episode: Option<Time>,
        next: State,
    ) -> Move {
        Move { weights, direction, cause, episode, next, failovers: self.failovers }
    }

    /// The weights before the failover, in the order of the backends as they are now; none for a new one.
    fn recorded_steady(&self) -> Vec<Weight> {
        let weight = |name: &String| self.steady.get(name).copied().unwrap_or(Weight::ZERO);
        self.facts.backends.iter().map(|backend| weight(&backend.service)).collect()
    }

    /// Whether other backends would draw traffic than draw it now: ratios among them are the user's.
    fn draws_differ(&self, weights: &[Weight]) -> bool {
        self.facts.backends.iter().zip(weights).any(|(backend, weight)| backend.weight.is_zero() != weight.is_zero())
    }

    /// Who takes over when readiness says that the primary is gone: everyone ready that nothing speaks against; where
    /// something speaks against everyone, everyone ready that is not condemned.
    fn takers(&self, health: &[Health]) -> Vec<bool> {
        let clean: Vec<bool> = self.secondaries(health, |backend| backend.ready && !backend.suspect);
        if clean.contains(&true) {
            clean
        } else {
            self.secondaries(health, |backend| backend.ready && !is_condemned(backend))
        }
    }

    /// Who keeps or gets traffic while the primary is off: who draws it already stays until condemned, another joins
    /// when it answers. Where nobody watches, or nobody that draws traffic is left, readiness has to do.
    fn keepers(&self, health: &[Health], now: Time) -> Vec<bool> {
        let proved = |backend: &Health| backend.healthy || !backend.watched;
        let mut chosen = self.secondaries(health, |backend| backend.ready && !backend.suspect && proved(backend));
        for (backend, chosen) in self.facts.backends.iter().zip(&mut chosen) {
            *chosen &= self.left.get(&backend.service).is_none_or(|(until, _)| now >= *until);
        }
        let mut anyone_left = false;
        for (index, backend) in health.iter().enumerate() {
            let draws = self.facts.backends.get(index).is_some_and(|backend| !backend.weight.is_zero());
            let stays = index != self.primary() && draws && backend.ready;
            anyone_left |= stays;
            chosen[index] |= stays && !is_condemned(backend);
        }
        if anyone_left || chosen.contains(&true) {
            return chosen;
        }
        self.secondaries(health, |backend| backend.ready && !backend.suspect)
    }

    fn secondaries(&self, health: &[Health], takes: impl Fn(&Health) -> bool) -> Vec<bool> {
        health.iter().enumerate().map(|(index, backend)| index != self.primary() && takes(backend)).collect()
    }

    fn failovers_in_a_row(&self, now: Time) -> u32 {
        let quiet = self.last_failover.map_or(0, |at| now.since(at).as_secs() / QUIET.as_secs());
        self.failovers.saturating_sub(u32::try_from(quiet).unwrap_or(u32::MAX))
    }

    /// The move is on its way. Returns what goes into the object's record.
    pub fn on_decided(&mut self, id: WriteId, planned: Move, now: Time) -> Option<Record> {
        // What failback restores is what was there before the primary lost its weight.
        let steady = match (self.state, planned.direction) {
            (State::Steady, Direction::Failover) => {
                self.facts.backends.iter().map(|backend| (backend.service.clone(), backend.weight)).collect()
            }
            _ => self.steady.clone(),
        };
        let record = self.record(&planned, &steady, now);
        let epoch = record.as_ref().map_or(0, |record| record.epoch);
        self.pending = Some(Pending { id, planned, steady, epoch });
        record
    }

    fn record(&self, planned: &Move, steady: &BTreeMap<String, Weight>, now: Time) -> Option<Record> {
        let (state, dwell_left) = match planned.next {
            State::Steady if planned.failovers == 0 => return None,
            State::Steady => (RecordedState::Steady, Duration::ZERO),
            State::Failed { dwell_until, .. } => (RecordedState::Failed, dwell_until.since(now)),
            State::Probation { .. } => (RecordedState::Probation, Duration::ZERO),
        };
        Some(Record {
            state,
            // The annotation is the user's to edit: any number may stand there.
            epoch: self.epoch.checked_add(1).unwrap_or(1),
            cause: planned.cause,
            failovers: planned.failovers,
            dwell_left,
            age: Duration::ZERO,
            steady: steady.clone(),
        })
    }

    /// A write ended. Returns the move, if it was this split's pending one.
    pub fn on_written(&mut self, id: WriteId, outcome: &WriteOutcome, config: &Config, now: Time) -> Option<Move> {
        if self.pending.as_ref().is_none_or(|pending| pending.id != id) {
            return None;
        }
        let Pending { planned, steady, epoch, .. } = self.pending.take()?;
        let changed_meanwhile = std::mem::take(&mut self.changed_meanwhile);
        match outcome {
            WriteOutcome::Applied { resource_version, .. } => {
                self.epoch = epoch;
                self.state = planned.next;
                self.failovers = planned.failovers;
                self.steady = steady;
                match planned.direction {
                    Direction::Failover => self.last_failover = Some(now),
                    Direction::Spread => self.note_who_left(&planned.weights, config, now),
                    Direction::Failback => self.left.clear(),
                    Direction::Ramp => {}
                }
                self.retry = RETRY_MIN;
                self.not_before = None;
                if changed_meanwhile {
                    // The guard held, so what was seen is this write or what another hand made of it.
                    self.adopt(config, now);
                } else {
                    self.facts.resource_version.clone_from(resource_version);
                    self.written = Some(resource_version.clone());
                    for (backend, weight) in self.facts.backends.iter_mut().zip(&planned.weights) {
                        backend.weight = *weight;
                    }
                }
            }
            // The watch was faster than the answer: the object as it is has been seen already, and is the last word.
            WriteOutcome::Conflict
            | WriteOutcome::Failed(_)
            | WriteOutcome::Expired
            | WriteOutcome::Gone
            | WriteOutcome::Refused(_)
                if changed_meanwhile =>
            {
                self.adopt(config, now);
            }
            // The watch will bring the object as it is, which ends the wait; the pause is for a watch that is late.
            WriteOutcome::Conflict | WriteOutcome::Failed(_) | WriteOutcome::Expired => {
                self.wait_for_retry(self.retry, now)
            }
            WriteOutcome::Gone | WriteOutcome::Refused(_) => self.wait_for_retry(RETRY_MAX, now),
        }
        Some(planned)
    }

    /// A secondary that lost its traffic waits as a primary does before it gets it back: it may be flapping.
    fn note_who_left(&mut self, planned: &[Weight], config: &Config, now: Time) {
        for (backend, weight) in self.facts.backends.iter().zip(planned) {
            if weight.is_zero() && !backend.weight.is_zero() {
                let (until, times) = self.left.entry(backend.service.clone()).or_insert((now, 0));
                (*until, *times) = (now + doubled(config, *times), times.saturating_add(1));
            }
        }
    }

    fn wait_for_retry(&mut self, pause: Duration, now: Time) {
        self.not_before = Some(now + pause);
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    /// When [`Split::wish`] may say something new although nothing happened.
    #[must_use]
    pub fn due(&self, config: &Config, now: Time) -> Option<Time> {
        let state = match self.state {
            State::Steady => None,
            State::Failed { cause: MoveCause::Readiness, ready_since, .. } => {
                ready_since.map(|since| since + config.readiness_hold)
            }
            State::Failed { cause: MoveCause::Connections, dwell_until, .. } => Some(dwell_until),
            State::Probation { until, .. } => Some(until),
        };
        [state, self.not_before].into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Whether traffic goes to this backend, or is about to come back to it.
    #[must_use]
    pub fn wants(&self, index: usize) -> bool {
        self.facts.backends.get(index).is_some_and(|backend| !backend.weight.is_zero())
    }

    /// As last observed, or as our last applied write left it.
    #[must_use]
    pub const fn facts(&self) -> &SplitFacts {
        &self.facts
    }

    /// What is wrong with the object.
    #[must_use]
    pub fn fault(&self) -> Option<&String> {
        self.fault.as_ref()
    }

    /// What holds it.
    #[must_use]
    pub const fn held(&self) -> Option<Guard> {
        self.held
    }

    /// Whether the primary is off.
    #[must_use]
    pub const fn is_failed(&self) -> bool {
        matches!(self.state, State::Failed { .. })
    }

    /// `steady`, `failed`, `probation` or `invalid`.
    #[must_use]
    pub const fn state_name(&self) -> &'static str {
        match (&self.fault, self.state) {
            (Some(_), _) => "invalid",
            (None, State::Steady) => "steady",
            (None, State::Failed { .. }) => "failed",
            (None, State::Probation { .. }) => "probation",
        }
    }

    /// Failovers in a row, and how long until a failback may begin.
    #[must_use]
    pub fn dwell(&self, now: Time) -> (u32, Duration) {
        let left = match self.state {
            State::Failed { dwell_until, .. } => dwell_until.since(now),
            State::Steady | State::Probation { .. } => Duration::ZERO,
        };
        (self.failovers_in_a_row(now), left)
    }
}

impl Move {
    /// Whether the primary is tested anew from here on.
    #[must_use]
    pub const fn begins_probation(&self) -> bool {
        matches!(
            (self.direction, self.next),
            (Direction::Ramp, State::Probation { step: 0, .. }) | (Direction::Failback, State::Steady)
        )
    }
}

/// Everything but the evidence that a decision on connections needs, in the order in which it is explained.
fn closed_gate(gates: Gates, primary: Health) -> Option<Guard> {
    [
        (gates.warm, Guard::NotWarm),
        (gates.majority, Guard::FewFreshAgents),
        (primary.was_healthy, Guard::NeverHealthy),
        (gates.budget, Guard::Budget),
    ]
    .into_iter()
    .find_map(|(is_met, guard)| (!is_met).then_some(guard))
}

/// The dwell after so many failures before.
fn doubled(config: &Config, times: u32) -> Duration {
    config.dwell.saturating_mul(1u32.checked_shl(times.min(20)).unwrap_or(u32::MAX)).min(config.dwell_max)
}

const fn is_condemned(backend: &Health) -> bool {
    matches!(backend.verdict, Verdict::Condemned { .. })
}

fn move_or_hold(weights: Option<Vec<Weight>>, planned: impl FnOnce(Vec<Weight>) -> Move) -> Wish {
    weights.map_or(Wish::Hold(Guard::NoHealthySecondary), |weights| Wish::Move(planned(weights)))
}
