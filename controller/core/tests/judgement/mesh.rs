//! Meshed endpoints: the proxy answers for itself, and only its own dial says how the application is.

use controller_core::output::TransitionKind;
use controller_core::target::Grounds;
use probe_common::wire::Destination;

use crate::cluster::{Answer, Cluster, Layout, PORT, is_primary};
use crate::mk_quick_config;

fn endpoint(index: u8) -> Destination {
    Destination::from(([198, 18, 1, index], PORT))
}

/// The node that the harness puts an endpoint on.
fn node_of(index: u8) -> String {
    format!("backend-{}", (index - 1) % 3)
}

/// All endpoints meshed, and their proxies at work.
fn mk_meshed(endpoints: u8) -> Cluster {
    let config = mk_quick_config();
    let mut cluster = Cluster::new(Layout { endpoints, rate: 100, config, ..Layout::default() }).warm_up();
    for index in 1..=endpoints {
        let on_node: Vec<_> = (1..=endpoints).filter(|other| node_of(*other) == node_of(index)).map(endpoint).collect();
        cluster.say_meshed(&node_of(index), &on_node);
        cluster.self_hop(&node_of(index), endpoint(index), false);
    }
    cluster.run(1_000);
    assert_eq!(cluster.written.len(), 0);
    cluster
}

/// The application is gone: its proxy dials at 0, 100, 300, 700 ms. Returns when the split moved.
fn crash(cluster: &mut Cluster, endpoints: &[u8]) -> Option<u64> {
    let from = cluster.now_ms;
    let writes = cluster.written.len();
    for wait in [0, 105, 210, 420, 840] {
        cluster.run(wait);
        for index in endpoints {
            cluster.self_hop(&node_of(*index), endpoint(*index), true);
        }
        cluster.run(6);
        if cluster.written.len() > writes {
            return Some(cluster.written[writes].0 - from);
        }
    }
    None
}

pub(crate) fn grounds(cluster: &Cluster) -> Vec<Grounds> {
    let mut grounds_of = Vec::new();
    for transition in &cluster.transitions {
        if let TransitionKind::Condemned { grounds, .. } = &transition.kind {
            grounds_of.push(*grounds);
        }
    }
    grounds_of
}

#[test]
fn an_application_that_refuses_its_proxy_is_left_after_the_hold() {
    let mut cluster = mk_meshed(1);
    let took = crash(&mut cluster, &[1]).expect("fails over");
    assert!((250..=400).contains(&took), "after {took} ms");
    assert_eq!((cluster.weights(), grounds(&cluster)), (vec![0, 1], vec![Grounds::SelfHop]));

    let mut cluster = mk_meshed(3);
    let took = crash(&mut cluster, &[1, 2]).expect("two of three fail over");
    assert!((100..=150).contains(&took), "after {took} ms");
}

#[test]
fn one_refusing_application_of_two_moves_nothing() {
    let mut cluster = mk_meshed(2);
    assert_eq!(crash(&mut cluster, &[1]), None);
    let took = crash(&mut cluster, &[1, 2]).expect("both do");
    assert!(took >= 100, "after {took} ms");
}

#[test]
fn a_success_between_two_refusals_moves_nothing() {
    let mut cluster = mk_meshed(1);
    for _ in 0..20 {
        cluster.self_hop("backend-0", endpoint(1), true);
        cluster.run(200);
        cluster.self_hop("backend-0", endpoint(1), false);
        cluster.run(200);
    }
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written);
}

#[test]
fn a_node_that_speaks_for_anothers_endpoint_is_not_believed_and_named() {
    let mut cluster = mk_meshed(1);
    for _ in 0..50 {
        cluster.self_hop("client-0", endpoint(1), true);
        cluster.run(50);
    }
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written);
    cluster.say_meshed("client-0", &[endpoint(1)]);
    let told: Vec<_> = cluster
        .transitions
        .iter()
        .filter(|transition| matches!(&transition.kind, TransitionKind::Disbelieved { node, .. } if node == "client-0"))
        .collect();
    assert_eq!(told.len(), 1, "told once a minute: {told:?}");
    assert_eq!(cluster.core.sums().foreign_endpoints, 51);
}

#[test]
fn bare_checks_of_a_meshed_endpoint_are_no_evidence_in_either_direction() {
    // Checks fail (a NetworkPolicy, say): nothing follows.
    let mut cluster = mk_meshed(3);
    cluster.world_of_checks =
        Some(Box::new(|_, to, _, _| if is_primary(to) { Answer::Refused } else { Answer::Established }));
    cluster.run(20_000);
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written);

    // Checks pass and connections fail (the pods are gone, say): two client nodes decide, after a second.
    let mut cluster = mk_meshed(3);
    cluster.world = Box::new(|_, to, _, _| if is_primary(to) { Answer::Refused } else { Answer::Established });
    cluster.world_of_checks = Some(Box::new(|_, _, _, _| Answer::Established));
    let took = cluster.run_until_written(3_000).expect("fails over");
    assert!((1_000..1_300).contains(&took), "after {took} ms");
    assert_eq!(grounds(&cluster), [Grounds::NobodyCan]);
}

#[test]
fn a_dead_application_comes_back_once_it_is_there_and_is_tried_in_small_steps() {
    let mut cluster = mk_meshed(1);
    crash(&mut cluster, &[1]).expect("fails over");
    // Its proxy answers checks all the time: after the dwell the first step asks the application itself.
    let took = cluster.run_until_written(20_000).expect("ramps");
    assert!(took >= 1_000, "after {took} ms");
    assert_eq!(cluster.weights(), [50, 950]);
    crash(&mut cluster, &[1]).expect("still dead");
    assert_eq!(cluster.weights(), [0, 1]);
    assert_eq!(cluster.record().expect("says why").failovers, 2);
    // It is back: every dial of its proxy succeeds.
    for _ in 0..300 {
        cluster.self_hop("backend-0", endpoint(1), false);
        cluster.run(100);
    }
    assert_eq!(cluster.weights(), [1, 0]);
}

#[test]
fn a_standby_whose_application_refuses_its_proxy_takes_no_traffic() {
    let mut cluster = Cluster::new(Layout { rate: 100, ..Layout::default() });
    let standby = Destination::from(([198, 18, 3, 1], PORT));
    cluster.input(controller_core::Input::Service(
        crate::cluster::id("emoji-svc-b"),
        crate::cluster::mk_service(3, false),
    ));
    cluster.set_endpoints("emoji-svc-b", vec![crate::cluster::mk_endpoint(3, 1, "backend-0")]);
    cluster.set_split("emoji-svc", crate::cluster::mk_split(&[("emoji-svc", 1), ("emoji-svc-b", 0)]));
    let mut cluster = cluster.warm_up();
    cluster.say_meshed("backend-0", &[standby]);
    cluster.self_hop("backend-0", standby, true);
    cluster.run(100);
    crate::refuse_primary(&mut cluster);
    cluster.run(3_000);
    assert_eq!(cluster.weights(), [1, 0], "nobody is better");
    assert!(cluster.held().contains(&"no-healthy-secondary"), "{:?}", cluster.held());
    cluster.self_hop("backend-0", standby, false);
    cluster.run(1_000);
    assert_eq!(cluster.weights(), [0, 1]);
}

#[test]
fn an_application_that_dies_with_a_request_in_its_hands_is_left_as_soon() {
    let mut cluster = mk_meshed(1);
    let from = cluster.now_ms;
    // The dial was taken, and reset; the next come at the proxy's pace.
    cluster.self_hop_reset("backend-0", endpoint(1));
    for wait in [108, 219, 414] {
        cluster.run(wait);
        cluster.self_hop("backend-0", endpoint(1), true);
        cluster.run(6);
        if !cluster.written.is_empty() {
            break;
        }
    }
    let took = cluster.written.first().expect("fails over").0 - from;
    assert!((250..=400).contains(&took), "after {took} ms");

    // One that resets every request, and takes the next, is not dead.
    let mut cluster = mk_meshed(1);
    for _ in 0..100 {
        cluster.self_hop_reset("backend-0", endpoint(1));
        cluster.run(50);
    }
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written);
}

#[test]
fn an_application_whose_first_refusal_nobody_saw_is_left_as_soon() {
    let mut cluster = mk_meshed(1);
    let from = cluster.now_ms;
    // The dial that it died under was taken, and ended like any other.
    cluster.self_hop("backend-0", endpoint(1), false);
    for wait in [108, 202] {
        cluster.run(wait);
        cluster.self_hop("backend-0", endpoint(1), true);
        cluster.run(6);
    }
    let took = cluster.written.first().expect("fails over").0 - from;
    assert!((300..=400).contains(&took), "after {took} ms");
}
