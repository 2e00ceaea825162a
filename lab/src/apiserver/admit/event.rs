//! Events, which Kubernetes serves under two names with one store: an Event of one group comes in, the same Event in
//! the other group's words or what is wrong with it goes out. Pure.
//!
//! The rules are those of `pkg/apis/core/validation/events.go`: lenient for core/v1, strict for events.k8s.io/v1. A
//! controller whose Events pass here does not lose them in a real cluster.

use serde_json::Value;

use super::name::is_qualified;
use crate::apiserver::object::{meta, text};
use crate::apiserver::resources::Served;
use crate::apiserver::status::FieldError;

/// Limits of `ReportingInstanceLengthLimit`, `ActionLengthLimit`, `ReasonLengthLimit` and `NoteLengthLimit`.
const TEXT_LIMITS: [(&str, usize, bool); 4] =
    [("reportingInstance", 128, true), ("action", 128, true), ("reason", 128, true), ("message", 1024, false)];

/// Field names of core/v1 and of events.k8s.io/v1 that hold the same thing.
const TWINS: [(&str, &str); 7] = [
    ("message", "note"),
    ("involvedObject", "regarding"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// Fields that an update through events.k8s.io/v1 may not change; of the content that leaves `series`.
const IMMUTABLE: [&str; 13] = [
    "involvedObject",
    "reason",
    "message",
    "source",
    "firstTimestamp",
    "lastTimestamp",
    "count",
    "type",
    "eventTime",
    "action",
    "related",
    "reportingComponent",
    "reportingInstance",
];

/// Rewrites an Event from events.k8s.io/v1 to core/v1, the form in which it is stored.
pub(crate) fn to_core(event: &mut Value) {
    for (core, events) in TWINS {
        rename(event, events, core);
    }
}

/// Rewrites an Event from core/v1 to events.k8s.io/v1.
pub(crate) fn from_core(event: &mut Value) {
    for (core, events) in TWINS {
        rename(event, core, events);
    }
}

/// The core field behind a field label of events.k8s.io/v1: `regarding.name` selects `involvedObject.name`.
pub(crate) fn core_field(label: &str) -> String {
    let (first, rest) = label.split_once('.').map_or((label, ""), |(first, rest)| (first, rest));
    let twin = TWINS.iter().find(|(_, events)| *events == first).map_or(first, |(core, _)| core);
    if rest.is_empty() { twin.to_owned() } else { format!("{twin}.{rest}") }
}

fn rename(event: &mut Value, from: &str, to: &str) {
    if let Some(fields) = event.as_object_mut()
        && let Some(value) = fields.remove(from)
    {
        fields.insert(to.to_owned(), value);
    }
}

/// Checks an Event of either version. Field names in errors are core's, as the real server's are.
pub(super) fn check(served: Served, event: &Value, before: Option<&Value>, errors: &mut Vec<FieldError>) {
    let strict = !served.group.is_empty();
    let mut event = event.clone();
    if strict {
        to_core(&mut event);
    }
    check_legacy(&event, errors);
    if !strict {
        return;
    }
    check_series(&event, errors);
    match before {
        None => check_new(&event, errors),
        Some(before) => {
            let mut before = before.clone();
            to_core(&mut before);
            for field in IMMUTABLE.into_iter().filter(|field| event.get(field) != before.get(field)) {
                errors.push(FieldError::invalid(field, text(&event, &format!("/{field}")), "field is immutable"));
            }
        }
    }
}

fn check_legacy(event: &Value, errors: &mut Vec<FieldError>) {
    let namespace = meta(event, "namespace");
    let involved = text(event, "/involvedObject/namespace");
    let is_new = event.get("eventTime").is_some_and(Value::is_string);
    let agrees = match (involved.is_empty(), is_new) {
        (true, true) => namespace == "default" || namespace == "kube-system",
        (true, false) => namespace.is_empty() || namespace == "default",
        // An Event with eventTime may live elsewhere than its object.
        (false, true) => true,
        (false, false) => namespace == involved,
    };
    if !agrees {
        errors.push(FieldError::invalid("involvedObject.namespace", involved, "does not match event.namespace"));
    }
    if is_new {
        check_reporter(event, errors);
    }
}

fn check_reporter(event: &Value, errors: &mut Vec<FieldError>) {
    let controller = text(event, "/reportingComponent");
    if controller.is_empty() {
        errors.push(FieldError::required("reportingController", ""));
    } else if !is_qualified(controller) {
        let detail = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
                      an alphanumeric character";
        errors.push(FieldError::invalid("reportingController", controller, detail));
    }
    for (field, limit, required) in TEXT_LIMITS {
        let value = text(event, &format!("/{field}"));
        if value.is_empty() && required {
            errors.push(FieldError::required(field, ""));
        } else if value.len() > limit {
            errors.push(FieldError::invalid(field, "", &format!("can have at most {limit} characters")));
        }
    }
}

fn check_series(event: &Value, errors: &mut Vec<FieldError>) {
    let Some(series) = event.get("series").filter(|series| series.is_object()) else { return };
    if series["count"].as_i64().unwrap_or(0) < 2 {
        errors.push(FieldError::invalid("series.count", "", "should be at least 2"));
    }
    if !series["lastObservedTime"].is_string() {
        errors.push(FieldError::required("series.lastObservedTime", ""));
    }
}

fn check_new(event: &Value, errors: &mut Vec<FieldError>) {
    if !event.get("eventTime").is_some_and(Value::is_string) {
        errors.push(FieldError::required("eventTime", ""));
    }
    let kind = text(event, "/type");
    if kind != "Normal" && kind != "Warning" {
        errors.push(FieldError::invalid("type", "", &format!("has invalid value: {kind}")));
    }
    for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        let value = event.get(field);
        let is_unset = value.is_none_or(|value| value.is_null() || value == 0 || *value == serde_json::json!({}));
        if !is_unset {
            errors.push(FieldError::invalid(field, "", "needs to be unset"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::resources::Resource;

    fn mk_event() -> Value {
        json!({
            "metadata": { "name": "e", "namespace": "ns" }, "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "splitsecond", "reportingInstance": "splitsecond-0", "action": "Failover",
            "reason": "Failover", "type": "Normal", "note": "n",
            "regarding": { "kind": "TrafficSplit", "namespace": "ns", "name": "web" },
        })
    }

    #[track_caller]
    fn check_one(change: impl FnOnce(&mut Value), wrong: &[&str]) {
        let (_, served) = Resource::of_path("events.k8s.io", "v1", "events").unwrap();
        let mut event = mk_event();
        change(&mut event);
        let mut errors = Vec::new();
        check(served, &event, None, &mut errors);
        let fields: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(fields.len(), wrong.len(), "{fields:?}");
        for (found, wanted) in fields.iter().zip(wrong) {
            assert!(found.starts_with(wanted), "{found} should name {wanted}");
        }
    }

    #[test]
    fn events_are_as_strict_as_the_real_servers() {
        check_one(|_| {}, &[]);
        check_one(|event| event["action"] = "".into(), &["action: Required"]);
        check_one(|event| event["type"] = "Error".into(), &["type: "]);
        check_one(|event| event["note"] = "n".repeat(1025).into(), &["message: "]);
        check_one(|event| event["reportingController"] = "a b".into(), &["reportingController: "]);
        check_one(|event| event["deprecatedCount"] = 3.into(), &["count: "]);
        check_one(|event| event["regarding"]["namespace"] = "".into(), &["involvedObject.namespace: "]);
        check_one(|event| event["series"] = json!({ "count": 1 }), &["series.count", "series.lastObservedTime"]);
    }

    #[test]
    fn the_two_groups_are_one_event_in_two_sets_of_words() {
        let mut event = mk_event();
        to_core(&mut event);
        assert_eq!(event["message"], "n");
        assert_eq!(event["involvedObject"]["name"], "web");
        assert_eq!(event["reportingComponent"], "splitsecond");
        from_core(&mut event);
        assert_eq!(event, mk_event());
    }
}
