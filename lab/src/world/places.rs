//! The places of a world: nodes, pods and the control namespace. In: programs to start. Out: children. A place is a
//! handle; its parts are made by [`super::build`] and removed with the world.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use super::cgroup::Cgroup;
use super::fabric;
use super::layout::{CONTROL_ADDRESS, PlacedNode, PlacedPod};
use super::netns::Netns;
use super::spawn::{self, Launch, NodeChild, Place, Spawner};

/// What every place needs to start programs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) spawner: Spawner,
    pub(super) run_dir: PathBuf,
    pub(super) executable: PathBuf,
}

/// A node. A clone is the same node.
#[derive(Clone, Debug)]
pub struct Node {
    pub(super) shared: Arc<Shared>,
    pub(super) inner: Arc<NodeInner>,
}

#[derive(Debug)]
pub(super) struct NodeInner {
    pub(super) placed: PlacedNode,
    pub(super) netns: Netns,
    pub(super) cgroup: Cgroup,
    /// The node's first process: holds its mount and cgroup namespaces.
    pub(super) init: Mutex<Child>,
    pub(super) init_pid: i32,
}

/// A pod. A clone is the same pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub(super) shared: Arc<Shared>,
    pub(super) inner: Arc<PodInner>,
}

#[derive(Debug)]
pub(super) struct PodInner {
    pub(super) placed: PlacedPod,
    pub(super) netns: Netns,
    pub(super) cgroup: Cgroup,
}

/// The control namespace: API server, controllers and the lab's own looks. No agent watches it.
#[derive(Clone, Debug)]
pub struct Control {
    pub(super) shared: Arc<Shared>,
    pub(super) netns: Netns,
    pub(super) cgroup: Cgroup,
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
        // Settings have twins in the environment: what stands in a person's shell must not reach a drill unseen.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"SPLITSECOND_") {
                command.env_remove(name);
            }
        }
        command.args(&launch.args).envs(launch.env.iter().cloned());
        command.stdout(log.try_clone().context("cannot share a log")?).stderr(log);
        let child = self.spawner.spawn(command)?;
        NodeChild::new(child, spawn::log_path(&self.run_dir, &launch.log))
    }

    /// A `pod` program with pipes to the lab.
    pub(crate) fn launch_pod(&self, pod: &Pod, cgroup: &Cgroup, spec: &str, log: &str) -> Result<Child> {
        let place = Place::Netns(pod.netns().path());
        let mut command = spawn::command(&place, cgroup.path(), &self.executable);
        command.args(["pod", spec]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(spawn::log_file(&self.run_dir, log)?);
        self.spawner.spawn(command)
    }
}
