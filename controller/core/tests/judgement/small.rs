//! Small clusters and small Services are the common ones: 1, 2, 3 and 10 nodes, 1, 2, 3, 6 and 30 endpoints. Every node
//! is client and backend node at once.

use controller_core::input::Input;
use probe_common::wire::Destination;

use crate::cluster::{Answer, Cluster, Layout, Lots, PORT, id, is_primary, mk_split};
use crate::{check_failover, check_stays, heal, mk_quick_config, refuse_primary};

const ENDPOINTS: [u8; 5] = [1, 2, 3, 6, 30];

fn mk_nodes(nodes: u8, endpoints: u8, rate: u64) -> Cluster {
    Cluster::new(Layout { client_nodes: nodes, backend_nodes: 0, endpoints, rate, ..Layout::default() })
}

fn endpoint(index: u8) -> Destination {
    Destination::from(([198, 18, 1, index], PORT))
}

/// The hold of a Service with one endpoint is longer.
const fn hold(endpoints: u8) -> u64 {
    if endpoints == 1 { 250 } else { 100 }
}

#[test]
fn a_dead_primary_is_left_in_time_whatever_the_size() {
    for nodes in [2, 3, 10] {
        for endpoints in ENDPOINTS {
            for (rate, within) in [(1_000, 150), (100, 250), (0, 900)] {
                let mut cluster = mk_nodes(nodes, endpoints, rate).warm_up();
                // Thirty endpoints take their time to be introduced to every node.
                cluster.run(20_000);
                refuse_primary(&mut cluster);
                let took = check_failover(cluster, hold(endpoints) + within);
                assert!(took >= hold(endpoints), "{nodes} nodes, {endpoints} endpoints, {rate}/s: after {took} ms");
            }
        }
    }
}

#[test]
fn half_of_the_endpoints_dead_moves_nothing_whatever_the_size() {
    for nodes in [1, 2, 3, 10] {
        for endpoints in ENDPOINTS.into_iter().filter(|endpoints| *endpoints > 1) {
            for rate in [1_000, 10, 0] {
                let mut cluster = mk_nodes(nodes, endpoints, rate).warm_up();
                let dead = endpoints / 2;
                cluster.world = Box::new(move |_, to, _, _| {
                    let is_dead = (1..=dead).any(|index| to == endpoint(index));
                    if is_dead { Answer::Refused } else { Answer::Established }
                });
                check_stays(cluster, 5_000);
            }
        }
    }
}

#[test]
fn a_blip_moves_nothing_whatever_the_size() {
    for nodes in [1, 2, 3, 10] {
        for endpoints in ENDPOINTS {
            for rate in [1_000, 100, 0] {
                let mut cluster = mk_nodes(nodes, endpoints, rate).warm_up();
                let from = cluster.now_ms;
                cluster.world =
                    Box::new(
                        move |_, to, at, _| {
                            if is_primary(to) && at < from + 50 { Answer::Refused } else { Answer::Established }
                        },
                    );
                check_stays(cluster, 3_000);
            }
        }
    }
}

#[test]
fn one_node_alone_moves_nothing_whatever_the_size() {
    for nodes in [2, 3, 10] {
        for endpoints in [1, 2, 6] {
            for rate in [1_000, 0] {
                let mut cluster = mk_nodes(nodes, endpoints, rate).warm_up();
                cluster.world =
                    Box::new(
                        |from, to, _, _| {
                            if from == "client-0" && is_primary(to) { Answer::Nothing } else { Answer::Established }
                        },
                    );
                check_stays(cluster, 10_000);
            }
        }
    }
}

#[test]
fn a_single_node_says_that_it_is_alone_and_readiness_still_moves() {
    for rate in [1_000, 0] {
        let mut cluster = mk_nodes(1, 3, rate).warm_up();
        refuse_primary(&mut cluster);
        let mut cluster = check_stays(cluster, 5_000);
        assert!(cluster.held().contains(&"insufficient-observers"), "{:?}", cluster.held());
        cluster.set_ready("emoji-svc", false);
        assert_eq!(cluster.weights(), [0, 1]);
    }
}

#[test]
fn a_single_node_that_may_decides_after_a_second() {
    for rate in [1_000, 10, 0] {
        let mut cluster = mk_nodes(1, 3, rate);
        let facts = mk_split(&[("emoji-svc", 1), ("emoji-svc-west", 0)]);
        cluster.set_split("emoji-svc", controller_core::facts::SplitFacts { single_node: true, ..facts });
        let mut cluster = cluster.warm_up();
        let blip = cluster.now_ms;
        cluster.world = Box::new(
            move |_, to, at, _| {
                if is_primary(to) && at < blip + 900 { Answer::Refused } else { Answer::Established }
            },
        );
        let mut cluster = check_stays(cluster, 5_000);
        refuse_primary(&mut cluster);
        let took = cluster.run_until_written(2_000).expect("decides");
        assert!(took >= 1_000, "{rate}/s: after {took} ms");
        assert_eq!(cluster.weights(), [0, 1]);
        assert_eq!(crate::mesh::grounds(&cluster), [controller_core::target::Grounds::SingleNode]);
    }
}

#[test]
fn two_nodes_are_enough_to_come_back() {
    let config = mk_quick_config();
    let layout = Layout { client_nodes: 2, backend_nodes: 0, endpoints: 2, rate: 100, config };
    let mut cluster = Cluster::new(layout).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    cluster.run(300);
    heal(&mut cluster);
    cluster.run(15_000);
    assert_eq!(cluster.weights(), [1, 0]);
}

#[test]
fn a_lost_node_of_three_moves_nothing_and_a_lost_zone_with_the_whole_primary_does() {
    // Node loss: its agent, its endpoints and its clients are gone at once.
    let mut cluster = mk_nodes(3, 3, 1_000).warm_up();
    cluster.set_agent_alive("client-1", false);
    cluster.world =
        Box::new(
            |from, to, _, _| {
                if from == "client-1" || to == endpoint(2) { Answer::Nothing } else { Answer::Established }
            },
        );
    check_stays(cluster, 10_000);

    // Zone loss: three zones of two nodes, both endpoints of the primary in one of them.
    for phase in (0..100).step_by(10) {
        let mut cluster = mk_nodes(6, 2, 1_000).warm_up();
        cluster.run(phase);
        for node in ["client-0", "client-1"] {
            cluster.set_agent_alive(node, false);
        }
        cluster.world = Box::new(|from, to, _, _| {
            let is_lost = from == "client-0" || from == "client-1" || is_primary(to);
            if is_lost { Answer::Nothing } else { Answer::Established }
        });
        check_failover(cluster, 350);
    }
}

#[test]
fn twenty_mirrors_behind_a_gateway_that_dies_leave_it_together() {
    let mut cluster = Cluster::new(Layout { rate: 1_000, ..Layout::default() });
    let gateway = cluster.endpoints[&id("emoji-svc-west")].clone();
    cluster.input(Input::SplitGone(id("emoji-svc")));
    cluster.splits.clear();
    for index in 0..20u8 {
        let mirror = format!("web-{index}-west");
        cluster.input(Input::Service(id(&mirror), crate::cluster::mk_service(100 + index, true)));
        cluster.set_endpoints(&mirror, gateway.clone());
        let facts = mk_split(&[(&mirror, 1), ("emoji-svc", 0)]);
        cluster.set_split(
            &format!("web-{index}"),
            controller_core::facts::SplitFacts { uid: format!("uid-{index}"), ..facts },
        );
    }
    let mut cluster = cluster.warm_up();
    let from = cluster.now_ms;
    cluster.world = Box::new(|_, to: Destination, _, _| {
        if to.ip() == std::net::IpAddr::from([198, 51, 100, 7]) { Answer::Nothing } else { Answer::Established }
    });
    cluster.run(1_000);
    assert_eq!(cluster.written.len(), 20, "{:?}", cluster.held());
    let last = cluster.written.iter().map(|(at, _)| at - from).max().expect("twenty");
    assert!(last <= 480, "after {last} ms");
}

#[test]
fn ports_that_take_offence_are_not_checked_unless_asked_for() {
    use controller_core::facts::{ServicePort, SplitFacts};
    let run = |asked: bool| {
        let mut cluster = Cluster::new(Layout { rate: 0, ..Layout::default() });
        let mut facts = crate::cluster::mk_service(1, false);
        facts.ports = vec![ServicePort { app_protocol: Some("mysql".into()), ..facts.ports[0].clone() }];
        cluster.input(Input::Service(id("emoji-svc"), facts));
        let split = mk_split(&[("emoji-svc", 1), ("emoji-svc-west", 0)]);
        cluster.set_split("emoji-svc", SplitFacts { check_all_ports: asked, ..split });
        let checked = std::rc::Rc::new(std::cell::Cell::new(0));
        let seen = checked.clone();
        cluster.world_of_checks = Some(Box::new(move |_, to, _, _: &mut Lots| {
            seen.set(seen.get() + u32::from(is_primary(to)));
            Answer::Established
        }));
        let _cluster = cluster.warm_up();
        checked.get()
    };
    assert_eq!(run(false), 0);
    assert!(run(true) > 20);
}

#[test]
fn two_client_nodes_decide_where_only_one_of_them_can_look() {
    // The outage begins before the second node's first check of anything succeeded.
    let mut cluster = mk_nodes(2, 2, 1_000);
    cluster.world_of_checks =
        Some(Box::new(
            |from, to, _, _| {
                if from == "client-1" && is_primary(to) { Answer::Nothing } else { Answer::Established }
            },
        ));
    let mut cluster = cluster.warm_up();
    refuse_primary(&mut cluster);
    cluster.world_of_checks =
        Some(Box::new(|_, to, _, _| if is_primary(to) { Answer::Refused } else { Answer::Established }));
    let took = check_failover(cluster, 1_300);
    assert!(took >= 1_000, "after {took} ms");
}
