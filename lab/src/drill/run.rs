//! One run: break something, watch what follows, close, and where the scenario asks for it prove that it could have
//! moved, or wait for the way back. In: a stage that is warm. Out: everything that the run saw. Not here: arithmetic and
//! judgement, which are `measure` and `verdict`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::drill::args::Plan;
use crate::drill::cluster::Cluster;
use crate::drill::halt::Halt;
use crate::drill::inject;
use crate::drill::measure::{Clients, ControlObservation, HealObservation, Observation, Seen, written_after};
use crate::drill::policy::Policy;
use crate::drill::scenario::{Control, Expect, Scenario};
use crate::drill::shape::{PRIMARY, SECONDARY};
use crate::drill::stage::Stage;
use crate::load::records::Since;
use crate::world::clock::now_ns;
use crate::world::fault::{Fault, Refused, Span};

/// A run ends this long after its traffic shifted.
const AFTER_SHIFT_NS: u64 = 1_000_000_000;

/// Or this long after t0, or after its last scheduled step.
const AFTER_LAST_STEP_NS: u64 = 3_000_000_000;

/// How long the control is waited for: longer than it may take, so that a late one is told as late and not as missing.
const CONTROL_WAIT: Duration = Duration::from_millis(3_000);

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
        let mut fault = inject::fault(self.scenario.fault, self.plan.shape, self.cluster, self.stage)?;
        fault.arm().context("cannot prepare the fault")?;
        self.halt.check()?;
        let broken = fault.inject().context("cannot make the fault")?;
        assert!(!self.plan.panic, "--panic: everything that the drill made goes all the same");
        let closed = self.until_closed(broken).and_then(|mut observation| {
            if self.scenario.expect == Expect::None {
                observation.control = self.control(self.scenario.control)?;
            }
            Ok(observation)
        });
        // Also after an error: a packet filter outlives the run.
        let healed = fault.heal().context("cannot mend the fault");
        let mut observation = closed?;
        let healed = healed?;
        let seen = self.stage.observer.seen();
        let left = written_after(&seen, PRIMARY, broken.first_ns).is_some();
        if self.scenario.expect == Expect::Failback && left {
            self.way_back(healed, &mut observation)?;
        }
        self.stage.look(self.cluster)?;
        observation.transitions = self.stage.history().transitions().to_vec();
        observation.seen = self.stage.observer.seen();
        Ok(observation)
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
    fn until_closed(&mut self, broken: Span) -> Result<Observation> {
        let met = inject::is_met(self.scenario.fault, self.cluster)?;
        let mut shifted_ns = None;
        let mut looks = 0;
        let closed_ns = loop {
            let seen = self.stage.observer.seen();
            let written_ns = written_after(&seen, PRIMARY, broken.first_ns);
            if let Some(written_ns) = written_ns
                && shifted_ns.is_none()
            {
                shifted_ns = self.stage.records.first_start_to(SECONDARY, written_ns);
            }
            let after_shift = match (shifted_ns, written_ns) {
                (Some(at_ns), _) => Some(at_ns + AFTER_SHIFT_NS),
                // Without load nothing can follow the weights.
                (None, Some(at_ns)) if self.plan.rate == 0 => Some(at_ns + AFTER_SHIFT_NS),
                _ => None,
            };
            let close_at_ns = match self.scenario.expect {
                Expect::None => broken.first_ns + AFTER_LAST_STEP_NS,
                Expect::Failover | Expect::Failback => after_shift.unwrap_or(broken.first_ns + AFTER_LAST_STEP_NS),
            };
            if now_ns() >= close_at_ns {
                break close_at_ns;
            }
            looks += 1;
            self.pause(looks)?;
        };
        let clients = clients(&self.recorded_since(broken.first_ns)?);
        inject::prove_parts(self.scenario.fault, self.stage)?;
        Ok(Observation {
            split: self.stage.split(),
            primary: PRIMARY.to_owned(),
            t0_ns: broken.first_ns,
            injected_ns: broken.last_ns,
            proved_by_drill: met,
            clients,
            shifted_ns,
            closed_ns,
            ..Observation::default()
        })
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
    fn control(&mut self, control: Option<Control>) -> Result<Option<ControlObservation>> {
        match control {
            None => return Ok(None),
            Some(Control::FaultStays) => {}
        }
        let mut refused = Refused(self.stage.primary.clone());
        let broken = refused.inject().context("cannot make the control's fault")?;
        let proved = inject::all_refuse(self.cluster)?;
        let deadline_ns = broken.first_ns + u64::try_from(CONTROL_WAIT.as_nanos()).unwrap_or(u64::MAX);
        let mut looks = 0;
        while now_ns() < deadline_ns && written_after(&self.stage.observer.seen(), PRIMARY, broken.first_ns).is_none() {
            looks += 1;
            self.pause(looks)?;
        }
        refused.heal().context("cannot mend the control's fault")?;
        Ok(Some(ControlObservation { t0_ns: broken.first_ns, proved }))
    }

    /// After the healing: waits until the weights stand as they did, and a little longer.
    fn way_back(&mut self, healed: Span, observation: &mut Observation) -> Result<()> {
        let limit = u64::try_from(self.policy.way_back().as_nanos()).unwrap_or(u64::MAX);
        let mut close_at_ns = healed.last_ns + limit;
        let mut back = false;
        let mut looks = 0;
        while now_ns() < close_at_ns {
            let seen = self.stage.observer.seen();
            if !back && let Some(at_ns) = back_at(&seen, healed.last_ns) {
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
    fn the_way_back_ends_at_the_first_weights() {
        let mk_seen = |at_ns, primary: u32| Seen { at_ns, weights: vec![("emoji-svc".into(), json!(primary))] };
        let seen = [mk_seen(1, 1), mk_seen(2, 0), mk_seen(8, 500), mk_seen(9, 1)];
        assert_eq!(back_at(&seen, 5), Some(9));
        assert_eq!(back_at(&seen[..3], 5), None);
    }
}
