//! Services: defaults, rules, and the ClusterIP that a Service without one is given. Pure.
//!
//! Addresses are allocated from 198.19.0.0/16, the upper half of the range that RFC 2544 sets aside for benchmarks,
//! so that no lab Service can ever shadow a real network. Node ports and load balancers are not allocated.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::name::is_label;
use crate::apiserver::object::{items, text};
use crate::apiserver::status::FieldError;

/// First address that is handed out; the first 256 are left for Services whose address somebody wrote down.
const FIRST_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(198, 19, 1, 0);
const LAST_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// Fills in what a real server fills in, except for the ClusterIP itself.
pub(super) fn default(service: &mut Value) {
    if !service["spec"].is_object() {
        service["spec"] = json!({});
    }
    let spec = &mut service["spec"];
    set_absent(spec, "type", "ClusterIP");
    set_absent(spec, "sessionAffinity", "None");
    if spec["type"] != "ExternalName" {
        set_absent(spec, "internalTrafficPolicy", "Cluster");
        default_addresses(spec);
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        set_absent(port, "protocol", "TCP");
        let number = port["port"].clone();
        set_absent(port, "targetPort", number);
    }
    if !service["status"].is_object() {
        service["status"] = json!({ "loadBalancer": {} });
    }
}

/// `clusterIP` and the first of `clusterIPs` are one thing; whichever was given sets the other.
fn default_addresses(spec: &mut Value) {
    let first = text(spec, "/clusterIPs/0").to_owned();
    if !first.is_empty() {
        set_absent(spec, "clusterIP", first);
    }
    let address = text(spec, "/clusterIP").to_owned();
    if address.is_empty() {
        return;
    }
    set_absent(spec, "clusterIPs", json!([address]));
    let family = if address.contains(':') { "IPv6" } else { "IPv4" };
    set_absent(spec, "ipFamilies", json!([family]));
    set_absent(spec, "ipFamilyPolicy", "SingleStack");
}

fn set_absent(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(fields) = object.as_object_mut() {
        fields.entry(field).or_insert_with(|| value.into());
    }
}

/// Whether the Service lacks a ClusterIP that it should have.
pub(crate) fn wants_address(service: &Value) -> bool {
    service["spec"]["type"] != "ExternalName" && text(service, "/spec/clusterIP").is_empty()
}

/// Gives the Service the lowest free address.
pub(crate) fn allocate(service: &mut Value, taken: &BTreeSet<IpAddr>) -> Result<(), FieldError> {
    let free = (u32::from(FIRST_CLUSTER_IP)..=u32::from(LAST_CLUSTER_IP))
        .map(Ipv4Addr::from)
        .find(|address| !taken.contains(&IpAddr::V4(*address)))
        .ok_or_else(|| FieldError::invalid("spec.clusterIPs", "", "failed to allocate an IP: range is full"))?;
    service["spec"]["clusterIP"] = free.to_string().into();
    default_addresses(&mut service["spec"]);
    Ok(())
}

/// The ClusterIPs of a Service, without `None` of headless ones.
pub(crate) fn addresses(service: &Value) -> impl Iterator<Item = IpAddr> {
    items(service, "/spec/clusterIPs").iter().filter_map(Value::as_str).filter_map(|text| text.parse().ok())
}

pub(super) fn check(service: &Value, before: Option<&Value>, errors: &mut Vec<FieldError>) {
    let kind = text(service, "/spec/type");
    if !TYPES.contains(&kind) {
        errors.push(FieldError::unsupported("spec.type", kind, &TYPES));
    }
    let address = text(service, "/spec/clusterIP");
    if !address.is_empty() && address != "None" && address.parse::<IpAddr>().is_err() {
        errors.push(FieldError::invalid("spec.clusterIPs[0]", address, "must be a valid IP address"));
    }
    if text(service, "/spec/clusterIPs/0") != address {
        errors.push(FieldError::invalid("spec.clusterIPs", address, "first value must match `clusterIP`"));
    }
    if let Some(before) = before {
        let earlier = text(before, "/spec/clusterIP");
        if !earlier.is_empty() && earlier != address && text(before, "/spec/type") != "ExternalName" {
            errors.push(FieldError::invalid("spec.clusterIPs[0]", address, "may not change once set"));
        }
    }
    check_ports(service, errors);
}

fn check_ports(service: &Value, errors: &mut Vec<FieldError>) {
    let ports = items(service, "/spec/ports");
    let needs_none = text(service, "/spec/clusterIP") == "None" || text(service, "/spec/type") == "ExternalName";
    if ports.is_empty() && !needs_none {
        errors.push(FieldError::required("spec.ports", ""));
    }
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = text(port, "/name");
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.is_empty() && !is_label(name) {
            let detail = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'";
            errors.push(FieldError::invalid(format!("{path}.name"), name, detail));
        } else if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), name, "Duplicate value"));
        }
        let number = port["port"].as_i64().unwrap_or(0);
        if !(1..=65_535).contains(&number) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(format!("{path}.port"), &number.to_string(), detail));
        }
        let protocol = text(port, "/protocol");
        if !PROTOCOLS.contains(&protocol) {
            errors.push(FieldError::unsupported(format!("{path}.protocol"), protocol, &PROTOCOLS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_gets_the_defaults_that_its_readers_rely_on() {
        let mut service = json!({ "spec": { "clusterIP": "198.19.0.7", "ports": [{ "port": 80 }] } });
        default(&mut service);
        assert_eq!(
            service["spec"],
            json!({
                "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "clusterIP": "198.19.0.7", "clusterIPs": ["198.19.0.7"], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }],
            })
        );
    }

    #[test]
    fn addresses_are_handed_out_once() {
        let mut taken = BTreeSet::new();
        for wanted in ["198.19.1.0", "198.19.1.1"] {
            let mut service = json!({ "spec": { "ports": [{ "port": 80 }] } });
            default(&mut service);
            assert!(wants_address(&service));
            allocate(&mut service, &taken).unwrap();
            assert_eq!(service["spec"]["clusterIP"], wanted);
            taken.extend(addresses(&service));
        }
    }

    #[track_caller]
    fn check_one(spec: Value, before: Option<Value>, wrong: &[&str]) {
        let mut service = json!({ "spec": spec });
        default(&mut service);
        let before = before.map(|spec| json!({ "spec": spec }));
        let mut errors = Vec::new();
        check(&service, before.as_ref(), &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), wrong.len(), "{texts:?}");
        for (found, wanted) in texts.iter().zip(wrong) {
            assert!(found.starts_with(wanted), "{found} should name {wanted}");
        }
    }

    #[test]
    fn faults_of_a_service_are_named() {
        check_one(json!({ "clusterIP": "None" }), None, &[]);
        check_one(json!({ "clusterIP": "198.19.0.1" }), None, &["spec.ports: Required"]);
        check_one(json!({ "clusterIP": "nonsense", "ports": [{ "port": 80 }] }), None, &["spec.clusterIPs[0]"]);
        check_one(json!({ "clusterIP": "None", "ports": [{ "port": 0 }] }), None, &["spec.ports[0].port"]);
        check_one(
            json!({ "clusterIP": "None", "ports": [{ "port": 1 }, { "port": 2, "name": "b" }] }),
            None,
            &["spec.ports[0].name: Required"],
        );
        check_one(
            json!({ "clusterIP": "198.19.0.2", "ports": [{ "port": 80 }] }),
            Some(json!({ "type": "ClusterIP", "clusterIP": "198.19.0.1" })),
            &["spec.clusterIPs[0]"],
        );
    }
}
