//! The core's wishes for weights, carried to the API server.
//!
//! In: [`Job`]s. Out: exactly one [`Written`] for each. Writes of different splits run side by side, so that one object's
//! trouble delays no other's; the core never asks for two writes of one split at a time. Deliberately no retry: evidence
//! has to be looked at again before every try, and only the core can do that.

pub(crate) mod counters;
pub(crate) mod event;
pub(crate) mod lane;
mod patch;
mod traffic_split;

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use controller_core::Time;
use controller_core::input::WriteOutcome;
use controller_core::output::Write;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::Request;
use tokio::sync::{mpsc, watch};

use crate::cluster::SplitVersion;
use crate::record::Place;
use crate::write::counters::Counters;
use crate::write::lane::Lane;
use traffic_split::Answer;

/// Writes under way at the same time; more wait their turn. A gateway's loss moves up to 200 splits at once: with some
/// milliseconds a request they take well under a second, and the API server sees no more connections than a browser makes
/// for six pages.
pub(crate) const IN_FLIGHT: usize = 32;

/// Writes that wait for a place. One per split at most: the core asks for no second one before the first is answered.
pub(crate) const QUEUE: usize = 4_096;

/// How often each lane's kept connection is used: clients and proxies drop idle ones after 60 to 90 s.
const WARM_EVERY: Duration = Duration::from_secs(20);

/// How long the answer to that may take. A lane that has none builds its client anew.
const WARM_DEADLINE: Duration = Duration::from_secs(1);

/// A write, and what its object has of annotations at the version that guards it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// What is to be written.
    pub(crate) write: Write,
    /// Where our annotation has to go.
    pub(crate) place: Place,
}

/// A write and how it ended.
#[derive(Debug)]
pub(crate) struct Written {
    /// What was to be written.
    pub(crate) write: Write,
    /// How it ended.
    pub(crate) outcome: WriteOutcome,
    /// What the object has of annotations now, where the answer told.
    pub(crate) place: Option<Place>,
    /// Our annotation as it was sent; `None` where it was to be removed, or nothing was sent.
    pub(crate) record: Option<String>,
    /// Whether it may have been taken although nothing says so: what the watch shows will tell.
    pub(crate) in_doubt: bool,
}

/// What writes TrafficSplits.
pub(crate) struct Writer {
    /// Two ways to the API server: the second carries hedges.
    pub(crate) lanes: [Lane; 2],
    /// The version to write in. Published before any split is observed, so before any is written.
    pub(crate) version: watch::Receiver<Option<SplitVersion>>,
    /// How writes ended.
    pub(crate) counters: Counters,
    /// The controller's clock.
    pub(crate) now: fn() -> Time,
}

/// Writes until `jobs` ends and the last one is answered.
pub(crate) async fn run(writer: Writer, mut jobs: mpsc::Receiver<Job>, answers: mpsc::Sender<Written>) {
    let mut running = FuturesUnordered::new();
    let mut warm = pin!(stay_warm(&writer.lanes));
    loop {
        tokio::select! {
            never = &mut warm => match never {},
            Some(written) = running.next() => {
                if answers.send(written).await.is_err() {
                    return;
                }
            }
            job = jobs.recv(), if running.len() < IN_FLIGHT => match job {
                Some(job) => running.push(writer.carry(job)),
                None => break,
            },
        }
    }
    while let Some(written) = running.next().await {
        if answers.send(written).await.is_err() {
            return;
        }
    }
}

/// Keeps a connection of each lane ready: a failover should not begin with a TCP and TLS handshake, nor find out that the
/// kept connection died yesterday. What the server answers does not matter, that it answers is enough.
async fn stay_warm(lanes: &[Lane; 2]) -> Infallible {
    let mut tick = tokio::time::interval(WARM_EVERY);
    loop {
        tick.tick().await;
        for lane in lanes {
            let request = Request::get("/readyz").body(Bytes::new()).expect("a constant request is valid");
            if let Err(error) = lane.send(request, WARM_DEADLINE).await {
                tracing::debug!(%error, "Connection for writes could not be kept ready");
            }
        }
    }
}

impl Writer {
    async fn carry(&self, job: Job) -> Written {
        let Answer { outcome, place, record, in_doubt } = traffic_split::write(self, &job).await;
        let Job { write, .. } = job;
        self.counters.written(write.direction, &outcome, (self.now)().since(write.decided));
        Written { write, outcome, place, record, in_doubt }
    }
}

#[cfg(test)]
mod tests;
