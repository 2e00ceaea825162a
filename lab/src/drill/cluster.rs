//! What a cluster keeps from run to run: the world with its nodes and pods, the API server, the agents. In: a plan. Out:
//! a cluster in which runs take place, each with a namespace, a split, programs in the pods and a controller of its own.
//! Nothing that a run learns lives on here but what an agent would also remember in a real cluster.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::apiserver::ApiServer;
use crate::drill::args::Plan;
use crate::drill::background::Background;
use crate::drill::halt::{Halt, Signals};
use crate::drill::look;
use crate::drill::programs::{Programs, printed};
use crate::drill::progress::Progress;
use crate::drill::shape::{self, AGENT_ADMIN_PORT, Cast, Endpoint};
use crate::world::{NodeChild, World, describe_end};

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
    background: Background,
    cast: Cast,
    inside: Access,
    outside: Access,
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
    child: NodeChild,
}

impl Cluster {
    /// Builds the world, starts API server and agents, and does not wait for them.
    ///
    /// # Errors
    ///
    /// The machine cannot; what was made is removed again.
    pub fn start(plan: &Plan, programs: &Programs, run_dir: &Path, halt: &Halt, progress: Progress) -> Result<Self> {
        let background = Background::start(halt.clone())?;
        let signals = {
            let _guard = background.enter();
            Signals::take_over()?
        };
        background.spawn("signal handler", signals.halt(halt.clone()));
        let mut layout = plan.shape.layout();
        layout.run_dir = Some(run_dir.to_owned());
        let world = World::create(&layout).context("cannot build the lab's network")?;
        progress.line(&format!("  names:      {}-... for network namespaces, {0} for cgroups", world.prefix()));
        halt.check()?;
        let api = ApiServer::new();
        let inside = serve_inside(&background, &api, &world)?;
        let outside = serve_outside(&background, &api, run_dir)?;
        let mut cluster = Self { agents: Vec::new(), world, api, background, cast: plan.shape.cast(), inside, outside };
        cluster.describe(plan.agents)?;
        if plan.agents {
            cluster.start_agents(programs, progress)?;
        }
        Ok(cluster)
    }

    /// Nodes, and Splitsecond's own namespace with its headless Services.
    fn describe(&self, agents: bool) -> Result<()> {
        let nodes: Vec<(String, String, IpAddr)> =
            self.world.nodes().map(|node| (node.name().to_owned(), node.zone().to_owned(), node.address())).collect();
        self.create(shape::cluster_objects(self.world.control().address(), &nodes, agents))
    }

    fn start_agents(&mut self, programs: &Programs, progress: Progress) -> Result<()> {
        for node in self.world.nodes() {
            let launch = programs.agent(node.name(), &self.inside.kubeconfig);
            if self.agents.is_empty() {
                progress.line(&format!("  agents:     {}   (and so on each node)", printed(&launch)));
            }
            let child = node.spawn(&launch).with_context(|| format!("cannot start the agent of {}", node.name()))?;
            self.agents.push(Agent { node: node.name().to_owned(), child });
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
        match agent.child.ended()? {
            None => Ok(()),
            Some(status) => {
                bail!(
                    "the agent of {} is gone: {}; see {}",
                    agent.node,
                    describe_end(status),
                    agent.child.log().display()
                )
            }
        }
    }

    /// The primary's endpoints, ready ones.
    ///
    /// # Errors
    ///
    /// The world lacks a pod of the cast.
    pub fn primary_endpoints(&self) -> Result<Vec<Endpoint>> {
        let endpoint = |name: &String| {
            let pod = self.world.pod(name)?;
            let node = self.world.node(pod.node())?;
            Ok(Endpoint {
                address: pod.address(),
                pod: Some((pod.name().to_owned(), pod.uid().to_owned())),
                place: Some((node.name().to_owned(), node.zone().to_owned())),
            })
        };
        self.cast.primary.iter().map(endpoint).collect()
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

    /// Which pod plays which part.
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
        let Self { agents, world, background, .. } = self;
        let ended = end_agents(&agents);
        drop(agents);
        let removed = world.remove();
        drop(background);
        removed.and(ended)
    }
}

/// As a DaemonSet ends them. All are asked before the first one is waited for.
fn end_agents(agents: &[Agent]) -> Result<()> {
    agents.iter().try_for_each(|agent| agent.child.signal(Signal::TERM))?;
    for agent in agents {
        let Some(_) = agent.child.wait(END_LIMIT)? else {
            bail!("the agent of {} did not end within {} s of SIGTERM", agent.node, END_LIMIT.as_secs());
        };
    }
    Ok(())
}

/// In the control namespace, for agents, controllers and clients.
fn serve_inside(background: &Background, api: &ApiServer, world: &World) -> Result<Access> {
    let address = SocketAddr::new(world.control().address(), API_PORT);
    let listener = world.control().netns().within(|| TcpListener::bind(address))?;
    let listener = listener.with_context(|| format!("cannot listen on {address} in the control namespace"))?;
    serve(background, api, listener, &world.run_dir().join("kubeconfig-inside"))
}

/// On the host's own loopback, for people and for the drill's watch: loopback keeps others out.
fn serve_outside(background: &Background, api: &ApiServer, run_dir: &Path) -> Result<Access> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    serve(background, api, listener, &run_dir.join("kubeconfig"))
}

fn serve(background: &Background, api: &ApiServer, listener: TcpListener, kubeconfig: &Path) -> Result<Access> {
    let url = format!("http://{}", listener.local_addr().context("a listener without an address")?);
    listener.set_nonblocking(true).context("a listener cannot be made non-blocking")?;
    let _guard = background.enter();
    let listener = tokio::net::TcpListener::from_std(listener).context("a listener is not taken by the runtime")?;
    let server = api.clone();
    background.spawn("API server", async move { server.serve(listener).await.context("it cannot serve") });
    fs::write(kubeconfig, ApiServer::kubeconfig(&url))
        .with_context(|| format!("cannot write {}", kubeconfig.display()))?;
    Ok(Access { url, kubeconfig: kubeconfig.to_owned() })
}
