use std::collections::BTreeMap;
use std::time::Duration;

use controller_core::facts::{MoveCause, Record, RecordedState};
use serde_json::json;

use super::*;

fn now() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().expect("a timestamp")
}

fn mk_split(annotations: Value, spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "split.smi-spec.io/v1alpha1",
        "kind": "TrafficSplit",
        "metadata": {
            "name": "emoji", "namespace": "demo", "uid": "u-1", "resourceVersion": "17", "generation": 3,
            "annotations": annotations,
        },
        "spec": spec,
    }))
    .expect("an object")
}

fn mk_weights(primary: Value, secondary: Value) -> DynamicObject {
    let backends = json!([{"service": "web", "weight": primary}, {"service": "web-west", "weight": secondary}]);
    mk_split(json!({}), json!({"service": "web", "backends": backends}))
}

#[track_caller]
fn check(object: &DynamicObject, expected: &str) {
    assert_eq!(facts(object, 0, now()).expect_err("invalid"), expected);
}

#[test]
fn a_plain_split_is_read_whole() {
    let object = mk_weights(json!(1), json!(0));
    assert_eq!(id(&object), Some(ObjectId::new("demo", "emoji")));
    let expected = SplitFacts {
        uid: "u-1".into(),
        resource_version: "17".into(),
        generation: 3,
        service: "web".into(),
        backends: vec![
            BackendFacts { service: "web".into(), weight: Weight::ONE },
            BackendFacts { service: "web-west".into(), weight: Weight::ZERO },
        ],
        primary: None,
        port: None,
        single_node: false,
        check_all_ports: false,
        record: None,
    };
    assert_eq!(facts(&object, 0, now()), Ok(expected));
}

#[test]
fn weights_come_as_numbers_and_as_texts() {
    let check = |value: Value, milli| {
        let split = facts(&mk_weights(value.clone(), json!(0)), 0, now()).expect("valid");
        assert_eq!(split.backends[0].weight.milli(), milli, "{value}");
    };
    check(json!(0), 0);
    check(json!(1000), 1_000_000);
    check(json!(0.5), 500);
    check(json!(0.1), 100);
    check(json!(1.0), 1_000);
    check(json!("900m"), 900);
    check(json!("1"), 1_000);
    check(json!("0.25"), 250);
}

#[test]
fn a_bad_weight_names_its_field() {
    let first = |value: Value, expected: &str| check(&mk_weights(value, json!(0)), expected);
    first(
        json!("abc"),
        "spec.backends[0].weight \"abc\" is not a number (an integer, a decimal, or thousandths such as \"900m\")",
    );
    first(json!(-1), "spec.backends[0].weight \"-1\" is negative");
    first(json!(1e30), "spec.backends[0].weight \"1e+30\" is above 1000000");
    first(json!("0.0001"), "spec.backends[0].weight \"0.0001\" is finer than a thousandth");
    first(Value::Null, "spec.backends[0].weight is missing");
    first(json!(true), "spec.backends[0].weight true is neither a number nor a text");
    first(json!({"n": 1}), "spec.backends[0].weight {\"n\":1} is neither a number nor a text");
    check(
        &mk_split(
            json!({}),
            json!({"service": "web", "backends": [{"service": "web", "weight": 1}, {"service": "w"}]}),
        ),
        "spec.backends[1].weight is missing",
    );
}

#[test]
fn a_bad_shape_names_its_field() {
    let spec = |spec: Value, expected: &str| check(&mk_split(json!({}), spec), expected);
    let one = json!([{"service": "web", "weight": 1}]);
    spec(Value::Null, "spec.backends is missing");
    spec(json!("web"), "spec.backends is missing");
    spec(json!({"service": "web", "backends": {}}), "spec.backends is not a list");
    spec(json!({"service": "web", "backends": []}), "spec.backends is empty");
    spec(json!({"backends": one}), "spec.service is missing");
    spec(json!({"service": "", "backends": one}), "spec.service is empty");
    spec(json!({"service": 5, "backends": one}), "spec.service 5 is not a text");
    spec(json!({"service": "web", "backends": ["web"]}), "spec.backends[0].service is missing");
    spec(
        json!({"service": "web", "backends": [{"service": "a", "weight": 1}, {"service": "a", "weight": 0}]}),
        "spec.backends[1].service \"a\" is named twice",
    );
    let many: Vec<_> = (0..1_001).map(|index| json!({"service": format!("s{index}"), "weight": 1})).collect();
    spec(json!({"service": "web", "backends": many}), "spec.backends has 1001 entries, the limit is 1000");
}

#[test]
fn annotations_are_read() {
    let record = Record {
        state: RecordedState::Failed,
        epoch: 1,
        cause: MoveCause::Connections,
        failovers: 1,
        dwell_left: Duration::from_secs(30),
        age: Duration::from_secs(2),
        steady: BTreeMap::from([("web".to_owned(), Weight::ONE)]),
    };
    let mut object = mk_weights(json!(0), json!(1));
    object.metadata.annotations = Some(BTreeMap::from([
        (PRIMARY_ANNOTATION.to_owned(), "web-west".to_owned()),
        (PORT_ANNOTATION.to_owned(), "8080".to_owned()),
        (record::ANNOTATION.to_owned(), record::format(&record, now()).expect("writes")),
        ("other".to_owned(), "left alone".to_owned()),
    ]));
    let split = facts(&object, 0, now()).expect("valid");
    assert_eq!(split.primary.as_deref(), Some("web-west"));
    assert_eq!(split.port, Some(8080));
    assert_eq!(split.record, Some(record));
}

#[test]
fn a_bad_annotation_is_a_fault_and_never_a_silent_default() {
    let with = |key: &str, value: &str, expected: &str| {
        let mut object = mk_weights(json!(1), json!(0));
        object.metadata.annotations = Some(BTreeMap::from([(key.to_owned(), value.to_owned())]));
        check(&object, expected);
    };
    with(
        PRIMARY_ANNOTATION,
        "web-east",
        "annotation failover.linkerd.io/primary-service names \"web-east\", which is no backend",
    );
    for bad in ["0", "65536", "http", "-1", ""] {
        with(PORT_ANNOTATION, bad, &format!("annotation splitsecond.dev/port {bad:?} is not a port number"));
    }
    with(
        record::ANNOTATION,
        "{\"version\":9}",
        "annotation splitsecond.dev/state cannot be read (it has version 9, this build reads 1): remove it to start from \
         the present weights",
    );
}
