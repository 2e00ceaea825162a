//! Printer columns: an object comes in, the cells that `kubectl get` shows go out. Pure; ages are relative to a time
//! that is handed in.
//!
//! Columns and texts follow `pkg/printers/internalversion/printers.go`, so that a reader of the lab reads the same
//! table as in a cluster. TrafficSplits have one column more than linkerd-smi's definition, their weights: those are
//! what a drill is watched for.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::object::{items, meta, text};
use super::resources::Resource;

mod age;
mod event;
mod network;

/// One column: its heading, whether only `-o wide` shows it, and its cell for an object in the stored version.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) wide: bool,
    pub(crate) cell: fn(&Value, Timestamp) -> Value,
}

const fn column(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, wide: false, cell }
}

const fn wide(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, wide: true, cell }
}

const NAME: Column = column("Name", |object, _| meta(object, "name").into());
const AGE: Column = column("Age", |object, now| age::since(meta(object, "creationTimestamp"), now).into());

/// The columns of a kind.
pub(crate) fn columns(resource: Resource) -> &'static [Column] {
    match resource {
        Resource::Namespaces => {
            const { &[NAME, column("Status", |object, _| text(object, "/status/phase").into()), AGE] }
        }
        Resource::Nodes => const { &[NAME, column("Status", node_status), AGE, column("Version", node_version)] },
        Resource::Pods => {
            const {
                &[
                    NAME,
                    column("Ready", pod_ready),
                    column("Status", |object, _| or(text(object, "/status/phase"), "Unknown")),
                    AGE,
                    wide("IP", |object, _| or(text(object, "/status/podIP"), "<none>")),
                    wide("Node", |object, _| or(text(object, "/spec/nodeName"), "<none>")),
                ]
            }
        }
        Resource::Services => network::SERVICE,
        Resource::Endpoints => network::ENDPOINTS,
        Resource::EndpointSlices => network::ENDPOINT_SLICE,
        Resource::Events => event::EVENT,
        Resource::ConfigMaps => const { &[NAME, column("Data", |object, _| count(object, "/data").into()), AGE] },
        Resource::Secrets => {
            const {
                &[
                    NAME,
                    column("Type", |object, _| text(object, "/type").into()),
                    column("Data", |object, _| count(object, "/data").into()),
                    AGE,
                ]
            }
        }
        Resource::ServiceAccounts => {
            const { &[NAME, column("Secrets", |object, _| items(object, "/secrets").len().into()), AGE] }
        }
        Resource::Leases => {
            const { &[NAME, column("Holder", |object, _| text(object, "/spec/holderIdentity").into()), AGE] }
        }
        Resource::TrafficSplits => {
            const {
                &[
                    NAME,
                    column("Service", |object, _| text(object, "/spec/service").into()),
                    column("Weights", split_weights),
                ]
            }
        }
    }
}

/// The `columnDefinitions` of a Table.
pub(crate) fn definitions(resource: Resource) -> Value {
    let definition = |column: &Column| {
        let format = if column.name == "Name" { "name" } else { "" };
        json!({
            "name": column.name, "type": "string", "format": format, "description": column.name,
            "priority": i32::from(column.wide),
        })
    };
    columns(resource).iter().map(definition).collect()
}

/// The cells of one object.
pub(crate) fn cells(resource: Resource, object: &Value, now: Timestamp) -> Value {
    columns(resource).iter().map(|column| (column.cell)(object, now)).collect()
}

fn or(text: &str, absent: &str) -> Value {
    if text.is_empty() { absent.into() } else { text.into() }
}

fn count(object: &Value, pointer: &str) -> usize {
    object.pointer(pointer).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

/// The first three texts joined by commas, and how many more there are.
fn first_three(texts: &[String], none: &str) -> Value {
    match texts.len() {
        0 => none.into(),
        1..=3 => texts.join(",").into(),
        more => format!("{} + {} more...", texts[..3].join(","), more - 3).into(),
    }
}

fn is_true(object: &Value, condition: &str) -> bool {
    let is_wanted = |found: &&Value| found["type"] == condition;
    items(object, "/status/conditions").iter().find(is_wanted).is_some_and(|found| found["status"] == "True")
}

fn node_status(node: &Value, _: Timestamp) -> Value {
    let ready = if is_true(node, "Ready") { "Ready" } else { "NotReady" };
    let suffix = if node["spec"]["unschedulable"] == true { ",SchedulingDisabled" } else { "" };
    format!("{ready}{suffix}").into()
}

fn node_version(node: &Value, _: Timestamp) -> Value {
    text(node, "/status/nodeInfo/kubeletVersion").into()
}

fn pod_ready(pod: &Value, _: Timestamp) -> Value {
    let statuses = items(pod, "/status/containerStatuses");
    let ready = statuses.iter().filter(|status| status["ready"] == true).count();
    format!("{ready}/{}", items(pod, "/spec/containers").len()).into()
}

fn split_weights(split: &Value, _: Timestamp) -> Value {
    let weight = |backend: &Value| match &backend["weight"] {
        Value::String(weight) => format!("{}={weight}", text(backend, "/service")),
        weight => format!("{}={weight}", text(backend, "/service")),
    };
    items(split, "/spec/backends").iter().map(weight).collect::<Vec<_>>().join(",").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_prints_its_name_or_its_message() {
        let now = Timestamp::UNIX_EPOCH;
        for resource in Resource::ALL {
            let object = json!({ "metadata": { "name": "n" } });
            let cells = cells(resource, &object, now);
            assert_eq!(cells.as_array().unwrap().len(), definitions(resource).as_array().unwrap().len());
            assert!(cells.as_array().unwrap().contains(&json!("n")), "{resource:?}: {cells}");
        }
    }

    #[test]
    fn a_split_shows_its_weights_in_order() {
        let split = json!({
            "metadata": { "name": "web" },
            "spec": { "service": "web", "backends": [{ "service": "web", "weight": 0 }, { "service": "west", "weight": "1" }] },
        });
        let shown = cells(Resource::TrafficSplits, &split, Timestamp::UNIX_EPOCH);
        assert_eq!(shown, json!(["web", "web", "web=0,west=1"]));
    }
}
