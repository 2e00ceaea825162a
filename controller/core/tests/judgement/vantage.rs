//! Who is believed: one node alone in a probation, secondaries that nobody has proved, checks against traffic.

use controller_core::facts::MoveCause;

use crate::cluster::{Answer, Cluster, Layout, id, is_primary, mk_endpoint, mk_service, mk_split};
use crate::{check_stays, heal, mk_quick_config, refuse_primary};

#[test]
fn one_node_alone_does_not_end_a_probation() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    cluster.run(300);
    cluster.world = Box::new(
        |from, to, _, _| {
            if from == "client-0" && is_primary(to) { Answer::Refused } else { Answer::Established }
        },
    );
    cluster.run(90_000);
    let weights: Vec<_> = cluster.written.iter().map(|(_, write)| write.weights[0].1.milli() / 1000).collect();
    assert_eq!(weights, [0, 50, 250, 500, 1], "off, and back in steps");
}

/// As the standard shape, with a third backend whose endpoint answers as the world says.
fn mk_three_backends() -> Cluster {
    let mut cluster = Cluster::new(Layout::default());
    cluster.input(controller_core::Input::Service(id("emoji-svc-b"), mk_service(3, false)));
    cluster.set_endpoints("emoji-svc-b", vec![mk_endpoint(3, 1, "backend-0"), mk_endpoint(3, 2, "backend-1")]);
    cluster.set_split("emoji-svc", mk_split(&[("emoji-svc", 1), ("emoji-svc-west", 0), ("emoji-svc-b", 0)]));
    cluster
}

fn is_third(to: probe_common::wire::Destination) -> bool {
    matches!(to.ip(), std::net::IpAddr::V4(address) if address.octets()[..3] == [198, 18, 3])
}

#[test]
fn a_secondary_that_never_answered_gets_no_traffic_after_the_failover() {
    let mut cluster = mk_three_backends();
    cluster.world = Box::new(|_, to, _, _| if is_third(to) { Answer::Refused } else { Answer::Established });
    let mut cluster = cluster.warm_up();
    cluster.world =
        Box::new(|_, to, _, _| if is_primary(to) || is_third(to) { Answer::Refused } else { Answer::Established });
    cluster.run(20_000);
    assert_eq!(cluster.weights(), [0, 1, 0]);
    assert_eq!(cluster.written.len(), 1, "{:?}", cluster.written);
}

#[test]
fn a_secondary_that_died_is_not_tried_again_and_again() {
    let mut cluster = mk_three_backends().warm_up();
    refuse_primary(&mut cluster);
    cluster.run(1_000);
    assert_eq!(cluster.weights(), [0, 1, 1]);
    cluster.world =
        Box::new(|_, to, _, _| if is_primary(to) || is_third(to) { Answer::Refused } else { Answer::Established });
    cluster.run(120_000);
    assert_eq!(cluster.weights(), [0, 1, 0]);
    assert_eq!(cluster.written.len(), 2, "{:?}", cluster.written);
    cluster.world = Box::new(|_, to, _, _| if is_primary(to) { Answer::Refused } else { Answer::Established });
    cluster.run(20_000);
    assert_eq!(cluster.weights(), [0, 1, 1], "it answers again");
}

#[test]
fn without_agents_a_secondary_that_becomes_ready_joins() {
    let mut cluster = mk_three_backends();
    cluster.input(controller_core::Input::CachesComplete);
    cluster.set_ready("emoji-svc-b", false);
    cluster.set_ready("emoji-svc", false);
    assert_eq!(cluster.weights(), [0, 1, 0]);
    assert_eq!(cluster.written[0].1.cause, MoveCause::Readiness);
    cluster.set_ready("emoji-svc-b", true);
    assert_eq!(cluster.weights(), [0, 1, 1]);
}

#[test]
fn checks_that_traffic_contradicts_move_nothing() {
    for rate in [10, 30, 100] {
        let mut cluster = Cluster::new(Layout { rate, ..Layout::default() }).warm_up();
        cluster.world_of_checks =
            Some(Box::new(|_, to, _, _| if is_primary(to) { Answer::Nothing } else { Answer::Established }));
        check_stays(cluster, 20_000);
    }
}

#[test]
fn an_outage_that_was_held_for_minutes_is_left_when_the_guard_lifts() {
    for (client_nodes, rate) in [(1, 100), (3, 0)] {
        let mut cluster = Cluster::new(Layout { client_nodes, rate, ..Layout::default() }).warm_up();
        cluster.world = Box::new(|_, _, _, _| Answer::Refused);
        cluster.run(90_000);
        assert_eq!(cluster.written.len(), 0, "nobody is better");
        refuse_primary(&mut cluster);
        // What was held against the secondary is over ten seconds after its last failure.
        cluster.run(12_000);
        assert_eq!(cluster.weights(), [0, 1], "{client_nodes} client nodes: {:?}", cluster.held());
    }
}

#[test]
fn a_blip_of_the_rest_does_not_finish_a_half_dead_primary() {
    for phase in (0..400).step_by(25) {
        let mut cluster = Cluster::new(Layout { endpoints: 2, ..Layout::default() }).warm_up();
        let from = cluster.now_ms + 3_000 + phase;
        cluster.world = Box::new(move |_, to, at, _| {
            let is_first = matches!(to.ip(), std::net::IpAddr::V4(ip) if ip.octets()[3] == 1);
            let fails = is_primary(to) && (is_first || (from..from + 50).contains(&at));
            if fails { Answer::Refused } else { Answer::Established }
        });
        check_stays(cluster, 6_000);
    }
}

#[test]
fn a_half_dead_primary_that_loses_the_rest_is_left() {
    let mut cluster = Cluster::new(Layout { endpoints: 2, ..Layout::default() }).warm_up();
    cluster.world = Box::new(move |_, to, _, _| {
        let is_first = matches!(to.ip(), std::net::IpAddr::V4(ip) if ip.octets()[3] == 1);
        if is_primary(to) && is_first { Answer::Refused } else { Answer::Established }
    });
    let mut cluster = check_stays(cluster, 3_000);
    refuse_primary(&mut cluster);
    let took = cluster.run_until_written(1_000).expect("fails over");
    assert!((100..400).contains(&took), "{took}");
    heal(&mut cluster);
}

#[test]
fn checks_that_pass_while_nearly_every_connection_fails_for_seconds_are_overruled() {
    for rate in [100, 1_000] {
        let mut cluster = Cluster::new(Layout { rate, ..Layout::default() }).warm_up();
        refuse_primary(&mut cluster);
        cluster.world_of_checks = Some(Box::new(|_, _, _, _| Answer::Established));
        let took = cluster.run_until_written(8_000).expect("fails over");
        assert!((5_000..5_500).contains(&took), "{rate}/s: after {took} ms");
        assert_eq!(crate::mesh::grounds(&cluster), [controller_core::target::Grounds::ChecksDisagree]);
    }
}

#[test]
fn checks_that_pass_are_believed_where_connections_of_one_client_node_get_through() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    cluster.world = Box::new(|from, to, _, lots| {
        let through = from == "client-2" && lots.below(4) == 0;
        if is_primary(to) && !through { Answer::Refused } else { Answer::Established }
    });
    cluster.world_of_checks = Some(Box::new(|_, _, _, _| Answer::Established));
    check_stays(cluster, 20_000);
}
