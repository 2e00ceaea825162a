//! A TrafficSplit as the API server gives it -> what the core wants to know of it. Pure.
//!
//! In: an undecoded object and the wall clock. Out: [`SplitFacts`], or one sentence that names the field.
//! Objects come undecoded because a typed list fails as a whole when one weight of one object is odd: here only that object
//! does. Deliberately no judgement of the weights themselves.

use std::collections::BTreeSet;

use controller_core::facts::{BackendFacts, ObjectId, SplitFacts};
use controller_core::weights::Weight;
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::Value;

use super::revision;
use crate::record;

/// Names the primary backend; kept from linkerd-failover.
const PRIMARY_ANNOTATION: &str = "failover.linkerd.io/primary-service";

/// Names the one port whose failure moves the split.
const PORT_ANNOTATION: &str = "splitsecond.dev/port";

/// Lets the one node of a cluster decide alone.
const SINGLE_NODE_ANNOTATION: &str = "splitsecond.dev/single-node";

/// Lets agents check also ports whose servers take offence at connections that say nothing.
const CHECKS_ANNOTATION: &str = "splitsecond.dev/checks";

/// The most backends that are taken: weights are at most a million each, so sums stay far from overflow, and one object
/// cannot make every agent watch the whole cluster.
const BACKENDS_LIMIT: usize = 1_000;

/// The object's name, or `None` for one without: no server sends that.
pub(super) fn id(object: &DynamicObject) -> Option<ObjectId> {
    let metadata = &object.metadata;
    Some(ObjectId::new(metadata.namespace.clone()?, metadata.name.clone()?))
}

/// What the object says, as observed at `wall` in the era `era` of the server's versions (see [`revision`]).
///
/// # Errors
///
/// What is wrong with it, for an Event on that object.
pub(super) fn facts(object: &DynamicObject, era: u64, wall: Timestamp) -> Result<SplitFacts, String> {
    let metadata = &object.metadata;
    let spec = object.data.get("spec").unwrap_or(&Value::Null);
    let backends = backends(spec)?;
    let annotation = |key: &str| metadata.annotations.as_ref().and_then(|annotations| annotations.get(key));
    let primary = annotation(PRIMARY_ANNOTATION).cloned();
    if let Some(primary) = &primary
        && !backends.iter().any(|backend| backend.service == *primary)
    {
        return Err(format!("annotation {PRIMARY_ANNOTATION} names {primary:?}, which is no backend"));
    }
    let port = annotation(PORT_ANNOTATION).map(|text| port(text)).transpose()?;
    let allows = |key: &str| annotation(key).map_or(Ok(false), |text| allowed(key, text));
    // An unreadable record holds the split instead of counting as none: without it nobody knows the weights to go back to,
    // and in a rolling update it may be a newer replica's, which can read it and goes on driving.
    let record = annotation(record::ANNOTATION).map(|text| {
        record::parse(text, wall).map_err(|error| {
            format!(
                "annotation {} cannot be read ({error}): remove it to start from the present weights",
                record::ANNOTATION
            )
        })
    });
    Ok(SplitFacts {
        uid: metadata.uid.clone().ok_or("metadata.uid is missing")?,
        resource_version: metadata
            .resource_version
            .as_deref()
            .map(|version| revision::ordered(era, version))
            .ok_or("metadata.resourceVersion is missing")?,
        generation: metadata.generation.unwrap_or(0),
        service: text(spec.get("service"), "spec.service")?,
        backends,
        primary,
        port,
        single_node: allows(SINGLE_NODE_ANNOTATION)?,
        check_all_ports: allows(CHECKS_ANNOTATION)?,
        record: record.transpose()?,
    })
}

fn backends(spec: &Value) -> Result<Vec<BackendFacts>, String> {
    let list = match spec.get("backends") {
        Some(Value::Array(list)) if list.is_empty() => return Err("spec.backends is empty".to_owned()),
        Some(Value::Array(list)) if list.len() > BACKENDS_LIMIT => {
            return Err(format!("spec.backends has {} entries, the limit is {BACKENDS_LIMIT}", list.len()));
        }
        Some(Value::Array(list)) => list,
        None => return Err("spec.backends is missing".to_owned()),
        Some(_) => return Err("spec.backends is not a list".to_owned()),
    };
    let mut seen = BTreeSet::new();
    let mut backends = Vec::with_capacity(list.len());
    for (index, backend) in list.iter().enumerate() {
        let service = text(backend.get("service"), &format!("spec.backends[{index}].service"))?;
        if !seen.insert(service.clone()) {
            return Err(format!("spec.backends[{index}].service {service:?} is named twice"));
        }
        let weight = weight(backend.get("weight"), &format!("spec.backends[{index}].weight"))?;
        backends.push(BackendFacts { service, weight });
    }
    Ok(backends)
}

/// A number, or a text such as `"900m"`: the CRD's v1alpha1 takes both, and its v1alpha2 shows objects stored by v1alpha1
/// unconverted.
fn weight(value: Option<&Value>, field: &str) -> Result<Weight, String> {
    let text = match value {
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => return Err(format!("{field} is missing")),
        Some(other) => return Err(format!("{field} {other} is neither a number nor a text")),
    };
    Weight::parse(&text).map_err(|error| format!("{field} {:?} {error}", text))
}

fn text(value: Option<&Value>, field: &str) -> Result<String, String> {
    match value {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        None | Some(Value::Null) => Err(format!("{field} is missing")),
        Some(Value::String(_)) => Err(format!("{field} is empty")),
        Some(other) => Err(format!("{field} {other} is not a text")),
    }
}

fn allowed(key: &str, text: &str) -> Result<bool, String> {
    if text == "allow" { Ok(true) } else { Err(format!("annotation {key} {text:?} is not \"allow\", its only value")) }
}

fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("annotation {PORT_ANNOTATION} {text:?} is not a port number"))
}

#[cfg(test)]
mod tests;
