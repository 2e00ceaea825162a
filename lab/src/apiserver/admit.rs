//! What the server makes of an object before it stores it: a served object comes in, the same object with unknown
//! fields pruned, defaults filled in and its rules checked goes out, or the reason why not.
//!
//! Pure. The rules are those that a client of this project can break; a real API server checks many more. Rules of
//! single kinds that need more than a few lines stand in the files below this one.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event as EventsEvent;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::object::text;
use super::resources::{Resource, Served};
use super::status::{FieldError, Status};

pub(crate) mod event;
mod name;
mod network;
pub(crate) mod service;
mod split;

/// Reads an object as the given version of its kind: fields of wrong types are refused, unknown fields are dropped.
pub(crate) fn decode(resource: Resource, served: Served, mut object: Value) -> Result<Value, Status> {
    let api_version = served.api_version();
    let kind = resource.row().kind;
    let Some(fields) = object.as_object_mut() else {
        return Err(Status::bad_request(format!("{kind} in version \"{api_version}\" is not a JSON object")));
    };
    for (field, wanted) in [("apiVersion", api_version.as_str()), ("kind", kind)] {
        let found = fields.entry(field).or_insert_with(|| wanted.into());
        if found != wanted {
            return Err(Status::bad_request(format!(
                "the {field} in the data ({found}) does not match the expected {field} ({wanted})"
            )));
        }
    }
    let typed = match resource {
        Resource::Namespaces => retype::<Namespace>(object),
        Resource::Nodes => retype::<Node>(object),
        Resource::Pods => retype::<Pod>(object),
        Resource::Services => retype::<Service>(object),
        Resource::Endpoints => retype::<Endpoints>(object),
        Resource::Events if served.group.is_empty() => retype::<Event>(object),
        Resource::Events => retype::<EventsEvent>(object),
        Resource::ConfigMaps => retype::<ConfigMap>(object),
        Resource::Secrets => retype::<Secret>(object),
        Resource::ServiceAccounts => retype::<ServiceAccount>(object),
        Resource::EndpointSlices => retype::<EndpointSlice>(object),
        Resource::Leases => retype::<Lease>(object),
        Resource::TrafficSplits => split::prune(object),
    };
    typed.map_err(|error| {
        Status::bad_request(format!("{kind} in version \"{api_version}\" cannot be handled as a {kind}: {error}"))
    })
}

/// A round trip through the generated type is what a real server's decoder does: types are checked, unknown fields go.
fn retype<T: DeserializeOwned + Serialize>(object: Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(object)?)
}

/// Fills in what Kubernetes fills in when it is absent.
pub(crate) fn default(resource: Resource, object: &mut Value) {
    match resource {
        Resource::Namespaces => default_namespace(object),
        Resource::Services => service::default(object),
        Resource::EndpointSlices => network::default_slice_ports(object),
        Resource::Endpoints => network::default_subset_ports(object),
        Resource::Secrets => {
            if text(object, "/type").is_empty() {
                object["type"] = "Opaque".into();
            }
        }
        Resource::Nodes
        | Resource::Pods
        | Resource::Events
        | Resource::ConfigMaps
        | Resource::ServiceAccounts
        | Resource::Leases
        | Resource::TrafficSplits => {}
    }
}

fn default_namespace(object: &mut Value) {
    object["status"] = json!({ "phase": "Active" });
    object["spec"] = json!({ "finalizers": ["kubernetes"] });
    let name = text(object, "/metadata/name").to_owned();
    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
}

/// Checks an object against the rules of its kind. `before` is the stored object, in the same version, that it
/// replaces.
pub(crate) fn validate(
    resource: Resource,
    served: Served,
    object: &Value,
    before: Option<&Value>,
) -> Result<(), Status> {
    let mut errors = name::check(resource, object);
    match resource {
        Resource::Services => service::check(object, before, &mut errors),
        Resource::EndpointSlices => network::check_slice(object, before, &mut errors),
        Resource::Endpoints => network::check_subsets(object, &mut errors),
        Resource::Leases => check_lease(object, &mut errors),
        Resource::Events => event::check(served, object, before, &mut errors),
        Resource::TrafficSplits => split::check(served, object, before, &mut errors),
        Resource::Namespaces
        | Resource::Nodes
        | Resource::Pods
        | Resource::ConfigMaps
        | Resource::Secrets
        | Resource::ServiceAccounts => {}
    }
    let name = text(object, "/metadata/name");
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(resource, name, errors)) }
}

fn check_lease(object: &Value, errors: &mut Vec<FieldError>) {
    let spec = &object["spec"];
    if let Some(duration_s) = spec["leaseDurationSeconds"].as_i64()
        && duration_s <= 0
    {
        let value = duration_s.to_string();
        errors.push(FieldError::invalid("spec.leaseDurationSeconds", &value, "must be greater than 0"));
    }
    if let Some(transitions) = spec["leaseTransitions"].as_i64()
        && transitions < 0
    {
        let value = transitions.to_string();
        errors.push(FieldError::invalid("spec.leaseTransitions", &value, "must be greater than or equal to 0"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_a_wrong_type_is_refused_and_an_unknown_one_is_dropped() {
        let served = Resource::Services.stored();
        let wrong = json!({ "metadata": { "name": "a" }, "spec": { "ports": "80" } });
        assert_eq!(decode(Resource::Services, served, wrong).unwrap_err().code(), 400);
        let unknown = json!({ "metadata": { "name": "a" }, "spec": { "colour": "red", "clusterIP": "None" } });
        let decoded = decode(Resource::Services, served, unknown).unwrap();
        assert_eq!(decoded["spec"], json!({ "clusterIP": "None" }));
        assert_eq!((&decoded["apiVersion"], &decoded["kind"]), (&json!("v1"), &json!("Service")));
    }

    #[test]
    fn an_object_of_another_kind_is_refused() {
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "a" } });
        assert_eq!(decode(Resource::Services, Resource::Services.stored(), node).unwrap_err().code(), 400);
    }
}
