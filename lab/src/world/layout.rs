//! The plan of a world: which nodes and pods there are, and which addresses they get. In: names. Out: names and
//! addresses. Pure: nothing is made here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The control namespace's address: API server and controllers.
pub const CONTROL_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 250);
/// The bridge's own address: the default gateway of nodes, so that an address nobody has leads somewhere.
pub(crate) const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// Nodes are numbered from 1; the control namespace and the bridge keep what lies above.
const MAX_NODES: usize = 200;
/// Pods of a node are numbered from 2: 1 is the node's own address on the pods' links.
const MAX_PODS_PER_NODE: usize = 250;

/// What to build. Order gives the addresses, so that equal layouts get equal addresses.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Every node of every cluster; all share one bridge.
    pub nodes: Vec<NodeSpec>,
    /// Every pod, each on a node named above.
    pub pods: Vec<PodSpec>,
    /// The `splitsecond-lab` binary whose `pod` command runs in the pods; the running program when absent.
    pub executable: Option<PathBuf>,
    /// Where logs go; kept at clean-up. A directory under `/run/splitsecond-lab` that goes with the world when absent.
    pub run_dir: Option<PathBuf>,
    /// Four lowercase letters or digits; drawn at random when absent.
    pub id: Option<String>,
}

/// A node: a network namespace on the bridge, and a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Also the Kubernetes node's name.
    pub name: String,
    /// `topology.kubernetes.io/zone`; the world only carries it.
    pub zone: String,
}

/// A pod: a network namespace behind a node, and a cgroup below the node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Unique in the world.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// `metadata.uid`; part of the cgroup's name, as the kubelet makes it.
    pub uid: String,
}

/// A spec with the numbers it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlacedNode {
    pub(crate) spec: NodeSpec,
    /// 1, 2, 3, ...: the last octet of its address and the third of its pods'.
    pub(crate) number: u8,
}

/// A pod with its node's number and its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlacedPod {
    pub(crate) spec: PodSpec,
    pub(crate) node_number: u8,
    /// 2, 3, ...: the last octet.
    pub(crate) number: u8,
}

impl PlacedNode {
    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, self.number)
    }

    pub(crate) fn address_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0xff00, 0, 0, 0, u16::from(self.number))
    }
}

impl PlacedPod {
    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.node_number, self.number)
    }

    pub(crate) fn address_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(self.node_number), 0, 0, 0, u16::from(self.number))
    }
}

/// The node's address on its pods' links.
pub(crate) fn pod_gateway(node_number: u8) -> (IpAddr, IpAddr) {
    (
        Ipv4Addr::new(198, 18, node_number, 1).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(node_number), 0, 0, 0, 1).into(),
    )
}

/// Numbers nodes and pods in the order of the layout.
///
/// # Errors
/// A name twice, a pod on an unknown node, a name that is no directory name, or more than fit.
pub(crate) fn place(layout: &Layout) -> Result<(Vec<PlacedNode>, Vec<PlacedPod>)> {
    ensure!(layout.nodes.len() <= MAX_NODES, "{} nodes, at most {MAX_NODES} fit", layout.nodes.len());
    let mut nodes: Vec<PlacedNode> = Vec::with_capacity(layout.nodes.len());
    for (index, spec) in layout.nodes.iter().enumerate() {
        check_name(&spec.name)?;
        ensure!(nodes.iter().all(|other| other.spec.name != spec.name), "two nodes are called {}", spec.name);
        nodes.push(PlacedNode { spec: spec.clone(), number: u8::try_from(index + 1)? });
    }
    let mut pods: Vec<PlacedPod> = Vec::with_capacity(layout.pods.len());
    for spec in &layout.pods {
        check_name(&spec.name)?;
        check_name(&spec.uid)?;
        let same_name = |name: &str| name == spec.name;
        ensure!(!pods.iter().any(|other| same_name(&other.spec.name)), "two pods are called {}", spec.name);
        ensure!(!nodes.iter().any(|node| same_name(&node.spec.name)), "a node and a pod are called {}", spec.name);
        let node = nodes
            .iter()
            .find(|node| node.spec.name == spec.node)
            .with_context(|| format!("pod {} is on node {}, which the layout lacks", spec.name, spec.node))?;
        let before = pods.iter().filter(|pod| pod.node_number == node.number).count();
        ensure!(before < MAX_PODS_PER_NODE, "node {} has more than {MAX_PODS_PER_NODE} pods", spec.node);
        pods.push(PlacedPod { spec: spec.clone(), node_number: node.number, number: u8::try_from(before + 2)? });
    }
    Ok((nodes, pods))
}

/// Names become file names of namespaces and cgroups, and words of `ip` scripts.
fn check_name(name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ensure!(!name.is_empty() && name.len() <= 63, "{name:?} is not a name of 1 to 63 characters");
    ensure!(name.bytes().all(fits), "{name:?} holds something else than a-z, 0-9 and -");
    ensure!(name != "control" && name != "fabric", "{name:?} is a name of the world itself");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_layout(nodes: &[&str], pods: &[(&str, &str)]) -> Layout {
        Layout {
            nodes: nodes.iter().map(|name| NodeSpec { name: (*name).into(), zone: "z".into() }).collect(),
            pods: pods
                .iter()
                .map(|(name, node)| PodSpec { name: (*name).into(), node: (*node).into(), uid: format!("uid-{name}") })
                .collect(),
            ..Layout::default()
        }
    }

    #[test]
    fn addresses_follow_the_order_of_the_layout() {
        let (nodes, pods) = place(&mk_layout(&["a", "b"], &[("p", "b"), ("q", "a"), ("r", "b")])).unwrap();
        assert_eq!(nodes[1].address(), Ipv4Addr::new(198, 51, 100, 2));
        let addresses: Vec<_> = pods.iter().map(PlacedPod::address).collect();
        assert_eq!(addresses, [[198, 18, 2, 2], [198, 18, 1, 2], [198, 18, 2, 3]].map(Ipv4Addr::from));
    }

    #[test]
    fn a_pod_on_an_unknown_node_is_an_error() {
        assert!(place(&mk_layout(&["a"], &[("p", "b")])).is_err());
    }

    #[test]
    fn names_that_could_break_a_script_are_errors() {
        for name in ["", "a b", "A", "a/b", "control", "fabric", "a\nb"] {
            assert!(place(&mk_layout(&[name], &[])).is_err(), "{name:?}");
        }
    }

    #[test]
    fn names_are_unique_over_nodes_and_pods() {
        assert!(place(&mk_layout(&["a", "a"], &[])).is_err());
        assert!(place(&mk_layout(&["a"], &[("a", "a")])).is_err());
    }
}
