//! What one run has of its own: a namespace with its objects, the programs in the pods, a controller, the clients'
//! record and the drill's watch. In: a cluster. Out: a stage on which traffic flows and everybody is ready, and which
//! leaves the cluster as it found it. Not here: the fault, and what is measured.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::apiserver::Resource;
use crate::drill::args::Plan;
use crate::drill::cluster::Cluster;
use crate::drill::halt::Halt;
use crate::drill::look;
use crate::drill::objects::Scene;
use crate::drill::observe::Observer;
use crate::drill::policy::Policy;
use crate::drill::programs::{CONTROLLER_ADMIN_PORT, Programs, printed};
use crate::drill::progress::Progress;
use crate::drill::scenario::Players;
use crate::drill::shape::{APP_PORT, Cast, GATEWAY_PORT, GATEWAY_READY_PORT, WatchedSplit};
use crate::drill::transition::{self, History};
use crate::load::records::Records;
use crate::load::wire::{
    ClientSpec, DEFAULT_BACKLOG, DEFAULT_TIMEOUT_MS, GatewaySpec, Order, PodProgram, ServerSpec, Target,
};
use crate::world::clock::now_ns;
use crate::world::mesh::Meshed;
use crate::world::{NodeChild, PodChild, describe_end};

/// How long programs may take to start.
const START_LIMIT: Duration = Duration::from_secs(15);

/// How long everybody may take to be ready, counted from the start of the last program.
const WARM_LIMIT: Duration = Duration::from_secs(30);

/// Traffic has to flow for this long without a failure before anything is broken.
const CLEAN_SPAN: Duration = Duration::from_millis(1_500);

/// Between two looks at who is ready.
const LOOK_GAP: Duration = Duration::from_millis(100);

/// How long the controller may take to end when asked.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What servers answer with.
const PRIMARY_BYTE: u8 = 1;
const WEST_BYTE: u8 = 2;
const STANDBY_BYTE: u8 = 3;

/// What is special about a run.
#[derive(Clone, Copy, Debug)]
pub struct Billing<'a> {
    /// The controller's settings.
    pub policy: &'a Policy,
    /// Who plays.
    pub players: Players,
    /// From 1; names the namespace, and seeds the load.
    pub number: u32,
}

/// See the module's header.
pub struct Stage {
    /// Of the splits and their Services.
    pub namespace: String,
    /// Which pod plays which part in this run.
    pub cast: Cast,
    /// The splits that have to move, or not to.
    pub splits: Vec<WatchedSplit>,
    /// The primary's programs; meshed, its applications.
    pub primary: Vec<PodChild>,
    /// The programs behind the gateway.
    pub west: Vec<PodChild>,
    /// The secondary's only endpoint.
    pub gateway: PodChild,
    /// They send the load.
    pub clients: Vec<PodChild>,
    /// What they saw.
    pub records: Records,
    /// The drill's watch.
    pub observer: Observer,
    others: Others,
    controller: NodeChild,
    admin: SocketAddr,
    history: History,
}

/// Held, so that they live as long as the stage.
#[derive(Default)]
struct Others {
    /// The primary's meshed pods: applications, proxies, and what turns connections from one to the other.
    meshed: Vec<Meshed>,
    /// Programs of a second local backend.
    _standby: Vec<PodChild>,
}

impl Stage {
    /// Creates the objects, starts the programs and waits until they are up.
    ///
    /// # Errors
    ///
    /// Something does not start; what was started ends.
    pub fn set(
        cluster: &Cluster,
        plan: &Plan,
        programs: &Programs,
        billing: Billing<'_>,
        halt: &Halt,
        progress: Progress,
    ) -> Result<Self> {
        let Billing { policy, players, number } = billing;
        let namespace = format!("drill-{number}");
        let cast = cluster.cast().only(players);
        let endpoints = cluster.endpoints(&cast.primary)?;
        let standby = if players == Players::OneZone { cluster.endpoints(&cast.standby)? } else { Vec::new() };
        let gateway = cluster.world().pod(&cast.gateway)?.address();
        let scene = Scene { namespace: &namespace, players, local: &endpoints, standby: &standby, gateway };
        cluster.create(scene.objects())?;
        cluster.world().set_services(&scene.services())?;
        // Servers and gateway keep no record: theirs is never read.
        let Backends { primary, west, gateway, others } = start_backends(cluster, &cast, players)?;
        for meshed in &others.meshed {
            wait_ready(&meshed.proxy, halt)?;
        }
        for program in primary.iter().chain(&west).chain([&gateway]) {
            wait_ready(program, halt)?;
        }
        let address = cluster.world().control().address();
        let launch =
            programs.controller(address, &cluster.inside().kubeconfig, policy, &format!("controller-{number}"));
        if number == 1 {
            progress.line(&format!("  controller: {}   (a new one in each run)", printed(&launch)));
        }
        let controller = cluster.world().control().spawn(&launch).context("cannot start the controller")?;
        let observer = Observer::start(cluster.background(), &cluster.outside().url, &namespace)?;
        let records = Records::new();
        let splits = players.splits();
        let clients = start_clients(cluster, plan, &cast, &namespace, &splits, number, &records)?;
        for program in &clients {
            wait_ready(program, halt)?;
        }
        let admin = SocketAddr::new(address, CONTROLLER_ADMIN_PORT);
        let history = History::default();
        Ok(Self {
            namespace,
            cast,
            splits,
            primary,
            west,
            gateway,
            clients,
            records,
            observer,
            others,
            controller,
            admin,
            history,
        })
    }

    /// A split as `namespace/name`.
    #[must_use]
    pub fn name_of(&self, split: &WatchedSplit) -> String {
        format!("{}/{}", self.namespace, split.name)
    }

    /// Whether the primary's applications stand behind proxies.
    #[must_use]
    pub fn is_meshed(&self) -> bool {
        !self.others.meshed.is_empty()
    }

    /// Waits until controller and agents are ready, the controller calls both backends healthy, and traffic flows clean.
    ///
    /// # Errors
    ///
    /// It does not come to that, and what is missing.
    pub fn warm_up(&mut self, cluster: &Cluster, plan: &Plan, halt: &Halt, progress: Progress) -> Result<()> {
        let begun_ns = now_ns();
        let mut clean_from_ns = begun_ns;
        loop {
            halt.check()?;
            let missing = self.missing(cluster, plan, &mut clean_from_ns)?;
            let Some(missing) = missing else { return Ok(()) };
            if now_ns().saturating_sub(begun_ns) > nanos(WARM_LIMIT) {
                bail!("the run cannot begin: after {} s {missing}", WARM_LIMIT.as_secs());
            }
            progress.now(&missing);
            halt.wait(LOOK_GAP)?;
        }
    }

    /// The first thing that is not as it has to be.
    fn missing(&mut self, cluster: &Cluster, plan: &Plan, clean_from_ns: &mut u64) -> Result<Option<String>> {
        self.controller_lives()?;
        match look::ready(cluster.background(), cluster.world().control().netns(), self.admin) {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Ok(Some(format!("the controller is not ready: {reason}"))),
            Err(error) => return Ok(Some(format!("the controller: {error:#}"))),
        }
        if let Some(reason) = cluster.agents_not_ready()? {
            return Ok(Some(reason));
        }
        let state = self.look(cluster)?;
        // Without agents nobody can call a backend healthy: that it is ready has to do.
        let wanted: &[&str] = if plan.agents { &["healthy"] } else { &["healthy", "unknown"] };
        for split in &self.splits {
            for backend in [&split.primary, &split.secondary] {
                let health = health_of(&state, &self.name_of(split), backend);
                if !health.as_deref().is_some_and(|health| wanted.contains(&health)) {
                    let health = health.unwrap_or_else(|| "missing".to_owned());
                    return Ok(Some(format!("/state calls {backend} {health}")));
                }
            }
        }
        if let Some(reason) = self.unobserved(&state, cluster) {
            return Ok(Some(reason));
        }
        let now = now_ns();
        let since = self.records.since(*clean_from_ns);
        if since.failed > 0 {
            *clean_from_ns = now;
            return Ok(Some(format!("connections fail: {:?}", since.by_outcome)));
        }
        if now.saturating_sub(*clean_from_ns) < nanos(CLEAN_SPAN) {
            return Ok(Some("traffic has not flowed for long enough".to_owned()));
        }
        // A client that sends once in a while need not have sent yet.
        Ok((plan.rate >= 100 && since.sent == 0).then(|| "no traffic flows".to_owned()))
    }

    /// What agents have not told yet of a primary, though they are ready. A cluster that has been up for a while has two
    /// nodes whose checks of it succeeded; or it knows that its endpoints are meshed, of which no check proves anything.
    fn unobserved(&self, state: &Value, cluster: &Cluster) -> Option<String> {
        let agents = cluster.agent_count();
        let observers = if self.is_meshed() { 0 } else { agents.min(2) };
        let meshed = if agents == 0 { 0 } else { u64::try_from(self.others.meshed.len()).unwrap_or(u64::MAX) };
        self.splits.iter().find_map(|split| {
            let primary = backend_of(state, &self.name_of(split), &split.primary)?;
            let told = |field: &str| primary.get(field).and_then(Value::as_u64).unwrap_or(0);
            if told("observers") < observers {
                return Some(format!("fewer than {observers} nodes have checked {}", split.primary));
            }
            (told("meshed") < meshed).then(|| format!("no agent has told yet that {} is meshed", split.primary))
        })
    }

    /// What /state calls a split's secondary that is not healthy; none where all are.
    ///
    /// # Errors
    ///
    /// The controller does not answer.
    pub fn sick_secondary(&mut self, cluster: &Cluster) -> Result<Option<String>> {
        let state = self.look(cluster)?;
        for split in &self.splits {
            let health = health_of(&state, &self.name_of(split), &split.secondary);
            if health.as_deref() != Some("healthy") {
                let health = health.unwrap_or_else(|| "missing".to_owned());
                return Ok(Some(format!("/state calls {} {health}", split.secondary)));
            }
        }
        Ok(None)
    }

    /// What /state says holds the first split that anything holds.
    ///
    /// # Errors
    ///
    /// The controller does not answer.
    pub fn guard(&mut self, cluster: &Cluster) -> Result<Option<String>> {
        let state = self.look(cluster)?;
        let guard = |split| entry_of(&state, &self.name_of(split))?.get("guard")?.as_str().map(str::to_owned);
        Ok(self.splits.iter().find_map(guard))
    }

    /// Reads /state and keeps its transitions.
    ///
    /// # Errors
    ///
    /// The controller does not answer, or publishes something else.
    pub fn look(&mut self, cluster: &Cluster) -> Result<Value> {
        let state = look::state(cluster.background(), cluster.world().control().netns(), self.admin)?;
        self.history.merge(transition::parse(&state)?);
        Ok(state)
    }

    /// Puts /state as it is beside the logs, which stay where a run fails: what the controller knew then explains what it
    /// did.
    ///
    /// # Errors
    ///
    /// The controller does not answer, or the file cannot be written.
    pub fn save_state(&mut self, cluster: &Cluster, moment: &str) -> Result<()> {
        let state = self.look(cluster)?;
        let path = cluster.world().run_dir().join(format!("{}-{moment}.state.json", self.namespace));
        let text = serde_json::to_string_pretty(&state).context("/state cannot be written down")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Every transition that a look brought.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Whether the controller still runs.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn controller_lives(&self) -> Result<()> {
        match self.controller.ended()? {
            None => Ok(()),
            Some(status) => {
                bail!("the controller is gone: {}; see {}", describe_end(status), self.controller.log().display())
            }
        }
    }

    /// Has the clients write out what they recorded.
    ///
    /// # Errors
    ///
    /// A client is gone.
    pub fn flush(&self) -> Result<()> {
        let pending = self.clients.iter().map(|client| client.send(Order::Flush)).collect::<Result<Vec<_>>>()?;
        pending.into_iter().try_for_each(|order| order.wait().map(drop))
    }

    /// Ends the programs, the controller as a Deployment would, and deletes the namespace.
    ///
    /// # Errors
    ///
    /// The controller does not end when asked; it is killed then.
    pub fn strike(self, cluster: &Cluster) -> Result<()> {
        let Self { namespace, primary, west, gateway, clients, observer, others, controller, .. } = self;
        drop(observer);
        drop(clients);
        controller.signal(Signal::TERM)?;
        let ended = controller.wait(END_LIMIT)?;
        // The watchers see their objects go before the endpoints' programs do: nothing fails that anybody still counts.
        if let Err(status) = cluster.api().delete(Resource::Namespaces, "", &namespace) {
            bail!("cannot delete the namespace {namespace}: {}", status.to_json());
        }
        drop((primary, west, gateway, others));
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the controller did not end well: {}", describe_end(status)),
            None => bail!("the controller did not end within {} s of SIGTERM", END_LIMIT.as_secs()),
        }
    }
}

/// Servers of both clusters and the gateway.
struct Backends {
    primary: Vec<PodChild>,
    west: Vec<PodChild>,
    gateway: PodChild,
    others: Others,
}

fn start_backends(cluster: &Cluster, cast: &Cast, players: Players) -> Result<Backends> {
    let (world, records) = (cluster.world(), Records::new());
    let server = |name: &String, answer: u8| {
        world.pod(name)?.spawn(&PodProgram::Server(ServerSpec::new(APP_PORT, answer)), &records)
    };
    let mut others = Others::default();
    let primary = if players.are_meshed() {
        let application = PodProgram::Server(ServerSpec::new(APP_PORT, PRIMARY_BYTE));
        let meshed = cast.primary.iter().map(|name| world.pod(name)?.spawn_meshed(&application, &records));
        others.meshed = meshed.collect::<Result<Vec<_>>>()?;
        others.meshed.iter().map(|meshed| meshed.application.clone()).collect()
    } else {
        cast.primary.iter().map(|name| server(name, PRIMARY_BYTE)).collect::<Result<Vec<_>>>()?
    };
    if players == Players::OneZone {
        others._standby = cast.standby.iter().map(|name| server(name, STANDBY_BYTE)).collect::<Result<Vec<_>>>()?;
    }
    let west = cast.west.iter().map(|name| server(name, WEST_BYTE)).collect::<Result<Vec<_>>>()?;
    let behind = cast.west.iter().map(|name| Ok(SocketAddr::new(world.pod(name)?.address(), APP_PORT)));
    let behind = behind.collect::<Result<Vec<_>>>()?;
    let gateway = GatewaySpec {
        port: GATEWAY_PORT,
        ready_port: GATEWAY_READY_PORT,
        backlog: DEFAULT_BACKLOG,
        // Every mirrored Service has the same endpoints in west.
        mirrors: vec![behind; usize::from(players.mirrors())],
    };
    let gateway = world.pod(&cast.gateway)?.spawn(&PodProgram::Gateway(gateway), &records)?;
    Ok(Backends { primary, west, gateway, others })
}

fn start_clients(
    cluster: &Cluster,
    plan: &Plan,
    cast: &Cast,
    namespace: &str,
    splits: &[WatchedSplit],
    number: u32,
    records: &Records,
) -> Result<Vec<PodChild>> {
    let unread = Records::new();
    let names = &cast.clients;
    let share = f64::from(plan.rate) / f64::from(u32::try_from(names.len()).unwrap_or(u32::MAX));
    let mut clients = Vec::with_capacity(names.len());
    for (index, name) in (0_u64..).zip(names) {
        let spec = ClientSpec {
            target: Target::Mesh {
                kubeconfig: cluster.inside().kubeconfig.clone(),
                namespace: namespace.to_owned(),
                splits: splits.iter().map(|split| split.name.clone()).collect(),
            },
            rate: share,
            // Runs differ, and the same run of another invocation does not.
            seed: u64::from(number) << 16 | index,
            timeout_ms: DEFAULT_TIMEOUT_MS,
        };
        // A bystander sends like the others, and counts nowhere.
        let kept = if cast.bystanders.contains(name) { &unread } else { records };
        clients.push(cluster.world().pod(name)?.spawn(&PodProgram::Client(spec), kept)?);
    }
    Ok(clients)
}

/// In short waits, so that a halt is noticed.
fn wait_ready(program: &PodChild, halt: &Halt) -> Result<()> {
    let deadline_ns = now_ns() + nanos(START_LIMIT);
    loop {
        halt.check()?;
        match program.wait_ready(LOOK_GAP) {
            Ok(_) => return Ok(()),
            Err(error) if !program.is_running() || now_ns() > deadline_ns => return Err(error),
            Err(_) => {}
        }
    }
}

/// What /state says of a split.
fn entry_of<'a>(state: &'a Value, split: &str) -> Option<&'a Value> {
    match state.get("splits")? {
        Value::Object(by_name) => by_name.get(split),
        Value::Array(list) => list.iter().find(|entry| entry.get("split").is_some_and(|name| name == split)),
        _ => None,
    }
}

/// What /state says of a backend.
fn backend_of<'a>(state: &'a Value, split: &str, backend: &str) -> Option<&'a Value> {
    let backends = entry_of(state, split)?.get("backends")?.as_array()?;
    backends.iter().find(|entry| entry.get("service").is_some_and(|service| service == backend))
}

fn health_of(state: &Value, split: &str, backend: &str) -> Option<String> {
    backend_of(state, split, backend)?.get("health")?.as_str().map(str::to_owned)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::drill::shape::PRIMARY;

    #[test]
    fn health_is_found_by_split_and_backend() {
        let backends = json!([{"service": "emoji-svc", "health": "suspect"}]);
        let state =
            json!({"splits": [{"split": "a/b", "backends": []}, {"split": "ns/emoji-svc", "backends": backends}]});
        assert_eq!(health_of(&state, "ns/emoji-svc", PRIMARY).as_deref(), Some("suspect"));
        assert_eq!(health_of(&state, "ns/emoji-svc", "emoji-svc-west"), None);
        assert_eq!(health_of(&state, "ns/other", PRIMARY), None);
    }
}
