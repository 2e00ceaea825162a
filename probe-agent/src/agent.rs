//! The shell: one loop, one clock, every task. It converts, calls and drains; what to do is decided by the pure modules.
//!
//! In: a [`Config`], the kernel's records, news of the cluster and of the controllers, results of checks, signals. Out:
//! reports to every controller, and the admin surface. Every read of the kernel's counters happens on this loop.
//!
//! A node that cannot count is *blind*: the agent lives on, says so wherever it is asked, goes on making checks, and
//! tries again now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use probe_common::abi::{FirstFailure, Loss};
use probe_common::admin::{self, Surface};
use probe_common::wire::{CheckRequest, CheckResult};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::check;
use crate::cluster::{self, chain};
use crate::config::{Config, Controllers};
use crate::directory::Directory;
use crate::index::Tier;
use crate::kernel::{self, Events, Exemption, LoadError, MapError, Probe, Settings};
use crate::resolve::{Kind, Resolver};
use crate::uplink::{self, Speaker};

mod cold;
mod ledger;
mod links;
mod mesh;
mod metrics;
mod news;
mod schedule;
mod show;
mod surface;
mod tasks;
mod transitions;

use ledger::{Ledger, Pass};
use links::Links;
use mesh::Mesh;
use metrics::Metrics;
use schedule::Schedule;
use surface::{Names, Shown};
use tasks::Tasks;
use transitions::Transition;

/// News of the cluster that may wait for the loop: one page of a list.
const CLUSTER_NEWS_LIMIT: usize = 512;

/// Results of checks that may wait for the loop: as many as can be under way.
const RESULTS_LIMIT: usize = check::CONCURRENT_LIMIT;

/// Destinations written into the probe per turn of the loop: about 2 ms of system calls, so that reading stays on time
/// while a large cluster is listed.
const CHANGES_PER_TURN: usize = 256;

/// Every hot destination is read once in so many passes (2 s), whatever its stamp says: in small portions, so that no
/// pass is late for the sake of the sweep. A stamp is missed only if a program is held up between two instructions for
/// two passes.
const SWEEP_PASSES: usize = 100;

/// Every cold destination is read once in so many passes (30 s): they are figures for people, and each is a system call.
const COLD_PASSES: usize = 1500;

/// Failed reads in a row after which the probe counts as gone. A second's worth of passes.
const ERRORS_LIMIT: u32 = 50;

/// How long a blind agent waits before it tries to load the probe again.
const LOAD_PAUSE_NS: u64 = 60_000_000_000;

/// How long after a list its memory is given back: by then its destinations are written into the probe.
const TRIM_PAUSE_NS: u64 = 2_000_000_000;

/// How long the last reports may take to leave after a signal to stop.
const DRAIN: Duration = Duration::from_millis(300);

/// Why the agent ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The admin server cannot listen. The kubelet restarts the container.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's report.
        #[source]
        source: io::Error,
    },
    /// Signals cannot be awaited.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// A task ended that runs as long as the agent: a bug. Going on without it would be silence that looks like health.
    #[error("task {task} ended unexpectedly")]
    TaskEnded {
        /// Which.
        task: String,
    },
}

/// Tries the probe once and says what this node can do.
///
/// # Errors
///
/// Why it cannot count.
pub fn try_once(config: &Config) -> Result<String, String> {
    let probe = load(config)?;
    let memory = probe.memory_bytes().map_or_else(|error| chain(&error), |bytes| format!("{} KiB", bytes / 1024));
    Ok(format!(
        "this node can count: {} destinations of splits, {} others, {memory} of kernel memory",
        config.hot_capacity, config.cold_capacity
    ))
}

/// Runs until a signal ends it: the loop here, everything else on `workers`.
///
/// # Errors
///
/// [`RunError`].
pub async fn run(config: Config, workers: Handle) -> Result<(), RunError> {
    let clock: fn() -> u64 = kernel::now_ns;
    let address = config.admin;
    let listener = listen(address).map_err(|source| RunError::Listen { address, source })?;
    let signals = Signals::new().map_err(RunError::Signals)?;
    let (metrics, registry) = Metrics::registered();
    let incarnation = clock();
    let shown = Arc::new(Shown::new(registry, config.node.clone(), incarnation));

    let mut tasks = Tasks::new(workers);
    tasks.spawn("admin", serve(listener, Arc::clone(&shown) as _));
    let (cluster_news, from_cluster) = mpsc::channel(CLUSTER_NEWS_LIMIT);
    tasks.spawn("cluster", cluster::run(config.kubeconfig.clone(), config.node.clone(), cluster_news, incarnation));
    let (requests, for_checks) = mpsc::channel(check::REQUESTS_LIMIT);
    let (results, from_checks) = mpsc::channel(RESULTS_LIMIT);
    let (exemptions, for_exemption) = mpsc::channel(check::EXEMPTIONS_LIMIT);
    tasks.spawn("checks", check::run(for_checks, for_exemption, results, clock));
    let checks = Checks { requests, exemptions };
    let speaker = Speaker { node: config.node.clone(), incarnation };
    let (links, from_links) = Links::new(speaker, config.insecure_controller, clock);

    let inbox = Inbox { signals, from_cluster, from_links, from_checks };
    Agent::new(config, clock, tasks, shown, metrics, links, checks).run(inbox).await
}

/// A listener that no reactor knows yet: it belongs to the one of the task that serves.
fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve(listener: std::net::TcpListener, surface: Arc<dyn Surface>) {
    let served = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => admin::serve(listener, surface).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::error!(%error, "Admin server failed");
    }
}

fn load(config: &Config) -> Result<Probe, String> {
    let node_cgroup = kernel::node_cgroup(config.cgroup_root.as_deref()).map_err(|error| chain(&error))?;
    let Config { hot_capacity, cold_capacity, proxy_uid, .. } = *config;
    Probe::load(&Settings { node_cgroup, hot_capacity, cold_capacity, proxy_uid }).map_err(|error| chain(&error))
}

/// Everything that wakes the loop but the kernel and the clock.
struct Inbox {
    signals: Signals,
    from_cluster: mpsc::Receiver<cluster::News>,
    from_links: mpsc::Receiver<(SocketAddr, uplink::News)>,
    from_checks: mpsc::Receiver<CheckResult>,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The way to the task that makes checks.
struct Checks {
    requests: mpsc::Sender<CheckRequest>,
    exemptions: mpsc::Sender<Exemption>,
}

struct Agent {
    config: Config,
    clock: fn() -> u64,
    tasks: Tasks,
    shown: Arc<Shown>,
    metrics: Metrics,
    links: Links,
    checks: Checks,
    sight: Sight,
    events: Option<Events>,
    records: Vec<FirstFailure>,
    resolver: Resolver,
    directory: Option<Directory>,
    mesh: Mesh,
    complete: BTreeSet<Kind>,
    watches: BTreeMap<&'static str, String>,
    schedule: Schedule,
    asleep_until_ns: u64,
    lateness_ns: u64,
    errors: u32,
    /// Whether a sum changed since `/state` was published.
    has_counted: bool,
    losses: ([u64; Loss::COUNT], u64),
    /// When memory that a list took can be given back.
    trim_ns: Option<u64>,
    names: BTreeMap<SocketAddr, Arc<Names>>,
    names_revision: Option<u64>,
}

/// Whether this node can count.
enum Sight {
    Counting(Box<Ledger<Probe>>),
    Blind { reason: String, retry_ns: Option<u64> },
}

impl Agent {
    fn new(
        config: Config,
        clock: fn() -> u64,
        tasks: Tasks,
        shown: Arc<Shown>,
        metrics: Metrics,
        links: Links,
        checks: Checks,
    ) -> Self {
        let directory = match &config.controllers {
            Controllers::Service { name, port } => Some(Directory::new(name.clone(), port.clone())),
            Controllers::None | Controllers::Fixed(_) => None,
        };
        Self {
            config,
            clock,
            tasks,
            shown,
            metrics,
            links,
            checks,
            sight: Sight::Blind { reason: "not loaded yet".to_owned(), retry_ns: Some(0) },
            events: None,
            records: Vec::new(),
            resolver: Resolver::default(),
            directory,
            mesh: Mesh::default(),
            complete: BTreeSet::new(),
            watches: BTreeMap::new(),
            schedule: Schedule::new(clock()),
            asleep_until_ns: u64::MAX,
            lateness_ns: 0,
            errors: 0,
            has_counted: true,
            losses: ([0; Loss::COUNT], 0),
            trim_ns: None,
            names: BTreeMap::new(),
            names_revision: None,
        }
    }

    async fn run(mut self, mut inbox: Inbox) -> Result<(), RunError> {
        self.open_eyes();
        if let Controllers::Fixed(controllers) = self.config.controllers.clone() {
            self.links.keep(&controllers.into_iter().collect(), &mut self.tasks);
        }
        loop {
            self.turn();
            tokio::select! {
                biased;
                () = inbox.signals.next() => return self.drain(inbox.signals).await,
                task = self.tasks.ended() => return Err(RunError::TaskEnded { task }),
                read = next_records(&mut self.events, &mut self.records) => self.on_records(read),
                () = sleep_until(self.asleep_until_ns, self.clock) => {}
                Some((controller, news)) = inbox.from_links.recv() => self.on_stream_news(controller, news),
                Some(result) = inbox.from_checks.recv() => self.on_result(&result),
                Some(news) = inbox.from_cluster.recv() => self.on_cluster_news(news),
            }
        }
    }

    /// Does what is due, and sets the time of the next turn.
    fn turn(&mut self) {
        let now_ns = (self.clock)();
        let late_by_ns = now_ns.saturating_sub(self.asleep_until_ns);
        if late_by_ns > 0 {
            self.metrics.on_wake(late_by_ns);
            self.lateness_ns = self.lateness_ns.max(late_by_ns);
        }
        self.apply_changes();
        self.follow_endpoints();
        let due = self.schedule.take_due(now_ns);
        if due.pass {
            self.pass(SWEEP_PASSES, due.retry);
        }
        if due.mesh {
            self.read_mesh();
        }
        if due.flush {
            self.flush();
        }
        if due.show {
            self.show_destinations();
            if self.trim_ns.is_some_and(|trim_ns| trim_ns <= now_ns) {
                self.trim_ns = None;
                kernel::return_freed_memory();
            }
        }
        let has_changes = matches!(self.sight, Sight::Counting(_)) && self.resolver.has_changes();
        self.asleep_until_ns = if has_changes { (self.clock)() } else { self.schedule.deadline_ns() };
    }

    /// Loads the probe.
    fn open_eyes(&mut self) {
        let loaded = load(&self.config).and_then(|mut probe| {
            let events = probe.take_events().map_err(|error| chain(&error))?;
            let exemption = probe.take_exemption().map_err(|error| chain(&error))?;
            Ok((probe, events, exemption))
        });
        let at_ns = (self.clock)();
        match loaded {
            Ok((probe, events, exemption)) => {
                if self.checks.exemptions.try_send(exemption).is_err() {
                    tracing::warn!("Checks did not take up the probe: those of this node are counted as its traffic");
                }
                tracing::info!(hot = self.config.hot_capacity, cold = self.config.cold_capacity, "Probe attached");
                self.metrics.probe_memory.set(probe.memory_bytes().map_or(0, |bytes| bytes as i64));
                let Config { hot_capacity, cold_capacity, .. } = self.config;
                self.sight = Sight::Counting(Box::new(Ledger::new(probe, hot_capacity, cold_capacity, self.clock)));
                self.events = Some(events);
                self.errors = 0;
                self.losses = ([0; Loss::COUNT], 0);
                self.resolver.touch_all();
                self.links.set_blind(None);
                self.note(Transition::Attached { at_ns });
            }
            Err(reason) => self.go_blind(reason),
        }
    }

    fn go_blind(&mut self, reason: String) {
        let at_ns = (self.clock)();
        let is_news = !matches!(&self.sight, Sight::Blind { reason: known, .. } if *known == reason);
        if is_news {
            tracing::warn!(reason, "Node is blind");
            self.note(Transition::Blind { at_ns, reason: reason.clone() });
        }
        // Without an object no retry can help.
        let retry_ns = (reason != LoadError::NotBuilt.to_string()).then_some(at_ns + LOAD_PAUSE_NS);
        self.links.set_blind(Some(reason.clone()));
        self.events = None;
        self.sight = Sight::Blind { reason, retry_ns };
    }

    /// Writes a portion of the resolver's wishes into the probe.
    fn apply_changes(&mut self) {
        let Sight::Counting(ledger) = &mut self.sight else { return };
        if !self.resolver.has_changes() {
            return;
        }
        let applied = ledger.apply(self.resolver.take_changes(CHANGES_PER_TURN));
        self.on_applied(applied);
    }

    fn on_applied(&mut self, applied: Result<Vec<SocketAddr>, MapError>) {
        let Sight::Counting(ledger) = &self.sight else { return };
        match applied {
            Ok(gained) if gained.is_empty() => {}
            Ok(gained) => self.links.push_totals(&ledger.totals(Some(&gained))),
            Err(error) => {
                self.metrics.map_errors.inc();
                tracing::warn!(error = chain(&error), "Destinations could not be written into the probe");
            }
        }
    }

    /// Reads what was touched, and one of `sweep_passes` parts of everything.
    fn pass(&mut self, sweep_passes: usize, retry: bool) {
        let Sight::Counting(ledger) = &mut self.sight else { return };
        if !self.records.is_empty() {
            ledger.note_failures(&self.records);
            self.records.clear();
        }
        let Pass { now_ns, rows, next_late_ns, has_counted, failing, error } =
            ledger.pass(ledger.in_use(Tier::Hot) as usize / sweep_passes + 1);
        let cold = ledger.read_cold(ledger.in_use(Tier::Cold) as usize / COLD_PASSES + 1);
        self.schedule.on_pass(next_late_ns);
        self.has_counted |= has_counted;
        let lateness_us = u32::try_from(self.lateness_ns / 1000).unwrap_or(u32::MAX);
        self.lateness_ns = 0;
        self.metrics.rows.inc_by(rows.len() as u64);
        self.links.push_rows(&rows, now_ns, lateness_us, &self.metrics);
        for failing in failing {
            let cause = failing.cause.as_str();
            tracing::info!(destination = %failing.to, cause, self_hop = failing.self_hop, "Destination fails");
            self.note(Transition::Failing {
                destination: failing.to,
                self_hop: failing.self_hop,
                cause,
                started_ns: failing.first.started_ns,
                failed_ns: failing.first.failed_ns,
                read_ns: failing.read_ns,
            });
        }
        let retried = if retry { self.retry() } else { Ok(Vec::new()) };
        self.on_applied(retried);
        self.on_read(error.or(cold.err()));
    }

    fn retry(&mut self) -> Result<Vec<SocketAddr>, MapError> {
        match &mut self.sight {
            Sight::Counting(ledger) => ledger.retry(),
            Sight::Blind { .. } => Ok(Vec::new()),
        }
    }

    /// Counts failed reads: one is no matter, since the next read covers it.
    fn on_read(&mut self, error: Option<MapError>) {
        let Some(error) = error else {
            self.errors = 0;
            return;
        };
        self.metrics.map_errors.inc();
        self.errors += 1;
        tracing::debug!(error = chain(&error), "Counters could not be read");
        if self.errors >= ERRORS_LIMIT {
            self.go_blind(format!("the probe is gone: {}", chain(&error)));
        }
    }

    fn on_records(&mut self, read: Result<(), MapError>) {
        match read {
            Ok(()) => self.schedule.wake(),
            Err(error) => {
                // The counters are right all the same; only the wake-up is lost, and reads go on every 20 ms.
                tracing::warn!(error = chain(&error), "Ring of failures cannot be read");
                self.metrics.map_errors.inc();
                self.events = None;
            }
        }
    }

    fn note(&self, transition: Transition) {
        self.shown.parts().transitions.push(transition);
    }

    /// The last counts leave, within a time; a second signal ends it at once.
    async fn drain(mut self, mut signals: Signals) -> Result<(), RunError> {
        tracing::info!("Stopping");
        self.pass(1, false);
        self.links.flush((self.clock)(), 0);
        let drained = async {
            while !self.links.is_drained() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // What was taken from the outbox still has to be written by its stream.
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        tokio::select! {
            _ = tokio::time::timeout(DRAIN, drained) => {}
            () = signals.next() => tracing::warn!("Stopping at once"),
        }
        Ok(())
    }
}

async fn next_records(events: &mut Option<Events>, records: &mut Vec<FirstFailure>) -> Result<(), MapError> {
    match events {
        Some(events) => events.next(records).await,
        None => pending().await,
    }
}

async fn sleep_until(deadline_ns: u64, clock: fn() -> u64) {
    let left_ns = deadline_ns.saturating_sub(clock());
    if left_ns == 0 {
        // A timer of no length still waits for the timer's next tick.
        return tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_nanos(left_ns)).await;
}
