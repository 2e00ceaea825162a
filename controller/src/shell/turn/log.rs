//! What the loop logs. Out: one line for each of the core's transitions and for each change of the findings. The core itself
//! logs nothing, so that it stays the same in a replay.

use controller_core::facts::ObjectId;
use controller_core::output::{Transition, TransitionKind};

use crate::findings::{Finding, News, Subject};
use crate::state::json::{cause_name, kind_name};
use crate::write::counters::direction_name;

/// A fault of an object is there, or mended.
pub(super) fn finding(news: &News) {
    let (Finding { subject, kind, text }, is_found) = match news {
        News::Found(finding) => (finding, true),
        News::Mended(finding) => (finding, false),
    };
    let reason = kind.as_str();
    match (subject, is_found) {
        (Subject::Split(ObjectId { namespace, name: split }), true) => {
            tracing::warn!(namespace, split, reason, error = text, "TrafficSplit has a fault");
        }
        (Subject::Split(ObjectId { namespace, name: split }), false) => {
            tracing::info!(namespace, split, reason, error = text, "TrafficSplit's fault is mended");
        }
        (Subject::Slice { slice: ObjectId { namespace, name: slice }, service }, true) => {
            tracing::warn!(namespace, service, slice, reason, error = text, "EndpointSlice has a fault");
        }
        (Subject::Slice { slice: ObjectId { namespace, name: slice }, service }, false) => {
            tracing::info!(namespace, service, slice, reason, error = text, "EndpointSlice's fault is mended");
        }
    }
}

/// Something happened to a split, a backend or an agent.
pub(super) fn transition(transition: &Transition) {
    let namespace = transition.split.as_ref().map(|split| split.namespace.as_str());
    let split = transition.split.as_ref().map(|split| split.name.as_str());
    let kind = kind_name(&transition.kind);
    match &transition.kind {
        TransitionKind::Reported { backend, node, destination, .. } => {
            tracing::debug!(namespace, split, backend, node, %destination, kind, "Failures were reported");
        }
        TransitionKind::Suspect { backend } | TransitionKind::Cleared { backend } => {
            tracing::info!(namespace, split, backend, kind, "Backend changed");
        }
        TransitionKind::Condemned { backend, grounds, .. } => {
            tracing::info!(namespace, split, backend, kind, reason = grounds.as_str(), "Backend changed");
        }
        TransitionKind::Disbelieved { node, address } => {
            tracing::warn!(node, destination = %address, kind, "Agent spoke for an endpoint of another node");
        }
        TransitionKind::Held { backend, guard } => {
            tracing::info!(namespace, split, backend, kind, reason = guard.as_str(), "Traffic is held where it is");
        }
        TransitionKind::Decided { write, direction, cause } => {
            let (direction, cause) = (direction_name(*direction), cause_name(*cause));
            tracing::info!(namespace, split, write = write.0, direction, cause, kind, "Write was decided");
        }
        TransitionKind::Acknowledged { write, direction } => {
            let direction = direction_name(*direction);
            tracing::debug!(namespace, split, write = write.0, direction, kind, "Write was acknowledged");
        }
        TransitionKind::NotApplied { write, error } => {
            tracing::warn!(namespace, split, write = write.0, kind, error, "Write was not applied");
        }
        TransitionKind::Agent { node, freshness } => {
            tracing::info!(node, freshness = freshness.as_str(), kind, "Agent changed");
        }
    }
}
