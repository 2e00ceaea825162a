//! Budgets and bounds: what is asked for is shared, what was not done costs nothing, no number is too large.

use controller_core::facts::{ObjectId, SplitFacts};
use controller_core::input::WriteOutcome;
use controller_core::{Config, Input};
use probe_common::wire::{AgentFrame, Report, Row};

use crate::cluster::{Cluster, Layout, MS, PORT, id, mk_endpoint, mk_service, mk_split};
use crate::refuse_primary;

#[test]
fn writes_that_were_never_taken_spend_no_budget() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    cluster.outcomes = vec![WriteOutcome::Failed("connection refused".into()); 60];
    refuse_primary(&mut cluster);
    cluster.run(90_000);
    assert_eq!(cluster.weights(), [0, 1], "{:?}", cluster.held());
}

#[test]
fn canaries_leave_room_for_volleys() {
    let config = Config { checks_per_second: 24, ..Config::default() };
    let mut cluster = Cluster::new(Layout { config, ..Layout::default() }).warm_up();
    cluster.run(5_000);
    refuse_primary(&mut cluster);
    cluster.run(5_000);
    assert_eq!(cluster.weights(), [0, 1], "{:?}", cluster.core.explain(&id("emoji-svc"), cluster.now()));
}

#[test]
fn a_scarce_budget_is_shared_by_all_targets() {
    let config = Config { checks_per_second: 60, ..Config::default() };
    let mut cluster = Cluster::new(Layout { config, rate: 0, ..Layout::default() });
    for index in 0..12u8 {
        let names = [format!("web-{index}"), format!("web-{index}-west")];
        for (number, name) in names.iter().enumerate() {
            let last = 10 + index * 2 + number as u8;
            cluster.input(Input::Service(id(name), mk_service(last, false)));
            cluster.set_endpoints(name, vec![mk_endpoint(last, 1, "backend-0")]);
        }
        let facts = SplitFacts {
            uid: format!("uid-{index}"),
            service: names[0].clone(),
            ..mk_split(&[(&names[0], 1), (&names[1], 0)])
        };
        cluster.set_split(&names[0], facts);
    }
    let mut cluster = cluster.warm_up();
    cluster.run(30_000);
    for index in 0..12 {
        let split = ObjectId::new("emojivoto", format!("web-{index}"));
        let explained = cluster.core.explain(&split, cluster.now()).expect("known");
        for backend in explained.backends {
            let age = backend.last_success.expect("checked at least once");
            assert!(age < Cluster::span(3_000), "{} not checked for {age:?}", backend.service);
        }
    }
}

#[test]
fn an_agent_that_counts_to_the_largest_number_breaks_nothing() {
    let mut cluster = Cluster::new(Layout { rate: 0, ..Layout::default() }).warm_up();
    for seq in 0..4 {
        let at = cluster.now_ms * MS;
        let to = ([198, 18, 1, 1], PORT).into();
        let row = Row { attempts: u64::MAX, established: u64::MAX, ..Row::empty(to, at, at) };
        let report = Report { seq: 10_000 + seq, now_ns: at, rows: vec![row], ..Report::default() };
        cluster.input(Input::Agent { node: "client-1".into(), stream: 1, frame: AgentFrame::Report(report) });
        cluster.run(10_000);
    }
    assert_eq!(cluster.weights(), [1, 0]);
}
