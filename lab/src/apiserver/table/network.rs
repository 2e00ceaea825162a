//! The columns of Services, Endpoints and EndpointSlices. Pure.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, column, first_three, or, wide};
use crate::apiserver::object::{items, text};

pub(super) const SERVICE: &[Column] = &[
    NAME,
    column("Type", |service, _| text(service, "/spec/type").into()),
    column("Cluster-IP", |service, _| or(text(service, "/spec/clusterIP"), "<none>")),
    column("External-IP", external_ip),
    column("Port(s)", service_ports),
    AGE,
    wide("Selector", selector),
];

pub(super) const ENDPOINTS: &[Column] = &[NAME, column("Endpoints", subset_addresses), AGE];

pub(super) const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    column("AddressType", |slice, _| text(slice, "/addressType").into()),
    column("Ports", slice_ports),
    column("Endpoints", slice_addresses),
    AGE,
];

fn external_ip(service: &Value, _: Timestamp) -> Value {
    match text(service, "/spec/type") {
        "ExternalName" => text(service, "/spec/externalName").into(),
        "LoadBalancer" => {
            let ingress = items(service, "/status/loadBalancer/ingress").iter();
            let shown: Vec<&str> = ingress.map(|ingress| text(ingress, "/ip")).collect();
            or(&shown.join(","), "<pending>")
        }
        _ => {
            let shown: Vec<&str> = items(service, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
            or(&shown.join(","), "<none>")
        }
    }
}

fn service_ports(service: &Value, _: Timestamp) -> Value {
    let shown = |port: &Value| {
        let node_port = port["nodePort"].as_i64().map(|node_port| format!(":{node_port}")).unwrap_or_default();
        format!("{}{node_port}/{}", port["port"], text(port, "/protocol"))
    };
    let ports: Vec<String> = items(service, "/spec/ports").iter().map(shown).collect();
    or(&ports.join(","), "<none>")
}

fn selector(service: &Value, _: Timestamp) -> Value {
    let labels = service.pointer("/spec/selector").and_then(Value::as_object);
    let shown: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    or(&shown.join(","), "<none>")
}

/// Every ready address with every port, as `printers.go` writes them.
fn subset_addresses(endpoints: &Value, _: Timestamp) -> Value {
    let mut shown = Vec::new();
    for subset in items(endpoints, "/subsets") {
        for address in items(subset, "/addresses") {
            let address = text(address, "/ip");
            let ports = items(subset, "/ports");
            if ports.is_empty() {
                shown.push(address.to_owned());
            }
            shown.extend(ports.iter().map(|port| join(address, &port["port"])));
        }
    }
    first_three(&shown, "<none>")
}

fn join(address: &str, port: &Value) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn slice_ports(slice: &Value, _: Timestamp) -> Value {
    let shown = |port: &Value| match (port["port"].as_i64(), text(port, "/name")) {
        (Some(number), _) => number.to_string(),
        (None, "") => "*".to_owned(),
        (None, name) => name.to_owned(),
    };
    first_three(&items(slice, "/ports").iter().map(shown).collect::<Vec<_>>(), "<unset>")
}

fn slice_addresses(slice: &Value, _: Timestamp) -> Value {
    let endpoints = items(slice, "/endpoints").iter();
    let addresses = endpoints.flat_map(|endpoint| items(endpoint, "/addresses")).filter_map(Value::as_str);
    first_three(&addresses.map(ToOwned::to_owned).collect::<Vec<_>>(), "<unset>")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::resources::Resource;
    use crate::apiserver::table::cells;

    #[track_caller]
    fn check(resource: Resource, object: &Value, shown: &Value) {
        assert_eq!(&cells(resource, object, Timestamp::UNIX_EPOCH), shown);
    }

    #[test]
    fn services_and_their_endpoints_print_as_in_a_cluster() {
        let metadata = json!({ "name": "web", "creationTimestamp": "1970-01-01T00:00:00Z" });
        let service = json!({
            "metadata": metadata,
            "spec": {
                "type": "ClusterIP", "clusterIP": "198.19.1.0",
                "ports": [{ "port": 80, "protocol": "TCP" }, { "port": 443, "nodePort": 30443, "protocol": "TCP" }],
            },
        });
        let shown = json!(["web", "ClusterIP", "198.19.1.0", "<none>", "80/TCP,443:30443/TCP", "0s", "<none>"]);
        check(Resource::Services, &service, &shown);

        let endpoint = |last: u8| json!({ "addresses": [format!("198.51.100.{last}")] });
        let slice = json!({
            "metadata": metadata, "addressType": "IPv4", "ports": [{ "port": 8080 }],
            "endpoints": [endpoint(1), endpoint(2), endpoint(3), endpoint(4)],
        });
        let shown = json!(["web", "IPv4", "8080", "198.51.100.1,198.51.100.2,198.51.100.3 + 1 more...", "0s"]);
        check(Resource::EndpointSlices, &slice, &shown);

        let subset = json!({ "addresses": [{ "ip": "2001:db8::1" }], "ports": [{ "port": 80 }] });
        let endpoints = json!({ "metadata": metadata, "subsets": [subset] });
        check(Resource::Endpoints, &endpoints, &json!(["web", "[2001:db8::1]:80", "0s"]));
    }
}
