//! A world: nodes, pods and the network between them, on one machine. In: a [`Layout`]. Out: places in which the drill
//! starts agents, controllers and load, and objects that break things. Everything is named `ss<id>-...` and goes when
//! the world goes: at the end, after a panic, and, by [`World::sweep_stale`], after a SIGKILL of the lab.
//!
//! A node is a network namespace that forwards and translates ClusterIPs, and a cgroup that its agents see as the root.
//! A pod is a network namespace behind its node and a cgroup below the node's. The world knows no Kubernetes objects.

pub mod cgroup;
mod claim;
pub mod clock;
mod fabric;
pub mod fault;
pub mod layout;
mod need;
mod netlink;
pub mod netns;
mod pod;
mod prove;
mod service;
mod spawn;
mod tool;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::cgroup::Cgroup;
use self::claim::Claim;
use self::fabric::{Names, Sysctls};
use self::layout::{CONTROL_ADDRESS, PlacedNode, PlacedPod};
use self::netns::Netns;
use self::service::Services;
use self::spawn::{Place, Spawner};

pub use self::layout::{Layout, NodeSpec, PodSpec};
pub use self::need::lacks;
pub use self::pod::{Pending, PodChild};
pub use self::prove::dial_from;
pub use self::spawn::{Launch, NodeChild, describe_end};

/// Namespaces set up at once: more threads than processors would only take turns.
const BUILDERS: usize = 2;

/// Nodes, pods, the network; removed when dropped.
#[derive(Debug)]
pub struct World {
    shared: Arc<Shared>,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<String, Pod>,
    control: Control,
    services: Mutex<Services>,
    names: Names,
    /// Taken when the world is removed.
    claim: Option<Claim>,
    /// Removed with the world.
    own_run_dir: bool,
}

/// What every place needs to start programs.
#[derive(Debug)]
pub(crate) struct Shared {
    spawner: Spawner,
    run_dir: PathBuf,
    executable: PathBuf,
}

/// A node. A clone is the same node.
#[derive(Clone, Debug)]
pub struct Node {
    shared: Arc<Shared>,
    inner: Arc<NodeInner>,
}

#[derive(Debug)]
struct NodeInner {
    placed: PlacedNode,
    netns: Netns,
    cgroup: Cgroup,
    /// The node's first process: holds its mount and cgroup namespaces.
    init: Mutex<Child>,
    init_pid: i32,
}

/// A pod. A clone is the same pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub(crate) shared: Arc<Shared>,
    inner: Arc<PodInner>,
}

#[derive(Debug)]
struct PodInner {
    placed: PlacedPod,
    netns: Netns,
    cgroup: Cgroup,
}

/// The control namespace: API server, controllers and the lab's own looks. No agent watches it.
#[derive(Clone, Debug)]
pub struct Control {
    shared: Arc<Shared>,
    netns: Netns,
    cgroup: Cgroup,
}

impl World {
    /// Builds the layout.
    ///
    /// # Errors
    /// A layout that cannot be, a lack of [`lacks`], or a tool that failed; whatever was made is removed again.
    pub fn create(layout: &Layout) -> Result<World> {
        let (placed_nodes, placed_pods) = layout::place(layout)?;
        let claim = Claim::take(layout.id.as_deref())?;
        remove_leftovers(&claim)?;
        let run_dir = layout.run_dir.clone().unwrap_or_else(|| claim.default_run_dir());
        fs::create_dir_all(&run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
        let executable = match &layout.executable {
            Some(path) => path.clone(),
            None => std::env::current_exe().context("cannot find the lab's own program")?,
        };
        let shared = Arc::new(Shared { spawner: Spawner::start()?, run_dir, executable });
        let names = Names { prefix: claim.prefix().to_owned() };
        let root = cgroup::mount_point()?.join(&names.prefix);
        let control = Control {
            shared: shared.clone(),
            netns: Netns::named(names.control()),
            cgroup: Cgroup::at(root.join("control")),
        };
        // From here on dropping the world removes what was made.
        let mut world = World {
            shared,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            control,
            services: Mutex::new(Services::default()),
            names,
            claim: Some(claim),
            own_run_dir: layout.run_dir.is_none(),
        };
        world.build(placed_nodes, placed_pods, &root)?;
        Ok(world)
    }

    fn build(&mut self, nodes: Vec<PlacedNode>, pods: Vec<PlacedPod>, root: &Path) -> Result<()> {
        Cgroup::create(self.control.cgroup.path().to_owned())?;
        tool::run("ip", &["-batch", "-"], &fabric::wiring(&self.names, &nodes, &pods))?;
        self.configure(&nodes, &pods)?;
        let mut starting = Vec::with_capacity(nodes.len());
        for placed in nodes {
            starting.push(self.start_node(placed, root)?);
        }
        for start in starting {
            let node = start.wait()?;
            self.nodes.insert(node.name().to_owned(), node);
        }
        for placed in pods {
            let node = &self.nodes[&placed.spec.node];
            // The kubelet's cgroupfs driver lays pods out like this; the agent knows a pod by its uid in the path.
            let path = node.cgroup().path().join(format!("kubepods/besteffort/pod{}", placed.spec.uid));
            let netns = Netns::named(self.names.member(&placed.spec.name));
            let inner = PodInner { netns, cgroup: Cgroup::create(path)?, placed };
            self.pods
                .insert(inner.placed.spec.name.clone(), Pod { shared: self.shared.clone(), inner: Arc::new(inner) });
        }
        Ok(())
    }

    /// Addresses, routes, forwarding and an empty table of Services, in every namespace.
    fn configure(&self, nodes: &[PlacedNode], pods: &[PlacedPod]) -> Result<()> {
        let services = Services::default().script();
        let mut steps = vec![
            Step::new(self.names.fabric(), fabric::fabric_script(nodes), fabric::PLAIN_SYSCTLS, None),
            Step::new(self.names.control(), fabric::control_script(nodes), fabric::PLAIN_SYSCTLS, None),
        ];
        for node in nodes {
            let script = fabric::node_script(node, nodes, pods);
            let netns = self.names.member(&node.spec.name);
            steps.push(Step::new(netns, script, fabric::NODE_SYSCTLS, Some(services.clone())));
        }
        for pod in pods {
            let netns = self.names.member(&pod.spec.name);
            steps.push(Step::new(netns, fabric::pod_script(pod), fabric::POD_SYSCTLS, None));
        }
        in_parallel(&steps, Step::run)
    }

    fn start_node(&self, placed: PlacedNode, root: &Path) -> Result<StartingNode> {
        let cgroup = Cgroup::create(root.join(&placed.spec.name))?;
        Cgroup::create(cgroup.path().join("agent"))?;
        let netns = Netns::named(self.names.member(&placed.spec.name));
        let mut command = spawn::node_command(cgroup.path(), &cgroup::mount_point()?, &netns.path());
        command.stderr(spawn::log_file(&self.shared.run_dir, &placed.spec.name)?);
        let child = self.shared.spawner.spawn(command)?;
        Ok(StartingNode { shared: self.shared.clone(), placed, netns, cgroup, child })
    }

    /// `ss` and the id: every namespace is called `<prefix>-...`, the cgroup `<prefix>`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.names.prefix
    }

    /// Where logs are.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.shared.run_dir
    }

    /// A node by its name.
    ///
    /// # Errors
    /// The layout has none of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("the layout has no node {name}"))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// A pod by its name.
    ///
    /// # Errors
    /// The layout has none of this name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("the layout has no pod {name}"))
    }

    /// All pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The control namespace.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The bridge between the nodes; a node's cable there is `n<number>`.
    #[must_use]
    pub fn fabric(&self) -> Netns {
        Netns::named(self.names.fabric())
    }

    /// Tells every node that a Service has these ready endpoints: DNAT to one of them at random, or, with none, ICMP
    /// port unreachable. Each node changes in one transaction.
    ///
    /// # Errors
    /// A node's `nft` failed.
    pub fn set_service(&self, cluster_ip: IpAddr, port: u16, endpoints: &[SocketAddr]) -> Result<()> {
        self.change_services(|services| services.set(cluster_ip, port, endpoints))
    }

    /// The same for several Services at once: one transaction per node for all of them.
    ///
    /// # Errors
    /// A node's `nft` failed.
    pub fn set_services(&self, all: &[(IpAddr, u16, Vec<SocketAddr>)]) -> Result<()> {
        self.change_services(|services| {
            for (cluster_ip, port, endpoints) in all {
                services.set(*cluster_ip, *port, endpoints);
            }
        })
    }

    /// Tells every node that a Service is gone.
    ///
    /// # Errors
    /// A node's `nft` failed.
    pub fn remove_service(&self, cluster_ip: IpAddr, port: u16) -> Result<()> {
        self.change_services(|services| services.remove(cluster_ip, port))
    }

    fn change_services(&self, change: impl FnOnce(&mut Services)) -> Result<()> {
        // Held over the writes: two changes must reach every node in the same order.
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut services);
        let script = services.script();
        let nodes: Vec<&Node> = self.nodes.values().collect();
        in_parallel(&nodes, |node| node.netns().within(|| tool::run("nft", &["-f", "-"], &script))?)
    }

    /// Removes the world and tells what went wrong; dropping does the same in silence.
    ///
    /// # Errors
    /// Something could not be removed; [`World::sweep_stale`] of a later run tries again.
    pub fn remove(mut self) -> Result<()> {
        self.tear_down()
    }

    fn tear_down(&mut self) -> Result<()> {
        let Some(claim) = self.claim.take() else {
            return Ok(());
        };
        let removed = remove_world(claim.prefix());
        self.shared.spawner.stop();
        removed?;
        if self.own_run_dir {
            remove_directory(&self.shared.run_dir)?;
        }
        claim.release()
    }

    /// Removes what worlds of dead processes left, and returns their prefixes. Those of living ones are not touched.
    ///
    /// # Errors
    /// A leftover could not be removed.
    pub fn sweep_stale() -> Result<Vec<String>> {
        let mut swept = Vec::new();
        for prefix in Claim::prefixes() {
            if let Some(claim) = Claim::try_prefix(&prefix)? {
                remove_leftovers(&claim)?;
                claim.release()?;
                swept.push(prefix);
            }
        }
        Ok(swept)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = self.tear_down() {
            tracing::error!(error = format!("{error:#}"), "Cannot remove the lab's world");
        }
    }
}

impl Node {
    /// As the layout calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.placed.spec.name
    }

    /// As the layout says.
    #[must_use]
    pub fn zone(&self) -> &str {
        &self.inner.placed.spec.zone
    }

    /// On the bridge; the agent's and kubelet's address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.inner.placed.address().into()
    }

    /// The same in the other family.
    #[must_use]
    pub fn address_v6(&self) -> IpAddr {
        self.inner.placed.address_v6().into()
    }

    /// The directory that its agent sees as the cgroup2 root.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.inner.cgroup
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.inner.netns
    }

    /// Starts a program as a DaemonSet's pod with the host's network sees a node: the node's network, mount and cgroup
    /// namespaces, in the node's child cgroup `agent`.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(&self, launch: &Launch) -> Result<NodeChild> {
        let place = Place::NodeOf(self.inner.init_pid);
        self.shared.launch(&place, &self.inner.cgroup.path().join("agent"), launch)
    }

    /// The node's end of its cable to the bridge, as the fabric calls it.
    pub(crate) fn fabric_port(&self) -> String {
        fabric::node_port(&self.inner.placed)
    }
}

impl Drop for NodeInner {
    fn drop(&mut self) {
        spawn::end(self.init.get_mut().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Pod {
    /// As the layout calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.placed.spec.name
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.inner.placed.spec.node
    }

    /// As the layout says.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.inner.placed.spec.uid
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.inner.placed.address().into()
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn address_v6(&self) -> IpAddr {
        self.inner.placed.address_v6().into()
    }

    /// Its cgroup, below its node's.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.inner.cgroup
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.inner.netns
    }
}

impl Control {
    /// On the bridge.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        CONTROL_ADDRESS.into()
    }

    /// Its network namespace: bind the API server's listener by [`Netns::within`].
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Starts a program in the control namespace.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(&self, launch: &Launch) -> Result<NodeChild> {
        self.shared.launch(&Place::Netns(self.netns.path()), self.cgroup.path(), launch)
    }
}

impl Shared {
    fn launch(&self, place: &Place, cgroup: &Path, launch: &Launch) -> Result<NodeChild> {
        let mut command = spawn::command(place, cgroup, &launch.program);
        let log = spawn::log_file(&self.run_dir, &launch.log)?;
        command.args(&launch.args).envs(launch.env.iter().cloned());
        command.stdout(log.try_clone().context("cannot share a log")?).stderr(log);
        let child = self.spawner.spawn(command)?;
        NodeChild::new(child, spawn::log_path(&self.run_dir, &launch.log))
    }

    /// A `pod` program with pipes to the lab.
    pub(crate) fn launch_pod(&self, pod: &Pod, spec: &str, log: &str) -> Result<Child> {
        let place = Place::Netns(pod.netns().path());
        let mut command = spawn::command(&place, pod.cgroup().path(), &self.executable);
        command.args(["pod", spec]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(spawn::log_file(&self.run_dir, log)?);
        self.spawner.spawn(command)
    }
}

/// A node whose first process was started and has not said yet that its namespaces are made.
struct StartingNode {
    shared: Arc<Shared>,
    placed: PlacedNode,
    netns: Netns,
    cgroup: Cgroup,
    child: Child,
}

impl StartingNode {
    fn wait(mut self) -> Result<Node> {
        let stdout = self.child.stdout.take().context("a node's first process has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("cannot read from a node's first process")?;
        if line.trim() != "ready" {
            let status = self.child.wait().context("cannot wait for a node's first process")?;
            let log = spawn::log_path(&self.shared.run_dir, &self.placed.spec.name);
            let said = fs::read_to_string(log).unwrap_or_default();
            bail!("node {} has no namespaces: {}: {}", self.placed.spec.name, describe_end(status), said.trim());
        }
        let init_pid = i32::try_from(self.child.id()).context("a process id above 2^31")?;
        let inner = NodeInner {
            placed: self.placed,
            netns: self.netns,
            cgroup: self.cgroup,
            init: Mutex::new(self.child),
            init_pid,
        };
        Ok(Node { shared: self.shared, inner: Arc::new(inner) })
    }
}

/// What one namespace needs.
struct Step {
    netns: Netns,
    script: String,
    sysctls: Sysctls,
    nft: Option<String>,
}

impl Step {
    fn new(netns: String, script: String, sysctls: Sysctls, nft: Option<String>) -> Step {
        Step { netns: Netns::named(netns), script, sysctls, nft }
    }

    fn run(&self) -> Result<()> {
        self.netns.within(|| {
            if let Some(nft) = &self.nft {
                tool::run("nft", &["-f", "-"], nft)?;
            }
            for (name, value) in self.sysctls {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value).with_context(|| format!("cannot write {value:?} to {path}"))?;
            }
            without_address_detection()?;
            tool::run("ip", &["-batch", "-"], &self.script)
        })?
    }
}

/// Duplicate address detection keeps an interface's link-local address unusable for up to two seconds, and a router
/// asks for its neighbours with that address. Here every address is unique by construction. Existing interfaces ignore
/// the default, and the kernel skips detection only when `all` agrees (net/ipv6/addrconf.c, addrconf_dad_begin).
fn without_address_detection() -> Result<()> {
    let directory = "/proc/sys/net/ipv6/conf";
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {directory}"))? {
        let path = entry.with_context(|| format!("cannot list {directory}"))?.path().join("accept_dad");
        fs::write(&path, "0").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Does `work` for every item on [`BUILDERS`] threads; the first error wins.
pub(crate) fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let share = items.len().div_ceil(BUILDERS).max(1);
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            items.chunks(share).map(|part| scope.spawn(move || part.iter().try_for_each(work))).collect();
        // Every thread is joined before the first error is returned.
        let results: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        results.into_iter().try_for_each(|result| result.unwrap_or_else(|_| bail!("a builder's thread panicked")))
    })
}

/// Processes first: a namespace lives on while one of its processes does.
fn remove_world(prefix: &str) -> Result<()> {
    let cgroup = Cgroup::at(cgroup::mount_point()?.join(prefix));
    cgroup.kill()?;
    let removed = netns::remove(&netns::list(&format!("{prefix}-")));
    cgroup.remove()?;
    removed
}

/// Of an earlier owner of the same claim.
fn remove_leftovers(claim: &Claim) -> Result<()> {
    remove_world(claim.prefix())?;
    remove_directory(&claim.default_run_dir())
}

fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// How long orders may take: a machine whose two processors are busy still answers within this.
pub(crate) const ORDER_LIMIT: Duration = Duration::from_secs(5);
