//! The CRD: whether Kubernetes takes it as structural, and whether it takes what it should, as the embedded API server does,
//! which follows linkerd-smi's.

use std::path::Path;

use serde_json::{Value, json};

use crate::bench::Bench;
use crate::documents::{Documents, cannot_render, deploy};

const VERSIONS: [&str; 2] = ["v1alpha1", "v1alpha2"];

fn crd() -> Value {
    let mut documents = Documents::of("crd").0;
    assert_eq!(documents.len(), 1);
    documents.remove(0)
}

fn schema_of<'a>(crd: &'a Value, version: &str) -> &'a Value {
    let versions = crd["spec"]["versions"].as_array().unwrap();
    let found = versions.iter().find(|one| one["name"] == version).unwrap();
    &found["schema"]["openAPIV3Schema"]
}

/// What is wrong with a value, by path. Knows what our schemas use, and refuses to judge by anything else.
fn faults(schema: &Value, value: &Value, path: &str) -> Vec<String> {
    for key in schema.as_object().unwrap().keys() {
        let known = ["type", "description", "properties", "required", "items", "x-kubernetes-int-or-string"];
        assert!(known.contains(&key.as_str()), "this test knows no {key}");
    }
    let fits = match schema["type"].as_str() {
        None => schema["x-kubernetes-int-or-string"] == true && (value.is_string() || value.is_i64()),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some(other) => panic!("this test knows no type {other}"),
    };
    if !fits {
        return vec![format!("{path}: wrong type")];
    }
    let mut found = Vec::new();
    for field in schema["required"].as_array().into_iter().flatten() {
        if value.get(field.as_str().unwrap()).is_none() {
            found.push(format!("{path}.{}: required", field.as_str().unwrap()));
        }
    }
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        found.extend(value.get(field).into_iter().flat_map(|value| faults(schema, value, &format!("{path}.{field}"))));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        found.extend(faults(&schema["items"], item, &format!("{path}[{index}]")));
    }
    found
}

/// A structural schema states the type of everything, at every level.
fn check_structural(schema: &Value, path: &str) {
    let is_either = schema["x-kubernetes-int-or-string"] == true;
    assert_ne!(schema["type"].is_string(), is_either, "{path}: a type, or an integer or a text");
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        check_structural(schema, &format!("{path}.{field}"));
    }
    assert_eq!(schema["type"] == "array", schema["items"].is_object(), "{path}: an array has items");
    if schema["items"].is_object() {
        check_structural(&schema["items"], &format!("{path}[]"));
    }
    for field in schema["required"].as_array().into_iter().flatten() {
        assert!(schema["properties"][field.as_str().unwrap()].is_object(), "{path}: {field} is required and unknown");
    }
}

#[test]
fn the_crd_is_the_one_that_linkerd_smi_serves() {
    if cannot_render() {
        return;
    }
    let crd = crd();
    let spec = &crd["spec"];
    assert_eq!(crd["metadata"]["name"], "trafficsplits.split.smi-spec.io");
    assert_eq!((&spec["group"], &spec["scope"]), (&json!("split.smi-spec.io"), &json!("Namespaced")));
    assert_eq!(spec["names"]["kind"], "TrafficSplit");
    assert_eq!(spec["names"]["shortNames"], json!(["ts"]));
    assert_eq!(spec["conversion"]["strategy"], "None");
    let shape: Vec<_> = spec["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["served"] == true, one["storage"] == true))
        .collect();
    assert_eq!(shape, [("v1alpha1", true, true), ("v1alpha2", true, false)]);
    for version in VERSIONS {
        let schema = schema_of(&crd, version);
        assert_eq!(schema["type"], "object");
        check_structural(schema, version);
    }
    for one in spec["versions"].as_array().unwrap() {
        assert!(one["subresources"].is_null());
        let columns = one["additionalPrinterColumns"].as_array().unwrap();
        let shown: Vec<_> = columns.iter().map(|column| (&column["name"], &column["jsonPath"])).collect();
        assert_eq!(shown, [(&json!("Service"), &json!(".spec.service"))]);
    }
}

#[tokio::test]
async fn the_crd_judges_as_the_api_server_of_the_drills_does() {
    if cannot_render() {
        return;
    }
    let crd = crd();
    let bench = Bench::new().await;
    bench.namespace("demo");
    let backends = |weight: Value| json!({"service": "web", "backends": [{"service": "web", "weight": weight}]});
    let specs = [
        backends(json!(1)),
        backends(json!(0)),
        backends(json!(-1)),
        backends(json!(0.5)),
        backends(json!("900m")),
        backends(json!("abc")),
        backends(json!(true)),
        backends(Value::Array(Vec::new())),
        json!({"service": "web", "backends": []}),
        json!({"service": "web", "backends": [{"service": "web"}]}),
        json!({"service": "web", "backends": [{"weight": 1}]}),
        json!({"service": "web", "backends": {"service": "web", "weight": 1}}),
        json!({"service": 1, "backends": []}),
        json!({"backends": []}),
        json!({"service": "web"}),
    ];
    let mut taken = 0;
    for version in VERSIONS {
        for (number, spec) in specs.iter().enumerate() {
            let split = json!({"apiVersion": format!("split.smi-spec.io/{version}"), "kind": "TrafficSplit",
                "metadata": {"name": format!("{version}-{number}"), "namespace": "demo"}, "spec": spec});
            let found = faults(schema_of(&crd, version), &split, "");
            let answer = bench.server.create(split);
            assert_eq!(found.is_empty(), answer.is_ok(), "{version} {spec}: {found:?}, {answer:?}");
            taken += usize::from(answer.is_ok());
        }
    }
    assert!((8..22).contains(&taken), "{taken} of 30 were taken: some have to be, and some must not");
}

#[test]
fn the_crd_takes_the_examples() {
    if cannot_render() {
        return;
    }
    let crd = crd();
    for folder in ["examples/workshop", "examples/workshop-mirrored"] {
        let documents = Documents::of(folder);
        let split = documents.find("TrafficSplit", "emoji-svc").unwrap();
        let (group, version) = split["apiVersion"].as_str().unwrap().split_once('/').unwrap();
        assert_eq!(group, crd["spec"]["group"]);
        assert_eq!(faults(schema_of(&crd, version), split, ""), Vec::<String>::new());
        for version in VERSIONS {
            assert_eq!(faults(schema_of(&crd, version), split, ""), Vec::<String>::new(), "{version}");
        }
    }
}

#[test]
fn every_folder_with_a_kustomization_is_tested() {
    let mut found = Vec::new();
    collect(&deploy(), &mut found);
    let mut known: Vec<String> = crate::documents::FOLDERS.map(str::to_owned).to_vec();
    // Parts of overlays: they make no sense by themselves.
    known.extend(
        ["components/agent-seccomp-unconfined", "components/agents-without-tls", "components/enforce"]
            .map(str::to_owned),
    );
    known.sort();
    found.sort();
    assert_eq!(found, known);
}

fn collect(folder: &Path, into: &mut Vec<String>) {
    if folder.join("kustomization.yaml").is_file() {
        into.push(folder.strip_prefix(deploy()).unwrap().to_str().unwrap().to_owned());
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        }
    }
}
