//! Every split in one line. In: a [`State`]. Out: a table, or JSON. Pure.
//!
//! The JSON keeps the four fields of `linkerd-failover status --output json` (namespace, name, status, services) beside ours.

use serde_json::{Value, json};

use crate::row;
use crate::span;
use crate::state::{Split, State};
use crate::table;

/// Transitions that a controller keeps: with fewer in its list, none was forgotten.
const TRANSITIONS_KEPT: usize = 64;

/// The splits of a controller.
pub(crate) struct Listed<'a> {
    state: &'a State,
}

/// Since when a split has its weights, as far as the controller remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// It wrote them so long ago.
    Written(u64),
    /// It has not written them for at least so long.
    AtLeast(u64),
}

impl<'a> Listed<'a> {
    /// All of them.
    pub(crate) const fn of(state: &'a State) -> Self {
        Self { state }
    }

    /// A table, and under it what is wrong.
    pub(crate) fn text(&self) -> String {
        let state = self.state;
        let mut text = String::new();
        if state.splits.is_empty() {
            text.push_str("No TrafficSplit is driven: none has the label failover.linkerd.io/controlled-by.\n");
        } else {
            let header = row!["NAMESPACE", "SPLIT", "STATE", "TRAFFIC", "HELD_BY", "AGENTS", "SINCE"];
            let rows = state.splits.iter().map(|split| self.line(split));
            text.push_str(&table::aligned(&std::iter::once(header).chain(rows).collect::<Vec<_>>()));
        }
        let notes = self.notes();
        if !notes.is_empty() {
            text.push('\n');
            for note in notes {
                text.push_str(&note);
                text.push('\n');
            }
        }
        text
    }

    fn line(&self, split: &Split) -> Vec<String> {
        let (namespace, name) = split.names();
        let (fresh, known) = self.state.agents_fresh();
        let since = match self.since(split) {
            Since::Written(ms) => span::of_ms(ms),
            Since::AtLeast(ms) => format!("> {}", span::of_ms(ms)),
        };
        let held = split.guard.as_deref().unwrap_or("-");
        row![namespace, name, split.state, split.traffic(), held, format!("{fresh}/{known}"), since]
    }

    /// The last write that was applied; an older one, or another controller's, is not known.
    fn since(&self, split: &Split) -> Since {
        let state = self.state;
        let own = |one: &&crate::state::Transition| {
            one.kind == "acknowledged" && one.split.as_deref() == Some(split.split.as_str())
        };
        if let Some(written) = state.transitions.iter().rev().find(own) {
            return Since::Written(state.ago_ms(written.at_ns));
        }
        let oldest = state.transitions.first().map(|oldest| state.ago_ms(oldest.at_ns));
        match oldest {
            Some(oldest) if state.transitions.len() >= TRANSITIONS_KEPT => Since::AtLeast(oldest),
            _ => Since::AtLeast(state.uptime_ms),
        }
    }

    /// What an operator should know beside the table.
    fn notes(&self) -> Vec<String> {
        let state = self.state;
        let mut notes = Vec::new();
        if !state.ready {
            let reason = state.reason.as_deref().unwrap_or("it does not say why");
            notes.push(format!("The controller is not ready: {reason}"));
        }
        if state.mode == "observe" {
            notes.push("The controller observes: it decides and records, and writes nothing.".to_owned());
        }
        for agent in state.agents.iter().filter(|agent| agent.freshness != "fresh") {
            notes.push(format!("The agent of node {} is {}.", agent.node, agent.freshness));
        }
        for finding in &state.findings {
            notes.push(format!("{}: {} (for {})", finding.object, finding.text, span::of_ms(finding.age_ms)));
        }
        let is_found = |split: &Split| {
            let object = format!("trafficsplit {}", split.split);
            state.findings.iter().any(|finding| finding.object == object)
        };
        for split in state.splits.iter().filter(|split| !is_found(split)) {
            if let Some(fault) = &split.fault {
                notes.push(format!("trafficsplit {}: {fault}", split.split));
            }
        }
        notes
    }

    /// One object for each split.
    pub(crate) fn json(&self) -> Value {
        let (fresh, known) = self.state.agents_fresh();
        let one = |split: &Split| {
            let (namespace, name) = split.names();
            let active: Vec<&str> = split.active().map(|backend| backend.service.as_str()).collect();
            let is_primary = active.contains(&split.primary.as_str());
            let (since, is_exact) = match self.since(split) {
                Since::Written(ms) => (ms, true),
                Since::AtLeast(ms) => (ms, false),
            };
            json!({
                "namespace": namespace,
                "name": name,
                "status": if is_primary { "primary" } else { "fallback" },
                "services": active,
                "state": split.state,
                "primary": split.primary,
                "held_by": split.guard,
                "faults": self.state.faults(split),
                "weights": split.backends.iter().map(|backend| (backend.service.clone(), json!(backend.weight)))
                    .collect::<serde_json::Map<_, _>>(),
                "agents_fresh": fresh,
                "agents_known": known,
                "since_ms": since,
                "since_is_exact": is_exact,
            })
        };
        Value::Array(self.state.splits.iter().map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Finding;

    fn mk_state(transitions: Value) -> State {
        State::read(json!({
            "mode": "enforce", "ready": true, "now_ns": 100_000_000_000_u64, "uptime_ms": 90_000,
            "agents": [{"node": "n1", "freshness": "fresh"}, {"node": "n2", "freshness": "stale"}],
            "splits": [
                {"split": "demo/web", "state": "failed", "primary": "web", "guard": "dwell",
                 "backends": [{"service": "web", "weight": "0", "weight_milli": 0},
                              {"service": "west", "weight": "1", "weight_milli": 1000}]},
                {"split": "demo/shop", "state": "probation", "primary": "shop",
                 "backends": [{"service": "shop", "weight": "50", "weight_milli": 50_000},
                              {"service": "west", "weight": "950", "weight_milli": 950_000}]},
            ],
            "transitions": transitions,
        }))
        .expect("a state")
    }

    #[test]
    fn a_split_is_one_line() {
        let state = mk_state(json!([
            {"at_ns": 40_000_000_000_u64, "split": "demo/web", "kind": "acknowledged"},
            {"at_ns": 58_000_000_000_u64, "split": "demo/web", "kind": "acknowledged"},
            {"at_ns": 59_000_000_000_u64, "split": "demo/web", "kind": "suspect"},
        ]));
        assert_eq!(
            Listed::of(&state).text(),
            "NAMESPACE   SPLIT   STATE       TRAFFIC             HELD_BY   AGENTS   SINCE\n\
             demo        web     failed      west                dwell     1/2      42.0 s\n\
             demo        shop    probation   shop=50, west=950   -         1/2      > 1m30s\n\
             \n\
             The agent of node n2 is stale.\n"
        );
    }

    #[test]
    fn a_list_that_has_forgotten_reaches_back_to_its_oldest_only() {
        let other = json!({"at_ns": 95_000_000_000_u64, "split": "demo/other", "kind": "acknowledged"});
        let state = mk_state(json!(vec![other; TRANSITIONS_KEPT]));
        assert_eq!(Listed::of(&state).since(&state.splits[0]), Since::AtLeast(5_000));
    }

    #[test]
    fn json_has_what_linkerd_failover_has() {
        let state = mk_state(json!([]));
        let listed = Listed::of(&state).json();
        assert_eq!(listed[0]["status"], "fallback");
        assert_eq!(listed[0]["services"], json!(["west"]));
        assert_eq!((&listed[0]["namespace"], &listed[0]["name"]), (&json!("demo"), &json!("web")));
        assert_eq!(listed[1]["status"], "primary");
        assert_eq!(listed[1]["weights"], json!({"shop": "50", "west": "950"}));
    }

    #[test]
    fn what_is_wrong_stands_under_the_table() {
        let mut state = mk_state(json!([]));
        state.ready = false;
        state.reason = Some("services: not listed yet".to_owned());
        state.mode = "observe".to_owned();
        state.agents.clear();
        state.splits[0].fault = Some("spec.backends[0].weight \"abc\" is not a number".to_owned());
        let notes = Listed::of(&state).notes();
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert_eq!(notes[0], "The controller is not ready: services: not listed yet");
        assert_eq!(notes[2], "trafficsplit demo/web: spec.backends[0].weight \"abc\" is not a number");
        let text = "spec.backends[1].service \"west\" does not exist".to_owned();
        let finding = |object: &str| Finding { object: object.to_owned(), text: text.clone(), age_ms: 2_000 };
        state.findings = vec![finding("trafficsplit demo/web"), finding("service demo/web")];
        let notes = Listed::of(&state).notes();
        let found = "trafficsplit demo/web: spec.backends[1].service \"west\" does not exist (for 2.0 s)";
        assert_eq!((notes.len(), notes[2].as_str()), (4, found), "a fault that was found is told once: {notes:?}");
        state.splits.clear();
        state.findings.clear();
        assert!(Listed::of(&state).text().starts_with("No TrafficSplit is driven"));
    }
}
