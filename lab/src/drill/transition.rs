//! What the controller publishes about its last transitions. In: the JSON of `/state`. Out: the few kinds that a drill
//! measures, oldest first; every other kind is kept as [`Kind::Other`]. Pure.

use serde::Deserialize;
use serde_json::Value;

/// One moment in the controller.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Transition {
    /// Raw CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// `namespace/name`, where it is about a split.
    #[serde(default)]
    pub split: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kind {
    /// The first report in a while with failures of a backend was decoded.
    Reported {
        /// Of which.
        backend: String,
        /// Whose report.
        node: String,
        /// When the failed attempt began, on the kernel's clock.
        started_ns: u64,
        /// When it failed, on the kernel's clock.
        failed_ns: u64,
    },
    /// A write was decided.
    Decided {
        /// Names it.
        write: u64,
        /// `failover`, `spread`, `ramp` or `failback`.
        direction: String,
    },
    /// The API server took a write.
    Acknowledged {
        /// Names it.
        write: u64,
        /// As above.
        direction: String,
    },
    /// Anything else.
    #[serde(other)]
    Other,
}

/// The transitions of a `/state` document; an entry that cannot be read is an error, for it would be missed silently.
///
/// # Errors
///
/// There is no list `transitions`, or an entry of it lacks a field.
pub fn parse(state: &Value) -> anyhow::Result<Vec<Transition>> {
    let entries = state.get("transitions").ok_or_else(|| anyhow::anyhow!("/state has no field transitions"))?;
    Ok(Vec::<Transition>::deserialize(entries)?)
}

/// All transitions of a run, from several looks at a list that keeps only the last 64.
#[derive(Clone, Debug, Default)]
pub struct History {
    seen: Vec<Transition>,
    gap: bool,
}

impl History {
    /// Adds what one look brought that the looks before had not.
    pub fn merge(&mut self, look: Vec<Transition>) {
        if let (Some(last), Some(first)) = (self.seen.last(), look.first()) {
            // The lists overlap unless more than a whole list went by between two looks.
            self.gap |= look.len() >= LIST_LENGTH && first.at_ns > last.at_ns;
        }
        let known = self.seen.len().saturating_sub(2 * LIST_LENGTH);
        for entry in look {
            if !self.seen[known..].contains(&entry) {
                self.seen.push(entry);
            }
        }
        self.seen.sort_by_key(|entry| entry.at_ns);
    }

    /// Oldest first.
    #[must_use]
    pub fn transitions(&self) -> &[Transition] {
        &self.seen
    }

    /// Whether some went by unseen.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        self.gap
    }
}

/// How many transitions the controller keeps.
const LIST_LENGTH: usize = 64;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_kinds_that_count_are_read_and_others_kept() {
        let state = json!({"mode": "enforce", "transitions": [
            {"at_ns": 5, "split": "a/b", "kind": "reported", "backend": "b", "node": "n", "destination": "198.18.1.2:80",
             "started_ns": 3, "failed_ns": 4},
            {"at_ns": 6, "kind": "agent", "node": "n", "freshness": "fresh"},
            {"at_ns": 7, "split": "a/b", "kind": "decided", "write": 9, "direction": "failover", "cause": "evidence"},
        ]});
        let transitions = parse(&state).expect("a list");
        assert_eq!(
            transitions[0].kind,
            Kind::Reported { backend: "b".into(), node: "n".into(), started_ns: 3, failed_ns: 4 }
        );
        assert_eq!(transitions[1].kind, Kind::Other);
        assert_eq!(transitions[2].kind, Kind::Decided { write: 9, direction: "failover".into() });
        assert_eq!(transitions[2].split.as_deref(), Some("a/b"));
    }

    #[test]
    fn an_entry_without_its_time_is_an_error() {
        assert!(parse(&json!({"transitions": [{"kind": "agent"}]})).is_err());
        assert!(parse(&json!({})).is_err());
    }

    #[test]
    fn looks_merge_without_doubles_and_notice_what_went_by() {
        let mk_look = |range: std::ops::Range<u64>| -> Vec<Transition> {
            range.map(|at_ns| Transition { at_ns, split: None, kind: Kind::Other }).collect()
        };
        let mut history = History::default();
        history.merge(mk_look(0..10));
        history.merge(mk_look(5..20));
        assert_eq!(history.transitions().len(), 20);
        assert!(!history.has_gap());
        history.merge(mk_look(19..83));
        assert!(!history.has_gap());
        history.merge(mk_look(90..154));
        assert!(history.has_gap());
    }
}
