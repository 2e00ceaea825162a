//! The agents' streams: HTTP/2 in, decoded frames out.
//!
//! In: connections from loopback and from the addresses that were named. Out: [`Arrival`]s on one bounded channel, in each
//! stream's order, each frame with the time at which it was decoded; and the frames that the core has for an agent. Every
//! fault is one log line, one count, and the end of the stream that it happened on, of nothing else. Deliberately no TLS and
//! no token yet: the address of the peer is all that is known of it, which is why others than loopback have to be named.

mod connection;
mod counters;
mod fault;
mod rate;
mod sense;
mod stream;
mod telling;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use controller_core::Time;
use probe_common::wire::{AgentFrame, ControllerFrame};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::config::Cidr;
pub(crate) use counters::Counters;
use fault::Fault;
use telling::Telling;

/// Pause after a failed accept. EMFILE and ENFILE stay until some other file is closed: without a pause the loop spins.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Frames on their way to one agent. A stream begins with every split at once, so this has to hold them all; at 1,000 splits
/// there is room for four sets. An agent that lets it fill up is slower than its own heartbeat, and gets a full set anew
/// when it reconnects.
pub(crate) const DOWNSTREAM_FRAMES: usize = 4_096;

/// What happens on the agents' streams.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A stream said Hello; its frames follow, the Hello first. Dropping the sender ends the stream.
    Began {
        /// The node that it is bound to.
        node: String,
        /// Rises with every stream.
        stream: u64,
        /// The way back.
        downstream: mpsc::Sender<ControllerFrame>,
    },
    /// A frame.
    Frame {
        /// The node that the stream is bound to.
        node: String,
        /// The stream's number.
        stream: u64,
        /// What it said.
        frame: AgentFrame,
        /// When it was decoded.
        decoded: Time,
    },
    /// A stream that had begun has ended.
    Ended {
        /// The node that it was bound to.
        node: String,
        /// The stream's number.
        stream: u64,
    },
}

/// What bounds strangers. Fields, so that a test need not open ten thousand connections or wait for seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at the same time.
    pub(crate) connections: usize,
    /// Of these, how many may not have said Hello yet.
    pub(crate) strangers: usize,
    /// How long a connection may live without a stream that has said Hello.
    pub(crate) hello_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Descriptors and memory stay bounded: 5,000 nodes, each with its stream and a second one while it reconnects.
            connections: 10_240,
            // A task and 64 KiB of window each; a cluster's agents that come back together wait their turn by retrying.
            strangers: 512,
            // An agent says it in its first packet.
            hello_within: Duration::from_secs(3),
        }
    }
}

/// What all connections share.
pub(crate) struct Ingest {
    /// Whose connections are taken beside loopback's.
    pub(crate) allowed: Vec<Cidr>,
    /// Where arrivals go. A full channel slows every stream down through HTTP/2's flow control.
    pub(crate) arrivals: mpsc::Sender<Arrival>,
    /// What was taken and what was not.
    pub(crate) counters: Counters,
    /// What bounds strangers.
    pub(crate) limits: Limits,
    /// The controller's clock.
    pub(crate) now: fn() -> Time,
    /// What was logged lately.
    pub(crate) telling: Told,
}

/// What was logged lately, shared by all streams.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Telling>);

impl Told {
    /// See [`Telling::admits`].
    fn admits(&self, who: &str, kind: &'static str, now: Time) -> Option<u64> {
        // A panic elsewhere under the lock leaves a whole map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).admits(who, kind, now)
    }
}

/// Where connections come from; a listener, except in a test of what accept may answer.
pub(crate) trait Accept {
    /// The next connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        Self::accept(self).await
    }
}

/// Serves until it is dropped; dropping ends every connection too.
pub(crate) async fn serve(mut listener: impl Accept, ingest: Ingest) {
    let ingest = Arc::new(ingest);
    let slots = Arc::new(Semaphore::new(ingest.limits.connections));
    let strangers = Arc::new(Semaphore::new(ingest.limits.strangers));
    let mut connections = JoinSet::new();
    loop {
        let (socket, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    ingest.fault(None, &Fault::Accept(error));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        if !ingest.is_allowed(peer.ip()) {
            ingest.fault(Some(peer), &Fault::Address);
            continue;
        }
        let permits = (Arc::clone(&slots).try_acquire_owned(), Arc::clone(&strangers).try_acquire_owned());
        let (Ok(slot), Ok(stranger)) = permits else {
            ingest.fault(Some(peer), &Fault::Connections);
            continue;
        };
        let ingest = Arc::clone(&ingest);
        connections.spawn(async move {
            connection::serve(socket, peer, ingest, stranger).await;
            drop(slot);
        });
    }
}

impl Ingest {
    fn is_allowed(&self, peer: IpAddr) -> bool {
        peer.to_canonical().is_loopback() || self.allowed.iter().any(|block| block.contains(peer))
    }

    /// Tells and counts.
    fn fault(&self, peer: Option<SocketAddr>, fault: &Fault) {
        self.tell(None, peer, fault, "Agent's connection was not taken");
    }

    /// Counts, and logs unless the same was logged a moment ago.
    fn tell(&self, node: Option<&str>, peer: Option<SocketAddr>, fault: &Fault, message: &'static str) {
        let kind = fault.kind();
        self.counters.fault(kind);
        let who = peer.map_or_else(String::new, |peer| peer.ip().to_string());
        let who = node.map_or(who, ToOwned::to_owned);
        let Some(hushed) = self.telling.admits(&who, kind, (self.now)()) else { return };
        let hushed = (hushed > 0).then_some(hushed);
        let peer = peer.map(tracing::field::display);
        tracing::warn!(node, peer, kind, error = %fault, hushed, "{message}");
    }
}

#[cfg(test)]
mod tests;
