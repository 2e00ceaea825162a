//! The way back, and back and forth: no return to a dead primary, no endless to and fro.

use controller_core::facts::SplitFacts;
use controller_core::output::Direction;
use probe_common::wire::Destination;

use crate::cluster::{Answer, Cluster, Layout, id, is_primary, mk_endpoint, mk_service, mk_split};
use crate::{heal, mk_quick_config, refuse_primary};

#[test]
fn nothing_returns_to_a_primary_that_nobody_has_looked_at_since() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    cluster.run(1_000);
    heal(&mut cluster);
    cluster.run(10_000);
    // Well for ten seconds of its dwell; then every agent falls silent, and the primary dies again.
    cluster.set_agent_alive("*", false);
    refuse_primary(&mut cluster);
    cluster.run(120_000);
    let weights: Vec<_> = cluster.written.iter().map(|(_, write)| write.weights[0].1.milli() / 1000).collect();
    assert_eq!(weights, [0], "silence is no recovery");
}

#[test]
fn a_ramp_stops_where_every_agent_falls_silent() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    heal(&mut cluster);
    cluster.run_until_written(20_000).expect("ramps");
    cluster.set_agent_alive("*", false);
    refuse_primary(&mut cluster);
    cluster.run(60_000);
    assert_ne!(cluster.weights(), [1, 0], "all of the traffic on a primary that nobody sees");
}

#[test]
fn a_single_node_that_may_decide_ends_a_probation_too() {
    let config = mk_quick_config();
    let layout = Layout { client_nodes: 1, backend_nodes: 0, endpoints: 3, rate: 300, config };
    let mut cluster = Cluster::new(layout);
    let facts = mk_split(&[("emoji-svc", 1), ("emoji-svc-west", 0)]);
    cluster.set_split("emoji-svc", SplitFacts { single_node: true, ..facts });
    let mut cluster = cluster.warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(3_000).expect("fails over");
    heal(&mut cluster);
    cluster.run_until_written(20_000).expect("ramps");
    refuse_primary(&mut cluster);
    cluster.run(3_000);
    let weights: Vec<_> = cluster.written.iter().map(|(_, write)| write.weights[0].1.milli() / 1000).collect();
    assert_eq!(weights, [0, 50, 0], "a dead primary gets no larger share");
}

#[test]
fn an_unready_primary_that_comes_back_ready_and_dead_gets_no_traffic() {
    for replaced in [false, true] {
        let mut cluster = Cluster::new(Layout::default()).warm_up();
        cluster.run(3_000);
        cluster.set_ready("emoji-svc", false);
        assert_eq!(cluster.weights(), [0, 1]);
        refuse_primary(&mut cluster);
        cluster.run(2_000);
        if replaced {
            let new = (0..6).map(|index| mk_endpoint(1, 100 + index, &format!("backend-{}", index % 3)));
            cluster.set_endpoints("emoji-svc", new.collect());
        } else {
            cluster.set_ready("emoji-svc", true);
        }
        cluster.run(20_000);
        assert_eq!(cluster.written.len(), 1, "replaced {replaced}: {:?}", cluster.written.last());
    }
}

fn failovers(cluster: &Cluster) -> usize {
    cluster.written.iter().filter(|(_, write)| write.direction == Direction::Failover).count()
}

#[test]
fn a_flapping_primary_is_bound_whatever_its_period() {
    let mut over = Vec::new();
    for (period, hours) in [(50, 1), (1_000, 1), (10_000, 2)] {
        let mut cluster = Cluster::new(Layout { rate: 100, ..Layout::default() }).warm_up();
        let from = cluster.now_ms;
        cluster.world = Box::new(move |_, to, at, _| {
            if is_primary(to) && ((at - from) / (period / 2)).is_multiple_of(2) {
                Answer::Refused
            } else {
                Answer::Established
            }
        });
        cluster.run(3_600_000);
        let first = failovers(&cluster);
        cluster.run(3_600_000 * (hours - 1));
        let later = failovers(&cluster) - first;
        let turns = cluster.written.windows(2).filter(|pair| {
            pair[0].1.direction == Direction::Failover
                && matches!(pair[1].1.direction, Direction::Ramp | Direction::Failback)
        });
        let soonest = turns.map(|pair| pair[1].0 - pair[0].0).min();
        if first > 8 || later > 4 || soonest.is_some_and(|gap| gap < 30_000) {
            over.push((period, first, later, soonest));
        }
    }
    assert!(over.is_empty(), "period ms, first hour, second hour, soonest way back ms: {over:?}");
}

#[test]
fn primary_and_secondary_that_take_turns_are_bound() {
    let mut over = Vec::new();
    for period in [2_000, 6_000, 20_000] {
        let mut cluster = Cluster::new(Layout { rate: 300, ..Layout::default() }).warm_up();
        let from = cluster.now_ms;
        cluster.world = Box::new(move |_, to: Destination, at, _| {
            let turn = ((at - from) / (period / 2)).is_multiple_of(2);
            if is_primary(to) == turn { Answer::Refused } else { Answer::Established }
        });
        cluster.run(3_600_000);
        if failovers(&cluster) > 8 {
            over.push((period, failovers(&cluster), cluster.written.len()));
        }
    }
    assert!(over.is_empty(), "period ms, failovers, writes in an hour: {over:?}");
}

#[test]
fn a_flapping_second_secondary_does_not_write_for_ever() {
    let mut cluster = Cluster::new(Layout { rate: 300, ..Layout::default() });
    cluster.input(controller_core::Input::Service(id("emoji-svc-b"), mk_service(3, false)));
    cluster.set_endpoints("emoji-svc-b", vec![mk_endpoint(3, 1, "backend-0"), mk_endpoint(3, 2, "backend-1")]);
    cluster.set_split("emoji-svc", mk_split(&[("emoji-svc", 1), ("emoji-svc-west", 0), ("emoji-svc-b", 0)]));
    let mut cluster = cluster.warm_up();
    cluster.world = Box::new(|_, to: Destination, at, _| {
        let is_third = matches!(to.ip(), std::net::IpAddr::V4(ip) if ip.octets()[..3] == [198, 18, 3]);
        if is_primary(to) || (is_third && at / 15_000 % 2 == 0) { Answer::Refused } else { Answer::Established }
    });
    cluster.run(3_600_000);
    assert!(cluster.written.len() <= 20, "{} writes in an hour", cluster.written.len());
}

#[test]
fn a_blip_of_50_ms_in_a_probation_takes_nothing_back() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    heal(&mut cluster);
    while cluster.weights() != [500, 500] {
        cluster.run_until_written(20_000).expect("ramps");
    }
    let from = cluster.now_ms + 50;
    cluster.world =
        Box::new(
            move |_, to, at, _| {
                if is_primary(to) && (from..from + 50).contains(&at) { Answer::Refused } else { Answer::Established }
            },
        );
    cluster.run(3_000);
    assert_eq!(cluster.weights(), [1, 0], "{:?}", cluster.written.last());
}
