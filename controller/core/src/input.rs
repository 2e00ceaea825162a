//! Everything that can happen to the core. Pure.

use std::collections::BTreeSet;

use probe_common::wire::AgentFrame;

use crate::facts::{EndpointFacts, ObjectId, ServiceFacts, SplitFacts};
use crate::output::WriteId;
use crate::time::Time;

/// One fact from the world.
#[derive(Clone, Debug)]
pub enum Input {
    /// A split of ours is as it says.
    Split(ObjectId, SplitFacts),
    /// A split of ours cannot be understood: it is held until it can. `fault` names the field.
    SplitInvalid {
        /// Which.
        split: ObjectId,
        /// What is wrong, for an Event on that split.
        fault: String,
    },
    /// A split is gone, or no longer ours.
    SplitGone(ObjectId),
    /// A Service is as it says.
    Service(ObjectId, ServiceFacts),
    /// A Service is gone.
    ServiceGone(ObjectId),
    /// All endpoints of a Service, over all its slices; empty when there is none.
    Endpoints(ObjectId, Vec<EndpointFacts>),
    /// Every watch has delivered its first full list. Before this nothing is ever written.
    CachesComplete,
    /// The nodes of all ready agents, as the agents' headless Service names them; empty when it is not there.
    ExpectedAgents(BTreeSet<String>),
    /// A frame of an agent's stream. The stream's first is a Hello, whose node the shell vouches for.
    Agent {
        /// The node that the stream is bound to.
        node: String,
        /// The shell's number for the stream: a higher one replaces a lower one of the same node.
        stream: u64,
        /// What it said.
        frame: AgentFrame,
    },
    /// A stream ended.
    AgentGone {
        /// The node that it was bound to.
        node: String,
        /// The shell's number for it.
        stream: u64,
    },
    /// How a write ended. Every [`Output::Write`](crate::Output::Write) is answered by exactly one of these.
    WriteDone {
        /// Which.
        id: WriteId,
        /// How.
        outcome: WriteOutcome,
    },
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The API server took it.
    Applied {
        /// When its answer was there.
        acknowledged: Time,
        /// The object's new version: an observation of an older one is behind this write.
        resource_version: String,
    },
    /// The object was not as the decision saw it; the watch will bring how it is.
    Conflict,
    /// The object is gone.
    Gone,
    /// The API server refused it, and would again: no right, invalid.
    Refused(String),
    /// It did not arrive, or nobody knows: time-out, connection lost, server error. May be tried again.
    Failed(String),
    /// It was older than its time to live when its turn came, and was not sent.
    Expired,
}
