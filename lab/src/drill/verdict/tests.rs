//! What speaks against a run, on runs written by hand.

use serde_json::json;

use super::*;
use crate::drill::measure::{Fault, Step};
use crate::drill::scenario;

/// A run of one split whose weights ended so.
fn mk_run(failovers: u32, weights: Value) -> Run {
    let weights = weights.as_object().expect("an object").clone();
    let mut run = Run {
        fault: Fault { proved: true, connects_failed: 9, first_ms: Some(0.4), last_ms: Some(99.0) },
        written_ms: (failovers > 0).then_some(112.0),
        shifted_ms: (failovers > 0).then_some(114.0),
        failovers,
        weights: weights.clone(),
        ..Run::default()
    };
    let changes = run.written_ms.map(|at_ms| mk_change(at_ms, true, [0, 1]));
    run.splits = vec![SplitRun {
        split: "drill-1/emoji-svc".into(),
        primary: "emoji-svc".into(),
        written_ms: run.written_ms,
        shifted_ms: run.shifted_ms,
        failovers,
        weights,
        changes: changes.into_iter().collect(),
        ..SplitRun::default()
    }];
    run
}

fn mk_change(at_ms: f64, left: bool, weights: [u64; 2]) -> Change {
    Change { at_ms, left, weights: weights.map(Value::from).to_vec() }
}

fn mk_moved() -> Run {
    mk_run(1, json!({"emoji-svc": 0, "emoji-svc-west": 1}))
}

#[track_caller]
fn check(name: &str, rate: u32, run: &Run, expected: &[&str]) {
    let scenario = scenario::find(name).expect("a scenario");
    let policy = Policy::of(scenario.expect);
    let conditions = Conditions { scenario, rate, policy: &policy };
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
    run.splits[0].shifted_ms = None;
    check("refused", 1_000, &run, &["no client followed the new weights"]);
    check("refused", 0, &run, &[]);
}

#[test]
fn all_weights_zero_fail() {
    let mut run = mk_run(1, json!({"emoji-svc": 0, "emoji-svc-west": 0}));
    let ended = r#"the weights ended as {"emoji-svc":0,"emoji-svc-west":0}"#;
    check("refused", 1_000, &run, &[ended]);
    run.splits[0].changes[0].weights = vec![json!("0m"), json!(0)];
    check("refused", 1_000, &run, &["after 112.0 ms every weight was zero", ended]);
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

#[test]
fn what_must_stay_may_not_change_its_weights_at_all() {
    let mut run = mk_run(0, json!({"emoji-svc": 900, "emoji-svc-west": 100}));
    run.control_ms = Some(150.0);
    run.splits[0].changes = vec![mk_change(300.0, false, [900, 100])];
    check("blip", 1_000, &run, &[r#"its weights changed to {"emoji-svc":900,"emoji-svc-west":100}"#]);
}

#[test]
fn every_split_has_to_leave() {
    let mut run = mk_moved();
    run.splits.push(SplitRun { split: "drill-1/voting-svc".into(), ..SplitRun::default() });
    check("refused", 1_000, &run, &["drill-1/voting-svc did not fail over"]);
    run.splits[1].failovers = 1;
    run.splits[1].primary = "voting-svc".into();
    run.splits[1].weights = json!({"voting-svc": 0, "voting-svc-west": 1}).as_object().expect("an object").clone();
    check("refused", 1_000, &run, &["no client followed the new weights of drill-1/voting-svc"]);
}

#[test]
fn whatever_a_reported_scenario_does_passes_if_its_fault_was_there() {
    check("brownout-30", 1_000, &mk_moved(), &[]);
    let mut run = mk_run(0, json!({"emoji-svc": 1, "emoji-svc-west": 0}));
    check("brownout-30", 1_000, &run, &[]);
    run.fault.proved = false;
    check("brownout-30", 1_000, &run, &["void: nobody saw the fault after t0"]);
}

#[test]
fn who_stopped_processes_need_not_fail_connects() {
    let mut run = mk_run(0, json!({"emoji-svc": 1, "emoji-svc-west": 0}));
    run.fault.connects_failed = 0;
    run.control_ms = Some(150.0);
    check("frozen", 1_000, &run, &[]);
    check("one-of-two", 1_000, &run, &["void: no client's connect failed"]);
}

/// A run of `flap` with these changes: when, and whether away from the primary.
fn mk_flap(changes: &[(f64, bool)]) -> Run {
    let left = changes.iter().filter(|(_, left)| *left).count();
    let mut run = mk_run(u32::try_from(left).expect("a few"), json!({"emoji-svc": 0, "emoji-svc-west": 1}));
    let weights = |left| if left { [0, 1] } else { [50, 950] };
    run.splits[0].changes = changes.iter().map(|(at_ms, left)| mk_change(*at_ms, *left, weights(*left))).collect();
    run
}

#[test]
fn a_flapping_backend_is_left_no_oftener_than_its_dwells_allow() {
    check("flap", 1_000, &mk_flap(&[(110.0, true)]), &[]);
    let kept = [(110.0, true), (2_120.0, false), (2_300.0, true), (6_310.0, false), (6_500.0, true)];
    check("flap", 1_000, &mk_flap(&kept), &[]);
    let soon = [(110.0, true), (1_500.0, false), (1_700.0, true), (3_800.0, false)];
    let expected = [
        "it began to go back after 1390 ms, before its dwell of 2000 ms",
        "it began to go back after 2100 ms, before its dwell of 4000 ms",
    ];
    check("flap", 1_000, &mk_flap(&soon), &expected);
    let often: Vec<(f64, bool)> = (0..6).map(|number| (f64::from(number) * 10_000.0, true)).collect();
    check("flap", 1_000, &mk_flap(&often), &["it failed over 6 times, more than 5"]);
}

#[test]
fn a_flapping_backend_that_nobody_left_needs_its_control() {
    let mut run = mk_flap(&[]);
    check("flap", 1_000, &run, &["the control did not fail over: staying proves nothing"]);
    run.control_ms = Some(130.0);
    check("flap", 1_000, &run, &[]);
}
