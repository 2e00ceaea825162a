//! Whether a run did what its scenario expects. In: a run's figures and the expectation. Out: every reason against it;
//! none means pass. Behaviour only: how fast it was is the figure's business. Pure.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::drill::measure::{Change, Failback, Run, SplitRun};
use crate::drill::policy::Policy;
use crate::drill::scenario::{Control, Expect, Scenario};

/// What a run is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Conditions<'a> {
    /// The row of the table.
    pub scenario: &'a Scenario,
    /// Connections per second of all clients together.
    pub rate: u32,
    /// The controller's settings.
    pub policy: &'a Policy,
}

/// A scenario's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// What had to move moved, what had not stayed, every fault and control was proved.
    Pass,
    /// Anything else.
    Fail,
}

/// Below this rate a fault may heal before a client meets it.
const CLIENTS_MEET_FAULTS_FROM: u32 = 100;

/// The control must move the split within this.
const CONTROL_LIMIT_MS: f64 = 1_000.0;

/// A step's write may be this much later than its decision, which makes the next interval look shorter.
const STEP_SLACK_MS: f64 = 100.0;

/// Everything that speaks against a run; empty when it passed.
#[must_use]
pub fn reasons(run: &Run, conditions: &Conditions<'_>) -> Vec<String> {
    let mut reasons = Vec::from_iter(void(run, conditions));
    reasons.extend(negative(run));
    reasons.extend(run.splits.iter().filter_map(drew_nothing));
    match conditions.scenario.expect {
        Expect::Failover => {
            reasons.extend(left_once(run, conditions));
            if run.failbacks > 0 {
                reasons.push(format!("it went back {} times", run.failbacks));
            }
            reasons.extend(run.splits.iter().filter_map(stands_off));
        }
        Expect::Failback => {
            reasons.extend(left_once(run, conditions));
            match &run.failback {
                Some(back) => reasons.extend(came_back(run, back, conditions.policy)),
                // What never left has no way back, and that has been said.
                None if run.failovers == 0 => {}
                None => reasons.push("nobody looked for a way back".to_owned()),
            }
        }
        Expect::None => {
            reasons.extend(stayed(run));
            reasons.extend(conditions.scenario.held_by.and_then(|guard| unexplained(run, guard)));
        }
        Expect::Bound => {
            let span_ms = millis(conditions.scenario.fault.length());
            reasons.extend(run.splits.iter().flat_map(|split| kept_bounds(split, conditions.policy, span_ms)));
        }
        Expect::Report => {}
    }
    reasons.extend(conditions.scenario.control.and_then(|control| unproved(run, control)));
    reasons
}

/// A run whose fault nobody met proves nothing.
fn void(run: &Run, conditions: &Conditions<'_>) -> Option<String> {
    if !run.fault.proved {
        return Some("void: nobody saw the fault after t0".to_owned());
    }
    let must_meet = conditions.rate >= CLIENTS_MEET_FAULTS_FROM && !conditions.scenario.clients_may_miss_it;
    (must_meet && run.fault.connects_failed == 0).then(|| "void: no client's connect failed".to_owned())
}

fn negative(run: &Run) -> Vec<String> {
    let times = [
        ("fault.first_ms", run.fault.first_ms),
        ("fault.last_ms", run.fault.last_ms),
        ("injected_ms", Some(run.injected_ms)),
        ("first_failure_ms", run.first_failure_ms),
        ("reported_ms", run.reported_ms),
        ("decided_ms", run.decided_ms),
        ("written_ms", run.written_ms),
        ("acknowledged_ms", run.acknowledged_ms),
        ("shifted_ms", run.shifted_ms),
        ("control_ms", run.control_ms),
    ];
    let is_negative = |value: Option<f64>| value.is_some_and(|ms| ms < 0.0);
    times
        .into_iter()
        .filter(|(_, value)| is_negative(*value))
        .map(|(name, _)| format!("{name} is negative, which is a bug of the drill or of a clock"))
        .collect()
}

fn left_once(run: &Run, conditions: &Conditions<'_>) -> Vec<String> {
    let mut reasons = Vec::new();
    for split in &run.splits {
        // Where there is one split, its name says nothing.
        let who = if run.splits.len() > 1 { split.split.as_str() } else { "it" };
        match split.failovers {
            0 => reasons.push(format!("{who} did not fail over")),
            1 => {}
            times => reasons.push(format!("{who} failed over {times} times")),
        }
        if split.failovers > 0 && conditions.rate > 0 && split.shifted_ms.is_none() {
            let of = if run.splits.len() > 1 { format!(" of {who}") } else { String::new() };
            reasons.push(format!("no client followed the new weights{of}"));
        }
    }
    reasons
}

fn is_zero(weight: &Value) -> bool {
    weight.as_f64() == Some(0.0) || matches!(weight.as_str(), Some("0" | "0m"))
}

/// Whatever a scenario expects: weights that are all zero send nobody anywhere.
fn drew_nothing(split: &SplitRun) -> Option<String> {
    let nothing = split.changes.iter().find(|change| change.weights.iter().all(is_zero))?;
    Some(format!("after {:.1} ms every weight was zero", nothing.at_ms))
}

fn stands_off(split: &SplitRun) -> Option<String> {
    let primary_off = split.weights.get(&split.primary).is_some_and(is_zero);
    let another_on = split.weights.iter().any(|(name, weight)| *name != split.primary && !is_zero(weight));
    (split.failovers > 0 && !(primary_off && another_on))
        .then(|| format!("the weights ended as {}", Value::Object(split.weights.clone())))
}

fn stayed(run: &Run) -> Option<String> {
    if run.failovers > 0 {
        return Some(format!("it failed over {} times and should not have", run.failovers));
    }
    // Not even among the others, or within a ratio: nothing had to change.
    let changed = run.splits.iter().find(|split| !split.changes.is_empty())?;
    Some(format!("its weights changed to {}", Value::Object(changed.weights.clone())))
}

/// Staying for a reason that nobody is told is luck.
fn unexplained(run: &Run, guard: &str) -> Option<String> {
    match run.held_by.as_deref() {
        Some(told) if told == guard => None,
        Some(other) => Some(format!("the controller says that {other} holds it, not {guard}")),
        None => Some(format!("the controller does not say that {guard} holds it")),
    }
}

/// Why staying proves nothing, where it does not.
fn unproved(run: &Run, control: Control) -> Option<String> {
    if control == Control::IfUnmoved && run.failovers > 0 {
        return None;
    }
    match run.control_ms {
        Some(ms) if ms <= CONTROL_LIMIT_MS => None,
        Some(ms) => Some(format!("the control took {ms:.0} ms, more than {CONTROL_LIMIT_MS:.0}")),
        None => Some("the control did not fail over: staying proves nothing".to_owned()),
    }
}

/// No oftener than the dwells leave room for, and never back before the dwell of the failover that it undoes: the bound
/// against oscillation, scaled to the settings of the run.
fn kept_bounds(split: &SplitRun, policy: &Policy, span_ms: u64) -> Vec<String> {
    let mut reasons = Vec::new();
    let bound = policy.most_failovers(span_ms);
    if split.failovers > bound {
        reasons.push(format!("it failed over {} times, more than {bound}", split.failovers));
    }
    let mut failovers = 0;
    let mut left_at: Option<&Change> = None;
    for change in &split.changes {
        if change.left {
            failovers += 1;
            left_at = Some(change);
        } else if let Some(left) = left_at.take() {
            // Later steps of the same way back are not opposite to anything.
            let (dwelt, dwell_ms) = (change.at_ms - left.at_ms, policy.dwell_after(failovers));
            if dwelt < as_ms(dwell_ms) - STEP_SLACK_MS {
                reasons.push(format!("it began to go back after {dwelt:.0} ms, before its dwell of {dwell_ms} ms"));
            }
        }
    }
    reasons
}

fn came_back(run: &Run, back: &Failback, policy: &Policy) -> Vec<String> {
    let mut reasons = Vec::new();
    if run.failbacks != 1 {
        reasons.push(format!("it came back {} times, not once", run.failbacks));
    }
    let expected: Vec<[u64; 2]> = policy
        .ramp
        .iter()
        .map(|share| [u64::from(*share), 1_000 - u64::from(*share)])
        .chain(std::iter::once([1, 0]))
        .collect();
    let steps: Vec<Vec<Value>> = back.steps.iter().map(|step| step.weights.clone()).collect();
    if !steps.iter().eq(expected.iter().map(|pair| pair.map(Value::from).to_vec()).collect::<Vec<_>>().iter()) {
        reasons.push(format!(
            "its steps were {}, not {expected:?}",
            Value::from(steps.into_iter().map(Value::Array).collect::<Vec<_>>())
        ));
    }
    reasons.extend(too_early(run, back, policy));
    if back.failed_after_heal > 0 {
        reasons.push(format!("{} connections begun after the healing failed", back.failed_after_heal));
    }
    reasons
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Settings are far below what a double cannot tell apart.
fn as_ms(ms: u64) -> f64 {
    Value::from(ms).as_f64().unwrap_or(f64::INFINITY)
}

fn too_early(run: &Run, back: &Failback, policy: &Policy) -> Vec<String> {
    let mut reasons = Vec::new();
    let span = |ms: u64| as_ms(ms) - STEP_SLACK_MS;
    if let (Some(written_ms), Some(first)) = (run.written_ms, back.steps.first())
        && first.at_ms - written_ms < span(policy.dwell_ms)
    {
        let dwelt = first.at_ms - written_ms;
        reasons.push(format!("it began to go back after {dwelt:.0} ms, before its dwell of {} ms", policy.dwell_ms));
    }
    for pair in back.steps.windows(2) {
        let lasted = pair[1].at_ms - pair[0].at_ms;
        if lasted < span(policy.ramp_step_ms) {
            reasons.push(format!("a step lasted {lasted:.0} ms, not {} ms", policy.ramp_step_ms));
        }
    }
    reasons
}

#[cfg(test)]
mod tests;
