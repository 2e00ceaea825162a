//! Churn, strange words and strange times: what leaves is forgotten, what is absurd is bounded, what is shared is judged
//! once, and another hand is not fought for ever.

use std::collections::BTreeSet;
use std::net::IpAddr;

use controller_core::Input;
use controller_core::Time;
use controller_core::facts::SplitFacts;
use probe_common::wire::{AgentFrame, Destination, First, Hello, Meshed, Report, Row, Totals};

use crate::cluster::{Answer, Cluster, Layout, Lots, MS, PORT, id, is_primary, mk_endpoint, mk_split};
use crate::{check_stays, mk_quick_config, refuse_primary};

/// How much the core remembers, as the length of its own description.
fn memory(cluster: &Cluster) -> usize {
    format!("{:?}", cluster.core).len()
}

#[test]
fn endpoints_that_come_and_go_leave_nothing_behind() {
    let mut cluster = Cluster::new(Layout { rate: 300, ..Layout::default() }).warm_up();
    let churn = |cluster: &mut Cluster, from: u32| {
        for round in from..from + 250 {
            let endpoints = (0..6u32).map(|index| {
                let number = 20 + (round * 2 + index / 3) % 200;
                mk_endpoint(1, number as u8, &format!("backend-{}", index % 3))
            });
            let named = endpoints.zip(0u32..).map(|(endpoint, index)| {
                let unique = round * 2 + index / 3;
                let address = IpAddr::from([
                    198,
                    18 + (unique / 60_000) as u8,
                    (unique / 250 % 250) as u8 + 4,
                    (unique % 250) as u8,
                ]);
                controller_core::facts::EndpointFacts {
                    identity: format!("pod-{unique}-{index}"),
                    addresses: vec![address],
                    ..endpoint
                }
            });
            cluster.set_endpoints("emoji-svc", named.collect());
            cluster.run(40);
        }
    };
    churn(&mut cluster, 0);
    let before = memory(&cluster);
    churn(&mut cluster, 250);
    churn(&mut cluster, 500);
    let after = memory(&cluster);
    assert!(after < before + before / 10, "{before} bytes, then {after}");
    assert_eq!(cluster.written.len(), 0);
}

#[test]
fn nodes_that_come_and_go_leave_nothing_behind() {
    let mut cluster = Cluster::new(Layout { rate: 100, ..Layout::default() }).warm_up();
    let pass = |cluster: &mut Cluster, from: u64| {
        for number in from..from + 100 {
            let node = format!("spot-{number}");
            let hello = Hello { node: node.clone(), incarnation: 1, version: String::new(), now_ns: 1, blind: None };
            let frames = [
                AgentFrame::Hello(hello),
                AgentFrame::Totals(Totals { now_ns: 1, complete: true, rows: Vec::new() }),
                AgentFrame::Report(Report { seq: 1, now_ns: 1, ..Report::default() }),
            ];
            for frame in frames {
                cluster.input(Input::Agent { node: node.clone(), stream: 50 + number, frame });
            }
            cluster.input(Input::AgentGone { node, stream: 50 + number });
            cluster.run(20);
        }
        // Longer than anything about a node is of use: the majority looks back for ten minutes.
        cluster.run(700_000);
    };
    pass(&mut cluster, 0);
    let before = memory(&cluster);
    pass(&mut cluster, 100);
    let after = memory(&cluster);
    assert!(after < before + 2_000, "{before} bytes, then {after}");
}

#[test]
fn absurd_self_hops_of_one_node_condemn_only_its_own_endpoints() {
    for seed in 1..20 {
        let mut lots = Lots(seed * 7_919);
        let mut cluster = Cluster::new(Layout { rate: 100, ..Layout::default() }).warm_up();
        for seq in 0..600 {
            cluster.run(5);
            let at = cluster.now_ms * MS;
            let mut number = |bound: u64| if lots.below(6) == 0 { u64::MAX } else { lots.below(bound) };
            let rows = (1..=6).map(|last| Row {
                self_hop: true,
                attempts: number(9),
                established: number(2),
                refused: number(1_000),
                clients: number(64) as u32,
                first: Some(First { started_ns: number(at), failed_ns: number(at) }),
                ..Row::empty(([198, 18, 1, last], PORT).into(), number(at), number(at))
            });
            let report = Report { seq: 9_000 + seq, now_ns: at, rows: rows.collect(), ..Report::default() };
            cluster.input(Input::Agent { node: "backend-0".into(), stream: 1, frame: AgentFrame::Report(report) });
            let all = (0..=255).map(|last| IpAddr::from([198, 18, 1, last])).collect();
            let meshed = AgentFrame::Meshed(Meshed { now_ns: number(at), endpoints: all });
            cluster.input(Input::Agent { node: "backend-0".into(), stream: 1, frame: meshed });
        }
        assert_eq!(cluster.written.len(), 0, "seed {seed}: {:?}", cluster.written.last());
    }
}

#[test]
fn a_node_that_calls_its_bare_pods_meshed_puts_an_outage_off_by_a_second_at_most() {
    let mut cluster = Cluster::new(Layout { backend_nodes: 1, endpoints: 3, ..Layout::default() }).warm_up();
    let own: Vec<_> = (1..=3).map(|last| Destination::from(([198, 18, 1, last], PORT))).collect();
    cluster.say_meshed("backend-0", &own);
    let mut cluster = check_stays(cluster, 20_000);
    refuse_primary(&mut cluster);
    let took = cluster.run_until_written(3_000).expect("fails over");
    assert!((1_000..1_400).contains(&took), "after {took} ms");
}

#[test]
fn agents_that_restart_one_after_the_other_in_noise_move_nothing() {
    for rate in [1_000, 100, 10] {
        for at_once in [false, true] {
            let mut cluster = Cluster::new(Layout { rate, ..Layout::default() }).warm_up();
            cluster.world =
                Box::new(
                    |_, to, _, lots: &mut Lots| {
                        if is_primary(to) && lots.below(100) == 0 { Answer::Refused } else { Answer::Established }
                    },
                );
            for round in 0..6u64 {
                for node in ["client-0", "client-1", "client-2", "backend-0", "backend-1", "backend-2"] {
                    let hello = Hello {
                        node: node.into(),
                        incarnation: 100 + round,
                        version: String::new(),
                        now_ns: 5,
                        blind: None,
                    };
                    cluster.input(Input::Agent { node: node.into(), stream: 1, frame: AgentFrame::Hello(hello) });
                    cluster.run(if at_once { 0 } else { 150 });
                }
                cluster.run(1_000);
            }
            let mut cluster = check_stays(cluster, 3_000);
            refuse_primary(&mut cluster);
            cluster.run_until_written(1_000).expect("and an outage after it is still left");
        }
    }
}

#[test]
fn the_end_of_time_breaks_nothing() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    refuse_primary(&mut cluster);
    cluster.run(60);
    let end = Time(u64::MAX);
    for _ in 0..20 {
        cluster.core.handle_timeout(end);
        while cluster.core.poll().is_some() {}
    }
    let report =
        Report { seq: u64::MAX, now_ns: u64::MAX, lateness_us: u32::MAX, lost_events: u64::MAX, ..Report::default() };
    cluster.core.handle(Input::Agent { node: "client-0".into(), stream: 1, frame: AgentFrame::Report(report) }, end);
    cluster.core.handle(Input::ExpectedAgents(BTreeSet::new()), end);
    // And a clock that went back.
    cluster.core.handle_timeout(Time(0));
    assert!(cluster.core.explain(&id("emoji-svc"), Time(0)).is_some());
}

#[test]
fn two_splits_that_share_a_primary_both_leave_it_and_both_come_back() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() });
    let facts = SplitFacts { uid: "uid-2".into(), ..mk_split(&[("emoji-svc", 1), ("emoji-svc-west", 0)]) };
    cluster.set_split("second", facts);
    let mut cluster = cluster.warm_up();
    refuse_primary(&mut cluster);
    cluster.run(1_000);
    let off = |cluster: &Cluster| -> Vec<u64> {
        cluster.splits.values().map(|facts| facts.backends[0].weight.milli()).collect()
    };
    assert_eq!(off(&cluster), [0, 0]);
    crate::heal(&mut cluster);
    cluster.run(20_000);
    assert_eq!(off(&cluster), [1_000, 1_000], "{:?}", cluster.written);
    assert_eq!(cluster.written.len(), 10, "off, three steps and back, twice");
}

#[test]
fn what_fails_elsewhere_right_after_a_failover_waits_for_its_budget() {
    let mut cluster = Cluster::new(Layout::default());
    cluster.input(Input::Service(id("web"), crate::cluster::mk_service(3, false)));
    let elsewhere = (1..=3).map(|index| mk_endpoint(3, index, &format!("client-{}", index - 1)));
    cluster.set_endpoints("web", elsewhere.collect());
    let facts =
        SplitFacts { uid: "uid-2".into(), service: "web".into(), ..mk_split(&[("web", 1), ("emoji-svc-west", 0)]) };
    cluster.set_split("web", facts);
    let mut cluster = cluster.warm_up();
    refuse_primary(&mut cluster);
    cluster.run(500);
    assert_eq!(cluster.written.len(), 1);
    let is_third = |to: Destination| matches!(to.ip(), IpAddr::V4(ip) if ip.octets()[..3] == [198, 18, 3]);
    cluster.world =
        Box::new(move |_, to, _, _| if is_primary(to) || is_third(to) { Answer::Refused } else { Answer::Established });
    cluster.run(8_000);
    assert_eq!(cluster.written.len(), 1, "another group within ten seconds");
    assert!(cluster.held().contains(&"budget"), "{:?}", cluster.held());
    cluster.run(4_000);
    assert_eq!(cluster.written.len(), 2, "{:?}", cluster.held());
}

#[test]
fn a_primary_that_nobody_ever_saw_healthy_is_held_and_says_so() {
    let mut cluster = Cluster::new(Layout::default());
    refuse_primary(&mut cluster);
    let cluster = check_stays(cluster.warm_up(), 10_000);
    assert!(cluster.held().contains(&"never-healthy"), "{:?}", cluster.held());
}
