//! Faults of the path, as packet filter tables of their own. In: whose packets, and what becomes of them. Out: times.
//! Each fault has one table per namespace; mending removes the table and touches no other.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

use super::super::netns::Netns;
use super::super::tool::{self, Armed};
use super::super::{Node, Pod};
use super::{Fault, Span};
use crate::world::clock::now_ns;

/// Names tables, so that two filters in one namespace never meet.
static NEXT_TABLE: AtomicU64 = AtomicU64::new(1);

/// One rule set in several namespaces.
#[derive(Debug)]
pub struct Filter {
    places: Vec<Netns>,
    table: String,
    chains: String,
    armed: Vec<Armed>,
}

/// A node's chains for what it forwards and what it sends itself, as its agent's checks do.
const ON_NODES: [(&str, &str); 2] = [("forwarded", "forward"), ("sent", "output")];
/// A pod's chain for what arrives: every sender meets it, also an agent on the pod's own node.
const IN_PODS: [(&str, &str); 1] = [("arriving", "input")];
/// A first SYN: retransmitted ones meet the rule anew, segments of established connections never.
const SYN: &str = "tcp flags & (syn | ack) == syn";

impl Filter {
    /// TCP to these pods is dropped without a word, right before them.
    #[must_use]
    pub fn blackhole(pods: &[&Pod]) -> Filter {
        Filter::new(netns_of_pods(pods), &IN_PODS, &["iifname \"eth0\" meta l4proto tcp drop".to_owned()])
    }

    /// `permille` of the new connections to these pods are refused with RST, at random; 1000 are all.
    #[must_use]
    pub fn refuse_some(pods: &[&Pod], permille: u32) -> Filter {
        let chance = if permille < 1000 { format!("numgen random mod 1000 < {permille} ") } else { String::new() };
        let rule = format!("iifname \"eth0\" {SYN} {chance}reject with tcp reset");
        Filter::new(netns_of_pods(pods), &IN_PODS, &[rule])
    }

    /// Routers answer for these pods with ICMP host unreachable: the nodes they are on, which must be given too.
    #[must_use]
    pub fn unreachable(nodes: &[&Node], pods: &[&Pod]) -> Filter {
        let rules: Vec<String> = pods
            .iter()
            .flat_map(|pod| [format!("ip daddr {}", pod.address()), format!("ip6 daddr {}", pod.address_v6())])
            .map(|matches| format!("{matches} meta l4proto tcp reject with icmpx type host-unreachable"))
            .collect();
        Filter::new(netns_of_nodes(nodes), &ON_NODES, &rules)
    }

    /// From these nodes nothing reaches these endpoints any more: packets are dropped on the way out.
    #[must_use]
    pub fn cut_path(nodes: &[&Node], endpoints: &[SocketAddr]) -> Filter {
        let rules: Vec<String> = endpoints.iter().map(|endpoint| format!("{} drop", to_endpoint(*endpoint))).collect();
        Filter::new(netns_of_nodes(nodes), &ON_NODES, &rules)
    }

    /// One pod alone is refused by one endpoint, with RST from the pod's own node.
    #[must_use]
    pub fn refuse_one(node: &Node, pod: &Pod, endpoint: SocketAddr) -> Filter {
        let from = if endpoint.is_ipv4() {
            format!("ip saddr {}", pod.address())
        } else {
            format!("ip6 saddr {}", pod.address_v6())
        };
        let rule = format!("{from} {} {SYN} reject with tcp reset", to_endpoint(endpoint));
        Filter::new(netns_of_nodes(&[node]), &ON_NODES, &[rule])
    }

    fn new(places: Vec<Netns>, hooks: &[(&str, &str)], rules: &[String]) -> Filter {
        let mut chains = String::new();
        for (chain, hook) in hooks {
            writeln!(chains, "  chain {chain} {{\n    type filter hook {hook} priority 0; policy accept;")
                .and_then(|()| rules.iter().try_for_each(|rule| writeln!(chains, "    {rule}")))
                .and_then(|()| writeln!(chains, "  }}"))
                .expect("writing to a String cannot fail");
        }
        let table = format!("fault{}", NEXT_TABLE.fetch_add(1, Ordering::Relaxed));
        Filter { places, table, chains, armed: Vec::new() }
    }

    /// All tools are started before the first one is let go.
    fn arm_with(&self, script: &str) -> Result<Vec<Armed>> {
        let one = |place: &Netns| place.within(|| tool::arm("nft", &["-f", "-"], script))?;
        self.places.iter().map(one).collect()
    }
}

impl Fault for Filter {
    fn arm(&mut self) -> Result<()> {
        let script = format!("table inet {} {{\n{}}}\n", self.table, self.chains);
        self.armed = self.arm_with(&script)?;
        Ok(())
    }

    fn inject(&mut self) -> Result<Span> {
        if self.armed.is_empty() {
            self.arm()?;
        }
        fire(std::mem::take(&mut self.armed))
    }

    fn heal(&mut self) -> Result<Span> {
        fire(self.arm_with(&format!("delete table inet {}\n", self.table))?)
    }
}

fn fire(mut armed: Vec<Armed>) -> Result<Span> {
    let first_ns = now_ns();
    armed.iter_mut().for_each(Armed::fire);
    let results: Vec<_> = armed.into_iter().map(Armed::finish).collect();
    let last_ns = now_ns();
    results.into_iter().collect::<Result<Vec<()>>>().context("a packet filter could not be changed")?;
    Ok(Span { first_ns, last_ns })
}

fn to_endpoint(endpoint: SocketAddr) -> String {
    let family = if endpoint.is_ipv4() { "ip" } else { "ip6" };
    format!("{family} daddr {} tcp dport {}", endpoint.ip(), endpoint.port())
}

fn netns_of_pods(pods: &[&Pod]) -> Vec<Netns> {
    pods.iter().map(|pod| pod.netns().clone()).collect()
}

fn netns_of_nodes(nodes: &[&Node]) -> Vec<Netns> {
    nodes.iter().map(|node| node.netns().clone()).collect()
}
