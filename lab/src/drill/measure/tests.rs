//! The arithmetic of a run, on runs written by hand.

use serde_json::json;

use super::*;
use crate::drill::observation::{Clients, ControlObservation, HealObservation};

const T0: u64 = 10_000_000_000;

fn at(ms: u64) -> u64 {
    T0 + ms * 1_000_000
}

fn mk_seen(at_ns: u64, primary: Value, secondary: Value) -> Seen {
    Seen { at_ns, weights: vec![("emoji-svc".into(), primary), ("emoji-svc-west".into(), secondary)] }
}

fn mk_transition(at_ns: u64, fields: Value) -> Transition {
    let mut object = fields.as_object().expect("an object").clone();
    object.insert("at_ns".into(), json!(at_ns));
    object.insert("split".into(), json!("drill-1/emoji-svc"));
    serde_json::from_value(Value::Object(object)).expect("a transition")
}

fn mk_reported(at_ns: u64, started_ns: u64, failed_ns: u64) -> Transition {
    let fields = json!({"kind": "reported", "backend": "emoji-svc", "node": "client-1", "started_ns": started_ns,
        "failed_ns": failed_ns});
    mk_transition(at_ns, fields)
}

fn mk_failover() -> Observation {
    Observation {
        splits: vec![SplitObservation {
            split: "drill-1/emoji-svc".into(),
            primary: "emoji-svc".into(),
            seen: vec![mk_seen(T0 - 5_000_000_000, json!(1), json!(0)), mk_seen(at(112), json!(0), json!(1))],
            shifted_ns: Some(at(114)),
        }],
        t0_ns: T0,
        injected_ns: T0 + 212_345,
        proved_by_drill: true,
        clients: Clients {
            sent: 1_100,
            failed: 112,
            connects_failed: 112,
            first_failed_ns: Some(T0 + 400_000),
            last_failed_ns: Some(T0 + 131_200_000),
        },
        transitions: vec![
            mk_reported(at(2), T0 + 300_000, T0 + 400_000),
            mk_transition(at(110), json!({"kind": "decided", "write": 1, "direction": "failover"})),
            mk_transition(at(113), json!({"kind": "acknowledged", "write": 1, "direction": "failover"})),
        ],
        held_by: None,
        closed_ns: at(1_114),
        control: None,
        healed: None,
    }
}

#[test]
fn a_failover_has_every_time_in_order() {
    let run = measure(&mk_failover());
    assert_eq!(run.fault, Fault { proved: true, connects_failed: 112, first_ms: Some(0.4), last_ms: Some(131.2) });
    assert_eq!(run.injected_ms, 0.212);
    assert_eq!((run.first_failure_ms, run.reported_ms), (Some(0.4), Some(2.0)));
    assert_eq!((run.decided_ms, run.written_ms), (Some(110.0), Some(112.0)));
    assert_eq!((run.acknowledged_ms, run.shifted_ms), (Some(113.0), Some(114.0)));
    assert_eq!((run.failovers, run.failbacks), (1, 0));
    assert_eq!(Value::Object(run.weights), json!({"emoji-svc": 0, "emoji-svc-west": 1}));
    assert_eq!(run.requests, Requests { sent: 1_100, failed: 112 });
}

#[test]
fn what_did_not_happen_is_null() {
    let mut seen = mk_failover();
    seen.transitions.clear();
    seen.splits[0].seen.truncate(1);
    seen.splits[0].shifted_ns = None;
    seen.clients = Clients::default();
    seen.proved_by_drill = false;
    let json = serde_json::to_value(measure(&seen)).expect("json");
    for field in ["first_failure_ms", "reported_ms", "decided_ms", "written_ms", "acknowledged_ms", "shifted_ms"] {
        assert_eq!(json[field], Value::Null, "{field}");
    }
    assert_eq!(json["fault"], json!({"proved": false, "connects_failed": 0, "first_ms": null, "last_ms": null}));
    assert_eq!(json["control_ms"], Value::Null);
    assert!(json.get("failback").is_none());
}

#[test]
fn a_failure_begun_before_the_fault_is_not_its_first() {
    let mut seen = mk_failover();
    seen.transitions.insert(0, mk_reported(at(1), T0 - 40_000_000, at(0)));
    seen.transitions.insert(0, mk_reported(T0 - 10, T0 - 30, T0 - 20));
    let run = measure(&seen);
    assert_eq!((run.first_failure_ms, run.reported_ms), (Some(0.4), Some(2.0)));
}

#[test]
fn the_decision_is_the_one_whose_write_was_taken() {
    let mut seen = mk_failover();
    let lost = mk_transition(at(100), json!({"kind": "decided", "write": 0, "direction": "failover"}));
    seen.transitions.insert(1, lost);
    assert_eq!(measure(&seen).decided_ms, Some(110.0));
    seen.transitions.retain(|entry| !matches!(entry.kind, Kind::Acknowledged { .. }));
    assert_eq!(measure(&seen).decided_ms, Some(100.0));
    assert_eq!(measure(&seen).acknowledged_ms, None);
}

#[test]
fn another_splits_transitions_do_not_count() {
    let mut seen = mk_failover();
    for entry in &mut seen.transitions {
        entry.split = Some("drill-0/emoji-svc".into());
    }
    let run = measure(&seen);
    assert_eq!((run.reported_ms, run.decided_ms, run.acknowledged_ms), (None, None, None));
}

#[test]
fn a_control_is_counted_nowhere_else() {
    let mut seen = mk_failover();
    seen.closed_ns = at(3_000);
    seen.transitions.clear();
    seen.splits[0].shifted_ns = None;
    seen.splits[0].seen[1].at_ns = at(3_250);
    seen.control = Some(ControlObservation { t0_ns: at(3_100), proved: true });
    let run = measure(&seen);
    assert_eq!((run.failovers, run.written_ms, run.control_ms), (0, None, Some(150.0)));
    assert_eq!(Value::Object(run.weights), json!({"emoji-svc": 1, "emoji-svc-west": 0}));
    seen.control = Some(ControlObservation { t0_ns: at(3_100), proved: false });
    assert_eq!(measure(&seen).control_ms, None);
}

#[test]
fn a_move_before_the_control_does_not_prove_it() {
    let mut seen = mk_failover();
    seen.control = Some(ControlObservation { t0_ns: at(3_100), proved: true });
    assert_eq!(measure(&seen).control_ms, None);
}

#[test]
fn the_way_back_lists_its_steps() {
    let mut seen = mk_failover();
    seen.splits[0].seen.push(mk_seen(at(3_000), json!("50m"), json!("950m")));
    seen.splits[0].seen.push(mk_seen(at(3_100), json!("50m"), json!("950m")));
    seen.splits[0].seen.push(mk_seen(at(3_500), json!(500), json!(500)));
    seen.splits[0].seen.push(mk_seen(at(4_000), json!(1), json!(0)));
    seen.closed_ns = at(7_000);
    seen.healed = Some(HealObservation { healed_ns: at(1_114), failed_after: 0 });
    let run = measure(&seen);
    assert_eq!((run.failovers, run.failbacks, run.written_ms), (1, 1, Some(112.0)));
    let back = run.failback.expect("a way back");
    assert_eq!(back.healed_ms, 1_114.0);
    let steps: Vec<(f64, Vec<Value>)> = back.steps.into_iter().map(|step| (step.at_ms, step.weights)).collect();
    assert_eq!(
        steps,
        [
            (3_000.0, vec![json!("50m"), json!("950m")]),
            (3_500.0, vec![json!(500), json!(500)]),
            (4_000.0, vec![json!(1), json!(0)])
        ]
    );
}

#[test]
fn of_several_splits_the_last_counts_and_only_if_all_moved() {
    let mut seen = mk_failover();
    let mut other = seen.splits[0].clone();
    other.split = "drill-1/voting-svc".into();
    other.seen[1].at_ns = at(140);
    other.shifted_ns = Some(at(143));
    seen.splits.push(other);
    let run = measure(&seen);
    assert_eq!((run.written_ms, run.shifted_ms, run.failovers), (Some(140.0), Some(143.0), 1));
    assert_eq!(run.splits.iter().map(|split| split.written_ms).collect::<Vec<_>>(), [Some(112.0), Some(140.0)]);
    seen.splits[1].seen.truncate(1);
    seen.splits[1].shifted_ns = None;
    let run = measure(&seen);
    assert_eq!((run.written_ms, run.shifted_ms, run.failovers), (None, None, 1));
    let json = serde_json::to_value(run).expect("json");
    assert_eq!(json["splits"][1]["failovers"], 0);
}

#[test]
fn what_moves_to_and_fro_lists_every_change() {
    let mut seen = mk_failover();
    seen.splits[0].seen.push(mk_seen(at(2_200), json!(50), json!(950)));
    seen.splits[0].seen.push(mk_seen(at(2_600), json!(0), json!(1)));
    seen.closed_ns = at(63_000);
    let run = measure(&seen);
    assert_eq!((run.failovers, run.failbacks, run.written_ms), (2, 0, Some(112.0)));
    let json = serde_json::to_value(run).expect("json");
    let changes = json["splits"][0]["changes"].as_array().expect("a list");
    assert_eq!(changes.len(), 3);
    assert_eq!(changes[1], json!({"at_ms": 2_200.0, "left": false, "weights": [50, 950]}));
    assert_eq!(changes[2]["left"], true);
    assert!(serde_json::to_value(measure(&mk_failover())).expect("json").get("splits").is_none());
}

#[test]
fn a_time_before_the_fault_shows_as_negative() {
    let mut seen = mk_failover();
    seen.splits[0].seen[1].at_ns = T0 - 2_000_000;
    assert_eq!(measure(&seen).written_ms, Some(-2.0));
}

#[test]
fn percentiles_are_by_nearest_rank() {
    let check = |count: u32, p50, p99, max| {
        let values = (1..=count).rev().map(|value| Some(f64::from(value)));
        assert_eq!(Percentiles::of(values), Percentiles { p50, p99, max }, "{count}");
    };
    check(0, None, None, None);
    check(1, Some(1.0), Some(1.0), Some(1.0));
    check(2, Some(1.0), Some(2.0), Some(2.0));
    check(20, Some(10.0), Some(20.0), Some(20.0));
    check(100, Some(50.0), Some(99.0), Some(100.0));
    check(101, Some(51.0), Some(100.0), Some(101.0));
    assert_eq!(Percentiles::of([None, Some(3.0), None].into_iter()).max, Some(3.0));
}
