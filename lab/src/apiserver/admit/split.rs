//! TrafficSplits as linkerd-smi's CustomResourceDefinition has them: an object comes in, the object without unknown
//! fields or what is wrong with it goes out. Pure.
//!
//! The two versions share their content (conversion `None`) and differ in one rule: v1alpha1 takes a weight that is
//! an integer or a text, v1alpha2 any number. A weight that no controller can use, such as `"abc"`, is valid to the
//! schema and stored, as in a real cluster.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};

use crate::apiserver::resources::Served;
use crate::apiserver::status::FieldError;

/// Drops the fields that the schema does not have. `linkerd-failover` for one sends a stray top-level `name`.
pub(super) fn prune(mut object: Value) -> Result<Value, serde_json::Error> {
    if let Some(fields) = object.as_object_mut() {
        keep(fields, &["apiVersion", "kind", "metadata", "spec"]);
        let metadata: ObjectMeta = match fields.remove("metadata") {
            None | Some(Value::Null) => ObjectMeta::default(),
            Some(metadata) => serde_json::from_value(metadata)?,
        };
        fields.insert("metadata".to_owned(), serde_json::to_value(metadata)?);
    }
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        keep(spec, &["service", "backends"]);
        for backend in spec.get_mut("backends").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(backend) = backend.as_object_mut() {
                keep(backend, &["service", "weight"]);
            }
        }
    }
    Ok(object)
}

fn keep(fields: &mut Map<String, Value>, known: &[&str]) {
    fields.retain(|field, _| known.contains(&field.as_str()));
}

/// Checks the content against the schema of the version that it was written through. What a write leaves as it was is
/// not checked again: API servers ratchet so since 1.30, and without it no annotation could be put on a split whose
/// weight is a text, through v1alpha2.
pub(super) fn check(served: Served, object: &Value, before: Option<&Value>, errors: &mut Vec<FieldError>) {
    let Some(spec) = object.get("spec") else { return };
    let earlier = before.and_then(|before| before.get("spec"));
    if earlier == Some(spec) {
        return;
    }
    let Some(fields) = spec.as_object() else {
        errors.push(FieldError::type_of("spec", "object", spec));
        return;
    };
    check_text(fields, "spec", "service", errors);
    match fields.get("backends") {
        Some(backends) if earlier.and_then(|earlier| earlier.get("backends")) == Some(backends) => {}
        None => errors.push(FieldError::required("spec.backends", "")),
        Some(Value::Array(backends)) => {
            for (index, backend) in backends.iter().enumerate() {
                check_backend(served, backend, &format!("spec.backends[{index}]"), errors);
            }
        }
        Some(other) => errors.push(FieldError::type_of("spec.backends", "array", other)),
    }
}

fn check_backend(served: Served, backend: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(fields) = backend.as_object() else {
        errors.push(FieldError::type_of(path, "object", backend));
        return;
    };
    check_text(fields, path, "service", errors);
    let field = format!("{path}.weight");
    let Some(weight) = fields.get("weight") else {
        errors.push(FieldError::required(field, ""));
        return;
    };
    let (fits, wanted) = if served.version == "v1alpha1" {
        // A number with no fraction is an integer to the schema, also when it is written as 1.0.
        let whole = weight.as_f64().is_some_and(|weight| weight.fract() == 0.0);
        (whole || weight.is_string(), "integer,string")
    } else {
        (weight.is_number(), "number")
    };
    if !fits {
        errors.push(FieldError::type_of(field, wanted, weight));
    }
}

fn check_text(fields: &Map<String, Value>, path: &str, field: &str, errors: &mut Vec<FieldError>) {
    match fields.get(field) {
        None => errors.push(FieldError::required(format!("{path}.{field}"), "")),
        Some(Value::String(_)) => {}
        Some(other) => errors.push(FieldError::type_of(format!("{path}.{field}"), "string", other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::resources::Resource;

    #[track_caller]
    fn check_weight(version: &str, weight: &Value, valid: bool) {
        let (_, served) = Resource::of_path("split.smi-spec.io", version, "trafficsplits").unwrap();
        let split = json!({ "spec": { "service": "web", "backends": [{ "service": "web", "weight": weight }] } });
        let mut errors = Vec::new();
        check(served, &split, None, &mut errors);
        assert_eq!(errors.is_empty(), valid, "{version} {weight} {errors:?}");
        if let Some(error) = errors.first() {
            assert!(error.to_string().starts_with("spec.backends[0].weight: "), "{error}");
        }
    }

    #[test]
    fn each_version_takes_its_own_weights() {
        for (weight, alpha1, alpha2) in [
            (json!(1), true, true),
            (json!(-1), true, true),
            (json!("900m"), true, false),
            (json!("abc"), true, false),
            (json!(0.5), false, true),
            (json!(true), false, false),
        ] {
            check_weight("v1alpha1", &weight, alpha1);
            check_weight("v1alpha2", &weight, alpha2);
        }
    }

    #[test]
    fn required_fields_are_named() {
        let served = Resource::TrafficSplits.stored();
        let mut errors = Vec::new();
        check(served, &json!({ "spec": { "backends": [{}] } }), None, &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.service: Required value",
                "spec.backends[0].service: Required value",
                "spec.backends[0].weight: Required value",
            ]
        );
    }
}
