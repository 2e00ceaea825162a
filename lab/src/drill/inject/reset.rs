//! RST on long-lived connections while new ones are fine. In: servers that reset, clients that hold conversations with
//! them, and their record. Out: the fault, and what its clients saw of it: ECONNRESET on each within a tenth of a
//! second.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::drill::halt::Halt;
use crate::load::outcome::Outcome;
use crate::load::records::Records;
use crate::load::wire::{CONVERSATION, Order};
use crate::world::PodChild;
use crate::world::clock::{now_ns, pause};
use crate::world::fault::{Fault, Span};

/// Conversations of all clients together.
const CONVERSATIONS: u32 = 100;

/// From one byte of a conversation to the next.
const EVERY_MS: u32 = 100;

/// How long the reset of all of them may take.
const RESET_WITHIN: Duration = Duration::from_millis(100);

/// How long all of them may take to stand.
const STAND_LIMIT: Duration = Duration::from_secs(5);

/// Between two looks at whether they do.
const LOOK_GAP: Duration = Duration::from_millis(20);

/// Linux's ECONNRESET.
const RESET: Outcome = Outcome::Errno(104);

/// See the module's header.
pub(super) struct Reset<'a> {
    /// The primary's programs.
    pub(super) servers: Vec<PodChild>,
    /// They hold the conversations beside their load.
    pub(super) clients: Vec<PodChild>,
    /// The primary's endpoints.
    pub(super) addresses: Vec<SocketAddr>,
    /// Of the last injection.
    pub(super) at: Arc<AtomicU64>,
    /// Ends the waiting early.
    pub(super) halt: &'a Halt,
}

/// What the clients of a [`Reset`] saw.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// They hold the conversations.
    pub(super) clients: Vec<PodChild>,
    /// What they recorded.
    pub(super) records: Records,
    /// Of the last injection.
    pub(super) at: Arc<AtomicU64>,
}

impl Fault for Reset<'_> {
    /// The conversations have to stand before they can be reset.
    fn arm(&mut self) -> Result<()> {
        let count = u32::try_from(self.clients.len()).context("more clients than a drill has")?;
        let shares = (0..count).map(|index| CONVERSATIONS / count + u32::from(index < CONVERSATIONS % count));
        for (client, connections) in self.clients.iter().zip(shares) {
            client.order(self.converse(connections))?;
        }
        let deadline_ns = now_ns() + nanos(STAND_LIMIT);
        loop {
            let alive: u32 = self.clients.iter().map(|client| client.conversations().alive).sum();
            if alive == CONVERSATIONS {
                return Ok(());
            }
            if now_ns() > deadline_ns {
                bail!("only {alive} of {CONVERSATIONS} conversations stand after {} s", STAND_LIMIT.as_secs());
            }
            self.halt.wait(LOOK_GAP)?;
        }
    }

    fn inject(&mut self) -> Result<Span> {
        let first_ns = now_ns();
        self.at.store(first_ns, Ordering::Relaxed);
        let orders = self.servers.iter().map(|server| server.send(Order::ResetConversations));
        let orders = orders.collect::<Result<Vec<_>>>()?;
        orders.into_iter().try_for_each(|order| order.wait().map(drop))?;
        Ok(Span { first_ns, last_ns: now_ns() })
    }

    /// Nothing is left to mend; the conversations end.
    fn heal(&mut self) -> Result<Span> {
        let first_ns = now_ns();
        for client in &self.clients {
            client.order(self.converse(0))?;
        }
        Ok(Span { first_ns, last_ns: now_ns() })
    }
}

impl Reset<'_> {
    fn converse(&self, connections: u32) -> Order {
        Order::Converse { addresses: self.addresses.clone(), connections, every_ms: EVERY_MS }
    }
}

impl Seen {
    /// Whether every conversation ended so and in time.
    ///
    /// # Errors
    ///
    /// A client is gone.
    pub(super) fn all_reset(&self) -> Result<bool> {
        let at_ns = self.at.load(Ordering::Relaxed);
        let until_ns = at_ns + nanos(RESET_WITHIN);
        pause(Duration::from_nanos(until_ns.saturating_sub(now_ns())));
        for client in &self.clients {
            client.order(Order::Flush)?;
        }
        let ends = self.records.ends_of(CONVERSATION, at_ns);
        let in_time = ends.iter().filter(|(end_ns, outcome)| *end_ns <= until_ns && *outcome == RESET).count();
        Ok(u32::try_from(in_time).is_ok_and(|in_time| in_time == CONVERSATIONS))
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
