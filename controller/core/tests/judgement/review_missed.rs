//! Missed moves: a primary that is dead by every rule and is never left, and one that is well again and gets nothing back.

use controller_core::Input;
use controller_core::facts::{ServicePort, SplitFacts};
use probe_common::wire::{AgentFrame, Destination, Total, Totals};

use crate::cluster::{Answer, Cluster, Layout, MS, PORT, id, is_primary, mk_endpoint, mk_service, mk_split};
use crate::{heal, mk_quick_config, refuse_primary};

fn endpoint(index: u8) -> Destination {
    Destination::from(([198, 18, 1, index], PORT))
}

fn node_of(index: u8) -> String {
    format!("backend-{}", (index - 1) % 3)
}

fn is_one_of(to: Destination, dead: &[u8]) -> bool {
    dead.iter().any(|index| to == endpoint(*index))
}

/// Of so many endpoints, these are behind a proxy.
fn mk_mixed(endpoints: u8, meshed: &[u8]) -> Cluster {
    let mut cluster = Cluster::new(Layout { endpoints, rate: 300, ..Layout::default() }).warm_up();
    for node in 1..=3 {
        let on_node: Vec<_> =
            meshed.iter().filter(|other| node_of(**other) == node_of(node)).map(|to| endpoint(*to)).collect();
        cluster.say_meshed(&node_of(node), &on_node);
    }
    for index in meshed {
        cluster.self_hop(&node_of(*index), endpoint(*index), false);
    }
    cluster.run(3_000);
    assert_eq!(cluster.written.len(), 0);
    cluster
}

#[test]
fn meshed_pods_that_are_gone_are_left_in_every_mix_with_others() {
    let mut missed = Vec::new();
    for (endpoints, meshed, dead) in [
        (3, vec![1, 2], vec![1, 2, 3]),
        (3, vec![1], vec![1, 2, 3]),
        (3, vec![1], vec![2, 3]),
        (3, vec![1, 2], vec![2, 3]),
        (3, vec![1, 2], vec![1, 2]),
        (2, vec![1], vec![1, 2]),
        (6, vec![1, 2, 3], vec![1, 2, 3, 4]),
        (6, vec![1, 2, 3, 4], vec![1, 2, 3, 4]),
    ] {
        let mut cluster = mk_mixed(endpoints, &meshed);
        let gone = dead.clone();
        cluster.world =
            Box::new(move |_, to, _, _| if is_one_of(to, &gone) { Answer::Refused } else { Answer::Established });
        if cluster.run_until_written(20_000).is_none() {
            missed.push((endpoints, meshed, dead));
        }
    }
    assert!(missed.is_empty(), "endpoints, meshed, dead: {missed:?}");
}

#[test]
fn applications_dead_behind_proxies_and_dead_pods_add_up() {
    let mut missed = Vec::new();
    // Behind proxies 1 and 2 the application is gone; of the bare ones some.
    for (endpoints, dead) in [(4, vec![3]), (5, vec![3]), (6, vec![3, 4])] {
        let mut cluster = mk_mixed(endpoints, &[1, 2]);
        let gone = dead.clone();
        cluster.world =
            Box::new(move |_, to, _, _| if is_one_of(to, &gone) { Answer::Refused } else { Answer::Established });
        for _ in 0..100 {
            for index in [1, 2] {
                cluster.self_hop(&node_of(index), endpoint(index), true);
            }
            cluster.run(200);
        }
        if cluster.written.is_empty() {
            missed.push((endpoints, dead));
        }
    }
    assert!(missed.is_empty(), "endpoints, dead beside the two: {missed:?}");
}

#[test]
fn a_rollout_of_pods_that_never_listen_is_left() {
    let mut missed = Vec::new();
    for (endpoints, stay) in [(6, 0), (6, 1), (6, 2), (3, 1), (3, 0), (1, 0)] {
        for rate in [1_000, 100] {
            let mut cluster = Cluster::new(Layout { endpoints, rate, ..Layout::default() }).warm_up();
            let mut all: Vec<_> = cluster.endpoints[&id("emoji-svc")].clone();
            cluster.world = Box::new(|_, to, _, _| {
                let is_new = matches!(to.ip(), std::net::IpAddr::V4(ip) if ip.octets()[3] >= 100);
                if is_primary(to) && is_new { Answer::Refused } else { Answer::Established }
            });
            for index in stay..endpoints {
                all[usize::from(index)] = mk_endpoint(1, 100 + index, &format!("backend-{}", index % 3));
                cluster.set_endpoints("emoji-svc", all.clone());
                cluster.run(2_000);
            }
            cluster.run(20_000);
            if cluster.weights() != [0, 1] {
                missed.push((endpoints, stay, rate));
            }
        }
    }
    assert!(missed.is_empty(), "endpoints, of which old, conn/s: {missed:?}");
}

#[test]
fn a_single_node_that_may_decides_for_endpoints_that_nobody_can_check() {
    let mut missed = Vec::new();
    for meshed in [true, false] {
        let layout = Layout { client_nodes: 1, backend_nodes: 0, endpoints: 3, rate: 300, ..Layout::default() };
        let mut cluster = Cluster::new(layout);
        let split = mk_split(&[("emoji-svc", 1), ("emoji-svc-west", 0)]);
        cluster.set_split("emoji-svc", SplitFacts { single_node: true, ..split });
        if !meshed {
            let mut facts = mk_service(1, false);
            facts.ports = vec![ServicePort { app_protocol: Some("mysql".into()), ..facts.ports[0].clone() }];
            cluster.input(Input::Service(id("emoji-svc"), facts));
        }
        let mut cluster = cluster.warm_up();
        if meshed {
            cluster.say_meshed("client-0", &[endpoint(1), endpoint(2), endpoint(3)]);
        }
        cluster.run(1_000);
        refuse_primary(&mut cluster);
        if cluster.run_until_written(20_000).is_none() {
            missed.push((meshed, cluster.held()));
        }
    }
    assert!(missed.is_empty(), "meshed, held by: {missed:?}");
}

/// All traffic takes the endpoints' second family.
fn mk_dual_stack() -> (Cluster, Vec<Destination>) {
    let mut cluster = Cluster::new(Layout { rate: 0, endpoints: 3, ..Layout::default() });
    let mut all = cluster.endpoints[&id("emoji-svc")].clone();
    let mut second = Vec::new();
    for (endpoint, last) in all.iter_mut().zip(1u16..) {
        let address = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
        endpoint.addresses.push(address.into());
        second.push(Destination::new(address.into(), PORT));
    }
    cluster.set_endpoints("emoji-svc", all);
    (cluster.warm_up(), second)
}

fn dial_all(cluster: &mut Cluster, to: &[Destination], times: usize) {
    for turn in 0..times {
        for node in ["client-0", "client-1", "client-2"] {
            cluster.dial(node, to[turn % to.len()]);
        }
        cluster.run(10);
    }
}

#[test]
fn a_dual_stack_primary_that_dies_in_both_families_is_left() {
    let (mut cluster, second) = mk_dual_stack();
    dial_all(&mut cluster, &second, 100);
    cluster.world =
        Box::new(|_, to, _, _| if is_primary(to) || to.is_ipv6() { Answer::Refused } else { Answer::Established });
    dial_all(&mut cluster, &second, 100);
    assert_eq!(cluster.weights(), [0, 1], "{:?}", cluster.core.explain(&id("emoji-svc"), cluster.now()));
}

#[test]
fn a_dual_stack_primary_whose_used_family_dies_is_left() {
    let (mut cluster, second) = mk_dual_stack();
    dial_all(&mut cluster, &second, 100);
    cluster.world = Box::new(|_, to, _, _| if to.is_ipv6() { Answer::Refused } else { Answer::Established });
    dial_all(&mut cluster, &second, 1_000);
    assert_eq!(cluster.weights(), [0, 1], "{:?}", cluster.core.explain(&id("emoji-svc"), cluster.now()));
}

/// Clients dial the Service's own address.
fn dial_service(cluster: &mut Cluster, ms: u64) {
    for _ in 0..ms / 10 {
        for node in ["client-0", "client-1", "client-2"] {
            cluster.dial(node, Destination::from(([203, 0, 113, 1], PORT)));
        }
        cluster.run(10);
    }
}

fn refuse_all_of_primary(cluster: &mut Cluster) {
    cluster.world = Box::new(|_, to: Destination, _, _| {
        let is_service = to.ip() == std::net::IpAddr::from([203, 0, 113, 1]);
        if is_primary(to) || is_service { Answer::Refused } else { Answer::Established }
    });
}

#[test]
fn a_primary_that_is_dialled_by_its_service_address_is_left() {
    let mut missed = Vec::new();
    for endpoints in [1, 2, 3, 6, 30] {
        let mut cluster = Cluster::new(Layout { rate: 0, endpoints, ..Layout::default() }).warm_up();
        cluster.run(5_000);
        dial_service(&mut cluster, 2_000);
        refuse_all_of_primary(&mut cluster);
        dial_service(&mut cluster, 1_500);
        if cluster.written.is_empty() {
            missed.push(endpoints);
        }
    }
    assert!(missed.is_empty(), "endpoints: {missed:?}");
}

#[test]
fn half_of_a_primary_that_is_dialled_by_its_service_address_is_not_left() {
    for endpoints in [2u8, 6] {
        let mut cluster = Cluster::new(Layout { rate: 0, endpoints, ..Layout::default() }).warm_up();
        cluster.run(5_000);
        dial_service(&mut cluster, 2_000);
        cluster.world = Box::new(move |_, to: Destination, _, lots| {
            let is_service = to.ip() == std::net::IpAddr::from([203, 0, 113, 1]) && lots.below(2) == 0;
            let is_dead = (1..=endpoints / 2).any(|index| to == endpoint(index));
            if is_dead || is_service { Answer::Refused } else { Answer::Established }
        });
        dial_service(&mut cluster, 20_000);
        assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written.last());
    }
}

#[test]
fn a_primary_that_is_dialled_by_its_service_address_and_takes_no_checks_is_left() {
    let mut cluster = Cluster::new(Layout { rate: 0, endpoints: 2, ..Layout::default() });
    cluster.world_of_checks =
        Some(Box::new(|_, to, _, _| if is_primary(to) { Answer::Nothing } else { Answer::Established }));
    let mut cluster = cluster.warm_up();
    dial_service(&mut cluster, 2_000);
    refuse_all_of_primary(&mut cluster);
    dial_service(&mut cluster, 20_000);
    assert_eq!(cluster.weights(), [0, 1], "{:?}", cluster.core.explain(&id("emoji-svc"), cluster.now()));
}

/// A controller restarts, and the agents tell it when they last saw each endpoint answer.
fn restart_with_history(cluster: &mut Cluster, nodes: &[&str], last_success_ms: u64) {
    cluster.restart_controller(mk_quick_config());
    let age_ns = (cluster.now_ms - last_success_ms) * MS;
    for node in nodes {
        let row = |index| Total {
            to: endpoint(index),
            attempts: 10,
            established: 10,
            last_success_age_ns: Some(age_ns),
            last_check_age_ns: Some(age_ns),
        };
        let totals = Totals { now_ns: cluster.now_ms * MS, complete: true, rows: (1..=6).map(row).collect() };
        cluster.input(Input::Agent { node: (*node).into(), stream: 2, frame: AgentFrame::Totals(totals) });
    }
}

#[test]
fn a_controller_that_restarts_at_any_step_of_an_outage_still_leaves_it() {
    let mut missed = Vec::new();
    for (client_nodes, rate) in [(3, 1_000), (3, 10), (1, 100), (3, 0)] {
        for at in [5, 50, 90, 110, 500] {
            let layout = Layout { client_nodes, rate, config: mk_quick_config(), ..Layout::default() };
            let mut cluster = Cluster::new(layout).warm_up();
            let began = cluster.now_ms;
            refuse_primary(&mut cluster);
            cluster.run(at);
            if !cluster.written.is_empty() {
                continue;
            }
            restart_with_history(&mut cluster, &["client-0", "backend-0", "backend-1", "backend-2"], began);
            if cluster.run_until_written(30_000).is_none() {
                missed.push((client_nodes, rate, at, cluster.held()));
            }
        }
    }
    assert!(missed.is_empty(), "client nodes, conn/s, restarted after ms, held by: {missed:?}");
}

#[test]
fn a_primary_that_takes_no_checks_gets_its_traffic_back() {
    let mut stuck = Vec::new();
    for by_policy in [true, false] {
        let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() });
        if by_policy {
            cluster.world_of_checks =
                Some(Box::new(|_, to, _, _| if is_primary(to) { Answer::Nothing } else { Answer::Established }));
        } else {
            let mut facts = mk_service(1, false);
            facts.ports = vec![ServicePort { app_protocol: Some("mysql".into()), ..facts.ports[0].clone() }];
            cluster.input(Input::Service(id("emoji-svc"), facts));
        }
        let mut cluster = cluster.warm_up();
        refuse_primary(&mut cluster);
        cluster.run_until_written(3_000).expect("two client nodes decide");
        heal(&mut cluster);
        cluster.run(900_000);
        if cluster.weights() != [1, 0] {
            stuck.push(by_policy);
        }
    }
    assert!(stuck.is_empty(), "by a policy: {stuck:?}");
}

#[test]
fn a_primary_with_one_dead_endpoint_of_six_gets_its_traffic_back() {
    for outage in [1_000, 60_000] {
        let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
        refuse_primary(&mut cluster);
        cluster.run_until_written(1_000).expect("fails over");
        cluster.run(outage);
        cluster.world = Box::new(|_, to, _, _| if to == endpoint(1) { Answer::Refused } else { Answer::Established });
        let from = cluster.now_ms;
        while cluster.weights() != [1, 0] && cluster.now_ms < from + 1_800_000 {
            cluster.run(100);
        }
        let took = cluster.now_ms - from;
        assert!(took < 60_000, "after an outage of {outage} ms: {took} ms");
    }
}

#[test]
fn a_primary_that_was_unready_and_has_one_dead_endpoint_of_six_gets_its_traffic_back() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    cluster.run(3_000);
    cluster.set_ready("emoji-svc", false);
    assert_eq!(cluster.weights(), [0, 1]);
    cluster.run(1_000);
    cluster.world = Box::new(|_, to, _, _| if to == endpoint(1) { Answer::Refused } else { Answer::Established });
    cluster.set_ready("emoji-svc", true);
    let from = cluster.now_ms;
    while cluster.weights() != [1, 0] && cluster.now_ms < from + 1_800_000 {
        cluster.run(100);
    }
    assert!(cluster.now_ms - from < 60_000, "{} ms", cluster.now_ms - from);
}

#[test]
fn a_hold_by_few_fresh_agents_ends_with_them() {
    for rate in [1_000, 10, 0] {
        let mut cluster = Cluster::new(Layout { rate, ..Layout::default() }).warm_up();
        for node in ["client-2", "backend-0", "backend-1", "backend-2"] {
            cluster.set_agent_alive(node, false);
        }
        cluster.run(1_000);
        refuse_primary(&mut cluster);
        cluster.run(120_000);
        assert_eq!(cluster.written.len(), 0);
        cluster.set_agent_alive("*", true);
        let took = cluster.run_until_written(10_000).unwrap_or_else(|| panic!("{rate}/s: {:?}", cluster.held()));
        assert!(took <= 2_500, "{rate}/s: {took} ms");
    }
}
