//! Why one split stands as it stands. In: a [`State`] and a name. Out: text, or JSON. Pure.
//!
//! The thresholds are those of the source that this command was built from; a controller of another version is named.

use controller_core::evidence::{ACT, FAILING, NODE_CAP, SUSPECT};
use serde_json::{Value, json};

use crate::row;
use crate::span;
use crate::state::{Backend, Split, State, Transition};
use crate::table;

/// One split of a controller.
pub(crate) struct Explained<'a> {
    state: &'a State,
    split: &'a Split,
}

/// There is no such split.
#[derive(Debug, thiserror::Error)]
#[error("the controller drives no split {wanted}{known}")]
pub(crate) struct UnknownSplit {
    wanted: String,
    known: String,
}

impl<'a> Explained<'a> {
    /// The split of that namespace and name.
    ///
    /// # Errors
    ///
    /// [`UnknownSplit`], with those that there are.
    pub(crate) fn of(state: &'a State, (namespace, name): (&str, &str)) -> Result<Self, UnknownSplit> {
        let wanted = format!("{namespace}/{name}");
        let found = state.splits.iter().find(|split| split.split == wanted);
        found.map(|split| Self { state, split }).ok_or_else(|| UnknownSplit { wanted, known: known(state) })
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = self.head();
        for backend in &self.split.backends {
            text.push('\n');
            text.push_str(&self.backend(backend));
        }
        text.push('\n');
        text.push_str(&self.history());
        text
    }

    fn head(&self) -> String {
        let (state, split) = (self.state, self.split);
        let (fresh, known) = state.agents_fresh();
        let mut lines = vec![format!("{} is {}; its traffic goes to {}", split.split, split.state, split.traffic())];
        for fault in state.faults(split) {
            lines.push(format!("  wrong:      {fault}"));
        }
        if let Some(guard) = &split.guard {
            let sentence = split.guard_sentence.as_deref().unwrap_or("this command does not know this guard");
            lines.push(format!("  held by:    {guard}: {sentence}"));
        }
        if split.failovers > 0 {
            lines.push(format!("  failovers:  {} in a row", split.failovers));
        }
        if split.dwell_left_ms > 0 {
            lines.push(format!("  dwell:      no way back within {}", span::of_ms(split.dwell_left_ms)));
        }
        let ready = if state.ready { "" } else { ", not ready" };
        lines.push(format!(
            "  controller: {}, mode {}, profile {}{ready}; {fresh} of {known} agents fresh",
            state.version, state.mode, state.profile
        ));
        if state.version != env!("CARGO_PKG_VERSION") {
            let own = env!("CARGO_PKG_VERSION");
            lines.push(format!("  thresholds: as of {own}, this command's version; the controller's may differ"));
        }
        lines.join("\n") + "\n"
    }

    fn backend(&self, backend: &Backend) -> String {
        let role = if backend.service == self.split.primary { " (primary)" } else { "" };
        let seen = backend.last_success_ms.map_or("never".to_owned(), |ms| format!("{} ago", span::of_ms(ms)));
        let mut text = format!(
            "backend {}{role}: {}, weight {}\n  endpoints:  {} ready, {} of them failing; last success {seen}\n  \
             evidence:   {} of {} nats that a move needs (suspect at {}, one node gives at most {}); {} observers\n",
            backend.service,
            backend.health,
            backend.weight,
            backend.ready,
            backend.failing,
            nats(backend.evidence_millinats),
            nats(ACT),
            nats(SUSPECT),
            nats(NODE_CAP),
            backend.observers,
        );
        if !backend.abstaining.is_empty() {
            let nodes = backend.abstaining.join(", ");
            text.push_str(&format!("  abstaining: {nodes}: no check from there succeeded within a minute\n"));
        }
        if backend.meshed > 0 {
            let (meshed, refusing) = (backend.meshed, backend.refusing_proxies);
            text.push_str(&format!("  meshed:     {meshed} endpoints; {refusing} refuse their own proxy\n"));
        }
        let rows: Vec<Vec<String>> = backend
            .nodes
            .iter()
            .flat_map(|(node, destinations)| destinations.iter().map(move |(to, evidence)| (node, to, *evidence)))
            .map(|(node, to, evidence)| {
                let judged = if evidence >= FAILING { "failing" } else { "" };
                row!["", node, to, nats(evidence), judged]
            })
            .collect();
        if !rows.is_empty() {
            let header = row!["", "NODE", "ENDPOINT", "EVIDENCE", ""];
            text.push_str(&table::aligned(&[vec![header], rows].concat()));
        }
        text
    }

    fn history(&self) -> String {
        let own: Vec<&Transition> = self.transitions().collect();
        if own.is_empty() {
            return "no transition is remembered\n".to_owned();
        }
        let line = |one: &&Transition| {
            row!["", format!("{} ago", span::of_ms(self.state.ago_ms(one.at_ns))), one.kind, details(one)]
        };
        "last transitions\n".to_owned() + &table::aligned(&own.iter().map(line).collect::<Vec<_>>())
    }

    fn transitions(&self) -> impl Iterator<Item = &'a Transition> {
        let name = self.split.split.as_str();
        self.state.transitions.iter().filter(move |one| one.split.as_deref() == Some(name))
    }

    /// For programs: the controller's own words about this split, and what they are measured by.
    pub(crate) fn json(&self) -> Value {
        let raw = &self.state.raw;
        let of_split = |list: &str| -> Vec<Value> {
            let all = raw[list].as_array().into_iter().flatten();
            all.filter(|one| one["split"] == self.split.split.as_str()).cloned().collect()
        };
        let (fresh, known) = self.state.agents_fresh();
        json!({
            "split": of_split("splits").into_iter().next(),
            "transitions": of_split("transitions"),
            "now_ns": raw["now_ns"],
            "thresholds_millinats": {
                "act": ACT, "suspect": SUSPECT, "node_cap": NODE_CAP, "failing": FAILING,
                "version": env!("CARGO_PKG_VERSION"),
            },
            "controller": {
                "version": raw["version"], "mode": raw["mode"], "profile": raw["profile"],
                "ready": raw["ready"], "reason": raw["reason"],
            },
            "faults": self.state.faults(self.split),
            "agents_fresh": fresh,
            "agents_known": known,
        })
    }
}

/// The splits that there are, for whoever named another.
fn known(state: &State) -> String {
    if state.splits.is_empty() {
        return ": it drives none at all (its label is failover.linkerd.io/controlled-by)".to_owned();
    }
    let names: Vec<&str> = state.splits.iter().map(|split| split.split.as_str()).take(20).collect();
    let more = if state.splits.len() > names.len() { ", ..." } else { "" };
    format!("; it drives {}{more}", names.join(", "))
}

fn nats(millinats: u64) -> String {
    format!("{}.{}", millinats / 1_000, millinats % 1_000 / 100)
}

/// What else is known of a transition, in the order in which it is read. A kind of a newer controller shows its fields.
fn details(one: &Transition) -> String {
    let text = |field| one.text(field).unwrap_or("?");
    match one.kind.as_str() {
        "reported" => format!("{}: node {} saw {} fail", text("backend"), text("node"), text("destination")),
        "suspect" | "cleared" | "condemned" => text("backend").to_owned(),
        "held" => format!("{} by {}", text("backend"), text("guard")),
        "decided" => format!("{}, because of {}", text("direction"), text("cause")),
        "acknowledged" => text("direction").to_owned(),
        "not-applied" => text("error").to_owned(),
        _ => {
            let fields = one.fields.iter().map(|(field, value)| format!("{field}={value}"));
            fields.collect::<Vec<_>>().join(" ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_state() -> State {
        State::read(json!({
            "mode": "enforce", "profile": "default", "version": env!("CARGO_PKG_VERSION"), "ready": true,
            "now_ns": 100_000_000_000_u64,
            "agents": [{"node": "n1", "freshness": "fresh"}],
            "splits": [{
                "split": "demo/web", "state": "failed", "primary": "web", "failovers": 1, "dwell_left_ms": 12_000,
                "guard": "dwell", "guard_sentence": "the split moved a short time ago",
                "backends": [
                    {"service": "web", "weight": "0", "health": "condemned", "ready": 2, "failing": 2, "observers": 2,
                     "evidence_millinats": 34_550, "last_success_ms": 2_100,
                     "abstaining": ["n2", "n3"], "meshed": 2, "refusing_proxies": 1,
                     "nodes": {"n1": {"198.18.1.1:80": 17_270, "198.18.1.2:80": 100}}},
                    {"service": "west", "weight": "1", "weight_milli": 1_000, "health": "healthy", "ready": 1},
                ],
            }],
            "transitions": [
                {"at_ns": 99_000_000_000_u64, "split": "demo/web", "kind": "condemned", "backend": "web", "episode_ns": 1},
                {"at_ns": 99_100_000_000_u64, "split": "demo/other", "kind": "cleared", "backend": "other"},
                {"at_ns": 99_500_000_000_u64, "split": "demo/web", "kind": "decided", "write": 1, "direction": "failover",
                 "cause": "connections"},
                {"at_ns": 99_900_000_000_u64, "split": "demo/web", "kind": "later", "x": 1},
            ],
        }))
        .expect("a state")
    }

    #[test]
    fn everything_that_a_decision_rests_on_is_told() {
        let state = mk_state();
        let text = Explained::of(&state, ("demo", "web")).expect("is there").text();
        assert_eq!(
            text,
            "demo/web is failed; its traffic goes to west\n  \
             held by:    dwell: the split moved a short time ago\n  \
             failovers:  1 in a row\n  \
             dwell:      no way back within 12.0 s\n  \
             controller: 0.1.0, mode enforce, profile default; 1 of 1 agents fresh\n\
             \n\
             backend web (primary): condemned, weight 0\n  \
             endpoints:  2 ready, 2 of them failing; last success 2.1 s ago\n  \
             evidence:   34.5 of 34.5 nats that a move needs (suspect at 9.2, one node gives at most 17.2); 2 observers\n  \
             abstaining: n2, n3: no check from there succeeded within a minute\n  \
             meshed:     2 endpoints; 1 refuse their own proxy\n   \
             NODE   ENDPOINT        EVIDENCE\n   \
             n1     198.18.1.1:80   17.2       failing\n   \
             n1     198.18.1.2:80   0.1\n\
             \n\
             backend west: healthy, weight 1\n  \
             endpoints:  1 ready, 0 of them failing; last success never\n  \
             evidence:   0.0 of 34.5 nats that a move needs (suspect at 9.2, one node gives at most 17.2); 0 observers\n\
             \n\
             last transitions\n   \
             1.0 s ago    condemned   web\n   \
             500 ms ago   decided     failover, because of connections\n   \
             100 ms ago   later       x=1\n"
        );
    }

    #[test]
    fn another_version_is_named() {
        let mut state = mk_state();
        state.version = "9.9.9".to_owned();
        let text = Explained::of(&state, ("demo", "web")).expect("is there").text();
        assert!(text.contains("the controller's may differ"), "{text}");
    }

    #[test]
    fn a_split_that_is_not_there_names_those_that_are() {
        let mut state = mk_state();
        let error = |state: &State| Explained::of(state, ("demo", "wep")).err().expect("not there").to_string();
        assert_eq!(error(&state), "the controller drives no split demo/wep; it drives demo/web");
        state.splits.clear();
        assert!(error(&state).contains("it drives none at all"));
    }

    #[test]
    fn json_hands_on_the_controllers_own_words() {
        let state = mk_state();
        let json = Explained::of(&state, ("demo", "web")).expect("is there").json();
        assert_eq!(json["split"]["backends"][0]["nodes"]["n1"]["198.18.1.1:80"], 17_270);
        assert_eq!(json["transitions"].as_array().map(Vec::len), Some(3));
        assert_eq!(json["thresholds_millinats"]["act"], ACT);
    }
}
