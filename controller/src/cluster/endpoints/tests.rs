use serde_json::{Value, json};

use super::*;

fn mk_slice(name: &str, service: &str, endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "demo", "labels": {SERVICE_LABEL: service}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        "endpoints": endpoints,
    }))
    .expect("a slice")
}

fn mk_endpoint(uid: &str, address: &str, conditions: Value) -> Value {
    json!({"addresses": [address], "targetRef": {"kind": "Pod", "uid": uid}, "nodeName": "n1", "zone": "z1",
           "conditions": conditions})
}

fn web() -> ObjectId {
    ObjectId::new("demo", "web")
}

/// The one Service that changed, as (identity, addresses, ready).
#[track_caller]
fn check(changed: Vec<Changed>, expected: &[(&str, &[&str], bool)]) {
    let [(service, endpoints)] = changed.as_slice() else { panic!("one Service changed: {changed:?}") };
    assert_eq!(*service, web());
    let seen: Vec<_> = endpoints
        .iter()
        .map(|endpoint| {
            let addresses: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
            (endpoint.identity.as_str(), addresses, endpoint.ready)
        })
        .collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(identity, addresses, ready)| {
            (*identity, addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), *ready)
        })
        .collect();
    assert_eq!(seen, expected);
}

#[test]
fn an_endpoint_has_the_slices_tcp_ports_and_its_own_place() {
    let mut slices = Slices::default();
    let changed = slices.on_slice(&mk_slice("web-1", "web", json!([mk_endpoint("p1", "198.18.1.1", json!({}))])));
    assert_eq!(
        changed,
        [(
            web(),
            vec![EndpointFacts {
                identity: "p1".into(),
                addresses: vec!["198.18.1.1".parse().expect("v4")],
                ports: BTreeMap::from([("http".to_owned(), 8080)]),
                node: Some("n1".into()),
                zone: Some("z1".into()),
                ready: true,
            }]
        )]
    );
}

#[test]
fn ready_is_what_the_api_says_it_is() {
    let ready = |conditions: Value, expected| {
        let slice = mk_slice("web-1", "web", json!([mk_endpoint("p1", "198.18.1.1", conditions)]));
        check(Slices::default().on_slice(&slice), &[("p1", &["198.18.1.1"], expected)]);
    };
    ready(json!({}), true);
    ready(json!({"ready": true}), true);
    ready(json!({"ready": null}), true);
    ready(json!({"ready": false}), false);
    ready(json!({"ready": true, "terminating": true}), false);
    ready(json!({"ready": false, "serving": true, "terminating": true}), false);
}

#[test]
fn a_pod_of_two_families_is_one_endpoint() {
    let mut slices = Slices::default();
    slices.on_slice(&mk_slice("web-4", "web", json!([mk_endpoint("p1", "198.18.1.1", json!({}))])));
    check(
        slices.on_slice(&mk_slice("web-6", "web", json!([mk_endpoint("p1", "2001:db8::1", json!({}))]))),
        &[("p1", &["198.18.1.1", "2001:db8::1"], true)],
    );
    let gone = mk_slice("web-4", "web", json!([]));
    check(slices.on_gone(&gone), &[("p1", &["2001:db8::1"], true)]);
}

#[test]
fn an_endpoint_that_moves_between_slices_is_not_two_and_not_unready() {
    let mut slices = Slices::default();
    slices.on_slice(&mk_slice("web-a", "web", json!([mk_endpoint("p1", "198.18.1.1", json!({"ready": true}))])));
    let unready = mk_slice("web-b", "web", json!([mk_endpoint("p1", "198.18.1.1", json!({"ready": false}))]));
    assert_eq!(slices.on_slice(&unready), [], "nothing changed");
    check(slices.on_gone(&mk_slice("web-a", "web", json!([]))), &[("p1", &["198.18.1.1"], false)]);
}

#[test]
fn endpoints_without_a_pod_are_known_by_their_address() {
    let slice = mk_slice("web-1", "web", json!([{"addresses": ["198.51.100.1"]}, {"addresses": ["gateway.example"]}]));
    check(Slices::default().on_slice(&slice), &[("198.51.100.1", &["198.51.100.1"], true)]);
}

#[test]
fn the_last_slice_takes_its_endpoints_along() {
    let mut slices = Slices::default();
    let slice = mk_slice("web-1", "web", json!([mk_endpoint("p1", "198.18.1.1", json!({}))]));
    slices.on_slice(&slice);
    check(slices.on_gone(&slice), &[]);
    assert_eq!(slices.on_gone(&slice), [], "a second time it was not there");
    assert!(slices.services.is_empty() && slices.owners.is_empty());
}

#[test]
fn an_unchanged_slice_is_no_news() {
    let mut slices = Slices::default();
    let slice = mk_slice("web-1", "web", json!([mk_endpoint("p1", "198.18.1.1", json!({}))]));
    assert_eq!(slices.on_slice(&slice).len(), 1);
    assert_eq!(slices.on_slice(&slice), []);
}

#[test]
fn what_a_full_list_lacks_is_gone() {
    let mut slices = Slices::default();
    slices.on_slice(&mk_slice("web-1", "web", json!([mk_endpoint("p1", "198.18.1.1", json!({}))])));
    slices.on_slice(&mk_slice("web-2", "web", json!([mk_endpoint("p2", "198.18.1.2", json!({}))])));
    let listed = BTreeSet::from([ObjectId::new("demo", "web-2")]);
    check(slices.on_listed(&listed), &[("p2", &["198.18.1.2"], true)]);
    assert_eq!(slices.on_listed(&listed), []);
}

#[test]
fn a_slice_that_changes_its_service_leaves_the_old_one() {
    let mut slices = Slices::default();
    let endpoints = json!([mk_endpoint("p1", "198.18.1.1", json!({}))]);
    slices.on_slice(&mk_slice("s", "web", endpoints.clone()));
    let changed = slices.on_slice(&mk_slice("s", "api", endpoints));
    let names: Vec<_> = changed.iter().map(|(service, endpoints)| (service.name.as_str(), endpoints.len())).collect();
    assert_eq!(names, [("web", 0), ("api", 1)]);
}

#[test]
fn slices_of_no_service_are_passed_over() {
    let mut slice = mk_slice("s", "web", json!([mk_endpoint("p1", "198.18.1.1", json!({}))]));
    slice.metadata.labels = None;
    assert_eq!(Slices::default().on_slice(&slice), []);
}

#[test]
fn nodes_are_those_of_ready_endpoints() {
    let mut slices = Slices::default();
    let agent = |uid: &str, node: &str, ready: bool| json!({"addresses": ["198.18.2.1"], "targetRef": {"uid": uid}, "nodeName": node, "conditions": {"ready": ready}});
    slices.on_slice(&mk_slice("a", "web", json!([agent("a1", "n1", true), agent("a2", "n2", false)])));
    slices.on_slice(&mk_slice("b", "web", json!([agent("a3", "n3", true)])));
    assert_eq!(slices.nodes(&web()), BTreeSet::from(["n1".to_owned(), "n3".to_owned()]));
    assert_eq!(slices.nodes(&ObjectId::new("demo", "none")), BTreeSet::new());
}
