//! Everything that one run saw, as raw CLOCK_MONOTONIC nanoseconds. In: what the run's parts wrote down. Out: one value
//! for the arithmetic. Data only.

use serde_json::Value;

use crate::drill::transition::Transition;

/// Everything that one run saw.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The splits, one or more, in the order of the report.
    pub splits: Vec<SplitObservation>,
    /// Just before the first call that made the fault.
    pub t0_ns: u64,
    /// Just after the last.
    pub injected_ns: u64,
    /// The drill itself saw the fault after t0: by dialling, or by the API server's acknowledgement.
    pub proved_by_drill: bool,
    /// What the clients saw between t0 and the closing.
    pub clients: Clients,
    /// The controller's transitions.
    pub transitions: Vec<Transition>,
    /// Nothing later counts, but for the control and the way back.
    pub closed_ns: u64,
    /// What the controller then called the reason for staying.
    pub held_by: Option<String>,
    /// The control, where the scenario has one.
    pub control: Option<ControlObservation>,
    /// The way back, where the scenario waits for one.
    pub healed: Option<HealObservation>,
}

/// One split of a run.
#[derive(Clone, Debug, Default)]
pub struct SplitObservation {
    /// `namespace/name`.
    pub split: String,
    /// Its primary backend.
    pub primary: String,
    /// As the drill's own watch delivered it, from before t0 on.
    pub seen: Vec<Seen>,
    /// The first SYN of a client to another backend than the primary after the weights were written.
    pub shifted_ns: Option<u64>,
}

/// What the clients saw after t0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Connections begun.
    pub sent: u64,
    /// Those that ended with an errno, or without a byte within a second.
    pub failed: u64,
    /// Those whose connect failed, by their own errno.
    pub connects_failed: u64,
    /// When the first of these failed.
    pub first_failed_ns: Option<u64>,
    /// When the last of these failed.
    pub last_failed_ns: Option<u64>,
}

/// The split as a watch delivered it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// When it was there.
    pub at_ns: u64,
    /// Backends and weights, in the object's order, as the API has them.
    pub weights: Vec<(String, Value)>,
}

/// The control of a run that must not move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlObservation {
    /// Just before the control's fault.
    pub t0_ns: u64,
    /// The drill saw the control's fault.
    pub proved: bool,
}

/// What happened after the fault was healed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealObservation {
    /// All endpoints answered again.
    pub healed_ns: u64,
    /// Connections begun after that which failed.
    pub failed_after: u64,
}
