use serde_json::{Value, json};

use super::*;

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn mk_split(name: &str, weight: Value) -> DynamicObject {
    object(json!({
        "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit",
        "metadata": {"name": name, "namespace": "demo", "uid": name, "resourceVersion": "5"},
        "spec": {"service": "web", "backends": [{"service": "web", "weight": weight}]},
    }))
}

fn mk_agents(nodes: &[&str]) -> EndpointSlice {
    let endpoints: Vec<_> = nodes
        .iter()
        .map(|node| json!({"addresses": ["198.18.3.1"], "nodeName": node, "targetRef": {"uid": node}}))
        .collect();
    object(json!({
        "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": "agents", "namespace": "splitsecond",
                     "labels": {"kubernetes.io/service-name": "splitsecond-agent"}},
    }))
}

fn ids(names: &[&str]) -> BTreeSet<ObjectId> {
    names.iter().map(|name| ObjectId::new("demo", *name)).collect()
}

#[test]
fn one_bad_split_is_told_of_that_split_alone() {
    let mut splits = Splits::default();
    let good = splits.on_object(&mk_split("good", json!(1)));
    assert!(matches!(&good[0].input, Input::Split(id, _) if id.name == "good"));
    assert_eq!(
        good[0].object,
        Some(SplitObject { uid: "good".into(), resource_version: "5".into(), place: Place::NoMap })
    );
    let bad = splits.on_object(&mk_split("bad", json!("abc")));
    let Input::SplitInvalid { split, fault } = &bad[0].input else { panic!("{bad:?}") };
    assert_eq!(split.name, "bad");
    assert!(fault.starts_with("trafficsplit/bad: spec.backends[0].weight \"abc\""), "{fault}");
    assert_eq!(bad[0].object.as_ref().map(|object| object.uid.as_str()), Some("bad"), "its Event needs the uid");
}

#[test]
fn splits_that_a_new_list_lacks_are_gone_once() {
    let mut splits = Splits::default();
    for name in ["a", "b", "c"] {
        splits.on_object(&mk_split(name, json!(1)));
    }
    let gone = splits.on_listed(&ids(&["b", "new"]));
    let gone: Vec<_> = gone.iter().map(|observation| format!("{:?}", observation.input)).collect();
    assert_eq!(gone.len(), 2);
    assert!(gone[0].contains("\"a\"") && gone[1].contains("\"c\""), "{gone:?}");
    assert!(splits.on_listed(&ids(&["b"])).is_empty());
    assert!(splits.on_gone(&mk_split("a", json!(1))).is_empty(), "it was gone already");
    assert_eq!(splits.on_gone(&mk_split("b", json!(1))).len(), 1);
}

#[test]
fn expected_agents_are_told_once_per_change_and_also_when_there_are_none() {
    let mut endpoints = Endpoints {
        slices: endpoints::Slices::default(),
        agents: ObjectId::new("splitsecond", AGENTS_SERVICE),
        expected: None,
    };
    let expected = |observations: Vec<Observation>| -> Vec<Vec<String>> {
        let nodes = observations.into_iter().filter_map(|observation| match observation.input {
            Input::ExpectedAgents(nodes) => Some(nodes.into_iter().collect()),
            _ => None,
        });
        nodes.collect()
    };
    assert_eq!(expected(endpoints.on_listed(&BTreeSet::new())), [Vec::<String>::new()]);
    assert_eq!(expected(endpoints.on_listed(&BTreeSet::new())), Vec::<Vec<String>>::new());
    assert_eq!(expected(endpoints.on_object(&mk_agents(&["n2", "n1"]))), [["n1", "n2"]]);
    assert_eq!(expected(endpoints.on_object(&mk_agents(&["n2", "n1"]))), Vec::<Vec<String>>::new());
    assert_eq!(expected(endpoints.on_gone(&mk_agents(&[]))), [Vec::<String>::new()]);
}
