//! The controller around its core: starts every task, owns them, and ends them.
//!
//! In: [`Settings`]. Out: an exit code, when a signal asks for it or a task ends that should not. Every task lives in one
//! JoinSet. The first SIGTERM or SIGINT drains: no new facts, the writes under way are finished and their Events published;
//! the second aborts. Deliberately no judgement: what happens between two inputs is [`turn`]'s and the core's.

mod contest;
mod notices;
mod objects;
mod strays;
mod turn;
mod unanswered;

use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::clock;
use crate::cluster::{Chain, Cluster, Observation};
use crate::config::Settings;
use crate::ingest::{self, Arrival, Ingest};
use crate::state::progress::Progress;
use crate::state::{self, Ask, View};
use crate::write::event::{self, Announcement, Publisher};
use crate::write::lane::Lane;
use crate::write::{self, Job, Writer, Written};
use turn::Turn;

/// Facts of the cluster that wait for the loop. Watches wait when it is full: the server keeps what they have not read.
const OBSERVATIONS: usize = 1_024;

/// Frames that wait for the loop, over all agents: a volley of 5,000 nodes fits within the time that core takes for it, and
/// beyond that each stream waits within its own window.
const ARRIVALS: usize = 4_096;

/// How long the writes under way and their Events may take after the first signal. A pod has 30 s by default.
const DRAIN: Duration = Duration::from_secs(5);

/// How long a read of the API server may be silent. A watch is ended by the server after 30 s, so a longer silence is a
/// connection that died without a word.
const READ_TIMEOUT: Duration = Duration::from_secs(35);

/// Why the controller could not start. Whoever started it has to do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The kubeconfig, or the pod's own account.
    #[error("the API server cannot be found: {0}")]
    Kubeconfig(String),
    /// The client for it.
    #[error("no client of the API server: {0}")]
    Client(String),
    /// An address is taken, or not ours.
    #[error("{option} {address} cannot be listened on: {source}")]
    Listen { option: &'static str, address: std::net::SocketAddr, source: std::io::Error },
    /// The handlers for SIGTERM and SIGINT.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] std::io::Error),
}

/// How the controller ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A signal asked for it, and everything was finished.
    Drained,
    /// A second signal, or the time for draining was over.
    Aborted,
    /// A task ended that never should.
    TaskEnded,
}

/// Runs until something ends it.
///
/// # Errors
///
/// [`StartError`].
pub(crate) async fn run(settings: Settings) -> Result<Ending, StartError> {
    let mut shutdown = Shutdown::new().map_err(StartError::Signals)?;
    let api = api_config(&settings).await?;
    let admin = listen("--admin-addr", settings.admin_addr).await?;
    let agents = listen("--ingest-addr", settings.ingest_addr).await?;
    let mut controller = Controller::start(settings, api, admin, agents)?;
    let ending = tokio::select! {
        () = shutdown.asked() => controller.drain(&mut shutdown).await,
        () = task_ended(&mut controller.tasks) => Ending::TaskEnded,
        () = controller.turn.run(&mut controller.inlets) => Ending::TaskEnded,
    };
    controller.tasks.shutdown().await;
    Ok(ending)
}

/// Where the loop's inputs come from.
pub(crate) struct Inlets {
    observations: mpsc::Receiver<Observation>,
    arrivals: mpsc::Receiver<Arrival>,
    written: mpsc::Receiver<Written>,
    asks: mpsc::Receiver<Ask>,
}

/// Everything that runs.
struct Controller {
    turn: Turn,
    inlets: Inlets,
    progress: Arc<Progress>,
    tasks: JoinSet<&'static str>,
    /// The tasks that bring new facts: the first to end.
    sources: Vec<AbortHandle>,
}

impl Controller {
    fn start(
        settings: Settings,
        api: kube::Config,
        admin: TcpListener,
        agents: TcpListener,
    ) -> Result<Self, StartError> {
        let (observations_in, observations) = mpsc::channel(OBSERVATIONS);
        let (arrivals_in, arrivals) = mpsc::channel(ARRIVALS);
        let (asks_in, asks) = mpsc::channel(state::ASKS);
        let (jobs, jobs_out) = mpsc::channel::<Job>(write::QUEUE);
        // As many as can end at once: the writer never waits for the loop with a finished write in its hands for long.
        let (written_in, written) = mpsc::channel(write::IN_FLIGHT);
        let (announcements, announcements_out) = mpsc::channel::<Announcement>(event::QUEUE);
        let (version_in, version) = watch::channel(None);

        let progress = Arc::new(Progress::default());
        let mut registry = Registry::with_prefix("splitsecond_controller");
        let ingest_counters = ingest::Counters::default();
        ingest_counters.register(&mut registry);
        let write_counters = write::counters::Counters::default();
        write_counters.register(&mut registry);
        let turn_counters = turn::Counters::default();
        turn_counters.register(&mut registry);
        let shown = (settings.core.mode, settings.profile);
        let view = Arc::new(View::new(shown, clock::monotonic, Arc::clone(&progress), asks_in, registry));

        let client = bulk_client(&api)?;
        let lane = || Lane::new(api.clone()).map_err(|error| StartError::Client(error.to_string()));
        let writer = Writer {
            lanes: [lane()?, lane()?],
            version: version.clone(),
            counters: write_counters.clone(),
            now: clock::monotonic,
        };
        let publisher = Publisher {
            client: client.clone(),
            version,
            instance: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            counters: write_counters.clone(),
            now: clock::monotonic,
        };
        let ingest = Ingest {
            allowed: settings.ingest_from.clone(),
            arrivals: arrivals_in,
            counters: ingest_counters,
            limits: ingest::Limits::default(),
            now: clock::monotonic,
            telling: ingest::Told::default(),
        };
        let cluster = Cluster { client, observations: observations_in, progress: Arc::clone(&progress) };

        let mut tasks = JoinSet::new();
        let sources = vec![
            spawn(&mut tasks, "trafficsplits", cluster.clone().watch_splits(settings.selector, version_in)),
            spawn(&mut tasks, "services", cluster.clone().watch_services()),
            spawn(&mut tasks, "endpointslices", cluster.watch_endpoints(settings.namespace)),
            spawn(&mut tasks, "ingest", ingest::serve(agents, ingest)),
        ];
        progress.on_ingest_bound();
        spawn(&mut tasks, "writer", write::run(writer, jobs_out, written_in));
        spawn(&mut tasks, "events", event::run(publisher, announcements_out));
        let surface = Arc::clone(&view);
        spawn(&mut tasks, "admin", async move {
            if let Err(error) = probe_common::admin::serve(admin, surface).await {
                tracing::error!(%error, "Admin server ended");
            }
        });
        let turn =
            Turn::new(settings.core, clock::monotonic, jobs, announcements, (turn_counters, write_counters), view);
        let inlets = Inlets { observations, arrivals, written, asks };
        Ok(Self { turn, inlets, progress, tasks, sources })
    }

    /// Finishes what is under way; aborted by a second signal.
    async fn drain(&mut self, shutdown: &mut Shutdown) -> Ending {
        tracing::info!("Shutting down after the writes under way");
        self.progress.on_shutdown();
        for source in &self.sources {
            source.abort();
        }
        let finish = async {
            self.turn.finish(&mut self.inlets).await;
            // Writer and publisher end by themselves once nobody can ask them for more; the admin server stays to the end.
            while let Some(ended) = self.tasks.join_next().await {
                if matches!(ended, Ok("events")) {
                    return;
                }
            }
        };
        tokio::select! {
            finished = tokio::time::timeout(DRAIN, finish) => match finished {
                Ok(()) => Ending::Drained,
                Err(_) => {
                    tracing::warn!("Writes or Events were still under way when the time for shutting down was over");
                    Ending::Aborted
                }
            },
            () = shutdown.asked() => Ending::Aborted,
        }
    }
}

/// A task that says its name when it ends.
fn spawn(
    tasks: &mut JoinSet<&'static str>,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) -> AbortHandle {
    tasks.spawn(async move {
        task.await;
        name
    })
}

/// Ends when any task does.
async fn task_ended(tasks: &mut JoinSet<&'static str>) {
    match tasks.join_next().await {
        Some(Ok(task)) => tracing::error!(task, "Task ended that never should"),
        Some(Err(error)) => tracing::error!(%error, "Task failed"),
        None => tracing::error!("No task is left"),
    }
}

async fn listen(option: &'static str, address: std::net::SocketAddr) -> Result<TcpListener, StartError> {
    let listener = TcpListener::bind(address).await.map_err(|source| StartError::Listen { option, address, source })?;
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(%address, option, "Listening");
    Ok(listener)
}

async fn api_config(settings: &Settings) -> Result<kube::Config, StartError> {
    let failed = |error: &(dyn std::error::Error + 'static)| StartError::Kubeconfig(Chain(error).to_string());
    match &settings.kubeconfig {
        None => kube::Config::infer().await.map_err(|error| failed(&error)),
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| failed(&error))?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| failed(&error))
        }
    }
}

/// The client for lists, watches, discovery and Events: slow things wait there, never beside a write.
fn bulk_client(api: &kube::Config) -> Result<kube::Client, StartError> {
    let mut config = api.clone();
    config.connect_timeout = Some(Duration::from_secs(2));
    config.read_timeout = Some(READ_TIMEOUT);
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|error| StartError::Client(Chain(&error).to_string()))
}

/// SIGTERM and SIGINT.
struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Ends with the next signal.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs one task beside one that never ends; whether its end was noticed.
    async fn check(task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = JoinSet::new();
        spawn(&mut tasks, "endless", std::future::pending());
        spawn(&mut tasks, "short", task);
        tokio::time::timeout(Duration::from_secs(10), task_ended(&mut tasks)).await.expect("noticed");
        assert_eq!(tasks.len(), 1, "the other one lives until the program ends it");
    }

    #[tokio::test]
    async fn the_end_of_one_task_ends_everything_also_by_a_panic() {
        check(async {}).await;
        check(async { panic!("a mistake of ours") }).await;
    }
}
