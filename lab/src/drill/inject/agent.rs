//! The end of an agent in the middle of something. In: a node. Out: times. A new one is started at once, as the kubelet
//! does; what the new one remembers is the agent's business.

use anyhow::Result;

use crate::drill::cluster::Cluster;
use crate::world::clock::now_ns;
use crate::world::fault::{Fault, Span};

/// SIGKILL of one agent, and the next one in its place.
pub(super) struct AgentRestarted<'a> {
    /// Holds the agents.
    pub(super) cluster: &'a Cluster,
    /// Whose agent.
    pub(super) node: String,
}

impl Fault for AgentRestarted<'_> {
    fn inject(&mut self) -> Result<Span> {
        Span::around(|| self.cluster.restart_agent(&self.node))
    }

    /// It was mended when it was made.
    fn heal(&mut self) -> Result<Span> {
        let now = now_ns();
        Ok(Span { first_ns: now, last_ns: now })
    }
}
