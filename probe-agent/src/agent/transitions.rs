//! The last things that happened to this agent, with their times, for `/state`. Pure.
//!
//! Every time is CLOCK_MONOTONIC in nanoseconds: the clock of the kernel's counters, and of the drill that reads this.

use std::collections::VecDeque;
use std::net::SocketAddr;

use serde::Serialize;

/// How many are kept: the drill's longest scenario makes fewer, and a page of JSON shows them.
const LIMIT: usize = 64;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Transition {
    /// A destination fails after at least 200 ms without a failure.
    Failing {
        /// Address and port.
        destination: SocketAddr,
        /// Set when it failed its own pod's proxy, and nobody else that was seen.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        self_hop: bool,
        /// `FailureCause::as_str`.
        cause: &'static str,
        /// When the failed attempt began.
        started_ns: u64,
        /// When it failed.
        failed_ns: u64,
        /// When the agent read it.
        read_ns: u64,
    },
    /// The probe counts.
    Attached {
        /// When.
        at_ns: u64,
    },
    /// The probe does not count.
    Blind {
        /// When.
        at_ns: u64,
        /// Why.
        reason: String,
    },
    /// A controller answered.
    StreamUp {
        /// When.
        at_ns: u64,
        /// Which.
        controller: SocketAddr,
    },
    /// A stream that was up ended.
    StreamDown {
        /// When.
        at_ns: u64,
        /// Which.
        controller: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// The last transitions, oldest first.
#[derive(Debug, Default)]
pub(super) struct Transitions {
    last: VecDeque<Transition>,
}

impl Transitions {
    /// Keeps one more, and forgets the oldest.
    pub(super) fn push(&mut self, transition: Transition) {
        if self.last.len() == LIMIT {
            self.last.pop_front();
        }
        self.last.push_back(transition);
    }

    /// As JSON.
    pub(super) fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(&self.last).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sixty_four_are_kept_under_their_kinds() {
        let mut transitions = Transitions::default();
        for at_ns in 0..70 {
            transitions.push(Transition::Attached { at_ns });
        }
        let destination = "198.18.0.1:80".parse().expect("an address");
        let failing = |self_hop| {
            let (started_ns, failed_ns, read_ns) = (1, 2, 3);
            Transition::Failing { destination, self_hop, cause: "refused", started_ns, failed_ns, read_ns }
        };
        transitions.push(failing(true));
        transitions.push(failing(false));
        let json = transitions.to_json();
        assert_eq!(json.as_array().expect("an array").len(), LIMIT);
        assert_eq!(json[0], serde_json::json!({"kind": "attached", "at_ns": 8}));
        assert_eq!(json[LIMIT - 2]["self_hop"], true);
        let expected = serde_json::json!({
            "kind": "failing", "destination": "198.18.0.1:80", "cause": "refused",
            "started_ns": 1, "failed_ns": 2, "read_ns": 3,
        });
        assert_eq!(json[LIMIT - 1], expected);
    }
}
