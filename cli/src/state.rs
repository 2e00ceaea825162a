//! What /state says, as far as this command shows it. In: JSON. Out: values. Pure.
//!
//! Every field may be missing: a command of another version than its controller shows what both know.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// The controller's /state.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    /// `enforce` or `observe`; empty in what is no controller's.
    pub(crate) mode: String,
    /// The set of thresholds.
    pub(crate) profile: String,
    /// The controller's version.
    pub(crate) version: String,
    /// Whether it does its work.
    pub(crate) ready: bool,
    /// Why not.
    pub(crate) reason: Option<String>,
    /// CLOCK_MONOTONIC of the controller's machine.
    pub(crate) now_ns: u64,
    /// Since the controller started.
    pub(crate) uptime_ms: u64,
    /// Every agent that was heard of.
    pub(crate) agents: Vec<Agent>,
    /// What is wrong with objects at the moment.
    pub(crate) findings: Vec<Finding>,
    /// Every split of ours.
    pub(crate) splits: Vec<Split>,
    /// The last ones of all splits, oldest first.
    pub(crate) transitions: Vec<Transition>,
    /// All of it, for what is handed on as it is.
    #[serde(skip)]
    pub(crate) raw: Value,
}

/// One agent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Agent {
    /// Its node.
    pub(crate) node: String,
    /// `fresh`, `stale`, `blind` or `unknown`.
    pub(crate) freshness: String,
}

/// Something that is wrong with an object.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Finding {
    /// Kind in small letters, a blank, `namespace/name`.
    pub(crate) object: String,
    /// What, with the field.
    pub(crate) text: String,
    /// For how long.
    pub(crate) age_ms: u64,
}

/// One split.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Split {
    /// `namespace/name`.
    pub(crate) split: String,
    /// `steady`, `failed`, `probation` or `invalid`.
    pub(crate) state: String,
    /// The primary backend.
    pub(crate) primary: String,
    /// What holds a decision.
    pub(crate) guard: Option<String>,
    /// The same as a sentence.
    pub(crate) guard_sentence: Option<String>,
    /// What is wrong with the object.
    pub(crate) fault: Option<String>,
    /// Failovers in a row.
    pub(crate) failovers: u64,
    /// Until a failback may begin.
    pub(crate) dwell_left_ms: u64,
    /// In the object's order.
    pub(crate) backends: Vec<Backend>,
}

/// One backend.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Backend {
    /// The leaf Service.
    pub(crate) service: String,
    /// As the object has it.
    pub(crate) weight: String,
    /// In thousandths.
    pub(crate) weight_milli: u64,
    /// `healthy`, `suspect`, `condemned`, `unready` or `unknown`.
    pub(crate) health: String,
    /// Endpoints that are ready.
    pub(crate) ready: u64,
    /// Of these, how many fail.
    pub(crate) failing: u64,
    /// Evidence of all nodes, in thousandths of a nat.
    pub(crate) evidence_millinats: u64,
    /// Nodes that see it.
    pub(crate) observers: u64,
    /// Nodes whose agents are there and whose checks do not count.
    pub(crate) abstaining: Vec<String>,
    /// Endpoints behind a mesh's proxy.
    pub(crate) meshed: u64,
    /// Endpoints that refuse their own proxy.
    pub(crate) refusing_proxies: u64,
    /// How long ago the last success was.
    pub(crate) last_success_ms: Option<u64>,
    /// Evidence per node and destination.
    pub(crate) nodes: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Something that happened.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Transition {
    /// CLOCK_MONOTONIC of the controller's machine.
    pub(crate) at_ns: u64,
    /// Which split, if it is about one.
    pub(crate) split: Option<String>,
    /// What.
    pub(crate) kind: String,
    /// What else is known of it, by kind.
    #[serde(flatten)]
    pub(crate) fields: Map<String, Value>,
}

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// JSON of another shape.
    #[error("this /state has a shape that this command does not know: are controller and command of one version?")]
    Shape(#[source] serde_json::Error),
    /// An agent's /state, most likely.
    #[error("this is not a controller's /state: its admin server is on port 8080, an agent's on 9910")]
    Other,
}

impl State {
    /// What an admin server answered.
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub(crate) fn read(raw: Value) -> Result<Self, StateError> {
        let state = Self::deserialize(&raw).map_err(StateError::Shape)?;
        if state.mode.is_empty() { Err(StateError::Other) } else { Ok(Self { raw, ..state }) }
    }

    /// Agents whose word counts, and all that were heard of.
    pub(crate) fn agents_fresh(&self) -> (usize, usize) {
        let fresh = self.agents.iter().filter(|agent| agent.freshness == "fresh").count();
        (fresh, self.agents.len())
    }

    /// What is wrong with a split: what was found about it, or else what keeps it from being understood.
    pub(crate) fn faults<'a>(&'a self, split: &'a Split) -> Vec<&'a str> {
        let own = self.findings.iter().filter(|finding| finding.object == format!("trafficsplit {}", split.split));
        let found: Vec<&str> = own.map(|finding| finding.text.as_str()).collect();
        if found.is_empty() { split.fault.as_deref().into_iter().collect() } else { found }
    }

    /// How long ago something was.
    pub(crate) fn ago_ms(&self, at_ns: u64) -> u64 {
        self.now_ns.saturating_sub(at_ns) / 1_000_000
    }
}

impl Split {
    /// Namespace and name.
    pub(crate) fn names(&self) -> (&str, &str) {
        self.split.split_once('/').unwrap_or(("", &self.split))
    }

    /// Backends that get traffic.
    pub(crate) fn active(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(|backend| backend.weight_milli > 0)
    }

    /// Where the traffic goes, for people: a name, or names with weights.
    pub(crate) fn traffic(&self) -> String {
        let active: Vec<&Backend> = self.active().collect();
        match active[..] {
            [] => "none".to_owned(),
            [one] => one.service.clone(),
            _ => {
                let shares = active.iter().map(|backend| format!("{}={}", backend.service, backend.weight));
                shares.collect::<Vec<_>>().join(", ")
            }
        }
    }
}

impl Transition {
    /// One of its fields as text.
    pub(crate) fn text(&self, field: &str) -> Option<&str> {
        self.fields.get(field).and_then(Value::as_str)
    }
}
