//! EndpointSlices and Endpoints: defaults and rules. An object comes in, the same object or what is wrong with its
//! addresses and ports goes out. Pure.

use std::net::IpAddr;

use serde_json::Value;

use crate::apiserver::object::{items, text};
use crate::apiserver::status::FieldError;

const ADDRESS_TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];

/// Addresses per endpoint and endpoints per slice, as `pkg/apis/discovery/validation` has them.
const ADDRESSES_LIMIT: usize = 100;
const ENDPOINTS_LIMIT: usize = 1000;

pub(super) fn default_slice_ports(slice: &mut Value) {
    for port in slice.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        set_absent(port, "name", "");
        set_absent(port, "protocol", "TCP");
    }
}

pub(super) fn default_subset_ports(endpoints: &mut Value) {
    for subset in endpoints.get_mut("subsets").and_then(Value::as_array_mut).into_iter().flatten() {
        for port in subset.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            set_absent(port, "protocol", "TCP");
        }
    }
}

fn set_absent(object: &mut Value, field: &str, value: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.entry(field).or_insert_with(|| value.into());
    }
}

pub(super) fn check_slice(slice: &Value, before: Option<&Value>, errors: &mut Vec<FieldError>) {
    let address_type = text(slice, "/addressType");
    if address_type.is_empty() {
        errors.push(FieldError::required("addressType", ""));
    } else if !ADDRESS_TYPES.contains(&address_type) {
        errors.push(FieldError::unsupported("addressType", address_type, &ADDRESS_TYPES));
    }
    if before.is_some_and(|before| text(before, "/addressType") != address_type) {
        errors.push(FieldError::invalid("addressType", address_type, "field is immutable"));
    }
    let endpoints = items(slice, "/endpoints");
    if endpoints.len() > ENDPOINTS_LIMIT {
        errors.push(FieldError::invalid("endpoints", "", &format!("must have at most {ENDPOINTS_LIMIT} items")));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        check_endpoint(endpoint, address_type, &format!("endpoints[{index}]"), errors);
    }
}

fn check_endpoint(endpoint: &Value, address_type: &str, path: &str, errors: &mut Vec<FieldError>) {
    let addresses = items(endpoint, "/addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(format!("{path}.addresses"), "must contain at least 1 address"));
    } else if addresses.len() > ADDRESSES_LIMIT {
        let detail = format!("must have at most {ADDRESSES_LIMIT} items");
        errors.push(FieldError::invalid(format!("{path}.addresses"), "", &detail));
    }
    for (index, address) in addresses.iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let fits = match address_type {
            "IPv4" => address.parse().is_ok_and(|address: IpAddr| address.is_ipv4()),
            "IPv6" => address.parse().is_ok_and(|address: IpAddr| address.is_ipv6()),
            _ => true,
        };
        if !fits {
            let detail = format!("must be a valid {address_type} address");
            errors.push(FieldError::invalid(format!("{path}.addresses[{index}]"), address, &detail));
        }
    }
}

pub(super) fn check_subsets(endpoints: &Value, errors: &mut Vec<FieldError>) {
    for (subset_index, subset) in items(endpoints, "/subsets").iter().enumerate() {
        for list in ["addresses", "notReadyAddresses"] {
            for (index, address) in items(subset, &format!("/{list}")).iter().enumerate() {
                let address = text(address, "/ip");
                if address.parse::<IpAddr>().is_err() {
                    let path = format!("subsets[{subset_index}].{list}[{index}].ip");
                    errors.push(FieldError::invalid(path, address, "must be a valid IP address"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_one(slice: &Value, before: Option<&Value>, wrong: &[&str]) {
        let mut errors = Vec::new();
        check_slice(slice, before, &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), wrong.len(), "{texts:?}");
        for (found, wanted) in texts.iter().zip(wrong) {
            assert!(found.starts_with(wanted), "{found} should name {wanted}");
        }
    }

    #[test]
    fn faults_of_a_slice_are_named() {
        let good = json!({ "addressType": "IPv4", "endpoints": [{ "addresses": ["198.51.100.1"] }] });
        check_one(&good, None, &[]);
        check_one(&json!({ "endpoints": [] }), None, &["addressType: Required"]);
        let wrong_family = json!({ "addressType": "IPv6", "endpoints": [{ "addresses": ["198.51.100.1"] }] });
        check_one(&wrong_family, None, &["endpoints[0].addresses[0]"]);
        check_one(&wrong_family, Some(&good), &["addressType: ", "endpoints[0].addresses[0]"]);
        check_one(&json!({ "addressType": "IPv4", "endpoints": [{ "addresses": [] }] }), None, &["endpoints[0].addr"]);
    }
}
