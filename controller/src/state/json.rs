//! The parts of /state, as JSON. Pure.
//!
//! In: the core's own values. Out: objects with units in their field names. Deliberately no serde on the core's types: the
//! shape of /state is this binary's promise, and a change of it should be seen here.

use std::collections::BTreeMap;
use std::time::Duration;

use controller_core::Time;
use controller_core::config::Mode;
use controller_core::explain::{BackendExplanation, Explanation};
use controller_core::facts::{MoveCause, ObjectId};
use controller_core::output::{Transition, TransitionKind};
use serde_json::{Value, json};

use super::AgentRow;
use crate::findings::Finding;
use crate::write::counters::direction_name;

/// Whole milliseconds.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The mode as its option writes it.
pub(super) const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    }
}

/// A cause's name in logs, metrics and /state.
pub(crate) const fn cause_name(cause: MoveCause) -> &'static str {
    match cause {
        MoveCause::Readiness => "readiness",
        MoveCause::Connections => "connections",
    }
}

/// A transition's name in logs, metrics and /state.
pub(crate) const fn kind_name(kind: &TransitionKind) -> &'static str {
    match kind {
        TransitionKind::Reported { .. } => "reported",
        TransitionKind::Suspect { .. } => "suspect",
        TransitionKind::Cleared { .. } => "cleared",
        TransitionKind::Condemned { .. } => "condemned",
        TransitionKind::Held { .. } => "held",
        TransitionKind::Decided { .. } => "decided",
        TransitionKind::Acknowledged { .. } => "acknowledged",
        TransitionKind::NotApplied { .. } => "not-applied",
        TransitionKind::Disbelieved { .. } => "disbelieved",
        TransitionKind::Agent { .. } => "agent",
    }
}

/// One agent.
pub(super) fn agent(agent: &AgentRow, now: Time) -> Value {
    json!({
        "node": agent.node,
        "freshness": agent.freshness.as_str(),
        "stream": agent.stream.map(|(stream, _)| stream),
        "stream_age_ms": agent.stream.map(|(_, began)| millis(now.since(began))),
    })
}

/// One fault of an object.
pub(super) fn finding(finding: &Finding, since: Time, now: Time) -> Value {
    json!({
        "object": finding.subject.to_string(),
        "kind": finding.kind.as_str(),
        "text": finding.text,
        "age_ms": millis(now.since(since)),
    })
}

/// One split.
pub(super) fn split(id: &ObjectId, split: &Explanation) -> Value {
    json!({
        "split": id.to_string(),
        "state": split.state,
        "primary": split.primary,
        "guard": split.guard.map(controller_core::guard::Guard::as_str),
        "guard_sentence": split.guard.map(controller_core::guard::Guard::sentence),
        "fault": split.fault,
        "failovers": split.failovers,
        "dwell_left_ms": millis(split.dwell_left),
        "backends": split.backends.iter().map(backend).collect::<Vec<_>>(),
    })
}

fn backend(backend: &BackendExplanation) -> Value {
    let nodes: BTreeMap<_, BTreeMap<String, u64>> = backend
        .nodes
        .iter()
        .map(|(node, rows)| (node, rows.iter().map(|(to, evidence)| (to.to_string(), *evidence)).collect()))
        .collect();
    json!({
        "service": backend.service,
        "weight": backend.weight.to_string(),
        "weight_milli": backend.weight.milli(),
        "health": backend.health,
        "ready": backend.ready,
        "failing": backend.failing,
        "evidence_millinats": backend.evidence,
        "observers": backend.observers,
        "abstaining": backend.abstaining,
        "meshed": backend.meshed,
        "refusing_proxies": backend.refusing_proxies,
        "last_success_ms": backend.last_success.map(millis),
        "nodes": nodes,
    })
}

/// One transition: `at_ns`, `split` (or null), `kind`, and the kind's own fields beside them.
pub(super) fn transition(transition: &Transition) -> Value {
    let mut fields = fields(&transition.kind);
    fields["at_ns"] = json!(transition.at.0);
    fields["split"] = json!(transition.split.as_ref().map(ToString::to_string));
    fields["kind"] = json!(kind_name(&transition.kind));
    fields
}

fn fields(kind: &TransitionKind) -> Value {
    match kind {
        TransitionKind::Reported { backend, node, destination, started_ns, failed_ns } => json!({
            "backend": backend, "node": node, "destination": destination.to_string(),
            "started_ns": started_ns, "failed_ns": failed_ns,
        }),
        TransitionKind::Suspect { backend } | TransitionKind::Cleared { backend } => json!({"backend": backend}),
        TransitionKind::Condemned { backend, episode, grounds } => {
            json!({"backend": backend, "episode_ns": episode.0, "grounds": grounds.as_str()})
        }
        TransitionKind::Held { backend, guard } => json!({"backend": backend, "guard": guard.as_str()}),
        TransitionKind::Decided { write, direction, cause } => json!({
            "write": write.0, "direction": direction_name(*direction), "cause": cause_name(*cause),
        }),
        TransitionKind::Acknowledged { write, direction } => {
            json!({"write": write.0, "direction": direction_name(*direction)})
        }
        TransitionKind::NotApplied { write, error } => json!({"write": write.0, "error": error}),
        TransitionKind::Disbelieved { node, address } => json!({"node": node, "address": address.to_string()}),
        TransitionKind::Agent { node, freshness } => json!({"node": node, "freshness": freshness.as_str()}),
    }
}

#[cfg(test)]
mod tests {
    use controller_core::guard::Guard;
    use controller_core::output::{Direction, Freshness, WriteId};
    use controller_core::target::Grounds;
    use controller_core::weights::Weight;

    use super::*;

    #[track_caller]
    fn check(kind: TransitionKind, expected: Value) {
        let split = Some(ObjectId::new("demo", "emoji"));
        assert_eq!(transition(&Transition { at: Time(5), split, kind }), expected);
    }

    #[test]
    fn every_transition_has_its_documented_shape() {
        let backend = || "web".to_owned();
        check(
            TransitionKind::Reported {
                backend: backend(),
                node: "n1".into(),
                destination: "198.18.1.1:80".parse().expect("a destination"),
                started_ns: 1,
                failed_ns: 2,
            },
            json!({"at_ns": 5, "split": "demo/emoji", "kind": "reported", "backend": "web", "node": "n1",
                   "destination": "198.18.1.1:80", "started_ns": 1, "failed_ns": 2}),
        );
        check(
            TransitionKind::Suspect { backend: backend() },
            json!({"at_ns": 5, "split": "demo/emoji", "kind": "suspect", "backend": "web"}),
        );
        check(
            TransitionKind::Cleared { backend: backend() },
            json!({"at_ns": 5, "split": "demo/emoji", "kind": "cleared", "backend": "web"}),
        );
        check(
            TransitionKind::Condemned { backend: backend(), episode: Time(3), grounds: Grounds::LastLook },
            json!({"at_ns": 5, "split": "demo/emoji", "kind": "condemned", "backend": "web", "episode_ns": 3,
                   "grounds": "last-look"}),
        );
        check(
            TransitionKind::Held { backend: backend(), guard: Guard::NotWarm },
            json!({"at_ns": 5, "split": "demo/emoji", "kind": "held", "backend": "web", "guard": "not-warm"}),
        );
        check(
            TransitionKind::Decided {
                write: WriteId(7),
                direction: Direction::Failover,
                cause: MoveCause::Connections,
            },
            json!({"at_ns": 5, "split": "demo/emoji", "kind": "decided", "write": 7, "direction": "failover",
                   "cause": "connections"}),
        );
        check(
            TransitionKind::Acknowledged { write: WriteId(7), direction: Direction::Ramp },
            json!({"at_ns": 5, "split": "demo/emoji", "kind": "acknowledged", "write": 7, "direction": "ramp"}),
        );
        check(
            TransitionKind::NotApplied { write: WriteId(7), error: "conflict".into() },
            json!({"at_ns": 5, "split": "demo/emoji", "kind": "not-applied", "write": 7, "error": "conflict"}),
        );
    }

    #[test]
    fn a_transition_of_no_split_says_so() {
        let kind = TransitionKind::Agent { node: "n1".into(), freshness: Freshness::Stale };
        assert_eq!(
            transition(&Transition { at: Time(5), split: None, kind }),
            json!({"at_ns": 5, "split": null, "kind": "agent", "node": "n1", "freshness": "stale"})
        );
    }

    #[test]
    fn a_split_has_its_documented_shape() {
        let explanation = Explanation {
            state: "failed",
            primary: "web".into(),
            guard: Some(Guard::Dwell),
            failovers: 2,
            dwell_left: Duration::from_millis(1_500),
            backends: vec![BackendExplanation {
                service: "web".into(),
                weight: Weight::ONE,
                health: "healthy",
                ready: 6,
                failing: 1,
                evidence: 1_234,
                nodes: BTreeMap::from([(
                    "n1".to_owned(),
                    BTreeMap::from([("[2001:db8::1]:80".parse().expect("a destination"), 9)]),
                )]),
                observers: 3,
                abstaining: Vec::new(),
                meshed: 0,
                refusing_proxies: 0,
                last_success: Some(Duration::from_millis(12)),
            }],
            ..Explanation::default()
        };
        assert_eq!(
            split(&ObjectId::new("demo", "emoji"), &explanation),
            json!({"split": "demo/emoji", "state": "failed", "primary": "web", "guard": "dwell",
                   "guard_sentence": "the split moved a short time ago", "fault": null, "failovers": 2,
                   "dwell_left_ms": 1500,
                   "backends": [{"service": "web", "weight": "1", "weight_milli": 1000, "health": "healthy", "ready": 6,
                                 "failing": 1, "evidence_millinats": 1234, "observers": 3, "abstaining": [],
                                 "meshed": 0, "refusing_proxies": 0, "last_success_ms": 12,
                                 "nodes": {"n1": {"[2001:db8::1]:80": 9}}}]})
        );
    }
}
