//! Makes what a layout asks for. In: placed nodes and pods. Out: namespaces with addresses and routes, cgroups, and each
//! node's first process. Many namespaces are made by few tools: starting one per command would cost seconds.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};

use super::cgroup::{self, Cgroup};
use super::fabric::{self, Names, Sysctls};
use super::layout::{PlacedNode, PlacedPod};
use super::netns::Netns;
use super::places::{Node, NodeInner, Pod, PodInner, Shared};
use super::service::Services;
use super::{spawn, tool};

/// Namespaces set up at once: more threads than processors would only take turns.
const BUILDERS: usize = 2;

/// Settings of every interface; absent when the kernel has no IPv6, which is a machine that the lab can live with.
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// By name.
pub(super) type Nodes = BTreeMap<String, Node>;
pub(super) type Pods = BTreeMap<String, Pod>;

/// Builds everything below `root`. What was made before an error stays, for the world to remove.
pub(super) fn build(
    shared: &Arc<Shared>,
    names: &Names,
    root: &Path,
    placed_nodes: Vec<PlacedNode>,
    placed_pods: Vec<PlacedPod>,
) -> Result<(Nodes, Pods)> {
    tool::run("ip", &["-batch", "-"], &fabric::wiring(names, &placed_nodes, &placed_pods))?;
    configure(names, &placed_nodes, &placed_pods)?;
    let starting: Vec<StartingNode> =
        placed_nodes.into_iter().map(|placed| start_node(shared, names, root, placed)).collect::<Result<_>>()?;
    let mut nodes = BTreeMap::new();
    for start in starting {
        let node = start.wait()?;
        nodes.insert(node.name().to_owned(), node);
    }
    let mut pods = BTreeMap::new();
    for placed in placed_pods {
        // The kubelet's cgroupfs driver lays pods out like this; the agent knows a pod by its uid in the path.
        let path = root.join(&placed.spec.node).join(format!("kubepods/besteffort/pod{}", placed.spec.uid));
        let netns = Netns::named(names.member(&placed.spec.name));
        let inner = Arc::new(PodInner { netns, cgroup: Cgroup::create(path)?, placed });
        pods.insert(inner.placed.spec.name.clone(), Pod { shared: shared.clone(), inner });
    }
    Ok((nodes, pods))
}

/// Addresses, routes, forwarding and an empty table of Services, in every namespace.
fn configure(names: &Names, nodes: &[PlacedNode], pods: &[PlacedPod]) -> Result<()> {
    let services = Services::default().script();
    let mut steps = vec![
        Step::new(names.fabric(), fabric::fabric_script(nodes), fabric::PLAIN_SYSCTLS, None),
        Step::new(names.control(), fabric::control_script(nodes), fabric::PLAIN_SYSCTLS, None),
    ];
    for node in nodes {
        let script = fabric::node_script(node, nodes, pods);
        let netns = names.member(&node.spec.name);
        steps.push(Step::new(netns, script, fabric::NODE_SYSCTLS, Some(services.clone())));
    }
    for pod in pods {
        let netns = names.member(&pod.spec.name);
        steps.push(Step::new(netns, fabric::pod_script(pod), fabric::POD_SYSCTLS, None));
    }
    in_parallel(&steps, Step::run)
}

fn start_node(shared: &Arc<Shared>, names: &Names, root: &Path, placed: PlacedNode) -> Result<StartingNode> {
    let cgroup = Cgroup::create(root.join(&placed.spec.name))?;
    Cgroup::create(cgroup.path().join("agent"))?;
    let netns = Netns::named(names.member(&placed.spec.name));
    let mut command = spawn::node_command(cgroup.path(), &cgroup::mount_point()?, &netns.path());
    command.stderr(spawn::log_file(&shared.run_dir, &placed.spec.name)?);
    let child = shared.spawner.spawn(command)?;
    Ok(StartingNode { shared: shared.clone(), placed, netns, cgroup, child })
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
            bail!("node {} has no namespaces: {}: {}", self.placed.spec.name, spawn::describe_end(status), said.trim());
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
            let has_ipv6 = Path::new(IPV6).exists();
            for (name, value) in self.sysctls.iter().filter(|(name, _)| has_ipv6 || !name.starts_with("ipv6/")) {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value).with_context(|| format!("cannot write {value:?} to {path}"))?;
            }
            if !has_ipv6 {
                return tool::run("ip", &["-batch", "-"], &fabric::without_ipv6(&self.script));
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
    for entry in fs::read_dir(IPV6).with_context(|| format!("cannot list {IPV6}"))? {
        let path = entry.with_context(|| format!("cannot list {IPV6}"))?.path().join("accept_dad");
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
