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
    let Observation::Split { input: Input::Split(id, _), object } = &good[0] else { panic!("{good:?}") };
    assert_eq!(id.name, "good");
    let expected = SplitObject { uid: "good".into(), resource_version: "5".into(), place: Place::NoMap, record: None };
    assert_eq!(*object, expected);
    let bad = splits.on_object(&mk_split("bad", json!("abc")));
    let Observation::Split { input: Input::SplitInvalid { split, fault }, object } = &bad[0] else { panic!("{bad:?}") };
    assert_eq!(split.name, "bad");
    assert!(fault.starts_with("spec.backends[0].weight \"abc\""), "{fault}");
    assert_eq!(object.uid, "bad", "its Event needs the uid");
}

#[test]
fn versions_of_a_server_that_counts_anew_come_after_all_that_were() {
    let mut splits = Splits::default();
    let version = |observations: Vec<Observation>| -> u64 {
        let Observation::Split { input: Input::Split(_, facts), object } = &observations[0] else {
            panic!("{observations:?}")
        };
        assert_eq!(facts.resource_version, object.resource_version, "guards are looked up by it");
        facts.resource_version.parse().expect("a number")
    };
    let before = version(splits.on_object(&mk_split("a", json!(1))));
    splits.on_renumbered();
    assert!(version(splits.on_object(&mk_split("a", json!(1)))) > before);
}

#[test]
fn splits_that_a_new_list_lacks_are_gone_once() {
    let mut splits = Splits::default();
    for name in ["a", "b", "c"] {
        splits.on_object(&mk_split(name, json!(1)));
    }
    let gone = splits.on_listed(&ids(&["b", "new"]));
    let gone: Vec<_> = gone.iter().map(|observation| format!("{observation:?}")).collect();
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
        faults: slice_faults::SliceFaults::default(),
        agents: ObjectId::new("splitsecond", AGENTS_SERVICE),
        expected: None,
    };
    let expected = |observations: Vec<Observation>| -> Vec<Vec<String>> {
        let nodes = observations.into_iter().filter_map(|observation| match observation {
            Observation::Fact(Input::ExpectedAgents(nodes)) => Some(nodes.into_iter().collect()),
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
