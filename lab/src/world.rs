//! A world: nodes, pods and the network between them, on one machine. In: a [`Layout`]. Out: places in which the drill
//! starts agents, controllers and load, and objects that break things. Everything is named `ss<id>-...` and goes when
//! the world goes: at the end, after a panic, and, by [`World::sweep_stale`], after a SIGKILL of the lab.
//!
//! A node is a network namespace that forwards and translates ClusterIPs, and a cgroup that its agents see as the root.
//! A pod is a network namespace behind its node and a cgroup below the node's. The world knows no Kubernetes objects.

mod build;
pub mod cgroup;
mod claim;
pub mod clock;
mod fabric;
pub mod fault;
pub mod layout;
pub mod mesh;
mod need;
mod netlink;
pub mod netns;
mod places;
mod pod;
mod prove;
mod service;
mod spawn;
mod tool;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use self::build::{Nodes, Pods, in_parallel};
use self::cgroup::Cgroup;
use self::claim::Claim;
use self::fabric::Names;
use self::netns::Netns;
use self::places::Shared;
use self::service::Services;
use self::spawn::Spawner;

pub use self::layout::{Layout, NodeSpec, PodSpec};
pub use self::need::lacks;
pub use self::places::{Control, Node, Pod};
pub use self::pod::{Pending, PodChild};
pub use self::prove::dial_from;
pub use self::spawn::{Launch, NodeChild, describe_end};

/// Nodes, pods, the network; removed when dropped.
#[derive(Debug)]
pub struct World {
    shared: Arc<Shared>,
    nodes: Nodes,
    pods: Pods,
    control: Control,
    services: Mutex<Services>,
    names: Names,
    /// Taken when the world is removed.
    claim: Option<Claim>,
    /// Removed with the world.
    own_run_dir: bool,
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
            nodes: Nodes::new(),
            pods: Pods::new(),
            control,
            services: Mutex::new(Services::default()),
            names,
            claim: Some(claim),
            own_run_dir: layout.run_dir.is_none(),
        };
        Cgroup::create(world.control.cgroup.path().to_owned())?;
        (world.nodes, world.pods) = build::build(&world.shared, &world.names, &root, placed_nodes, placed_pods)?;
        Ok(world)
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
