//! Services with several ports: only ports that were ever healthy have a say.

use std::collections::BTreeMap;

use controller_core::Input;
use controller_core::facts::{EndpointFacts, ServiceFacts, ServicePort};
use probe_common::wire::Destination;

use crate::cluster::{Answer, Cluster, Layout, PORT, id, is_primary, mk_endpoint, mk_service};

const METRICS: u16 = 9090;

/// Two local backends whose Services have a second port, on which nobody listens.
fn mk_cluster(rate: u64) -> Cluster {
    let mut cluster = Cluster::new(Layout { rate, ..Layout::default() });
    for (last, name) in [(1, "emoji-svc"), (2, "emoji-svc-west")] {
        let mut facts: ServiceFacts = mk_service(last, false);
        facts.ports.push(ServicePort { name: "metrics".into(), port: METRICS, app_protocol: None });
        cluster.input(Input::Service(id(name), facts));
        let ports = BTreeMap::from([("http".to_owned(), PORT), ("metrics".to_owned(), METRICS)]);
        let endpoints =
            (1..4).map(|index| EndpointFacts { ports: ports.clone(), ..mk_endpoint(last, index, "backend-0") });
        cluster.set_endpoints(name, endpoints.collect());
    }
    cluster.world = Box::new(|_, to, _, _| if to.port() == METRICS { Answer::Refused } else { Answer::Established });
    cluster.warm_up()
}

#[test]
fn a_port_on_which_nobody_ever_listened_moves_nothing() {
    let mut cluster = mk_cluster(0);
    for round in 0..200u64 {
        for node in ["client-0", "client-1"] {
            cluster.dial(node, Destination::from(([198, 18, 1, 1 + (round % 3) as u8], METRICS)));
        }
        cluster.run(100);
    }
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written);
}

#[test]
fn a_port_on_which_nobody_ever_listened_holds_nothing() {
    let mut cluster = mk_cluster(1000);
    cluster.world =
        Box::new(
            |_, to, _, _| {
                if to.port() == METRICS || is_primary(to) { Answer::Refused } else { Answer::Established }
            },
        );
    cluster.run(1_000);
    assert_eq!(cluster.weights(), [0, 1], "{:?}", cluster.held());
}
