//! Whether a run did what its scenario expects. In: a run's figures and the expectation. Out: every reason against it;
//! none means pass. Behaviour only: how fast it was is the figure's business. Pure.

use serde::Serialize;
use serde_json::Value;

use crate::drill::measure::{Failback, Run};
use crate::drill::policy::Policy;
use crate::drill::scenario::{Expect, Scenario};

/// What a run is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Conditions<'a> {
    /// The row of the table.
    pub scenario: &'a Scenario,
    /// Connections per second of all clients together.
    pub rate: u32,
    /// The split's primary backend.
    pub primary: &'a str,
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
    match conditions.scenario.expect {
        Expect::Failover => {
            reasons.extend(left_once(run, conditions));
            if run.failbacks > 0 {
                reasons.push(format!("it went back {} times", run.failbacks));
            }
            reasons.extend(stands_off(run, conditions.primary));
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
        Expect::None => reasons.extend(stayed(run, conditions.scenario.control.is_some())),
    }
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
    match run.failovers {
        0 => reasons.push("it did not fail over".to_owned()),
        1 => {}
        times => reasons.push(format!("it failed over {times} times")),
    }
    if run.failovers > 0 && conditions.rate > 0 && run.shifted_ms.is_none() {
        reasons.push("no client followed the new weights".to_owned());
    }
    reasons
}

fn stands_off(run: &Run, primary: &str) -> Option<String> {
    let is_zero = |weight: &Value| weight.as_u64() == Some(0) || weight.as_str() == Some("0");
    let primary_off = run.weights.get(primary).is_some_and(is_zero);
    let another_on = run.weights.iter().any(|(name, weight)| name != primary && !is_zero(weight));
    (run.failovers > 0 && !(primary_off && another_on))
        .then(|| format!("the weights ended as {}", Value::Object(run.weights.clone())))
}

fn stayed(run: &Run, has_control: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    if run.failovers > 0 {
        reasons.push(format!("it failed over {} times and should not have", run.failovers));
    }
    if has_control {
        match run.control_ms {
            Some(ms) if ms <= CONTROL_LIMIT_MS => {}
            Some(ms) => reasons.push(format!("the control took {ms:.0} ms, more than {CONTROL_LIMIT_MS:.0}")),
            None => reasons.push("the control did not fail over: staying proves nothing".to_owned()),
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

fn too_early(run: &Run, back: &Failback, policy: &Policy) -> Vec<String> {
    let mut reasons = Vec::new();
    let span = |ms: u64| Value::from(ms).as_f64().unwrap_or(f64::INFINITY) - STEP_SLACK_MS;
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
mod tests {
    use serde_json::json;

    use super::*;
    use crate::drill::measure::{Fault, Step};
    use crate::drill::scenario;

    fn mk_run(failovers: u32, weights: Value) -> Run {
        Run {
            fault: Fault { proved: true, connects_failed: 9, first_ms: Some(0.4), last_ms: Some(99.0) },
            written_ms: (failovers > 0).then_some(112.0),
            shifted_ms: (failovers > 0).then_some(114.0),
            failovers,
            weights: weights.as_object().expect("an object").clone(),
            ..Run::default()
        }
    }

    fn mk_moved() -> Run {
        mk_run(1, json!({"emoji-svc": 0, "emoji-svc-west": 1}))
    }

    #[track_caller]
    fn check(name: &str, rate: u32, run: &Run, expected: &[&str]) {
        let scenario = scenario::find(name).expect("a scenario");
        let policy = Policy::of(scenario.expect);
        let conditions = Conditions { scenario, rate, primary: "emoji-svc", policy: &policy };
        assert_eq!(reasons(run, &conditions), expected, "{name}");
    }

    #[test]
    fn one_failover_that_clients_follow_passes() {
        check("refused", 1_000, &mk_moved(), &[]);
    }

    #[test]
    fn no_failover_two_or_one_back_fail() {
        check("refused", 1_000, &mk_run(0, json!({"emoji-svc": 1, "emoji-svc-west": 0})), &["it did not fail over"]);
        let twice = mk_run(2, json!({"emoji-svc": 0, "emoji-svc-west": 1}));
        check("refused", 1_000, &twice, &["it failed over 2 times"]);
        let mut back = mk_run(1, json!({"emoji-svc": 1, "emoji-svc-west": 0}));
        back.failbacks = 1;
        let expected = ["it went back 1 times", r#"the weights ended as {"emoji-svc":1,"emoji-svc-west":0}"#];
        check("refused", 1_000, &back, &expected);
    }

    #[test]
    fn weights_that_clients_do_not_follow_fail_unless_there_are_none() {
        let mut run = mk_moved();
        run.shifted_ms = None;
        check("refused", 1_000, &run, &["no client followed the new weights"]);
        check("refused", 0, &run, &[]);
    }

    #[test]
    fn all_weights_zero_fail() {
        let run = mk_run(1, json!({"emoji-svc": 0, "emoji-svc-west": 0}));
        check("refused", 1_000, &run, &[r#"the weights ended as {"emoji-svc":0,"emoji-svc-west":0}"#]);
    }

    #[test]
    fn a_fault_that_nobody_met_voids_the_run() {
        let mut run = mk_moved();
        run.fault = Fault { proved: false, ..Fault::default() };
        check("refused", 1_000, &run, &["void: nobody saw the fault after t0"]);
        run.fault.proved = true;
        check("refused", 1_000, &run, &["void: no client's connect failed"]);
        check("refused", 99, &run, &[]);
        check("scale-to-zero", 1_000, &run, &[]);
    }

    #[test]
    fn a_negative_time_is_a_bug() {
        let mut run = mk_moved();
        run.written_ms = Some(-0.2);
        check("refused", 1_000, &run, &["written_ms is negative, which is a bug of the drill or of a clock"]);
    }

    #[test]
    fn a_run_that_stays_must_prove_that_it_could_move() {
        let mut run = mk_run(0, json!({"emoji-svc": 1, "emoji-svc-west": 0}));
        check("noise", 1_000, &run, &["the control did not fail over: staying proves nothing"]);
        run.control_ms = Some(1_000.1);
        check("noise", 1_000, &run, &["the control took 1000 ms, more than 1000"]);
        run.control_ms = Some(150.0);
        check("noise", 1_000, &run, &[]);
        run.failovers = 1;
        check("noise", 1_000, &run, &["it failed over 1 times and should not have"]);
    }

    fn mk_back(steps: &[(f64, [u64; 2])]) -> Run {
        let mut run = mk_run(1, json!({"emoji-svc": 1, "emoji-svc-west": 0}));
        run.failbacks = 1;
        let mk_step =
            |(at_ms, weights): &(f64, [u64; 2])| Step { at_ms: *at_ms, weights: weights.map(Value::from).to_vec() };
        run.failback =
            Some(Failback { healed_ms: 1_114.0, steps: steps.iter().map(mk_step).collect(), failed_after_heal: 0 });
        run
    }

    const RAMP: [(f64, [u64; 2]); 4] =
        [(2_200.0, [50, 950]), (2_710.0, [250, 750]), (3_205.0, [500, 500]), (3_712.0, [1, 0])];

    #[test]
    fn a_way_back_in_steps_passes() {
        check("failback", 1_000, &mk_back(&RAMP), &[]);
    }

    #[test]
    fn a_way_back_without_its_steps_or_with_failures_fails() {
        let mut run = mk_back(&[RAMP[3]]);
        if let Some(back) = &mut run.failback {
            back.failed_after_heal = 3;
        }
        let expected = [
            "its steps were [[1,0]], not [[50, 950], [250, 750], [500, 500], [1, 0]]",
            "3 connections begun after the healing failed",
        ];
        check("failback", 1_000, &run, &expected);
    }

    #[test]
    fn a_way_back_before_its_time_fails() {
        let mut steps = RAMP;
        steps[0].0 = 1_500.0;
        steps[1].0 = 1_800.0;
        let expected =
            ["it began to go back after 1388 ms, before its dwell of 2000 ms", "a step lasted 300 ms, not 500 ms"];
        check("failback", 1_000, &mk_back(&steps), &expected);
    }
}
