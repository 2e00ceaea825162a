//! A guarded write -> the JSON patch that carries it. Pure.
//!
//! In: a [`Write`], the version to write in, what the object has of annotations, the record's text. Out: RFC 6902 operations.
//! The first ones test that the object is still the one that the decision saw, so of two replicas that decide the same one
//! is refused. Deliberately no merge patch (it replaces lists whole, and with them fields that are not ours) and no
//! server-side apply (`backends` has no merge key, so it would own the whole list).

use controller_core::output::Write;
use controller_core::weights::Weight;
use serde_json::{Value, json};

use crate::cluster::{SplitVersion, revision};
use crate::record::{self, Place};

/// [`record::ANNOTATION`] as a JSON pointer writes it (RFC 6901: `/` is `~1`).
const ANNOTATION_POINTER: &str = "/metadata/annotations/splitsecond.dev~1state";

/// The operations against an object whose annotations are as `place` says; `record` is the text of the write's own.
pub(super) fn operations(write: &Write, version: SplitVersion, place: Place, record: Option<&str>) -> Value {
    let mut operations = vec![
        json!({"op": "test", "path": "/metadata/uid", "value": write.uid}),
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": revision::raw(&write.resource_version)}),
    ];
    for (index, (service, _)) in write.weights.iter().enumerate() {
        operations.push(json!({"op": "test", "path": format!("/spec/backends/{index}/service"), "value": service}));
    }
    for (index, (_, weight)) in write.weights.iter().enumerate() {
        let path = format!("/spec/backends/{index}/weight");
        operations.push(json!({"op": "replace", "path": path, "value": number(*weight, version)}));
    }
    operations.extend(annotation(record, place));
    Value::Array(operations)
}

/// A whole weight is an integer in both versions. A broken one is a text where the CRD takes texts, else a fraction.
fn number(weight: Weight, version: SplitVersion) -> Value {
    let milli = weight.milli();
    match (milli % 1_000, version) {
        (0, _) => json!(milli / 1_000),
        (_, SplitVersion::V1Alpha1) => json!(weight.to_string()),
        // At most 10^9 thousandths: exact in a double, and printed as the shortest text that reads the same.
        (_, SplitVersion::V1Alpha2) => json!(milli as f64 / 1_000.0),
    }
}

fn annotation(record: Option<&str>, place: Place) -> Option<Value> {
    match (record, place) {
        (Some(text), Place::NoMap) => {
            Some(json!({"op": "add", "path": "/metadata/annotations", "value": {record::ANNOTATION: text}}))
        }
        // `add` replaces an entry that is there.
        (Some(text), Place::NoEntry | Place::Entry) => {
            Some(json!({"op": "add", "path": ANNOTATION_POINTER, "value": text}))
        }
        (None, Place::Entry) => Some(json!({"op": "remove", "path": ANNOTATION_POINTER})),
        (None, Place::NoMap | Place::NoEntry) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use controller_core::facts::{MoveCause, ObjectId, Record, RecordedState};
    use controller_core::output::{Direction, WriteId};
    use controller_core::{Time, weights};
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-22T10:00:00Z".parse().expect("a timestamp")
    }

    fn mk_record() -> Record {
        Record {
            state: RecordedState::Failed,
            epoch: 1,
            cause: MoveCause::Connections,
            failovers: 1,
            dwell_left: Duration::from_secs(30),
            age: Duration::ZERO,
            steady: BTreeMap::from([("web".to_owned(), Weight::ONE)]),
        }
    }

    fn mk_write(weights: [&str; 2], record: Option<Record>) -> Write {
        let weight = |text: &str| weights::Weight::parse(text).expect("a weight");
        Write {
            id: WriteId(1),
            split: ObjectId::new("demo", "emoji"),
            uid: "u-1".into(),
            resource_version: "17".into(),
            weights: vec![("web".into(), weight(weights[0])), ("web-west".into(), weight(weights[1]))],
            record,
            direction: Direction::Failover,
            cause: MoveCause::Connections,
            decided: Time(0),
            expires: Time(1),
            event: None,
        }
    }

    fn mk_object(annotations: Value) -> Value {
        json!({
            "metadata": {"name": "emoji", "uid": "u-1", "resourceVersion": "17", "annotations": annotations},
            "spec": {"service": "web", "backends": [
                {"service": "web", "weight": 1, "note": "theirs"}, {"service": "web-west", "weight": 0}]},
        })
    }

    fn apply(write: &Write, place: Place, mut object: Value) -> Result<Value, String> {
        let text = write.record.as_ref().map(|record| record::format(record, now()).expect("writes"));
        let operations = operations(write, SplitVersion::V1Alpha1, place, text.as_deref());
        let patch: json_patch::Patch = serde_json::from_value(operations).expect("RFC 6902");
        json_patch::patch(&mut object, &patch).map_err(|error| error.to_string())?;
        Ok(object)
    }

    #[test]
    fn the_operations_are_exactly_these() {
        let write = mk_write(["0", "1"], None);
        assert_eq!(
            operations(&write, SplitVersion::V1Alpha1, Place::Entry, None),
            json!([
                {"op": "test", "path": "/metadata/uid", "value": "u-1"},
                {"op": "test", "path": "/metadata/resourceVersion", "value": "17"},
                {"op": "test", "path": "/spec/backends/0/service", "value": "web"},
                {"op": "test", "path": "/spec/backends/1/service", "value": "web-west"},
                {"op": "replace", "path": "/spec/backends/0/weight", "value": 0},
                {"op": "replace", "path": "/spec/backends/1/weight", "value": 1},
                {"op": "remove", "path": "/metadata/annotations/splitsecond.dev~1state"},
            ])
        );
    }

    #[test]
    fn the_server_is_asked_for_its_own_number_of_the_version() {
        let write = Write { resource_version: revision::ordered(1, "17"), ..mk_write(["0", "1"], None) };
        let operations = operations(&write, SplitVersion::V1Alpha1, Place::NoMap, None);
        assert_eq!(operations[1], json!({"op": "test", "path": "/metadata/resourceVersion", "value": "17"}));
    }

    #[test]
    fn a_broken_weight_is_a_text_or_a_fraction_by_version() {
        let weight = Weight::parse("900m").expect("a weight");
        assert_eq!(number(weight, SplitVersion::V1Alpha1), json!("900m"));
        assert_eq!(number(weight, SplitVersion::V1Alpha2).to_string(), "0.9");
        for version in [SplitVersion::V1Alpha1, SplitVersion::V1Alpha2] {
            assert_eq!(number(Weight::whole(950), version).to_string(), "950");
        }
        for milli in 1..=20_000 {
            let weight = Weight::from_milli(milli).expect("in range");
            let text = match number(weight, SplitVersion::V1Alpha2) {
                Value::Number(number) => number.to_string(),
                other => panic!("{other}"),
            };
            assert_eq!(Weight::parse(&text), Ok(weight), "{text}");
        }
    }

    #[test]
    fn weights_and_annotation_change_and_nothing_else() {
        let write = mk_write(["0", "1"], Some(mk_record()));
        let check = |annotations: Value, place: Place, others: Value| {
            let mut patched = apply(&write, place, mk_object(annotations)).expect("applies");
            let annotations = patched["metadata"]["annotations"].as_object_mut().expect("a map");
            let ours = annotations.remove(record::ANNOTATION).expect("ours");
            assert_eq!(record::parse(ours.as_str().expect("a text"), now()).expect("reads"), mk_record());
            assert_eq!(Value::Object(annotations.clone()), others);
            assert_eq!(
                patched["spec"]["backends"],
                json!([{"service": "web", "weight": 0, "note": "theirs"}, {"service": "web-west", "weight": 1}])
            );
        };
        check(json!(null), Place::NoMap, json!({}));
        check(json!({}), Place::NoMap, json!({}));
        check(json!({"a": "b"}), Place::NoEntry, json!({"a": "b"}));
        check(json!({"a": "b", record::ANNOTATION: "old"}), Place::Entry, json!({"a": "b"}));
    }

    #[test]
    fn the_annotation_is_removed_where_it_is() {
        let write = mk_write(["1", "0"], None);
        let patched =
            apply(&write, Place::Entry, mk_object(json!({"a": "b", record::ANNOTATION: "old"}))).expect("applies");
        assert_eq!(patched["metadata"]["annotations"], json!({"a": "b"}));
        let patched = apply(&write, Place::NoEntry, mk_object(json!({"a": "b"}))).expect("applies");
        assert_eq!(patched["metadata"]["annotations"], json!({"a": "b"}));
        apply(&write, Place::NoMap, mk_object(json!(null))).expect("applies");
    }

    #[test]
    fn another_object_another_version_or_other_backends_refuse_it() {
        let write = mk_write(["0", "1"], Some(mk_record()));
        let check = |pointer: &str, value: Value| {
            let mut object = mk_object(json!({}));
            *object.pointer_mut(pointer).expect("a field") = value;
            let before = object.clone();
            apply(&write, Place::NoMap, object).expect_err(pointer);
            assert_ne!(before, mk_object(json!({})));
        };
        check("/metadata/uid", json!("u-2"));
        check("/metadata/resourceVersion", json!("18"));
        check("/spec/backends/0/service", json!("api"));
        check("/spec/backends", json!([{"service": "web-west", "weight": 0}, {"service": "web", "weight": 1}]));
        check("/spec/backends", json!([{"service": "web", "weight": 1}]));
    }

    #[test]
    fn a_place_is_read_from_the_annotations() {
        let place = |annotations: &[&str]| {
            let annotations: BTreeMap<_, _> = annotations.iter().map(|key| ((*key).to_owned(), ())).collect();
            Place::of(Some(&annotations))
        };
        assert_eq!(Place::of::<()>(None), Place::NoMap);
        assert_eq!(place(&[]), Place::NoMap);
        assert_eq!(place(&["a"]), Place::NoEntry);
        assert_eq!(place(&["a", record::ANNOTATION]), Place::Entry);
    }
}
