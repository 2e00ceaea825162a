//! The streams to all controller replicas, as the loop holds them: which there are, and what each is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use probe_common::wire::{CheckResult, Row, Total};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::metrics::{Metrics, set};
use super::tasks::Tasks;
use crate::uplink::{self, News, Outbox, Speaker};

/// News of all streams that may wait for the loop. A controller with 200 splits sends as many frames at once; more
/// than that waits in the connection, which is what flow control is for.
const NEWS_LIMIT: usize = 256;

/// All streams.
pub(super) struct Links {
    links: BTreeMap<SocketAddr, Link>,
    /// Controllers that may not be spoken to, since they are beyond loopback.
    refused: BTreeSet<SocketAddr>,
    speaker: Speaker,
    news: mpsc::Sender<(SocketAddr, News)>,
    clock: fn() -> u64,
    is_insecure_allowed: bool,
    frames_of_ended: u64,
    blind: Option<String>,
}

struct Link {
    outbox: Arc<Outbox>,
    task: AbortHandle,
    standing: Standing,
    /// Kinds of frames that were passed over since the stream began.
    skipped: BTreeSet<u8>,
}

/// How a stream stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// It does not live, and why; empty before the first try has ended.
    Down(String),
    /// The controller answered and is telling its splits.
    Up,
    /// The controller has told every split.
    Told,
}

impl Links {
    /// No stream yet, and where news of streams will arrive.
    pub(super) fn new(
        speaker: Speaker,
        is_insecure_allowed: bool,
        clock: fn() -> u64,
    ) -> (Self, mpsc::Receiver<(SocketAddr, News)>) {
        let (news, arriving) = mpsc::channel(NEWS_LIMIT);
        let links = Self {
            links: BTreeMap::new(),
            refused: BTreeSet::new(),
            speaker,
            news,
            clock,
            is_insecure_allowed,
            frames_of_ended: 0,
            blind: None,
        };
        (links, arriving)
    }

    /// Begins and ends streams so that there is one to each of these controllers.
    pub(super) fn keep(&mut self, controllers: &BTreeSet<SocketAddr>, tasks: &mut Tasks) {
        let is_allowed = |to: &SocketAddr| self.is_insecure_allowed || to.ip().to_canonical().is_loopback();
        let (allowed, refused) = controllers.iter().partition(|to| is_allowed(to));
        self.refused = refused;
        let allowed: BTreeSet<SocketAddr> = allowed;
        let frames_of_ended = &mut self.frames_of_ended;
        self.links.retain(|controller, link| {
            let is_kept = allowed.contains(controller);
            if !is_kept {
                tracing::info!(%controller, "Controller is gone");
                link.task.abort();
                *frames_of_ended += link.outbox.frames_sent();
            }
            is_kept
        });
        for controller in allowed {
            if self.links.contains_key(&controller) {
                continue;
            }
            tracing::info!(%controller, "Controller is there");
            let outbox = Arc::new(Outbox::default());
            outbox.with(|reporter| reporter.set_blind(self.blind.as_deref()));
            let stream =
                uplink::run(controller, self.speaker.clone(), Arc::clone(&outbox), self.news.clone(), self.clock);
            let task = tasks.spawn("stream", stream);
            self.links.insert(
                controller,
                Link { outbox, task, standing: Standing::Down(String::new()), skipped: BTreeSet::new() },
            );
        }
    }

    /// The controller answered. False when it is none of ours any more.
    pub(super) fn on_up(&mut self, controller: SocketAddr) -> bool {
        let Some(link) = self.links.get_mut(&controller) else { return false };
        link.standing = Standing::Up;
        link.skipped.clear();
        true
    }

    /// A frame was passed over. True for the first of its kind on this stream.
    pub(super) fn is_first_skipped(&mut self, controller: SocketAddr, kind: u8) -> bool {
        self.links.get_mut(&controller).is_some_and(|link| link.skipped.insert(kind))
    }

    /// The stream ended. True when it had been up.
    pub(super) fn on_down(&mut self, controller: SocketAddr, reason: &str) -> bool {
        let Some(link) = self.links.get_mut(&controller) else { return false };
        let was_up = link.is_up();
        link.standing = Standing::Down(reason.to_owned());
        was_up
    }

    /// The controller has told every split: it gets to know which endpoints are meshed, history, then live rows.
    pub(super) fn on_splits_sent(&mut self, controller: SocketAddr, meshed: &[IpAddr], totals: Vec<Total>) {
        if let Some(link) = self.links.get_mut(&controller) {
            link.standing = Standing::Told;
            link.outbox.with(|reporter| {
                if !meshed.is_empty() {
                    reporter.push_meshed(meshed, (self.clock)());
                }
                reporter.push_totals(totals, (self.clock)());
            });
        }
    }

    /// Which endpoints are meshed from now on, for whoever had history before; the others get it with their history.
    pub(super) fn push_meshed(&self, endpoints: &[IpAddr]) {
        for link in self.links.values().filter(|link| link.standing == Standing::Told) {
            link.outbox.with(|reporter| {
                if reporter.is_live() {
                    reporter.push_meshed(endpoints, (self.clock)());
                }
            });
        }
    }

    /// History of destinations that were gained, for whoever had history before.
    pub(super) fn push_totals(&self, totals: &[Total]) {
        for link in self.links.values().filter(|link| link.standing == Standing::Told && !totals.is_empty()) {
            link.outbox.with(|reporter| {
                // A stream that has just begun anew gets all of its history later.
                if reporter.is_live() {
                    reporter.push_totals(totals.iter().cloned(), (self.clock)());
                }
            });
        }
    }

    /// What a read brought, with what it has to admit.
    pub(super) fn push_rows(&self, rows: &[Row], now_ns: u64, lateness_us: u32, metrics: &Metrics) {
        for link in self.links.values() {
            let dropped = link.outbox.with(|reporter| {
                reporter.admit(lateness_us, 0);
                reporter.push_rows(rows, now_ns)
            });
            metrics.rows_dropped.inc_by(dropped.rows);
        }
    }

    /// The result of a check, for all: whoever asked, every replica judges by it.
    pub(super) fn push_result(&self, result: &CheckResult, now_ns: u64, metrics: &Metrics) {
        for link in self.links.values().filter(|link| link.is_up()) {
            let dropped = link.outbox.with(|reporter| reporter.push_result(result.clone(), now_ns));
            metrics.results_dropped.inc_by(dropped.results);
        }
    }

    /// Lets reports go out, if only as signs of life.
    pub(super) fn flush(&self, now_ns: u64, lost_events: u64) {
        for link in self.links.values() {
            link.outbox.with(|reporter| {
                reporter.admit(0, lost_events);
                reporter.flush(now_ns);
            });
        }
    }

    /// Whether nothing is on its way any more.
    pub(super) fn is_drained(&self) -> bool {
        self.links.values().all(|link| !link.is_up() || link.outbox.with(|reporter| !reporter.is_due()))
    }

    /// Says from now on that this node cannot count, or that it can.
    pub(super) fn set_blind(&mut self, blind: Option<String>) {
        for link in self.links.values() {
            link.outbox.with(|reporter| reporter.set_blind(blind.as_deref()));
        }
        self.blind = blind;
    }

    /// Streams that live.
    pub(super) fn up(&self) -> usize {
        self.links.values().filter(|link| link.is_up()).count()
    }

    /// Every controller known, with how its stream stands.
    pub(super) fn standings(&self) -> BTreeMap<SocketAddr, String> {
        let refused = "refused: beyond loopback there is no TLS yet, and --insecure-controller is not set";
        let refused = self.refused.iter().map(|&controller| (controller, refused.to_owned()));
        let links = self.links.iter().map(|(&controller, link)| {
            let text = match &link.standing {
                Standing::Down(reason) if reason.is_empty() => "connecting".to_owned(),
                Standing::Down(reason) => format!("down: {reason}"),
                Standing::Up => "up, telling its splits".to_owned(),
                Standing::Told => "up".to_owned(),
            };
            (controller, text)
        });
        refused.chain(links).collect()
    }

    /// Publishes what the links amount to.
    pub(super) fn measure(&self, metrics: &Metrics) {
        let frames: u64 = self.links.values().map(|link| link.outbox.frames_sent()).sum();
        set(&metrics.frames_sent, self.frames_of_ended + frames);
        metrics.controllers.set((self.links.len() + self.refused.len()) as i64);
        metrics.streams.set(self.up() as i64);
    }
}

impl Link {
    fn is_up(&self) -> bool {
        match self.standing {
            Standing::Down(_) => false,
            Standing::Up | Standing::Told => true,
        }
    }
}
