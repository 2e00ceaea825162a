//! Faults: objects that break something and mend it again. In: what to break. Out: the times between which it broke.
//! A fault changes the world and nothing else; whether anybody noticed is for the drill to find out.

mod filter;
mod programs;
mod timed;

use anyhow::{Context, Result};

use super::build::in_parallel;
use super::clock::now_ns;
use super::netlink::Netlink;
use super::netns::Netns;
use super::{Node, World};
use crate::load::wire::Done;

pub use self::filter::Filter;
pub use self::programs::{ExtraLoop, Frozen, Hang, Killed, Refused, Terminated};
pub use self::timed::{Brief, Flapping, Then};

/// When a change was made, raw CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Just before the first call that made it: the `t0` of a drill.
    pub first_ns: u64,
    /// Just after the last.
    pub last_ns: u64,
}

/// Something that can be broken and mended. Both may be called again and again, in turns.
pub trait Fault: Send {
    /// Does what costs time beforehand (starting tools), so that [`Fault::inject`] is quick. Optional.
    ///
    /// # Errors
    /// A tool could not be started.
    fn arm(&mut self) -> Result<()> {
        Ok(())
    }

    /// Breaks it.
    ///
    /// # Errors
    /// A part could not be broken; others may be.
    fn inject(&mut self) -> Result<Span>;

    /// Mends it.
    ///
    /// # Errors
    /// A part could not be mended.
    fn heal(&mut self) -> Result<Span>;
}

impl Span {
    /// From before the first to after the last.
    #[must_use]
    pub fn over(spans: impl IntoIterator<Item = Span>) -> Option<Span> {
        spans.into_iter().reduce(|one, other| Span {
            first_ns: one.first_ns.min(other.first_ns),
            last_ns: one.last_ns.max(other.last_ns),
        })
    }

    /// Times `work` from outside.
    pub(crate) fn around(work: impl FnOnce() -> Result<()>) -> Result<Span> {
        let first_ns = now_ns();
        work()?;
        Ok(Span { first_ns, last_ns: now_ns() })
    }
}

impl From<Done> for Span {
    fn from(done: Done) -> Span {
        Span { first_ns: done.first_ns, last_ns: done.last_ns }
    }
}

/// Several faults as one: broken in order, mended in reverse.
pub struct Together<'a>(pub Vec<Box<dyn Fault + 'a>>);

impl Fault for Together<'_> {
    fn arm(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|fault| fault.arm())
    }

    fn inject(&mut self) -> Result<Span> {
        let spans = self.0.iter_mut().map(|fault| fault.inject()).collect::<Result<Vec<_>>>()?;
        Span::over(spans).context("no fault at all")
    }

    fn heal(&mut self) -> Result<Span> {
        let spans = self.0.iter_mut().rev().map(|fault| fault.heal()).collect::<Result<Vec<_>>>()?;
        Span::over(spans).context("no fault at all")
    }
}

/// Nodes lose their only cable: nothing on them hears or is heard, their agents included.
#[derive(Debug)]
pub struct Unplugged {
    fabric: Netns,
    ports: Vec<String>,
    links: Option<Netlink>,
}

impl Unplugged {
    /// Of these nodes.
    #[must_use]
    pub fn new(world: &World, nodes: &[&Node]) -> Unplugged {
        let ports = nodes.iter().map(|node| node.fabric_port()).collect();
        Unplugged { fabric: world.fabric(), ports, links: None }
    }

    fn set(&mut self, up: bool) -> Result<Span> {
        let mut links = match self.links.take() {
            Some(links) => links,
            None => Netlink::to_links(&self.fabric)?,
        };
        let span = Span::around(|| self.ports.iter().try_for_each(|port| links.set_link(port, up)));
        self.links = Some(links);
        span
    }
}

impl Fault for Unplugged {
    fn inject(&mut self) -> Result<Span> {
        self.set(false)
    }

    fn heal(&mut self) -> Result<Span> {
        self.set(true)
    }
}

/// Nodes stand still, agents included, as under a hypervisor that takes their processors away. The kernel's own part
/// (handshakes, forwarding) goes on: it is shared by all nodes of this machine.
#[derive(Debug)]
pub struct Stalled {
    nodes: Vec<Node>,
}

impl Stalled {
    /// These nodes.
    #[must_use]
    pub fn new(nodes: &[&Node]) -> Stalled {
        Stalled { nodes: nodes.iter().map(|node| (*node).clone()).collect() }
    }
}

impl Fault for Stalled {
    fn inject(&mut self) -> Result<Span> {
        Span::around(|| in_parallel(&self.nodes, |node| node.cgroup().freeze()))
    }

    fn heal(&mut self) -> Result<Span> {
        Span::around(|| in_parallel(&self.nodes, |node| node.cgroup().thaw()))
    }
}
