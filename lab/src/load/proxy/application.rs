//! The way from an inbound proxy to its application. In: an address that clients dialled. Out: a connection, or none
//! within a second. While the application answers, every client's connection gets one of its own; once it refuses, it is
//! dialled again by one attempt at a time, after pauses that double, until it answers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::reconnect::Backoff;
use crate::world::clock::now_ns;

/// Linkerd's inbound connect timeout (`inboundConnectTimeout` of its chart).
const CONNECT_LIMIT: Duration = Duration::from_millis(100);
/// How long a client waits for an application that refuses, from its request on (Linkerd's inbound failfast begins then).
const PATIENCE: Duration = Duration::from_secs(1);
/// Addresses that one pod's clients dial: its few ports. What lies beyond gets no connection.
const MAX_ADDRESSES: usize = 64;

/// Every address of the application that was dialled so far.
#[derive(Default)]
pub(super) struct Application {
    paths: RefCell<BTreeMap<SocketAddr, Rc<Path>>>,
    /// At most one per address; they end when their address answers, or with the proxy.
    reconnecting: RefCell<JoinSet<()>>,
}

/// One address.
struct Path {
    address: SocketAddr,
    standing: watch::Sender<Standing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The last attempt succeeded, or there was none yet.
    Answers,
    /// A task is at it.
    Reconnects,
}

impl Application {
    /// A connection to `address`, or none when it refused for as long as a client waits.
    pub(super) async fn reach(&self, address: SocketAddr) -> Option<TcpStream> {
        let path = self.path(address)?;
        timeout(PATIENCE, self.reach_by(&path)).await.ok()
    }

    fn path(&self, address: SocketAddr) -> Option<Rc<Path>> {
        let mut paths = self.paths.borrow_mut();
        if let Some(path) = paths.get(&address) {
            return Some(path.clone());
        }
        if paths.len() >= MAX_ADDRESSES {
            return None;
        }
        let path = Rc::new(Path { address, standing: watch::Sender::new(Standing::Answers) });
        paths.insert(address, path.clone());
        Some(path)
    }

    async fn reach_by(&self, path: &Rc<Path>) -> TcpStream {
        let mut standing = path.standing.subscribe();
        loop {
            // The sender lives in `path`, so that waiting cannot fail.
            standing.wait_for(|standing| *standing == Standing::Answers).await.ok();
            match path.dial().await {
                Some(stream) => return stream,
                None => self.reconnect(path),
            }
        }
    }

    /// Begins to dial again; of several refusals at once only the first does.
    fn reconnect(&self, path: &Rc<Path>) {
        if path.standing.send_replace(Standing::Reconnects) == Standing::Answers {
            let mut reconnecting = self.reconnecting.borrow_mut();
            while reconnecting.try_join_next().is_some() {}
            let path = path.clone();
            reconnecting.spawn_local(async move { path.reconnect().await });
        }
    }
}

impl Path {
    async fn dial(&self) -> Option<TcpStream> {
        let begun_ns = now_ns();
        let dialled = timeout(CONNECT_LIMIT, TcpStream::connect(self.address)).await;
        if !matches!(dialled, Ok(Ok(_))) {
            eprintln!("refused {} at {begun_ns}", self.address);
        }
        dialled.ok()?.ok()
    }

    /// Dials until it answers. The connection that proves it is closed: who waits gets one of its own.
    async fn reconnect(&self) {
        let mut rng = SmallRng::seed_from_u64(now_ns());
        let mut backoff = Backoff::default();
        loop {
            sleep(backoff.after_refusal(rng.next_u64())).await;
            if self.dial().await.is_some() {
                self.standing.send_replace(Standing::Answers);
                return;
            }
        }
    }
}
