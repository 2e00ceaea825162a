//! An object of the API in, the addresses that matter to the agent out. Pure.
//!
//! Only TCP, only addresses (never names), ready or not: whether an endpoint is ready is the controller's question; a
//! connect to one that is not is counted all the same.

use std::net::IpAddr;

use kube::Resource as _;

use super::slim::{SlimEndpoint, SlimPort, SlimService, SlimSlice};
use crate::resolve::{Addresses, ObjectName};

/// The label that names an EndpointSlice's Service
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/#kubernetesioservice-name>).
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The cluster addresses of a Service; none for a headless one or an alias.
pub(super) fn service(mut service: SlimService) -> Option<Addresses> {
    let metadata = std::mem::take(service.meta_mut());
    let name = ObjectName { namespace: metadata.namespace?, name: metadata.name? };
    let spec = service.spec;
    // `clusterIPs` is the newer field and repeats `clusterIP`.
    let texts = spec.cluster_ips.filter(|texts| !texts.is_empty()).or(spec.cluster_ip.map(|text| vec![text]));
    let addresses = addresses(texts.unwrap_or_default());
    Addresses { service: name, addresses, local: Vec::new(), ports: tcp_ports(spec.ports) }.into_some()
}

/// The endpoints of a slice, and which of them the slice places on `node`; none for one that belongs to no Service.
pub(super) fn endpoint_slice(mut slice: SlimSlice, node: &str) -> Option<Addresses> {
    let metadata = std::mem::take(slice.meta_mut());
    let name = ObjectName { namespace: metadata.namespace?, name: metadata.labels?.remove(SERVICE_NAME)? };
    let (here, elsewhere): (Vec<SlimEndpoint>, Vec<SlimEndpoint>) =
        slice.endpoints.into_iter().flatten().partition(|endpoint| endpoint.node_name.as_deref() == Some(node));
    let texts = |endpoints: Vec<SlimEndpoint>| endpoints.into_iter().flat_map(|endpoint| endpoint.addresses);
    let local = addresses(texts(here));
    let addresses = local.iter().copied().chain(addresses(texts(elsewhere))).collect();
    Addresses { service: name, addresses, local, ports: tcp_ports(slice.ports) }.into_some()
}

impl Addresses {
    fn into_some(self) -> Option<Self> {
        (!self.addresses.is_empty() && !self.ports.is_empty()).then_some(self)
    }
}

/// Headless Services say "None", FQDN slices name hosts: neither is an address.
fn addresses(texts: impl IntoIterator<Item = String>) -> Vec<IpAddr> {
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

/// A port without a protocol is TCP; one without a number is every port, which no destination is.
fn tcp_ports(ports: Option<Vec<SlimPort>>) -> Vec<(String, u16)> {
    let is_tcp = |port: &SlimPort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let ports = ports.into_iter().flatten().filter(is_tcp);
    let numbered = ports.filter_map(|SlimPort { name, port, .. }| {
        let number = u16::try_from(port?).ok().filter(|number| *number > 0)?;
        Some((name.unwrap_or_default(), number))
    });
    numbered.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_service(spec: serde_json::Value) -> Option<Addresses> {
        let object = json!({"metadata": {"namespace": "shop", "name": "a"}, "spec": spec});
        service(serde_json::from_value(object).expect("a Service"))
    }

    fn mk_slice(labels: serde_json::Value, rest: serde_json::Value) -> Option<Addresses> {
        let mut object = json!({"metadata": {"namespace": "shop", "name": "a-x", "labels": labels}});
        object.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        endpoint_slice(serde_json::from_value(object).expect("an EndpointSlice"), "n1")
    }

    #[test]
    fn a_service_is_its_cluster_addresses_and_tcp_ports() {
        let found = mk_service(json!({
            "clusterIP": "203.0.113.1", "clusterIPs": ["203.0.113.1", "2001:db8::1"],
            "ports": [{"name": "http", "port": 80}, {"port": 53, "protocol": "UDP"}, {"port": 443, "protocol": "TCP"}],
        }));
        let found = found.expect("has addresses");
        assert_eq!(found.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["203.0.113.1", "2001:db8::1"]);
        assert_eq!(found.ports, [("http".to_owned(), 80), (String::new(), 443)]);
    }

    #[test]
    fn headless_services_and_aliases_are_no_destinations() {
        assert_eq!(mk_service(json!({"clusterIP": "None", "ports": [{"port": 80}]})), None);
        assert_eq!(mk_service(json!({"type": "ExternalName", "externalName": "example.org"})), None);
        assert_eq!(mk_service(json!({"clusterIP": "", "ports": [{"port": 80}]})), None);
    }

    #[test]
    fn a_slice_is_all_its_endpoints_ready_or_not() {
        let found = mk_slice(
            json!({"kubernetes.io/service-name": "a"}),
            json!({
                "addressType": "IPv4", "ports": [{"port": 8080}, {"name": "open"}],
                "endpoints": [
                    {"addresses": ["198.18.0.1"], "conditions": {"ready": true}, "nodeName": "n2"},
                    {"addresses": ["198.18.0.2"], "conditions": {"ready": false}, "nodeName": "n1"},
                    {"addresses": ["198.18.0.3"]},
                ],
            }),
        );
        let found = found.expect("has addresses");
        assert_eq!(found.service, ObjectName { namespace: "shop".into(), name: "a".into() });
        assert_eq!((found.addresses.len(), found.ports), (3, vec![(String::new(), 8080)]));
        assert_eq!(found.local, ["198.18.0.2".parse::<IpAddr>().expect("an address")], "placed on this node");
    }

    #[test]
    fn a_slice_without_endpoints_can_be_read() {
        for endpoints in [json!(null), json!([])] {
            // What a Service scaled to zero looks like.
            let rest = json!({"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints});
            assert_eq!(mk_slice(json!({"kubernetes.io/service-name": "a"}), rest), None);
        }
    }

    #[test]
    fn slices_of_no_service_or_of_names_are_no_destinations() {
        let endpoints = json!({
            "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["198.18.0.1"]}],
        });
        assert_eq!(mk_slice(json!({}), endpoints), None);
        let names =
            json!({"addressType": "FQDN", "ports": [{"port": 80}], "endpoints": [{"addresses": ["example.org"]}]});
        assert_eq!(mk_slice(json!({"kubernetes.io/service-name": "a"}), names), None);
    }
}
