//! The report's JSON and table, letter by letter.

use serde_json::{Value, json};

use super::*;
use crate::drill::measure::{Fault, Requests};
use crate::drill::scenario;

fn mk_run(written_ms: Option<f64>) -> Run {
    Run {
        fault: Fault { proved: true, connects_failed: 112, first_ms: Some(0.4), last_ms: Some(131.2) },
        injected_ms: 0.2,
        first_failure_ms: Some(0.4),
        reported_ms: Some(1.9),
        decided_ms: written_ms.map(|ms| ms - 2.0),
        written_ms,
        acknowledged_ms: written_ms.map(|ms| ms + 0.5),
        shifted_ms: written_ms.map(|ms| ms + 1.5),
        held_by: None,
        control_ms: None,
        requests: Requests { sent: 1_112, failed: 112 },
        failovers: u32::from(written_ms.is_some()),
        failbacks: 0,
        weights: json!({"emoji-svc": 0, "emoji-svc-west": 1}).as_object().expect("an object").clone(),
        failback: None,
        splits: Vec::new(),
    }
}

fn mk_report(scenarios: Vec<ScenarioReport>) -> Report {
    Report {
        schema: 1,
        control_plane: ControlPlane::Embedded,
        profile: Profile::Default,
        nodes: None,
        shape: Shape::Standard,
        follow: Follow::Mesh,
        rate: 1_000,
        agents: true,
        policy: Policy::of(Expect::Failover),
        scenarios,
    }
}

fn refused(runs: Vec<Run>, reasons: Vec<String>) -> ScenarioReport {
    ScenarioReport::new(
        scenario::find("refused").expect("a scenario"),
        u32::try_from(runs.len().max(1)).unwrap(),
        runs,
        reasons,
        Some(150),
    )
}

#[test]
fn the_json_is_schema_1() {
    let report = mk_report(vec![refused(vec![mk_run(Some(112.0))], Vec::new())]);
    let json: Value = serde_json::to_value(&report).expect("json");
    assert_eq!(
        json,
        json!({
            "schema": 1, "control_plane": "embedded", "profile": "default", "shape": "standard", "follow": "mesh",
            "rate": 1000, "agents": true,
            "policy": {"dwell_ms": 30000, "dwell_max_ms": 900_000, "readiness_hold_ms": 5000, "recovery_successes": 21,
                "recovery_span_ms": 5000, "ramp": [50, 250, 500], "ramp_step_ms": 5000, "group_spacing_ms": 10000,
                "group_limit": 3, "group_window_ms": 600_000},
            "scenarios": [{
                "name": "refused", "expect": "failover", "verdict": "pass",
                "figure": {"limit_ms": 150, "ok": true},
                "runs": [{
                    "fault": {"proved": true, "connects_failed": 112, "first_ms": 0.4, "last_ms": 131.2},
                    "injected_ms": 0.2, "first_failure_ms": 0.4, "reported_ms": 1.9, "decided_ms": 110.0,
                    "written_ms": 112.0, "acknowledged_ms": 112.5, "shifted_ms": 113.5, "control_ms": null,
                    "requests": {"sent": 1112, "failed": 112}, "failovers": 1, "failbacks": 0,
                    "weights": {"emoji-svc": 0, "emoji-svc-west": 1},
                }],
                "written_ms": {"p50": 112.0, "p99": 112.0, "max": 112.0},
                "shifted_ms": {"p50": 113.5, "p99": 113.5, "max": 113.5},
            }],
        })
    );
    assert_eq!(report.exit_code(), 0);
}

#[test]
fn a_missed_figure_changes_neither_verdict_nor_exit_code() {
    let report = mk_report(vec![refused(vec![mk_run(Some(151.0))], Vec::new())]);
    assert_eq!(report.scenarios[0].figure, Some(FigureReport { limit_ms: 150, ok: false }));
    assert_eq!((report.scenarios[0].verdict, report.exit_code()), (Verdict::Pass, 0));
}

#[test]
fn a_run_that_was_not_written_misses_the_figure() {
    let scenario = refused(vec![mk_run(Some(100.0)), mk_run(None)], vec!["run 2: it did not fail over".into()]);
    assert_eq!(scenario.figure, Some(FigureReport { limit_ms: 150, ok: false }));
    assert_eq!(mk_report(vec![scenario]).exit_code(), 1);
    assert_eq!(refused(Vec::new(), vec!["run 1: no agent".into()]).figure.map(|figure| figure.ok), Some(false));
}

#[test]
fn the_table_reads_well() {
    let noise = scenario::find("noise").expect("a scenario");
    let stayed = Run { control_ms: Some(140.0), ..mk_run(None) };
    let report = mk_report(vec![
        refused(vec![mk_run(Some(112.0)), mk_run(None)], vec!["run 2: it did not fail over".into()]),
        ScenarioReport::new(noise, 1, vec![stayed], Vec::new(), None),
    ]);
    let expected = [
        "  scenario  verdict   moved  first failure  written p50       max          limit  shifted p50  control p50  failed requests",
        "  -------------------------------------------------------------------------------------------------------------------------",
        "  refused   FAIL     1 of 2         0.4 ms     112.0 ms  112.0 ms  <= 150 MISSED     113.5 ms                  224 of 2,224",
        "  noise     pass     0 of 1         0.4 ms            -         -                           -     140.0 ms     112 of 1,112",
        "  refused: run 2: it did not fail over",
    ];
    assert_eq!(table(&report).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_run_is_one_line() {
    assert_eq!(
        run_line(&mk_run(Some(112.04)), &[]),
        "written after 112.0 ms, shifted after 113.5 ms, 112 of 1,112 requests failed"
    );
    assert_eq!(
        run_line(&mk_run(None), &["it did not fail over".to_owned()]),
        "stayed, 112 of 1,112 requests failed, FAIL: it did not fail over"
    );
}

#[test]
fn numbers_are_grouped_by_three() {
    let check = |number, text| assert_eq!(grouped(number), text);
    check(0, "0");
    check(999, "999");
    check(1_000, "1,000");
    check(1_234_567, "1,234,567");
}
