//! A Service -> its addresses and TCP ports. Pure.
//!
//! In: the API's object. Out: [`ServiceFacts`] for the core, and an outline for whoever looks for mistakes. Deliberately
//! blind to selectors: the core only wants to know where connections to it go.

use std::collections::BTreeSet;

use controller_core::facts::{ServiceFacts, ServicePort};
use k8s_openapi::api::core::v1::Service;

/// Set by Linkerd's multicluster extension on the Services that it mirrors: their endpoints are another cluster's gateway.
const MIRROR_LABEL: &str = "mirror.linkerd.io/mirrored-service";

/// What a split that names a Service has to know of it, beside what the core wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceOutline {
    /// Numbers of its TCP ports.
    pub(crate) ports: BTreeSet<u16>,
    /// Whether it is of type ExternalName: a name in the DNS, with nothing behind it that could be watched.
    pub(crate) is_external: bool,
}

/// The outline of `service`.
pub(super) fn outline(service: &Service) -> ServiceOutline {
    let is_external = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    ServiceOutline { ports: facts(service).ports.into_iter().map(|port| port.port).collect(), is_external }
}

/// What the core wants to know of `service`.
pub(super) fn facts(service: &Service) -> ServiceFacts {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.cluster_ips.as_deref()).unwrap_or_default();
    // Servers before dual-stack fill only the singular field.
    let single = spec.and_then(|spec| spec.cluster_ip.as_ref()).filter(|_| listed.is_empty());
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let labels = service.metadata.labels.as_ref();
    ServiceFacts {
        // "None" marks a headless Service, "" an external name: neither is an address.
        cluster_ips: listed.iter().chain(single).filter_map(|text| text.parse().ok()).collect(),
        ports: ports
            .iter()
            .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
            .filter_map(|port| {
                let number = u16::try_from(port.port).ok().filter(|number| *number != 0)?;
                Some(ServicePort {
                    name: port.name.clone().unwrap_or_default(),
                    port: number,
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect(),
        mirror: labels.and_then(|labels| labels.get(MIRROR_LABEL)).is_some_and(|value| value == "true"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(service: Value, expected: &ServiceFacts) {
        let service: Service = serde_json::from_value(service).expect("a Service");
        assert_eq!(facts(&service), *expected);
    }

    fn mk_port(name: &str, port: u16) -> ServicePort {
        ServicePort { name: name.into(), port, app_protocol: None }
    }

    #[test]
    fn addresses_of_both_families_and_tcp_ports_are_taken() {
        check(
            json!({"metadata": {"name": "web"}, "spec": {
                "clusterIP": "198.18.0.1", "clusterIPs": ["198.18.0.1", "2001:db8::1"],
                "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"},
                          {"name": "tls", "port": 443, "protocol": "TCP"}]}}),
            &ServiceFacts {
                cluster_ips: vec!["198.18.0.1".parse().expect("v4"), "2001:db8::1".parse().expect("v6")],
                ports: vec![mk_port("http", 80), mk_port("tls", 443)],
                mirror: false,
            },
        );
    }

    #[test]
    fn a_headless_service_has_no_address() {
        check(
            json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}}),
            &ServiceFacts { cluster_ips: vec![], ports: vec![mk_port("", 80)], mirror: false },
        );
        check(json!({"spec": {"type": "ExternalName", "externalName": "example.com"}}), &ServiceFacts::default());
        check(json!({}), &ServiceFacts::default());
    }

    #[test]
    fn the_singular_address_counts_where_it_stands_alone() {
        check(
            json!({"spec": {"clusterIP": "198.18.0.9"}}),
            &ServiceFacts { cluster_ips: vec!["198.18.0.9".parse().expect("v4")], ..ServiceFacts::default() },
        );
    }

    #[test]
    fn a_mirror_is_known_by_its_label() {
        let labelled = |value: &str| json!({"metadata": {"labels": {MIRROR_LABEL: value}}});
        check(labelled("true"), &ServiceFacts { mirror: true, ..ServiceFacts::default() });
        check(labelled("false"), &ServiceFacts::default());
    }
}
