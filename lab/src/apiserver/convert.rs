//! Between the version that a client speaks and the version that is stored. Pure.
//!
//! TrafficSplits keep their content and change only `apiVersion`, as their definition says; Events change their field
//! names.

use serde_json::Value;

use super::admit::event;
use super::resources::{Resource, Served};

/// Rewrites a served object to the stored version.
pub(crate) fn to_stored(resource: Resource, served: Served, mut object: Value) -> Value {
    if resource == Resource::Events && served != resource.stored() {
        event::to_core(&mut object);
    }
    object["apiVersion"] = resource.stored().api_version().into();
    object
}

/// The stored field behind a field label of the served version, if the kind supports it.
pub(crate) fn field_of(resource: Resource, served: Served, label: &str) -> Option<String> {
    let field = if resource == Resource::Events && served != resource.stored() {
        event::core_field(label)
    } else {
        label.to_owned()
    };
    resource.row().fields.contains(&field.as_str()).then_some(field)
}

/// Rewrites a stored object to the version that was asked for.
pub(crate) fn to_served(resource: Resource, served: Served, mut object: Value) -> Value {
    if resource == Resource::Events && served != resource.stored() {
        event::from_core(&mut object);
    }
    object["apiVersion"] = served.api_version().into();
    object
}
