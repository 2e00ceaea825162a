//! What a cluster keeps from run to run: the world with its nodes and pods, the API server, the agents. In: a plan. Out:
//! a cluster in which runs take place, each with a namespace, a split, programs in the pods and a controller of its own.
//! Nothing that a run learns lives on here but what an agent would also remember in a real cluster.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::task::AbortHandle;

use crate::apiserver::ApiServer;
use crate::drill::args::Plan;
use crate::drill::background::Background;
use crate::drill::halt::{Halt, Signals};
use crate::drill::look;
use crate::drill::programs::{Programs, printed};
use crate::drill::progress::Progress;
use crate::drill::shape::{self, AGENT_ADMIN_PORT, Cast, Endpoint, Ground};
use crate::world::{Launch, NodeChild, World, describe_end};

/// How long agents may take to end when asked.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Where the API server listens, in the control namespace: the port of Kubernetes'.
const API_PORT: u16 = 6443;

/// See the module's header. Dropping it removes everything.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they have to go.
    agents: Vec<Agent>,
    world: World,
    api: ApiServer,
    servers: Servers,
    background: Arc<Background>,
    ground: Ground,
    cast: Cast,
    inside: Access,
    outside: Access,
}

/// The tasks that serve the API; they end with the cluster.
#[derive(Debug)]
struct Servers([AbortHandle; 2]);

/// What outlives a cluster, and what every one needs.
#[derive(Clone, Debug)]
pub struct Premises<'a> {
    /// Runs the API server's listeners and the drill's watches.
    pub background: Arc<Background>,
    /// The programs under drill.
    pub programs: &'a Programs,
    /// Where logs go.
    pub run_dir: &'a Path,
    /// Ends a start early.
    pub halt: &'a Halt,
    /// Where lines go.
    pub progress: Progress,
}

/// How to reach the API server.
#[derive(Clone, Debug)]
pub struct Access {
    /// Without a path.
    pub url: String,
    /// A file for `--kubeconfig`.
    pub kubeconfig: PathBuf,
}

#[derive(Debug)]
struct Agent {
    node: String,
    launch: Launch,
    /// Another one after a restart.
    child: Mutex<NodeChild>,
}

impl Agent {
    fn child(&self) -> MutexGuard<'_, NodeChild> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl<'a> Premises<'a> {
    /// With signals taken over from the kernel: from here on they halt the drill.
    ///
    /// # Errors
    ///
    /// The machine gives no threads, or no signals.
    pub fn take(programs: &'a Programs, run_dir: &'a Path, halt: &'a Halt, progress: Progress) -> Result<Self> {
        let background = Background::start(halt.clone())?;
        let signals = {
            let _guard = background.enter();
            Signals::take_over()?
        };
        background.spawn("signal handler", signals.halt(halt.clone()));
        Ok(Self { background: Arc::new(background), programs, run_dir, halt, progress })
    }
}

impl Cluster {
    /// A cluster of the plan's shape, alone on premises of its own.
    ///
    /// # Errors
    ///
    /// The machine cannot; what was made is removed again.
    pub fn start(plan: &Plan, programs: &Programs, run_dir: &Path, halt: &Halt, progress: Progress) -> Result<Self> {
        Self::start_on(&Premises::take(programs, run_dir, halt, progress)?, plan.ground(), plan.agents)
    }

    /// Builds the world, starts API server and agents, and does not wait for them.
    ///
    /// # Errors
    ///
    /// The machine cannot; what was made is removed again.
    pub fn start_on(on: &Premises<'_>, ground: Ground, agents: bool) -> Result<Self> {
        let mut layout = ground.layout();
        layout.run_dir = Some(on.run_dir.to_owned());
        let world = World::create(&layout).context("cannot build the lab's network")?;
        on.progress.line(&format!("  names:      {}-... for network namespaces, {0} for cgroups", world.prefix()));
        on.halt.check()?;
        let api = ApiServer::new();
        let (inside, from_inside) = serve_inside(&on.background, &api, &world)?;
        let (outside, from_outside) = serve_outside(&on.background, &api, on.run_dir)?;
        let mut cluster = Self {
            agents: Vec::new(),
            world,
            api,
            servers: Servers([from_inside, from_outside]),
            background: on.background.clone(),
            ground,
            cast: ground.cast(),
            inside,
            outside,
        };
        cluster.describe(agents)?;
        if agents {
            cluster.start_agents(on.programs, on.progress)?;
        }
        Ok(cluster)
    }

    /// Nodes, and Splitsecond's own namespace with its headless Services.
    fn describe(&self, agents: bool) -> Result<()> {
        let nodes: Vec<(String, String, IpAddr)> =
            self.world.nodes().map(|node| (node.name().to_owned(), node.zone().to_owned(), node.address())).collect();
        let has_agent = |node: &str| agents && self.ground.has_agent(node);
        self.create(shape::cluster_objects(self.world.control().address(), &nodes, has_agent))
    }

    fn start_agents(&mut self, programs: &Programs, progress: Progress) -> Result<()> {
        for node in self.world.nodes().filter(|node| self.ground.has_agent(node.name())) {
            let launch = programs.agent(node.name(), &self.inside.kubeconfig);
            if self.agents.is_empty() {
                progress.line(&format!("  agents:     {}   (and so on each node)", printed(&launch)));
            }
            let child = node.spawn(&launch).with_context(|| format!("cannot start the agent of {}", node.name()))?;
            self.agents.push(Agent { node: node.name().to_owned(), launch, child: Mutex::new(child) });
        }
        Ok(())
    }

    /// Creates objects in their order.
    ///
    /// # Errors
    ///
    /// The API server refuses one.
    pub fn create(&self, objects: Vec<serde_json::Value>) -> Result<()> {
        for object in objects {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            if let Err(status) = self.api.create(object) {
                bail!("the API server does not take {kind} {name}: {}", status.to_json());
            }
        }
        Ok(())
    }

    /// How many nodes have an agent.
    #[must_use]
    pub fn agent_count(&self) -> u64 {
        u64::try_from(self.agents.len()).unwrap_or(u64::MAX)
    }

    /// Why an agent is not ready, or none.
    ///
    /// # Errors
    ///
    /// An agent ended: it must not, whatever it meets.
    pub fn agents_not_ready(&self) -> Result<Option<String>> {
        for agent in &self.agents {
            self.agent_lives(agent)?;
            let node = self.world.node(&agent.node)?;
            let address = SocketAddr::new(node.address(), AGENT_ADMIN_PORT);
            match look::ready(&self.background, node.netns(), address) {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => return Ok(Some(format!("the agent of {} is not ready: {reason}", agent.node))),
                Err(error) => return Ok(Some(format!("the agent of {}: {error:#}", agent.node))),
            }
        }
        Ok(None)
    }

    /// Whether every agent still runs.
    ///
    /// # Errors
    ///
    /// One does not.
    pub fn agents_live(&self) -> Result<()> {
        self.agents.iter().try_for_each(|agent| self.agent_lives(agent))
    }

    fn agent_lives(&self, agent: &Agent) -> Result<()> {
        let child = agent.child();
        match child.ended()? {
            None => Ok(()),
            Some(status) => {
                bail!("the agent of {} is gone: {}; see {}", agent.node, describe_end(status), child.log().display())
            }
        }
    }

    /// SIGKILL of a node's agent, and at once another one in its place. Does not wait until that is ready.
    ///
    /// # Errors
    ///
    /// The node has no agent, or none could be started.
    pub fn restart_agent(&self, node: &str) -> Result<()> {
        let agent = self.agents.iter().find(|agent| agent.node == node);
        let agent = agent.with_context(|| format!("node {node} has no agent"))?;
        let mut child = agent.child();
        child.kill()?;
        *child = self.world.node(node)?.spawn(&agent.launch).with_context(|| format!("no new agent on {node}"))?;
        Ok(())
    }

    /// These pods as ready endpoints.
    ///
    /// # Errors
    ///
    /// The world lacks one.
    pub fn endpoints(&self, names: &[String]) -> Result<Vec<Endpoint>> {
        let endpoint = |name: &String| {
            let pod = self.world.pod(name)?;
            let node = self.world.node(pod.node())?;
            Ok(Endpoint {
                address: pod.address(),
                pod: Some((pod.name().to_owned(), pod.uid().to_owned())),
                place: Some((node.name().to_owned(), node.zone().to_owned())),
            })
        };
        names.iter().map(endpoint).collect()
    }

    /// Nodes, pods, network.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The API server, for what a cluster's other controllers would write.
    #[must_use]
    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// What runs beside the drill.
    #[must_use]
    pub fn background(&self) -> &Background {
        &self.background
    }

    /// Which pod plays which part, where all of them do.
    #[must_use]
    pub fn cast(&self) -> &Cast {
        &self.cast
    }

    /// For programs in the world.
    #[must_use]
    pub fn inside(&self) -> &Access {
        &self.inside
    }

    /// For people and for the drill's own watch.
    #[must_use]
    pub fn outside(&self) -> &Access {
        &self.outside
    }

    /// Ends the agents, then removes the world, and says what could not be removed.
    ///
    /// # Errors
    ///
    /// Something is left; the next drill tries again.
    pub fn remove(self) -> Result<()> {
        let Self { agents, world, servers, .. } = self;
        let ended = end_agents(&agents);
        drop(agents);
        drop(servers);
        world.remove().and(ended)
    }
}

/// As a DaemonSet ends them. All are asked before the first one is waited for.
fn end_agents(agents: &[Agent]) -> Result<()> {
    agents.iter().try_for_each(|agent| agent.child().signal(Signal::TERM))?;
    for agent in agents {
        let Some(_) = agent.child().wait(END_LIMIT)? else {
            bail!("the agent of {} did not end within {} s of SIGTERM", agent.node, END_LIMIT.as_secs());
        };
    }
    Ok(())
}

/// In the control namespace, for agents, controllers and clients.
fn serve_inside(background: &Background, api: &ApiServer, world: &World) -> Result<(Access, AbortHandle)> {
    let address = SocketAddr::new(world.control().address(), API_PORT);
    let listener = world.control().netns().within(|| TcpListener::bind(address))?;
    let listener = listener.with_context(|| format!("cannot listen on {address} in the control namespace"))?;
    serve(background, api, listener, &world.run_dir().join("kubeconfig-inside"))
}

/// On the host's own loopback, for people and for the drill's watch: loopback keeps others out.
fn serve_outside(background: &Background, api: &ApiServer, run_dir: &Path) -> Result<(Access, AbortHandle)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    serve(background, api, listener, &run_dir.join("kubeconfig"))
}

fn serve(
    background: &Background,
    api: &ApiServer,
    listener: TcpListener,
    kubeconfig: &Path,
) -> Result<(Access, AbortHandle)> {
    let url = format!("http://{}", listener.local_addr().context("a listener without an address")?);
    listener.set_nonblocking(true).context("a listener cannot be made non-blocking")?;
    let _guard = background.enter();
    let listener = tokio::net::TcpListener::from_std(listener).context("a listener is not taken by the runtime")?;
    let server = api.clone();
    let serving =
        background.spawn("API server", async move { server.serve(listener).await.context("it cannot serve") });
    fs::write(kubeconfig, ApiServer::kubeconfig(&url))
        .with_context(|| format!("cannot write {}", kubeconfig.display()))?;
    Ok((Access { url, kubeconfig: kubeconfig.to_owned() }, serving))
}
