//! One run: break something, watch what follows, close, and where the scenario asks for it prove that it could have
//! moved, or wait for the way back. In: a stage that is warm. Out: everything that the run saw. Not here: arithmetic and
//! judgement, which are `measure` and `verdict`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::drill::args::Plan;
use crate::drill::cluster::Cluster;
use crate::drill::halt::Halt;
use crate::drill::inject::{self, Breakage};
use crate::drill::measure::written_after;
use crate::drill::observation::{Clients, ControlObservation, HealObservation, Observation, Seen, SplitObservation};
use crate::drill::policy::Policy;
use crate::drill::scenario::{Control, Expect, Scenario};
use crate::drill::shape::WatchedSplit;
use crate::drill::stage::Stage;
use crate::load::records::Since;
use crate::world::clock::now_ns;
use crate::world::fault::Span;

/// A run ends this long after its traffic shifted.
const AFTER_SHIFT_NS: u64 = 1_000_000_000;

/// Or this long after t0, or after its last scheduled step.
const AFTER_LAST_STEP_NS: u64 = 3_000_000_000;

/// How long the control is waited for: longer than it may take, so that a late one is told as late and not as missing.
const CONTROL_WAIT: Duration = Duration::from_millis(3_000);

/// How long the controller may take to call a healed secondary healthy: three observers' checks of it have to succeed.
const WELL_LIMIT: Duration = Duration::from_secs(15);

/// Between two looks at the watch and the clients' record.
const LOOK_GAP: Duration = Duration::from_millis(10);

/// Looks between two of /state, which keeps 64 transitions: far more than happen in 250 ms.
const LOOKS_PER_STATE: u32 = 25;

/// What a run needs.
pub struct Running<'a> {
    /// With its agents.
    pub cluster: &'a Cluster,
    /// Warm.
    pub stage: &'a mut Stage,
    /// The command line.
    pub plan: &'a Plan,
    /// What is drilled.
    pub scenario: &'a Scenario,
    /// The controller's settings.
    pub policy: &'a Policy,
    /// Ends it early.
    pub halt: &'a Halt,
}

impl Running<'_> {
    /// Does it, and mends what it broke.
    ///
    /// # Errors
    ///
    /// The lab itself failed, or an agent or the controller is gone.
    pub fn run(mut self) -> Result<Observation> {
        let mut breakage = Breakage::of(self.scenario.fault, self.plan, self.cluster, self.stage, self.halt)?;
        breakage.arm().context("cannot prepare the fault")?;
        self.halt.check()?;
        let broken = breakage.inject().context("cannot make the fault")?;
        assert!(!self.plan.panic, "--panic: everything that the drill made goes all the same");
        let closed = self.until_closed(&breakage, broken).and_then(|mut observation| {
            if let Some(control) = self.scenario.control {
                observation.control = self.control(control, &mut breakage, broken)?;
            }
            Ok(observation)
        });
        // Also after an error: a packet filter outlives the run.
        let healed = breakage.heal().context("cannot mend the fault");
        let mut observation = closed?;
        let healed = healed?;
        if let Some(healed) = healed
            && self.scenario.expect == Expect::Failback
            && self.has_left(broken.first_ns)
        {
            self.way_back(healed, &mut observation)?;
        }
        self.stage.look(self.cluster)?;
        observation.transitions = self.stage.history().transitions().to_vec();
        for (split, watched) in observation.splits.iter_mut().zip(&self.stage.splits) {
            split.seen = self.stage.observer.seen(&watched.name);
        }
        Ok(observation)
    }

    /// When each split first left its primary at or after a moment, in the order of the report.
    fn written_since(&self, moment_ns: u64) -> Vec<Option<u64>> {
        let written =
            |split: &WatchedSplit| written_after(&self.stage.observer.seen(&split.name), &split.primary, moment_ns);
        self.stage.splits.iter().map(written).collect()
    }

    /// Whether any split left its primary since.
    fn has_left(&self, moment_ns: u64) -> bool {
        self.written_since(moment_ns).iter().any(Option::is_some)
    }

    /// What the clients recorded since a moment, the last of it included.
    fn recorded_since(&self, moment_ns: u64) -> Result<Since> {
        self.stage.flush()?;
        let since = self.stage.records.since(moment_ns);
        let lost: u64 = self.stage.records.totals().values().map(|totals| totals.lost).sum();
        ensure!(since.complete && lost == 0, "records of clients were lost ({lost}): the counts would be too low");
        Ok(since)
    }

    /// Watches until the run ends, and counts.
    fn until_closed(&mut self, breakage: &Breakage<'_>, broken: Span) -> Result<Observation> {
        let met = breakage.is_met()?;
        let mut shifted = vec![None; self.stage.splits.len()];
        let mut looks = 0;
        let closed_ns = loop {
            let written = self.written_since(broken.first_ns);
            for ((split, written_ns), shifted_ns) in self.stage.splits.iter().zip(&written).zip(&mut shifted) {
                if let (Some(written_ns), None) = (written_ns, &shifted_ns) {
                    *shifted_ns = self.stage.records.first_start_to(&split.secondary, *written_ns);
                }
            }
            // Without load nothing can follow the weights.
            let followed_ns = last_of_all(if self.plan.rate == 0 { &written } else { &shifted });
            let close_at_ns = self.close_at(broken.first_ns, followed_ns);
            if now_ns() >= close_at_ns {
                break close_at_ns;
            }
            looks += 1;
            self.pause(looks)?;
        };
        let since = self.recorded_since(broken.first_ns)?;
        breakage.prove_parts(self.stage, &since)?;
        let held_by = self.stage.guard(self.cluster)?;
        self.stage.save_state(self.cluster, "closed")?;
        let of_split = |(split, shifted_ns): (&WatchedSplit, &Option<u64>)| SplitObservation {
            split: self.stage.name_of(split),
            primary: split.primary.clone(),
            seen: Vec::new(),
            shifted_ns: *shifted_ns,
        };
        Ok(Observation {
            splits: self.stage.splits.iter().zip(&shifted).map(of_split).collect(),
            t0_ns: broken.first_ns,
            injected_ns: broken.last_ns,
            proved_by_drill: met,
            clients: clients(&since),
            closed_ns,
            held_by,
            ..Observation::default()
        })
    }

    /// When the figures of the run are taken. What must stay is watched for its whole time, whatever it does.
    fn close_at(&self, t0_ns: u64, followed_ns: Option<u64>) -> u64 {
        let last_step_ns = t0_ns + AFTER_LAST_STEP_NS;
        match self.scenario.expect {
            Expect::None => last_step_ns,
            Expect::Bound => last_step_ns + nanos(self.scenario.fault.length()),
            Expect::Failover | Expect::Failback | Expect::Report => {
                followed_ns.map_or(last_step_ns, |at_ns| at_ns + AFTER_SHIFT_NS)
            }
        }
    }

    /// Waits for a moment; now and then reads /state and looks who still lives.
    fn pause(&mut self, looks: u32) -> Result<()> {
        if looks.is_multiple_of(LOOKS_PER_STATE) {
            self.stage.controller_lives()?;
            self.cluster.agents_live()?;
            self.stage.look(self.cluster)?;
        }
        Ok(self.halt.wait(LOOK_GAP)?)
    }

    /// In the same processes every application endpoint of the primary refuses: now it has to move.
    fn control(
        &mut self,
        control: Control,
        breakage: &mut Breakage<'_>,
        broken: Span,
    ) -> Result<Option<ControlObservation>> {
        match control {
            Control::IfUnmoved if self.has_left(broken.first_ns) => return Ok(None),
            // It is over; this only ends what made it.
            Control::IfUnmoved => drop(breakage.heal().context("cannot end the fault")?),
            Control::FaultStays | Control::ByReadiness => {}
            Control::AfterHealing => {
                breakage.heal().context("cannot mend the fault before the control")?;
                self.until_well()?;
            }
        }
        let mut refused = match control {
            Control::ByReadiness => inject::unready(self.cluster, self.stage)?,
            Control::FaultStays | Control::AfterHealing | Control::IfUnmoved => inject::control_fault(self.stage),
        };
        let broken = refused.inject().context("cannot make the control's fault")?;
        // The API server's acknowledgement is proof enough.
        let proved = control == Control::ByReadiness || breakage.nobody_answers(self.stage)?;
        let deadline_ns = broken.first_ns + nanos(CONTROL_WAIT);
        let mut looks = 0;
        while now_ns() < deadline_ns && last_of_all(&self.written_since(broken.first_ns)).is_none() {
            looks += 1;
            self.pause(looks)?;
        }
        self.stage.save_state(self.cluster, "control")?;
        refused.heal().context("cannot mend the control's fault")?;
        Ok(Some(ControlObservation { t0_ns: broken.first_ns, proved }))
    }

    /// After the healing: waits until every endpoint answers and the controller calls every secondary healthy again.
    fn until_well(&mut self) -> Result<()> {
        inject::until_all_answer(self.cluster, self.stage, self.halt)?;
        let deadline_ns = now_ns() + nanos(WELL_LIMIT);
        let mut looks = 0;
        while let Some(sick) = self.stage.sick_secondary(self.cluster)? {
            ensure!(now_ns() < deadline_ns, "{sick} {} s after the fault was mended", WELL_LIMIT.as_secs());
            looks += 1;
            self.pause(looks)?;
        }
        Ok(())
    }

    /// After the healing: waits until the weights stand as they did, and a little longer.
    fn way_back(&mut self, healed: Span, observation: &mut Observation) -> Result<()> {
        let mut close_at_ns = healed.last_ns + nanos(self.policy.way_back());
        let mut back = false;
        let mut looks = 0;
        while now_ns() < close_at_ns {
            if !back && let Some(at_ns) = self.all_back(healed.last_ns) {
                back = true;
                close_at_ns = at_ns + AFTER_LAST_STEP_NS;
            }
            looks += 1;
            self.pause(looks)?;
        }
        let failed_after = self.recorded_since(healed.last_ns)?.failed;
        observation.healed = Some(HealObservation { healed_ns: healed.last_ns, failed_after });
        observation.clients = clients(&self.recorded_since(observation.t0_ns)?);
        observation.closed_ns = now_ns();
        Ok(())
    }

    /// When the last split stood again as in its first look.
    fn all_back(&self, from_ns: u64) -> Option<u64> {
        let back = |split: &WatchedSplit| back_at(&self.stage.observer.seen(&split.name), from_ns);
        let times: Vec<Option<u64>> = self.stage.splits.iter().map(back).collect();
        last_of_all(&times)
    }
}

/// The latest, if all are there.
fn last_of_all(times: &[Option<u64>]) -> Option<u64> {
    let times: Option<Vec<u64>> = times.iter().copied().collect();
    times?.into_iter().max()
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// When the weights stood again as in the first look.
fn back_at(seen: &[Seen], from_ns: u64) -> Option<u64> {
    let steady = &seen.first()?.weights;
    seen.iter().find(|look| look.at_ns >= from_ns && look.weights == *steady).map(|look| look.at_ns)
}

/// Failures of the connect itself, by the client's own errno: not what came after, and not what the client's own machine
/// lacked (no port, no descriptor, nobody to dial), which proves no fault.
fn clients(since: &Since) -> Clients {
    const OF_THE_CONNECT: [&str; 6] =
        ["ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ENETDOWN", "ETIMEDOUT", "no-handshake"];
    let of_connect = since.by_outcome.iter().filter(|(name, _)| OF_THE_CONNECT.contains(&name.as_str()));
    let connects_failed: u64 = of_connect.map(|(_, count)| count).sum();
    Clients {
        sent: since.sent,
        failed: since.failed,
        connects_failed,
        first_failed_ns: since.first_failure_ns.filter(|_| connects_failed > 0),
        last_failed_ns: since.last_failure_ns.filter(|_| connects_failed > 0),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn only_failed_connects_prove_a_fault() {
        let mk_since = |outcomes: &[(&str, u64)]| Since {
            complete: true,
            sent: outcomes.iter().map(|(_, count)| count).sum(),
            failed: outcomes.iter().filter(|(name, _)| *name != "ok").map(|(_, count)| count).sum(),
            first_failure_ns: Some(5),
            last_failure_ns: Some(9),
            by_outcome: outcomes.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            by_leaf: BTreeMap::new(),
        };
        let met = clients(&mk_since(&[("ok", 10), ("ECONNREFUSED", 3), ("no-handshake", 2), ("no-answer", 1)]));
        assert_eq!((met.sent, met.failed, met.connects_failed), (16, 6, 5));
        assert_eq!((met.first_failed_ns, met.last_failed_ns), (Some(5), Some(9)));
        let missed = clients(&mk_since(&[("ok", 10), ("EADDRNOTAVAIL", 2), ("no-endpoint", 1), ("ECONNRESET", 1)]));
        assert_eq!((missed.failed, missed.connects_failed, missed.first_failed_ns), (4, 0, None));
    }

    #[test]
    fn several_times_have_a_last_one_only_when_all_are_there() {
        assert_eq!(last_of_all(&[Some(3), Some(7), Some(5)]), Some(7));
        assert_eq!(last_of_all(&[Some(3), None]), None);
    }

    #[test]
    fn the_way_back_ends_at_the_first_weights() {
        let mk_seen = |at_ns, primary: u32| Seen { at_ns, weights: vec![("emoji-svc".into(), json!(primary))] };
        let seen = [mk_seen(1, 1), mk_seen(2, 0), mk_seen(8, 500), mk_seen(9, 1)];
        assert_eq!(back_at(&seen, 5), Some(9));
        assert_eq!(back_at(&seen[..3], 5), None);
    }
}
