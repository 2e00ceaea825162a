//! The network of a world as scripts for `ip` and values for `/proc/sys/net`. In: placed nodes and pods. Out: text.
//! Pure: [`super`] runs it. Every interface lives inside a namespace of the world and goes with it; the machine's own
//! namespace never gets one.
//!
//! ```text
//!   control 198.51.100.250 ─┐                        ┌─ pod 198.18.1.2
//!                           ├─ br0 (fabric) ── node 1┤
//!   ... node N ─────────────┘     198.51.100.1       └─ pod 198.18.1.3
//! ```

use std::fmt::Write as _;

use super::layout::{BRIDGE_ADDRESS, CONTROL_ADDRESS, PlacedNode, PlacedPod, pod_gateway};

/// Settings of `/proc/sys/net` and their values.
pub(crate) type Sysctls = &'static [(&'static str, &'static str)];

/// A node forwards. Closed connections leave its conntrack table after 10 s instead of 120 s: at 1,000 connections a
/// second the default would hold 120,000 entries, and a full table drops packets, which would be a fault of the lab.
pub(crate) const NODE_SYSCTLS: Sysctls = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("netfilter/nf_conntrack_tcp_timeout_time_wait", "10"),
    ("netfilter/nf_conntrack_tcp_timeout_close", "2"),
];

/// A pod may reuse ports in TIME_WAIT, and has more of them: a client closes first, and at a few hundred connections a
/// second to one endpoint the default range is used up within two minutes.
pub(crate) const POD_SYSCTLS: Sysctls =
    &[("ipv4/ip_local_port_range", "10000 65535"), ("ipv4/tcp_tw_reuse", "1"), ("ipv6/conf/default/accept_dad", "0")];

/// The fabric and the control namespace only carry addresses.
pub(crate) const PLAIN_SYSCTLS: Sysctls = &[];

/// The names of a world's namespaces.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) prefix: String,
}

impl Names {
    pub(crate) fn fabric(&self) -> String {
        format!("{}-fabric", self.prefix)
    }

    pub(crate) fn control(&self) -> String {
        format!("{}-control", self.prefix)
    }

    /// Of a node or of a pod: their names are unique together.
    pub(crate) fn member(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }
}

/// The bridge's end of a node's cable.
pub(crate) fn node_port(node: &PlacedNode) -> String {
    format!("n{}", node.number)
}

/// The node's end of a pod's cable.
fn pod_port(pod: &PlacedPod) -> String {
    format!("p{}", pod.number)
}

/// All namespaces and the cables between them.
pub(crate) fn wiring(names: &Names, nodes: &[PlacedNode], pods: &[PlacedPod]) -> String {
    let (fabric, control) = (names.fabric(), names.control());
    let mut script = format!("netns add {fabric}\nnetns add {control}\n");
    let members = nodes.iter().map(|node| &node.spec.name).chain(pods.iter().map(|pod| &pod.spec.name));
    for name in members {
        push(&mut script, format_args!("netns add {}", names.member(name)));
    }
    push(&mut script, format_args!("link add name br0 netns {fabric} type bridge stp_state 0 mcast_snooping 0"));
    push(&mut script, format_args!("link add name control netns {fabric} type veth peer name eth0 netns {control}"));
    for node in nodes {
        let (port, inside) = (node_port(node), names.member(&node.spec.name));
        push(&mut script, format_args!("link add name {port} netns {fabric} type veth peer name eth0 netns {inside}"));
    }
    for pod in pods {
        let (node, inside) = (names.member(&pod.spec.node), names.member(&pod.spec.name));
        let port = pod_port(pod);
        push(&mut script, format_args!("link add name {port} netns {node} type veth peer name eth0 netns {inside}"));
    }
    script
}

/// Run inside the fabric.
pub(crate) fn fabric_script(nodes: &[PlacedNode]) -> String {
    let mut script = format!("link set lo up\naddr add {BRIDGE_ADDRESS}/24 dev br0\nlink set br0 up\n");
    push(&mut script, format_args!("link set control master br0 up"));
    for node in nodes {
        push(&mut script, format_args!("link set {} master br0 up", node_port(node)));
    }
    script
}

/// Run inside the control namespace: it reaches every pod through the pod's node.
pub(crate) fn control_script(nodes: &[PlacedNode]) -> String {
    let mut script = format!("link set lo up\naddr add {CONTROL_ADDRESS}/24 dev eth0\n");
    push(&mut script, format_args!("addr add 2001:db8:0:ff00::250/64 dev eth0 nodad\nlink set eth0 up"));
    push_pod_routes(&mut script, nodes, None);
    push(&mut script, format_args!("route add default via {BRIDGE_ADDRESS}"));
    script
}

/// Run inside a node: its own pods are neighbours, the other nodes' are routed.
pub(crate) fn node_script(node: &PlacedNode, nodes: &[PlacedNode], pods: &[PlacedPod]) -> String {
    let mut script = format!("link set lo up\naddr add {}/24 dev eth0\n", node.address());
    push(&mut script, format_args!("addr add {}/64 dev eth0 nodad\nlink set eth0 up", node.address_v6()));
    let (gateway, gateway_v6) = pod_gateway(node.number);
    for pod in pods.iter().filter(|pod| pod.node_number == node.number) {
        let port = pod_port(pod);
        push(&mut script, format_args!("addr add {gateway}/32 dev {port}\naddr add {gateway_v6}/128 dev {port} nodad"));
        push(&mut script, format_args!("link set {port} up"));
        push(&mut script, format_args!("route add {}/32 dev {port} src {gateway}", pod.address()));
        push(&mut script, format_args!("route add {}/128 dev {port}", pod.address_v6()));
    }
    push_pod_routes(&mut script, nodes, Some(node.number));
    push(&mut script, format_args!("route add default via {BRIDGE_ADDRESS}"));
    script
}

/// Run inside a pod: one address, and the node behind a cable.
pub(crate) fn pod_script(pod: &PlacedPod) -> String {
    let (gateway, gateway_v6) = pod_gateway(pod.node_number);
    let mut script = format!("link set lo up\naddr add {}/32 dev eth0\n", pod.address());
    push(&mut script, format_args!("addr add {}/128 dev eth0 nodad\nlink set eth0 up", pod.address_v6()));
    push(&mut script, format_args!("route add {gateway} dev eth0 scope link\nroute add default via {gateway}"));
    push(&mut script, format_args!("route add {gateway_v6} dev eth0\nroute add ::/0 via {gateway_v6} dev eth0"));
    script
}

/// The same script for a machine whose kernel has no IPv6: every line that names an IPv6 address goes.
pub(crate) fn without_ipv6(script: &str) -> String {
    script.lines().filter(|line| !line.contains("::")).map(|line| format!("{line}\n")).collect()
}

fn push_pod_routes(script: &mut String, nodes: &[PlacedNode], except: Option<u8>) {
    for node in nodes.iter().filter(|node| Some(node.number) != except) {
        let number = node.number;
        push(script, format_args!("route add 198.18.{number}.0/24 via {}", node.address()));
        push(script, format_args!("route add 2001:db8:0:{number:x}::/64 via {}", node.address_v6()));
    }
}

fn push(script: &mut String, line: std::fmt::Arguments<'_>) {
    script.write_fmt(line).expect("writing to a String cannot fail");
    script.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::layout::{self, Layout, NodeSpec, PodSpec};
    use super::*;

    #[test]
    fn a_machine_without_ipv6_gets_every_ipv4_line_and_no_other() {
        let layout = Layout {
            nodes: vec![
                NodeSpec { name: "a".into(), zone: String::new() },
                NodeSpec { name: "b".into(), zone: String::new() },
            ],
            pods: vec![PodSpec { name: "p".into(), node: "a".into(), uid: "u".into() }],
            ..Layout::default()
        };
        let (nodes, pods) = layout::place(&layout).unwrap();
        for script in [control_script(&nodes), node_script(&nodes[0], &nodes, &pods), pod_script(&pods[0])] {
            let kept = without_ipv6(&script);
            assert!(script.contains("2001:db8:"));
            assert!(!kept.contains("2001:db8:") && !kept.contains("::/0"));
            let count = |text: &str| text.lines().filter(|line| line.contains("198.") || line.contains("link")).count();
            assert_eq!(count(&kept), count(&script));
        }
    }
}
