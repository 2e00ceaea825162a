//! Faults of the path, as packet filter tables of their own. In: whose packets, and what becomes of them. Out: times.
//! Each fault has one table per namespace, made when it is armed; a switch in it, which is a set that holds TCP or
//! nothing, breaks and mends within microseconds and as often as wanted. Dropping the fault removes its tables.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

use super::super::build::in_parallel;
use super::super::netlink::Netlink;
use super::super::netns::Netns;
use super::super::{Node, Pod, tool};
use super::{Fault, Span};

/// Names tables, so that two filters in one namespace never meet.
static NEXT_TABLE: AtomicU64 = AtomicU64::new(1);

/// The set's name and, as an nft type `inet_proto`, its one possible element: IPPROTO_TCP.
const SWITCH: &str = "broken";
const TCP: [u8; 1] = [6];

/// One rule set in several namespaces.
#[derive(Debug)]
pub struct Filter {
    places: Vec<Netns>,
    table: String,
    chains: String,
    /// One per place, once the tables are there.
    switches: Vec<Netlink>,
    /// Its places answer each packet, and not only as many a second as the kernel allows a host.
    answers_all: bool,
    /// What the places' limits of ICMP were, once they were lifted.
    limits: Vec<String>,
}

/// Which kinds of ICMP a host sends only so often, as bits: by default 6168, which holds destination unreachable
/// (Documentation/networking/ip-sysctl.rst, icmp_ratemask). Six connects of forty were answered with it, because the
/// kernel allows one peer six answers at once and one a second then; a router in hardware answers far more.
const ICMP_LIMITED: &str = "/proc/sys/net/ipv4/icmp_ratemask";

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
        Filter::new(netns_of_pods(pods), &IN_PODS, &["iifname \"eth0\" drop".to_owned()])
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
            .map(|matches| format!("{matches} reject with icmpx type host-unreachable"))
            .collect();
        let mut filter = Filter::new(netns_of_nodes(nodes), &ON_NODES, &rules);
        filter.answers_all = true;
        filter
    }

    /// From these nodes nothing reaches these endpoints any more: packets of the nodes and of their pods are dropped on
    /// the way out. What others send to the nodes' own pods comes in by the cable, and passes.
    #[must_use]
    pub fn cut_path(nodes: &[&Node], endpoints: &[SocketAddr]) -> Filter {
        let rules: Vec<String> =
            endpoints.iter().map(|endpoint| format!("iifname != \"eth0\" {} drop", to_endpoint(*endpoint))).collect();
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
        let mut chains = format!("  set {SWITCH} {{\n    type inet_proto\n  }}\n");
        for (chain, hook) in hooks {
            writeln!(chains, "  chain {chain} {{\n    type filter hook {hook} priority 0; policy accept;")
                .and_then(|()| rules.iter().try_for_each(|rule| writeln!(chains, "    meta l4proto @{SWITCH} {rule}")))
                .and_then(|()| writeln!(chains, "  }}"))
                .expect("writing to a String cannot fail");
        }
        let table = format!("fault{}", NEXT_TABLE.fetch_add(1, Ordering::Relaxed));
        Filter { places, table, chains, switches: Vec::new(), answers_all: false, limits: Vec::new() }
    }

    /// Replaces what an earlier attempt may have left, so that it can be tried again.
    fn make_tables(&self) -> Result<()> {
        let table = &self.table;
        let script =
            format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{}}}\n", self.chains);
        in_parallel(&self.places, |place| place.within(|| tool::run("nft", &["-f", "-"], &script))?)
    }

    /// Remembers the limits, for [`Filter::drop`].
    fn lift_limits(&mut self) -> Result<()> {
        let lift = || {
            let before = fs::read_to_string(ICMP_LIMITED)?;
            fs::write(ICMP_LIMITED, "0")?;
            Ok::<String, std::io::Error>(before)
        };
        for place in &self.places {
            let before = place.within(lift)?;
            self.limits.push(before.with_context(|| format!("cannot change {ICMP_LIMITED}"))?);
        }
        Ok(())
    }

    fn switch(&mut self, broken: bool) -> Result<Span> {
        Span::around(|| {
            self.switches.iter_mut().try_for_each(|switch| switch.set_element(&self.table, SWITCH, &TCP, broken))
        })
    }
}

impl Fault for Filter {
    fn arm(&mut self) -> Result<()> {
        if self.switches.is_empty() {
            self.make_tables()?;
            self.switches = self.places.iter().map(Netlink::to_filter).collect::<Result<_>>()?;
            if self.answers_all {
                self.lift_limits()?;
            }
        }
        Ok(())
    }

    fn inject(&mut self) -> Result<Span> {
        self.arm()?;
        self.switch(true)
    }

    fn heal(&mut self) -> Result<Span> {
        self.switch(false)
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        for (place, before) in self.places.iter().zip(&self.limits) {
            place.within(|| fs::write(ICMP_LIMITED, before)).ok();
        }
        if self.switches.is_empty() {
            return;
        }
        // The world may be gone already, and its namespaces with it.
        let script = format!("delete table inet {}\n", self.table);
        in_parallel(&self.places, |place| place.within(|| tool::run("nft", &["-f", "-"], &script))?).ok();
    }
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
