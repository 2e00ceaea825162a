//! False moves: a healthy primary, or one that is no more than half dead, beside one bad node, a blip, lost SYNs, checks
//! that a policy drops, absurd words of one agent. Nothing of that may move traffic.

use controller_core::Input;
use controller_core::facts::{EndpointFacts, ServiceFacts, ServicePort};
use probe_common::wire::{AgentFrame, Destination, First, Report, Row};
use std::collections::BTreeMap;

use crate::cluster::{Answer, Cluster, Layout, Lots, MS, PORT, id, is_primary, mk_endpoint, mk_service};
use crate::{check_stays, mk_quick_config};

const METRICS: u16 = 9090;

fn mk_nodes(nodes: u8, endpoints: u8, rate: u64) -> Cluster {
    Cluster::new(Layout { client_nodes: nodes, backend_nodes: 0, endpoints, rate, ..Layout::default() })
}

fn is_first(to: Destination, dead: u8) -> bool {
    is_primary(to) && matches!(to.ip(), std::net::IpAddr::V4(ip) if ip.octets()[3] <= dead)
}

#[test]
fn half_of_the_endpoints_dead_and_one_node_that_reaches_none_moves_nothing() {
    let mut moved = Vec::new();
    for nodes in [3, 10] {
        for endpoints in [2, 4, 6] {
            for rate in [1_000, 100, 10] {
                let mut cluster = mk_nodes(nodes, endpoints, rate).warm_up();
                cluster.run(3_000);
                cluster.world = Box::new(move |from, to, _, _| {
                    let fails = is_first(to, endpoints / 2) || (from == "client-0" && is_primary(to));
                    if fails { Answer::Refused } else { Answer::Established }
                });
                cluster.run(10_000);
                if !cluster.written.is_empty() {
                    moved.push((nodes, endpoints, rate));
                }
            }
        }
    }
    assert!(moved.is_empty(), "nodes, endpoints, conn/s: {moved:?}");
}

#[test]
fn a_blip_beside_a_node_whose_path_is_cut_moves_nothing() {
    let mut moved = Vec::new();
    for nodes in [3, 4, 10] {
        for endpoints in [1, 2, 6] {
            for rate in [1_000, 300, 100] {
                for (blip, phase) in (0..5).flat_map(|phase| [(50, phase * 23), (80, phase * 23)]) {
                    let mut cluster = mk_nodes(nodes, endpoints, rate).warm_up();
                    let from_ms = cluster.now_ms + 3_000 + phase;
                    cluster.world = Box::new(move |from, to, at, _| {
                        let is_blip = (from_ms..from_ms + blip).contains(&at);
                        let fails = is_primary(to) && (is_blip || from == "client-0");
                        if fails { Answer::Refused } else { Answer::Established }
                    });
                    cluster.run(5_000);
                    if !cluster.written.is_empty() {
                        moved.push((nodes, endpoints, rate, blip));
                    }
                }
            }
        }
    }
    assert!(moved.is_empty(), "{}: nodes, endpoints, conn/s, blip ms: {moved:?}", moved.len());
}

#[test]
fn a_blip_beside_an_agent_that_says_absurd_things_moves_nothing() {
    let mut moved = Vec::new();
    for liar in ["client-0", "backend-1"] {
        for (blip, phase) in [50, 80].into_iter().flat_map(|blip| (0..8).map(move |phase| (blip, phase * 29))) {
            let mut cluster = Cluster::new(Layout::default()).warm_up();
            let from_ms = cluster.now_ms + 1_000 + phase;
            cluster.world = Box::new(move |_, to, at, _| {
                let is_blip = (from_ms..from_ms + blip).contains(&at);
                if is_primary(to) && is_blip { Answer::Refused } else { Answer::Established }
            });
            for seq in 0..500 {
                cluster.run(4);
                let at = cluster.now_ms * MS;
                let row = |endpoint| Row {
                    attempts: u64::MAX,
                    refused: u64::MAX,
                    clients: u32::MAX,
                    first: Some(First { started_ns: 0, failed_ns: at }),
                    ..Row::empty(([198, 18, 1, endpoint], PORT).into(), at, at)
                };
                let report =
                    Report { seq: 9_000 + seq, now_ns: at, rows: (1..=6).map(row).collect(), ..Report::default() };
                cluster.input(Input::Agent { node: liar.into(), stream: 1, frame: AgentFrame::Report(report) });
            }
            if !cluster.written.is_empty() {
                moved.push((liar, blip));
            }
        }
    }
    assert!(moved.is_empty(), "liar, blip ms: {moved:?}");
}

#[test]
fn checks_that_a_policy_drops_move_nothing_although_one_connection_in_a_hundred_fails() {
    let mut moved = Vec::new();
    for rate in [10, 30, 100, 1_000] {
        for seed in 1..9 {
            let mut cluster = Cluster::new(Layout { rate, ..Layout::default() });
            cluster.lots = Lots(seed * 7_919);
            let mut cluster = cluster.warm_up();
            cluster.world =
                Box::new(
                    |_, to, _, lots: &mut Lots| {
                        if is_primary(to) && lots.below(100) == 0 { Answer::Refused } else { Answer::Established }
                    },
                );
            cluster.run(2_000);
            cluster.world_of_checks =
                Some(Box::new(|_, to, _, _| if is_primary(to) { Answer::Nothing } else { Answer::Established }));
            cluster.run(30_000);
            if !cluster.written.is_empty() {
                moved.push((rate, seed));
            }
        }
    }
    assert!(moved.is_empty(), "conn/s, seed: {moved:?}");
}

#[test]
fn blips_of_90_ms_move_nothing_whatever_the_size_and_rate() {
    for nodes in [2, 3, 10] {
        for endpoints in [1, 2, 3, 6, 30] {
            for rate in [1_000, 100, 1] {
                for (phase, answer) in [(37, Answer::Refused), (11, Answer::Nothing)] {
                    let blip = if answer == Answer::Nothing { 60 } else { 90 };
                    let mut cluster = mk_nodes(nodes, endpoints, rate).warm_up();
                    let from_ms = cluster.now_ms + 3_000 + phase;
                    cluster.world = Box::new(move |_, to, at, _| {
                        if is_primary(to) && (from_ms..from_ms + blip).contains(&at) {
                            answer
                        } else {
                            Answer::Established
                        }
                    });
                    check_stays(cluster, 5_000);
                }
            }
        }
    }
}

#[test]
fn a_blip_of_the_rest_of_a_half_dead_primary_moves_nothing_whatever_the_size() {
    let mut moved = Vec::new();
    for nodes in [2, 3, 10] {
        for endpoints in [2, 4, 6] {
            for rate in [1_000, 300, 100, 10] {
                for phase in [29, 61] {
                    let mut cluster = mk_nodes(nodes, endpoints, rate).warm_up();
                    let from_ms = cluster.now_ms + 3_000 + phase;
                    cluster.world = Box::new(move |_, to, at, _| {
                        let is_blip = (from_ms..from_ms + 60).contains(&at);
                        let fails = is_first(to, endpoints / 2) || (is_primary(to) && is_blip);
                        if fails { Answer::Refused } else { Answer::Established }
                    });
                    cluster.run(6_000);
                    if !cluster.written.is_empty() {
                        moved.push((nodes, endpoints, rate, phase));
                    }
                }
            }
        }
    }
    assert!(moved.is_empty(), "nodes, endpoints, conn/s, phase: {moved:?}");
}

/// Thirty in a hundred SYNs lost for 20 to 200 ms, of some nodes' or of all; with `dead` endpoints dead all the time.
fn count_moves_by_lost_syns(nodes: u8, endpoints: u8, dead: u8, rate: u64, all: bool, seeds: u64) -> usize {
    let run = |seed: u64| {
        let mut cluster = mk_nodes(nodes, endpoints, rate);
        cluster.lots = Lots(seed * 104_729);
        let mut cluster = cluster.warm_up();
        let from_ms = cluster.now_ms + 2_000 + seed % 100;
        let span = [20, 60, 110, 150, 200][(seed % 5) as usize];
        cluster.world = Box::new(move |from, to, at, lots: &mut Lots| {
            let on_rack = all || from == "client-0" || (nodes > 3 && (from == "client-1" || from == "client-2"));
            let lost = on_rack && (from_ms..from_ms + span).contains(&at) && lots.below(100) < 30;
            match (is_first(to, dead), lost) {
                (true, _) => Answer::Refused,
                (false, true) => Answer::Nothing,
                (false, false) => Answer::Established,
            }
        });
        cluster.run(4_000);
        !cluster.written.is_empty()
    };
    (1..=seeds).filter(|seed| run(*seed)).count()
}

#[test]
fn lost_syns_of_a_rack_move_nothing() {
    let mut moved = Vec::new();
    for nodes in [2, 3, 10] {
        for endpoints in [1, 2, 3, 6] {
            for rate in [1_000, 100, 10] {
                for all in [false, true] {
                    let count = count_moves_by_lost_syns(nodes, endpoints, 0, rate, all, 10);
                    if count > 0 {
                        moved.push((nodes, endpoints, rate, all, count));
                    }
                }
            }
        }
    }
    assert!(moved.is_empty(), "nodes, endpoints, conn/s, everywhere, moves of 10: {moved:?}");
}

#[test]
fn lost_syns_beside_a_half_dead_primary_move_nothing() {
    let mut moved = Vec::new();
    for nodes in [3, 10] {
        for endpoints in [2, 4] {
            for rate in [1_000, 100, 10] {
                // Everywhere, with half of it dead, two of three attempts fail for as long as the loss lasts: an outage.
                for all in if endpoints == 2 { vec![false, true] } else { vec![false] } {
                    let count = count_moves_by_lost_syns(nodes, endpoints, endpoints / 2, rate, all, 10);
                    if count > 0 {
                        moved.push((nodes, endpoints, rate, all, count));
                    }
                }
            }
        }
    }
    assert!(moved.is_empty(), "nodes, endpoints, conn/s, everywhere, moves of 10: {moved:?}");
}

/// A primary with two ports, of which the second was served once.
fn mk_two_ports(rate: u64) -> Cluster {
    let mut cluster = Cluster::new(Layout { rate, ..Layout::default() });
    let mut facts: ServiceFacts = mk_service(1, false);
    facts.ports.push(ServicePort { name: "metrics".into(), port: METRICS, app_protocol: None });
    cluster.input(Input::Service(id("emoji-svc"), facts));
    let ports = BTreeMap::from([("http".to_owned(), PORT), ("metrics".to_owned(), METRICS)]);
    let endpoints = (1..4).map(|index| EndpointFacts { ports: ports.clone(), ..mk_endpoint(1, index, "backend-0") });
    cluster.set_endpoints("emoji-svc", endpoints.collect());
    let mut cluster = cluster.warm_up();
    cluster.run(3_000);
    cluster.world = Box::new(|_, to, _, _| if to.port() == METRICS { Answer::Refused } else { Answer::Established });
    cluster
}

#[test]
fn a_client_that_loops_on_a_dead_side_port_moves_nothing() {
    let mut cluster = mk_two_ports(100);
    for _ in 0..10_000 {
        cluster.dial("client-0", Destination::from(([198, 18, 1, 1], METRICS)));
        cluster.run(2);
    }
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written.last());
}

#[test]
fn an_agent_that_counts_a_side_port_up_moves_nothing() {
    let mut cluster = mk_two_ports(1_000);
    for seq in 0..50 {
        let at = cluster.now_ms * MS;
        let row = Row { attempts: u64::MAX, ..Row::empty(([198, 18, 1, 1], METRICS).into(), at, at) };
        let report = Report { seq: 9_000 + seq, now_ns: at, rows: vec![row], ..Report::default() };
        cluster.input(Input::Agent { node: "backend-2".into(), stream: 1, frame: AgentFrame::Report(report) });
        cluster.run(100);
    }
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written.last());
}

#[test]
fn a_dead_side_port_moves_nothing_while_long_connections_are_answered() {
    let mut cluster = mk_two_ports(0);
    for seq in 0..100 {
        let at = cluster.now_ms * MS;
        for node in ["client-0", "client-1", "client-2"] {
            let row = |last| Row { answered: 50, ..Row::empty(([198, 18, 1, last], PORT).into(), at, at) };
            let report = Report { seq: 9_000 + seq, now_ns: at, rows: (1..4).map(row).collect(), ..Report::default() };
            cluster.input(Input::Agent { node: node.into(), stream: 1, frame: AgentFrame::Report(report) });
        }
        // A scraper asks each endpoint now and then.
        cluster.dial("client-0", Destination::from(([198, 18, 1, 1 + (seq % 3) as u8], METRICS)));
        cluster.run(100);
    }
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written.last());
}

/// Two of five client nodes have no path, and the others reach the primary; no check does.
fn check_two_of_five_without_a_path(rate: u64) {
    let mut cluster = Cluster::new(Layout { client_nodes: 5, rate, ..Layout::default() });
    cluster.world_of_checks =
        Some(Box::new(|_, to, _, _| if is_primary(to) { Answer::Nothing } else { Answer::Established }));
    let mut cluster = cluster.warm_up();
    cluster.run(5_000);
    let is_cut = |from: &str| from == "client-0" || from == "client-1";
    cluster.world = Box::new(
        move |from, to, _, _| if is_cut(from) && is_primary(to) { Answer::Refused } else { Answer::Established },
    );
    // Who is refused tries again.
    for turn in 0..400u64 {
        for node in ["client-0", "client-1"] {
            cluster.dial(node, Destination::from(([198, 18, 1, 1 + (turn % 6) as u8], PORT)));
        }
        cluster.run(25);
    }
    assert_eq!(cluster.written.len(), 0, "{rate}/s: {:?}", cluster.written.last());
}

#[test]
fn two_client_nodes_of_five_without_a_path_move_nothing_where_nobody_can_check() {
    check_two_of_five_without_a_path(1_000);
}

#[test]
fn two_client_nodes_of_five_without_a_path_move_nothing_where_the_others_connect_rarely() {
    for rate in [100, 20, 5] {
        check_two_of_five_without_a_path(rate);
    }
}

#[test]
fn a_self_hop_pair_with_a_gap_in_the_reports_between_moves_nothing() {
    let to = Destination::from(([198, 18, 1, 1], PORT));
    let mut cluster = Cluster::new(Layout { endpoints: 1, rate: 100, ..Layout::default() }).warm_up();
    cluster.say_meshed("backend-0", &[to]);
    cluster.self_hop("backend-0", to, false);
    cluster.run(500);
    cluster.self_hop("backend-0", to, true);
    cluster.run(50);
    // The row that is missing may be the application's answer.
    let at = cluster.now_ms * MS;
    let report = Report { seq: 9_000, now_ns: at, dropped_rows: 1, ..Report::default() };
    cluster.input(Input::Agent { node: "backend-0".into(), stream: 1, frame: AgentFrame::Report(report) });
    cluster.run(250);
    cluster.self_hop("backend-0", to, true);
    cluster.run(50);
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written.last());
}

#[test]
fn self_hops_of_an_agent_that_fell_silent_move_nothing() {
    let to = Destination::from(([198, 18, 1, 1], PORT));
    let mut cluster = Cluster::new(Layout { endpoints: 1, rate: 100, ..Layout::default() }).warm_up();
    cluster.say_meshed("backend-0", &[to]);
    cluster.self_hop("backend-0", to, false);
    cluster.run(500);
    // Nobody is there to take over: held.
    cluster.set_ready("emoji-svc-west", false);
    cluster.run(500);
    for _ in 0..3 {
        cluster.self_hop("backend-0", to, true);
        cluster.run(150);
    }
    assert_eq!(cluster.written.len(), 0);
    cluster.set_agent_alive("backend-0", false);
    cluster.run(2_000);
    cluster.set_ready("emoji-svc-west", true);
    cluster.run(3_000);
    assert_eq!(cluster.written.len(), 0, "known two seconds ago, not now: {:?}", cluster.written.last());
}

#[test]
fn stalls_of_one_node_and_of_several_in_turn_move_nothing() {
    for nodes in [2, 3, 10] {
        for endpoints in [1, 2, 6] {
            for rate in [1_000, 100, 10] {
                let mut cluster = mk_nodes(nodes, endpoints, rate).warm_up();
                for (turn, stall) in [50, 120, 200, 350, 90, 300].into_iter().enumerate() {
                    let node = format!("client-{}", turn % usize::from(nodes));
                    let (from_ms, name) = (cluster.now_ms, node.clone());
                    // A SYN that is answered while the node stalls is late.
                    cluster.world = Box::new(move |from, _, at, _| {
                        let is_late = from == name && at + 30 >= from_ms + stall && at < from_ms + stall;
                        if is_late { Answer::Nothing } else { Answer::Established }
                    });
                    cluster.set_agent_alive(&node, false);
                    cluster.run(stall);
                    cluster.set_agent_alive(&node, true);
                    cluster.run(400);
                }
                check_stays(cluster, 1_000);
            }
        }
    }
}

#[test]
fn a_blip_while_all_reports_are_late_and_come_at_once_moves_nothing() {
    for stall in [50, 150, 250, 340] {
        for rate in [1_000, 100, 10] {
            for blip in [50, 90] {
                let mut cluster = mk_nodes(3, 3, rate).warm_up();
                let from_ms = cluster.now_ms + 20;
                cluster.world = Box::new(move |_, to, at, _| {
                    let is_blip = (from_ms..from_ms + blip).contains(&at);
                    if is_primary(to) && is_blip { Answer::Refused } else { Answer::Established }
                });
                for node in ["client-0", "client-1"] {
                    cluster.set_agent_alive(node, false);
                }
                cluster.run(stall);
                cluster.set_agent_alive("*", true);
                check_stays(cluster, 3_000);
            }
        }
    }
}

#[test]
fn a_rollout_whose_new_pods_take_90_ms_to_listen_moves_nothing() {
    for endpoints in [1u8, 2, 3, 6] {
        for rate in [1_000, 100, 10] {
            let mut cluster = Cluster::new(Layout { endpoints, rate, ..Layout::default() }).warm_up();
            let mut now: Vec<_> = cluster.endpoints[&id("emoji-svc")].clone();
            for index in 0..endpoints {
                let born_ms = cluster.now_ms;
                let new = 100 + index;
                cluster.world = Box::new(move |_, to, at, _| {
                    let is_new = to == Destination::from(([198, 18, 1, new], PORT));
                    if is_new && at < born_ms + 90 { Answer::Refused } else { Answer::Established }
                });
                now[usize::from(index)] = mk_endpoint(1, new, &format!("backend-{}", index % 3));
                cluster.set_endpoints("emoji-svc", now.clone());
                cluster.run(700);
            }
            check_stays(cluster, 3_000);
        }
    }
}

#[test]
fn a_service_scaled_down_and_up_again_under_load_moves_nothing() {
    // Pods stop listening up to 90 ms before the slice says so, and new ones listen as late.
    for (lead, rate) in [(20, 1_000), (60, 1_000), (90, 1_000), (90, 100), (90, 10)] {
        let mut cluster = Cluster::new(Layout { rate, config: mk_quick_config(), ..Layout::default() }).warm_up();
        let all: Vec<_> = cluster.endpoints[&id("emoji-svc")].clone();
        for _ in 0..5 {
            cluster.world =
                Box::new(
                    |_, to, _, _| {
                        if is_primary(to) && !is_first(to, 1) { Answer::Refused } else { Answer::Established }
                    },
                );
            cluster.run(lead);
            cluster.set_endpoints("emoji-svc", all[..1].to_vec());
            cluster.run(1_500);
            cluster.set_endpoints("emoji-svc", all.clone());
            cluster.run(lead);
            cluster.world = Box::new(|_, _, _, _| Answer::Established);
            cluster.run(1_500);
        }
        check_stays(cluster, 1_000);
    }
}

#[test]
fn checks_of_idle_meshed_pods_that_a_policy_drops_move_nothing() {
    let mut cluster = Cluster::new(Layout { endpoints: 3, rate: 0, ..Layout::default() }).warm_up();
    for last in 1..=3u8 {
        cluster.say_meshed(&format!("backend-{}", last - 1), &[Destination::from(([198, 18, 1, last], PORT))]);
    }
    cluster.run(2_000);
    cluster.world_of_checks =
        Some(Box::new(|_, to, _, _| if is_primary(to) { Answer::Nothing } else { Answer::Established }));
    check_stays(cluster, 20_000);
}

#[test]
fn one_family_that_fails_while_the_other_is_used_moves_nothing() {
    let mut cluster = Cluster::new(Layout { rate: 300, endpoints: 3, ..Layout::default() });
    let mut all = cluster.endpoints[&id("emoji-svc")].clone();
    for (endpoint, last) in all.iter_mut().zip(1u16..) {
        endpoint.addresses.push(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into());
    }
    cluster.set_endpoints("emoji-svc", all.clone());
    let mut cluster = cluster.warm_up();
    cluster.world = Box::new(|_, to, _, _| if to.is_ipv6() { Answer::Refused } else { Answer::Established });
    for turn in 0..1_000 {
        for node in ["client-0", "client-1", "client-2"] {
            cluster.dial(node, Destination::new(all[turn % 3].addresses[1], PORT));
        }
        cluster.run(10);
    }
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written.last());
}
