//! Conversations: connections that stay and exchange a byte again and again, as a mesh's HTTP/2 connections do beside
//! the short ones. In: addresses, how many, how often. Out: a row for each one that ended, and how many stand. One that
//! ends is made anew after a pause, whatever ended it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::load::dial::connect;
use crate::load::outcome::Outcome;
use crate::load::wire::{Conversations, Row};
use crate::world::clock::now_ns;

/// Of one client: a drill holds a hundred in all.
const MAX_CONVERSATIONS: u32 = 1024;
/// Before an ended conversation is begun anew: a client of a dead address dials it ten times a second, not more.
const RENEWAL_PAUSE: Duration = Duration::from_millis(100);

/// All conversations of a client. Dropping it ends them.
#[derive(Default)]
pub(super) struct Talk {
    standing: JoinSet<Row>,
    settings: Option<Settings>,
    tally: Arc<Tally>,
}

#[derive(Clone)]
struct Settings {
    addresses: Vec<SocketAddr>,
    every: Duration,
    limit: Duration,
    /// Of the rows.
    leaf: u16,
    next: usize,
}

#[derive(Default)]
struct Tally {
    alive: AtomicU32,
    exchanged: AtomicU64,
}

/// Counts a conversation as alive for as long as it is held.
struct Alive(Arc<Tally>);

impl Talk {
    /// Ends those that stand and begins others; 0 only ends them. What is ended so is not recorded: nothing befell it.
    pub(super) fn set(
        &mut self,
        addresses: Vec<SocketAddr>,
        connections: u32,
        every: Duration,
        limit: Duration,
        leaf: u16,
    ) -> Result<()> {
        ensure!(connections <= MAX_CONVERSATIONS, "{connections} conversations, at most {MAX_CONVERSATIONS}");
        ensure!(connections == 0 || !addresses.is_empty(), "conversations without an address");
        self.standing = JoinSet::new();
        self.settings = Some(Settings { addresses, every, limit, leaf, next: 0 });
        for _ in 0..connections {
            self.begin(Duration::ZERO)?;
        }
        Ok(())
    }

    /// The next one that ended; it is made anew. Never, while none stands.
    pub(super) async fn ended(&mut self) -> Result<Row> {
        let Some(row) = self.standing.join_next().await else { return std::future::pending().await };
        let row = row.context("a conversation's task died")?;
        self.begin(RENEWAL_PAUSE)?;
        Ok(row)
    }

    /// How many stand, and what they have exchanged.
    pub(super) fn now(&self) -> Conversations {
        Conversations {
            alive: self.tally.alive.load(Ordering::Relaxed),
            exchanged: self.tally.exchanged.load(Ordering::Relaxed),
        }
    }

    fn begin(&mut self, pause: Duration) -> Result<()> {
        let settings = self.settings.as_mut().context("conversations without settings")?;
        let address = settings.addresses[settings.next % settings.addresses.len()];
        settings.next += 1;
        let (every, limit, leaf, tally) = (settings.every, settings.limit, settings.leaf, self.tally.clone());
        self.standing.spawn(async move {
            sleep(pause).await;
            let start_ns = now_ns();
            let outcome = match connect(address, limit).await {
                Ok(stream) => exchange(stream, every, limit, tally).await,
                Err(outcome) => outcome,
            };
            let elapsed_us = u32::try_from(now_ns().saturating_sub(start_ns) / 1000).unwrap_or(u32::MAX);
            Row { start_ns, elapsed_us, leaf, outcome }
        });
        Ok(())
    }
}

/// A byte for a byte until something ends it. Between two bytes it listens too, so that a reset is seen when it comes.
async fn exchange(mut stream: TcpStream, every: Duration, limit: Duration, tally: Arc<Tally>) -> Outcome {
    let mut alive = None;
    let mut byte = [0];
    loop {
        let answered = timeout(limit, async {
            stream.write_all(&[0]).await?;
            stream.read(&mut byte).await
        });
        match answered.await {
            Ok(Ok(1)) => {}
            Ok(Ok(_)) => return Outcome::Ended,
            Ok(Err(error)) => return Outcome::of_error(&error),
            Err(_) => return Outcome::NoAnswer,
        }
        tally.exchanged.fetch_add(1, Ordering::Relaxed);
        alive.get_or_insert_with(|| Alive::new(&tally));
        tokio::select! {
            () = sleep(every) => {}
            read = stream.read(&mut byte) => match read {
                Ok(_) => return Outcome::Ended,
                Err(error) => return Outcome::of_error(&error),
            },
        }
    }
}

impl Alive {
    fn new(tally: &Arc<Tally>) -> Alive {
        tally.alive.fetch_add(1, Ordering::Relaxed);
        Alive(tally.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::Relaxed);
    }
}
