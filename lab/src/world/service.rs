//! What kube-proxy does on a node, as one script for `nft`. In: Services as plain values. Out: text that replaces the
//! whole table in one transaction. Pure: [`super`] runs it. No session affinity, no node ports, no masquerade: nothing
//! in the drills uses them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// Every Service of the world: its ClusterIP and port, and the endpoints that are ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Services {
    ready: BTreeMap<(IpAddr, u16), Vec<SocketAddr>>,
}

impl Services {
    /// Adds the Service or replaces its endpoints; endpoints of the other address family are left out, as
    /// EndpointSlices have one family each.
    pub(crate) fn set(&mut self, cluster_ip: IpAddr, port: u16, endpoints: &[SocketAddr]) {
        let same_family = endpoints.iter().copied().filter(|endpoint| endpoint.is_ipv4() == cluster_ip.is_ipv4());
        self.ready.insert((cluster_ip, port), same_family.collect());
    }

    pub(crate) fn remove(&mut self, cluster_ip: IpAddr, port: u16) {
        self.ready.remove(&(cluster_ip, port));
    }

    /// Replaces what a node had. A Service without endpoints is answered with ICMP port unreachable, as kube-proxy's
    /// REJECT rule does, in the filter chains behind routing.
    pub(crate) fn script(&self) -> String {
        let mut dnat = String::new();
        let mut reject = String::new();
        for ((cluster_ip, port), endpoints) in &self.ready {
            let family = if cluster_ip.is_ipv4() { "ip" } else { "ip6" };
            let matches = format!("{family} daddr {cluster_ip} tcp dport {port}");
            if endpoints.is_empty() {
                writeln!(reject, "    {matches} reject with icmpx type port-unreachable")
            } else {
                writeln!(dnat, "    {matches} dnat {family} to {}", choice(endpoints))
            }
            .expect("writing to a String cannot fail");
        }
        format!(
            "table inet services\n\
             delete table inet services\n\
             table inet services {{\n\
             \x20 chain from_pods {{\n    type nat hook prerouting priority -100; policy accept;\n    jump served\n  }}\n\
             \x20 chain from_node {{\n    type nat hook output priority -100; policy accept;\n    jump served\n  }}\n\
             \x20 chain served {{\n{dnat}  }}\n\
             \x20 chain forwarded {{\n    type filter hook forward priority 0; policy accept;\n    jump unserved\n  }}\n\
             \x20 chain sent {{\n    type filter hook output priority 0; policy accept;\n    jump unserved\n  }}\n\
             \x20 chain unserved {{\n{reject}  }}\n\
             }}\n"
        )
    }
}

/// A random choice among the endpoints, drawn per connection.
fn choice(endpoints: &[SocketAddr]) -> String {
    let mut text = format!("numgen random mod {} map {{ ", endpoints.len());
    for (index, endpoint) in endpoints.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(text, "{separator}{index} : {} . {}", endpoint.ip(), endpoint.port())
            .expect("writing to a String cannot fail");
    }
    text.push_str(" }");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_with_endpoints_is_translated_and_one_without_is_rejected() {
        let mut services = Services::default();
        services.set("203.0.113.1".parse().unwrap(), 80, &["198.18.1.2:8080".parse().unwrap()]);
        services.set("203.0.113.2".parse().unwrap(), 80, &[]);
        let script = services.script();
        assert!(
            script.contains("203.0.113.1 tcp dport 80 dnat ip to numgen random mod 1 map { 0 : 198.18.1.2 . 8080 }")
        );
        assert!(script.contains("203.0.113.2 tcp dport 80 reject with icmpx type port-unreachable"));
        services.remove("203.0.113.2".parse().unwrap(), 80);
        assert!(!services.script().contains("203.0.113.2"));
    }

    #[test]
    fn endpoints_of_the_other_family_are_left_out() {
        let mut services = Services::default();
        services.set("2001:db8:ffff::1".parse().unwrap(), 80, &["198.18.1.2:8080".parse().unwrap()]);
        assert!(services.script().contains("ip6 daddr 2001:db8:ffff::1 tcp dport 80 reject"));
    }
}
