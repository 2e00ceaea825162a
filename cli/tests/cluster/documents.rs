//! What is shipped, as `kubectl kustomize` renders it: documents by kind and name, each known to Kubernetes in every field.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Every folder that is applied by itself.
pub(crate) const FOLDERS: [&str; 6] = [
    "base",
    "crd",
    "overlays/enforce",
    "overlays/enforce-without-tls",
    "examples/workshop",
    "examples/workshop-mirrored",
];

/// Those with the whole of Splitsecond in it.
pub(crate) const INSTALLS: [&str; 3] = ["base", "overlays/enforce", "overlays/enforce-without-tls"];

/// The documents of one folder.
pub(crate) struct Documents(pub(crate) Vec<Value>);

/// `deploy/`.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy")
}

/// Whether this machine has no kubectl, and so nothing to test here; under CI=true that is a failure.
pub(crate) fn cannot_render() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let is_missing = Command::new("kubectl").args(["version", "--client"]).output().is_err();
        let is_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!(is_missing && is_ci), "kubectl is missing: `cargo xtask test` installs it");
        if is_missing {
            eprintln!("left out: there is no kubectl on PATH");
        }
        is_missing
    })
}

impl Documents {
    /// What `kubectl kustomize` makes of a folder of `deploy/`.
    pub(crate) fn of(folder: &str) -> Self {
        let output = Command::new("kubectl").arg("kustomize").arg(deploy().join(folder)).output();
        let output = output.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{folder}: {stderr}");
        let text = String::from_utf8(output.stdout).unwrap();
        Self(serde_saphyr::from_multiple(&text).unwrap())
    }

    pub(crate) fn all(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |document| document["kind"] == kind)
    }

    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.all(kind).find(|document| document["metadata"]["name"] == name)
    }

    /// The DaemonSet and the Deployment.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(|document| document["spec"]["template"]["spec"].is_object())
    }
}

/// The one container of a workload.
pub(crate) fn container(workload: &Value) -> &Value {
    let containers = workload["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{}", workload["metadata"]["name"]);
    &containers[0]
}

/// The same document after Kubernetes' own types have read and written it: what they do not know is gone.
fn known<T: DeserializeOwned + Serialize>(document: &Value) -> Value {
    let typed: T = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document:#}"));
    serde_json::to_value(typed).unwrap()
}

fn as_known(document: &Value) -> Option<Value> {
    Some(match document["kind"].as_str().unwrap() {
        "Namespace" => known::<Namespace>(document),
        "ResourceQuota" => known::<ResourceQuota>(document),
        "ServiceAccount" => known::<ServiceAccount>(document),
        "Service" => known::<Service>(document),
        "Endpoints" => known::<Endpoints>(document),
        "DaemonSet" => known::<DaemonSet>(document),
        "Deployment" => known::<Deployment>(document),
        "ClusterRole" => known::<ClusterRole>(document),
        "ClusterRoleBinding" => known::<ClusterRoleBinding>(document),
        "NetworkPolicy" => known::<NetworkPolicy>(document),
        "PodDisruptionBudget" => known::<PodDisruptionBudget>(document),
        "CustomResourceDefinition" => known::<CustomResourceDefinition>(document),
        // Held against the CRD in `schema`.
        "TrafficSplit" => return None,
        other => panic!("no test knows documents of kind {other}"),
    })
}

/// Paths of what `kept` lacks or has otherwise.
fn lost(document: &Value, kept: &Value, path: &str, into: &mut Vec<String>) {
    match document {
        Value::Object(fields) => {
            for (field, value) in fields {
                lost(value, &kept[field], &format!("{path}.{field}"), into);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                lost(item, &kept[index], &format!("{path}[{index}]"), into);
            }
        }
        Value::Number(number) if kept.as_f64() == number.as_f64() => {}
        _ if kept == document => {}
        _ => into.push(path.to_owned()),
    }
}

#[test]
fn every_field_of_every_document_is_known_to_kubernetes() {
    if cannot_render() {
        return;
    }
    let mut unknown = Vec::new();
    let mut count = 0;
    for folder in FOLDERS {
        for document in Documents::of(folder).0 {
            count += 1;
            let Some(kept) = as_known(&document) else { continue };
            let name = format!("{folder}: {} {}", document["kind"], document["metadata"]["name"]);
            lost(&document, &kept, &name, &mut unknown);
        }
    }
    assert_eq!(unknown, Vec::<String>::new());
    assert!(count > 40, "only {count} documents were rendered");
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let document = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIp": "None", "ports": [{"port": 80, "target": 1}]}});
    let mut unknown = Vec::new();
    lost(&document, &as_known(&document).unwrap(), "", &mut unknown);
    assert_eq!(unknown, [".spec.clusterIp", ".spec.ports[0].target"]);
}
