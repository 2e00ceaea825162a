//! Everything that the core can ask for. Pure.

use std::net::IpAddr;

use probe_common::wire::{ControllerFrame, Destination};

use crate::facts::{MoveCause, ObjectId, Record};
use crate::guard::Guard;
use crate::target::Grounds;
use crate::time::Time;
use crate::weights::Weight;

/// One wish to the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write these weights.
    Write(Write),
    /// Tell an agent. Lossy: an agent that is gone or slow misses it, and its silence is seen.
    Send {
        /// To whom.
        node: String,
        /// The stream it is for; a newer stream gets its own.
        stream: u64,
        /// What.
        frame: ControllerFrame,
    },
    /// Publish an Event on a split that needs no write first.
    Notice {
        /// On which.
        split: ObjectId,
        /// Event reason.
        reason: NoticeReason,
        /// Event note.
        note: String,
    },
    /// Something changed that an operator or a drill wants to see in /state, metrics and the log.
    Transition(Transition),
}

/// Names a write until it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

/// A guarded change of one split's weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Names it.
    pub id: WriteId,
    /// Which object.
    pub split: ObjectId,
    /// It must still have this uid.
    pub uid: String,
    /// It must still be at this version.
    pub resource_version: String,
    /// Every backend in the object's order with its new weight: the guard is that the names are still these.
    pub weights: Vec<(String, Weight)>,
    /// What goes into `splitsecond.dev/state`; `None` removes the annotation.
    pub record: Option<Record>,
    /// Which way.
    pub direction: Direction,
    /// Why.
    pub cause: MoveCause,
    /// When it was decided.
    pub decided: Time,
    /// From then on it must not be sent any more; the core decides again.
    pub expires: Time,
    /// The Event to publish once it was applied; `None` for the steps of a ramp.
    pub event: Option<String>,
}

/// Which way a write moves traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Off the primary.
    Failover,
    /// Between secondaries, the primary stays off.
    Spread,
    /// A step of the ramp back to the primary.
    Ramp,
    /// Back to the primary, whole.
    Failback,
}

/// The reason of an Event that is not about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeReason {
    /// Evidence would move the split, a guard holds it.
    Held,
    /// The split cannot be understood.
    InvalidPolicy,
}

impl NoticeReason {
    /// The Event's `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "Held",
            Self::InvalidPolicy => "InvalidPolicy",
        }
    }
}

/// A moment that /state keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// When, on the controller's clock.
    pub at: Time,
    /// Of which split, where it is about one.
    pub split: Option<ObjectId>,
    /// What happened.
    pub kind: TransitionKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransitionKind {
    /// The first report in at least 200 ms that has failures of one of the split's backends was taken in.
    Reported {
        /// Which backend.
        backend: String,
        /// Whose report.
        node: String,
        /// Of which destination.
        destination: Destination,
        /// Start of the failed attempt, on the agent's clock.
        started_ns: u64,
        /// When the kernel saw it fail, on the agent's clock.
        failed_ns: u64,
    },
    /// A backend turned suspect: other nodes are asked to check it.
    Suspect {
        /// Which backend.
        backend: String,
    },
    /// The suspicion went away.
    Cleared {
        /// Which backend.
        backend: String,
    },
    /// A backend is condemned: evidence, checks and the last look agree.
    Condemned {
        /// Which backend.
        backend: String,
        /// When the first failing attempt of the episode began, on the controller's clock.
        episode: Time,
        /// What it rests on.
        grounds: Grounds,
    },
    /// A condemned or unready backend's traffic is held where it is; said once per change of the guard.
    Held {
        /// Which backend.
        backend: String,
        /// What holds it.
        guard: Guard,
    },
    /// A write was decided.
    Decided {
        /// Names it.
        write: WriteId,
        /// Which way.
        direction: Direction,
        /// Why.
        cause: MoveCause,
    },
    /// A write was taken by the API server.
    Acknowledged {
        /// Names it.
        write: WriteId,
        /// Which way.
        direction: Direction,
    },
    /// A write was not applied; it is decided again.
    NotApplied {
        /// Names it.
        write: WriteId,
        /// Why not.
        error: String,
    },
    /// An agent spoke for an endpoint on another node: nothing followed from it. Told once a minute and node.
    Disbelieved {
        /// Whose agent.
        node: String,
        /// Of which endpoint.
        address: IpAddr,
    },
    /// A node's agent became fresh, stale or blind.
    Agent {
        /// Which node.
        node: String,
        /// What it is now.
        freshness: Freshness,
    },
}

/// What an agent's evidence is worth now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freshness {
    /// It reports in time.
    Fresh,
    /// It has been silent for longer than [`Config::stale_after`](crate::Config).
    Stale,
    /// It reports that it cannot count.
    Blind,
    /// It just (re)started.
    Unknown,
}

impl Freshness {
    /// Its name in metrics and /state.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Blind => "blind",
            Self::Unknown => "unknown",
        }
    }
}
