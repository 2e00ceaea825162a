//! The columns of Events. Pure. An Event of events.k8s.io has no first and last time of its own; its series or its
//! eventTime stand in.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{Column, age, column, wide};
use crate::apiserver::object::{meta, text};

pub(super) const EVENT: &[Column] = &[
    column("Last Seen", |event, now| last_seen(event, now).into()),
    column("Type", |event, _| text(event, "/type").into()),
    column("Reason", |event, _| text(event, "/reason").into()),
    column("Object", |event, _| {
        let (kind, name) = (text(event, "/involvedObject/kind"), text(event, "/involvedObject/name"));
        format!("{}/{name}", kind.to_lowercase()).into()
    }),
    wide("Subobject", |event, _| text(event, "/involvedObject/fieldPath").into()),
    wide("Source", |event, _| source(event).into()),
    column("Message", |event, _| text(event, "/message").trim().into()),
    wide("First Seen", |event, now| first_seen(event, now).into()),
    wide("Count", |event, _| count(event).into()),
    wide("Name", |event, _| meta(event, "name").into()),
];

fn first_seen(event: &Value, now: Timestamp) -> String {
    let first = text(event, "/firstTimestamp");
    age::since(if first.is_empty() { text(event, "/eventTime") } else { first }, now)
}

fn last_seen(event: &Value, now: Timestamp) -> String {
    let series = text(event, "/series/lastObservedTime");
    let last = if series.is_empty() { text(event, "/lastTimestamp") } else { series };
    if last.is_empty() { first_seen(event, now) } else { age::since(last, now) }
}

fn count(event: &Value) -> i64 {
    let series = event.pointer("/series/count").and_then(Value::as_i64);
    series.or_else(|| event["count"].as_i64()).unwrap_or(1).max(1)
}

fn source(event: &Value) -> String {
    let (component, host) = (text(event, "/source/component"), text(event, "/source/host"));
    let (component, instance) = if component.is_empty() {
        (text(event, "/reportingComponent"), text(event, "/reportingInstance"))
    } else {
        (component, host)
    };
    if instance.is_empty() { component.to_owned() } else { format!("{component}, {instance}") }
}
