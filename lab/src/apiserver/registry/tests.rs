//! The rules of writing, one test each.

use super::*;

const NOW: Attempt = Attempt { now: Timestamp::UNIX_EPOCH, dry_run: false };

fn mk_registry() -> Registry {
    Registry::new(7, 64, Timestamp::UNIX_EPOCH)
}

fn mk_split(weights: [i64; 2]) -> Value {
    json!({
        "metadata": { "name": "web" },
        "spec": {
            "service": "web",
            "backends": [{ "service": "web", "weight": weights[0] }, { "service": "web-west", "weight": weights[1] }],
        },
    })
}

fn split(name: &str) -> Target<'_> {
    target(Resource::TrafficSplits, name)
}

fn target(resource: Resource, name: &str) -> Target<'_> {
    let namespace = if resource.row().namespaced { "default" } else { "" };
    Target { resource, served: resource.stored(), namespace, name }
}

#[test]
fn a_new_object_gets_its_identity_from_the_server() {
    let mut registry = mk_registry();
    let mut object = mk_split([1, 0]);
    object["metadata"]["uid"] = "forged".into();
    object["metadata"]["generation"] = 9.into();
    let created = registry.create(split(""), object, Part::Main, NOW).unwrap();
    let metadata = &created["metadata"];
    assert_eq!(metadata["generation"], 1);
    assert_eq!(metadata["creationTimestamp"], "1970-01-01T00:00:00Z");
    assert_eq!(metadata["resourceVersion"], registry.store().revision().to_string());
    let uid = metadata["uid"].as_str().unwrap();
    assert_eq!((uid.len(), &uid[14..15]), (36, "4"), "{uid}");
}

#[test]
fn generated_names_differ_and_carry_their_prefix() {
    let mut registry = mk_registry();
    let mut names = BTreeSet::new();
    for _ in 0..50 {
        let object = json!({ "metadata": { "generateName": "linkerd-failover-" } });
        let created = registry.create(target(Resource::ConfigMaps, ""), object, Part::Main, NOW).unwrap();
        let name = meta(&created, "name").to_owned();
        assert!(name.starts_with("linkerd-failover-") && name.len() == 22, "{name}");
        names.insert(name);
    }
    assert_eq!(names.len(), 50);
}

#[test]
fn generation_counts_content_and_revision_counts_changes() {
    let mut registry = mk_registry();
    registry.create(split(""), mk_split([1, 0]), Part::Main, NOW).unwrap();
    let patch = |registry: &mut Registry, body: &str| {
        let patched = registry.patch(split("web"), PatchFormat::Merge, body.as_bytes(), Part::Main, NOW).unwrap();
        (patched["metadata"]["generation"].as_i64().unwrap(), registry.store().revision())
    };
    let start = registry.store().revision();
    assert_eq!(patch(&mut registry, r#"{"metadata":{"annotations":{"a":"b"}}}"#), (1, start + 1));
    assert_eq!(patch(&mut registry, r#"{"spec":{"service":"other"}}"#), (2, start + 2));
    // Nothing new, and a field that the schema does not have: no write at all.
    assert_eq!(patch(&mut registry, r#"{"name":"web","spec":{"service":"other","extra":1}}"#), (2, start + 2));
}

#[test]
fn a_writer_that_saw_another_version_is_refused() {
    let mut registry = mk_registry();
    let seen = registry.create(split(""), mk_split([1, 0]), Part::Main, NOW).unwrap();
    registry.patch(split("web"), PatchFormat::Merge, br#"{"spec":{"service":"b"}}"#, Part::Main, NOW).unwrap();

    let status = registry.replace(split("web"), seen.clone(), Part::Main, NOW).unwrap_err();
    assert_eq!((status.code(), status.reason()), (409, "Conflict"));
    let body = format!(r#"{{"metadata":{{"resourceVersion":"{}"}},"spec":{{}}}}"#, meta(&seen, "resourceVersion"));
    let status = registry.patch(split("web"), PatchFormat::Merge, body.as_bytes(), Part::Main, NOW).unwrap_err();
    assert_eq!((status.code(), status.reason()), (409, "Conflict"));
    let mut blind = mk_split([0, 1]);
    metadata_mut(&mut blind).remove("resourceVersion");
    assert_eq!(registry.replace(split("web"), blind, Part::Main, NOW).unwrap_err().code(), 422);
}

#[test]
fn an_object_recreated_under_its_name_is_another_object() {
    let mut registry = mk_registry();
    let first = registry.create(split(""), mk_split([1, 0]), Part::Main, NOW).unwrap();
    registry.delete(split("web"), &Preconditions::default(), NOW).unwrap();
    registry.create(split(""), mk_split([1, 0]), Part::Main, NOW).unwrap();
    let preconditions = Preconditions { uid: meta(&first, "uid").to_owned(), ..Preconditions::default() };
    assert_eq!(registry.delete(split("web"), &preconditions, NOW).unwrap_err().code(), 409);
    let mut stale = first;
    metadata_mut(&mut stale).remove("resourceVersion");
    assert_eq!(registry.replace(split("web"), stale, Part::Main, NOW).unwrap_err().code(), 409);
}

#[test]
fn status_and_content_are_written_apart() {
    let mut registry = mk_registry();
    let node = json!({ "metadata": { "name": "n" }, "status": { "phase": "Running" } });
    let created = registry.create(target(Resource::Nodes, ""), node, Part::Main, NOW).unwrap();
    assert!(created.get("status").is_none(), "a creation does not set status: {created}");
    let body = br#"{"metadata":{"labels":{"a":"b"}},"status":{"phase":"Running"}}"#;
    let written = registry.patch(target(Resource::Nodes, "n"), PatchFormat::Merge, body, Part::Status, NOW).unwrap();
    assert_eq!(written["status"]["phase"], "Running");
    assert!(written["metadata"].get("labels").is_none());
    let written =
        registry.patch(target(Resource::Nodes, "n"), PatchFormat::Merge, br#"{"status":null}"#, Part::Main, NOW);
    assert_eq!(written.unwrap()["status"]["phase"], "Running");
}

#[test]
fn a_namespace_has_to_exist_and_takes_its_objects_along() {
    let mut registry = mk_registry();
    let inside = |name| Target { namespace: "emojivoto", ..split(name) };
    let status = registry.create(inside(""), mk_split([1, 0]), Part::Main, NOW).unwrap_err();
    assert_eq!(status.to_string(), "namespaces \"emojivoto\" not found (404 NotFound)");

    let namespace = json!({ "metadata": { "name": "emojivoto" } });
    registry.create(target(Resource::Namespaces, ""), namespace, Part::Main, NOW).unwrap();
    let mut kept = mk_split([1, 0]);
    kept["metadata"]["finalizers"] = json!(["example.com/hold"]);
    registry.create(inside(""), kept, Part::Main, NOW).unwrap();
    registry.delete(target(Resource::Namespaces, "emojivoto"), &Preconditions::default(), NOW).unwrap();
    assert_eq!(registry.get(inside("web")).unwrap_err().code(), 404);
    let status = registry.delete(target(Resource::Namespaces, "default"), &Preconditions::default(), NOW);
    assert_eq!(status.unwrap_err().code(), 403);
}

#[test]
fn a_finalizer_holds_an_object_until_it_is_gone() {
    let mut registry = mk_registry();
    let mut held = mk_split([1, 0]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    registry.create(split(""), held, Part::Main, NOW).unwrap();
    let marked = registry.delete(split("web"), &Preconditions::default(), NOW).unwrap();
    assert!(!meta(&marked, "deletionTimestamp").is_empty());
    assert!(registry.get(split("web")).is_ok());
    let body = br#"{"metadata":{"finalizers":null}}"#;
    registry.patch(split("web"), PatchFormat::Merge, body, Part::Main, NOW).unwrap();
    assert_eq!(registry.get(split("web")).unwrap_err().code(), 404);
}

#[test]
fn a_dry_run_answers_like_a_write_and_stores_nothing() {
    let mut registry = mk_registry();
    let dry = Attempt { dry_run: true, ..NOW };
    let revision = registry.store().revision();
    let answer = registry.create(split(""), mk_split([1, 0]), Part::Main, dry).unwrap();
    assert_eq!(meta(&answer, "name"), "web");
    assert_eq!(registry.store().revision(), revision);
    assert_eq!(registry.get(split("web")).unwrap_err().code(), 404);
}

#[test]
fn one_object_is_served_under_both_versions() {
    let mut registry = mk_registry();
    let (_, alpha2) = Resource::of_path("split.smi-spec.io", "v1alpha2", "trafficsplits").unwrap();
    let mut object = mk_split([1, 0]);
    object["spec"]["backends"][0]["weight"] = "900m".into();
    registry.create(split(""), object, Part::Main, NOW).unwrap();
    let through_alpha2 = Target { served: alpha2, ..split("web") };
    let read = registry.get(through_alpha2).unwrap();
    assert_eq!(read["apiVersion"], "split.smi-spec.io/v1alpha2");
    assert_eq!(read["spec"]["backends"][0]["weight"], "900m");
    // A write that leaves the stored text alone passes; one that sets it anew through v1alpha2 does not.
    let annotate = br#"{"metadata":{"annotations":{"a":"b"}}}"#;
    registry.patch(through_alpha2, PatchFormat::Merge, annotate, Part::Main, NOW).unwrap();
    let reweigh = br#"{"spec":{"backends":[{"service":"web","weight":"800m"}]}}"#;
    let status = registry.patch(through_alpha2, PatchFormat::Merge, reweigh, Part::Main, NOW).unwrap_err();
    assert_eq!(status.code(), 422);
    assert!(status.to_string().contains("spec.backends[0].weight"), "{status}");
}

#[test]
fn services_get_an_address_of_their_own_and_keep_it() {
    let mut registry = mk_registry();
    let mk = |name: &str, spec: Value| json!({ "metadata": { "name": name }, "spec": spec });
    let services = target(Resource::Services, "");
    let first = registry.create(services, mk("a", json!({ "ports": [{ "port": 80 }] })), Part::Main, NOW).unwrap();
    let second = registry.create(services, mk("b", json!({ "ports": [{ "port": 80 }] })), Part::Main, NOW).unwrap();
    assert_ne!(first["spec"]["clusterIP"], second["spec"]["clusterIP"]);
    let taken = json!({ "clusterIP": first["spec"]["clusterIP"], "ports": [{ "port": 80 }] });
    assert_eq!(registry.create(services, mk("c", taken), Part::Main, NOW).unwrap_err().code(), 422);
    let update = mk("a", json!({ "ports": [{ "port": 81 }] }));
    let updated = registry.replace(target(Resource::Services, "a"), update, Part::Main, NOW).unwrap();
    assert_eq!(updated["spec"]["clusterIP"], first["spec"]["clusterIP"]);
    registry.delete(target(Resource::Services, "a"), &Preconditions::default(), NOW).unwrap();
    let reused = registry.create(services, mk("d", json!({ "ports": [{ "port": 80 }] })), Part::Main, NOW).unwrap();
    assert_eq!(reused["spec"]["clusterIP"], first["spec"]["clusterIP"]);
}

/// Objects of every kind, with what a round trip could lose or change: times, numbers, texts that look like numbers,
/// nested lists.
fn mk_samples() -> Vec<(Resource, Value)> {
    let at = "2026-01-02T03:04:05.678901Z";
    let involved = json!({ "kind": "TrafficSplit", "namespace": "default", "name": "web" });
    vec![
        (
            Resource::Namespaces,
            json!({ "metadata": { "name": "n", "annotations": { "splitsecond.dev/paused": "true" } } }),
        ),
        (Resource::Nodes, json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "198.51.100.9" }] } })),
        (Resource::Pods, json!({ "spec": { "containers": [{ "name": "c" }] }, "status": { "podIP": "198.51.100.1" } })),
        (Resource::Services, json!({ "spec": { "ports": [{ "port": 80, "targetPort": "http", "name": "http" }] } })),
        (
            Resource::Endpoints,
            json!({ "subsets": [{ "addresses": [{ "ip": "198.51.100.1" }], "ports": [{ "port": 1 }] }] }),
        ),
        (
            Resource::Events,
            json!({
                "involvedObject": involved, "eventTime": at, "reason": "r", "action": "a", "type": "Normal",
                "message": "m", "reportingComponent": "c", "reportingInstance": "i",
                "series": { "count": 2, "lastObservedTime": at },
            }),
        ),
        (Resource::ConfigMaps, json!({ "data": { "k": "1" }, "binaryData": { "b": "AAE=" } })),
        (Resource::Secrets, json!({ "stringData": { "k": "v" } })),
        (Resource::ServiceAccounts, json!({ "secrets": [{ "name": "s" }] })),
        (
            Resource::EndpointSlices,
            json!({
                "addressType": "IPv4", "ports": [{ "port": 8080 }],
                "endpoints": [{
                    "addresses": ["198.51.100.1"], "conditions": { "ready": true }, "nodeName": "n",
                    "targetRef": { "kind": "Pod", "name": "p", "uid": "u" },
                }],
            }),
        ),
        (Resource::Leases, json!({ "spec": { "holderIdentity": "a", "leaseDurationSeconds": 5, "renewTime": at } })),
        (Resource::TrafficSplits, mk_split([1, 0])),
    ]
}

#[test]
fn a_patch_that_changes_nothing_is_no_write_for_any_kind_in_any_version() {
    let samples = mk_samples();
    assert_eq!(samples.len(), Resource::ALL.len());
    for (resource, mut sample) in samples {
        let mut registry = mk_registry();
        sample["metadata"]["name"] = "web".into();
        registry.create(target(resource, ""), sample, Part::Whole, NOW).unwrap();
        let revision = registry.store().revision();
        for served in resource.row().served {
            let versioned = Target { served: *served, ..target(resource, "web") };
            let patched = registry.patch(versioned, PatchFormat::Merge, b"{}", Part::Main, NOW).unwrap();
            let same = registry.replace(versioned, patched.clone(), Part::Main, NOW).unwrap();
            assert_eq!(patched, same);
            assert_eq!(registry.store().revision(), revision, "{resource:?} {served:?}");
        }
    }
}

/// Puts a random value at a random place of the object.
fn mutate(random: &mut SmallRng, value: &mut Value) {
    let inside = match value {
        Value::Object(fields) if !fields.is_empty() => fields.len(),
        Value::Array(items) if !items.is_empty() => items.len(),
        _ => 0,
    };
    if inside == 0 || random.random_ratio(1, 6) {
        let values = [json!(null), json!(-1), json!(1e300), json!(""), json!("x"), json!([]), json!([null]), json!({})];
        *value = values[random.random_range(0..values.len())].clone();
        return;
    }
    let chosen = random.random_range(0..inside);
    let child = match value {
        Value::Object(fields) => fields.values_mut().nth(chosen),
        Value::Array(items) => items.get_mut(chosen),
        _ => None,
    };
    mutate(random, child.expect("the place was chosen among those that exist"));
}

#[test]
fn no_object_however_broken_breaks_the_registry() {
    let seed = 20_261_122;
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut taken, mut refused) = (0, 0);
    for round in 0..300 {
        for (resource, mut sample) in mk_samples() {
            let mut registry = mk_registry();
            sample["metadata"]["name"] = "web".into();
            let created = registry.create(target(resource, ""), sample, Part::Whole, NOW).unwrap();
            let mut broken = created.clone();
            for _ in 0..random.random_range(1..4) {
                mutate(&mut random, &mut broken);
            }
            let outcomes = [
                registry.patch(
                    target(resource, "web"),
                    PatchFormat::Merge,
                    broken.to_string().as_bytes(),
                    Part::Main,
                    NOW,
                ),
                registry.replace(target(resource, "web"), broken.clone(), Part::Whole, NOW),
                registry.replace(target(resource, "web"), broken.clone(), Part::Status, NOW),
                registry.create(target(resource, ""), broken, Part::Whole, NOW),
            ];
            for outcome in outcomes {
                match outcome {
                    Ok(_) => taken += 1,
                    Err(status) if (400..500).contains(&status.code()) => refused += 1,
                    Err(status) => panic!("seed {seed} round {round} {resource:?}: {status}"),
                }
            }
            // What was taken can be read in every version, and the object keeps its identity.
            for served in resource.row().served {
                let read = registry.get(Target { served: *served, ..target(resource, "web") }).unwrap();
                assert_eq!(read["metadata"]["uid"], created["metadata"]["uid"], "seed {seed} round {round}");
            }
        }
    }
    assert!(taken > 500 && refused > 500, "the mutations reach both sides: {taken} taken, {refused} refused");
}
