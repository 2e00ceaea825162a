//! What is wrong with EndpointSlices. Pure.
//!
//! In: slices as they come and go. Out: per slice, the sentences on what of it was left out, whenever they change. An
//! endpoint or a port that cannot be read is left out, and the rest of the slice counts; deliberately no word on what is
//! merely unusual, such as UDP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use controller_core::facts::ObjectId;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{Observation, endpoints};

/// Sentences per slice. One slice has up to 1,000 endpoints, and one mistake is often made for all of them.
const LIMIT: usize = 3;

/// The slices that have faults.
#[derive(Debug, Default)]
pub(super) struct SliceFaults {
    known: BTreeMap<ObjectId, (ObjectId, Vec<String>)>,
}

impl SliceFaults {
    /// A slice is as it says. `None` where that changes nothing.
    pub(super) fn on_slice(&mut self, slice: &EndpointSlice) -> Option<Observation> {
        let id = endpoints::id(slice)?;
        let found = endpoints::service(slice).map(|service| (service, faults(slice)));
        match found.filter(|(_, faults)| !faults.is_empty()) {
            None => self.on_gone(&id),
            Some(found) if self.known.get(&id) == Some(&found) => None,
            Some((service, faults)) => {
                self.known.insert(id.clone(), (service.clone(), faults.clone()));
                Some(Observation::Slice { slice: id, service, faults })
            }
        }
    }

    /// A slice is gone, or as it should be.
    pub(super) fn on_gone(&mut self, id: &ObjectId) -> Option<Observation> {
        let (service, _) = self.known.remove(id)?;
        Some(Observation::Slice { slice: id.clone(), service, faults: Vec::new() })
    }

    /// A full list has ended: whatever is not in `listed` went while nobody watched.
    pub(super) fn on_listed(&mut self, listed: &BTreeSet<ObjectId>) -> Vec<Observation> {
        let gone: Vec<_> = self.known.keys().filter(|id| !listed.contains(id)).cloned().collect();
        gone.iter().filter_map(|id| self.on_gone(id)).collect()
    }
}

fn faults(slice: &EndpointSlice) -> Vec<String> {
    let mut faults = Vec::new();
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        match port.port {
            None => faults.push(format!("ports[{index}].port is missing")),
            Some(number) if !(1..=65_535).contains(&number) => {
                faults.push(format!("ports[{index}].port {number} is no port"));
            }
            Some(_) => {}
        }
    }
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        for (place, address) in endpoint.addresses.iter().enumerate() {
            if address.parse::<IpAddr>().is_err() {
                faults.push(format!("endpoints[{index}].addresses[{place}] {address:?} is no IP address"));
            }
        }
    }
    let more = faults.len().saturating_sub(LIMIT);
    faults.truncate(LIMIT);
    if more > 0
        && let Some(last) = faults.last_mut()
    {
        *last = format!("{last}, and {more} more");
    }
    faults
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mk_slice(ports: Value, endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
            "metadata": {"name": "web-1", "namespace": "demo", "labels": {"kubernetes.io/service-name": "web"}},
        }))
        .expect("a slice")
    }

    #[track_caller]
    fn check(ports: Value, endpoints: Value, expected: &[&str]) {
        assert_eq!(faults(&mk_slice(ports, endpoints)), expected);
    }

    #[test]
    fn what_is_left_out_is_named() {
        let good = json!([{"addresses": ["198.18.1.1"]}]);
        check(json!([{"port": 80}, {"port": 53, "protocol": "UDP"}]), good.clone(), &[]);
        check(json!(null), json!([]), &[]);
        check(json!([{"port": 70_000}]), good.clone(), &["ports[0].port 70000 is no port"]);
        check(json!([{"port": 80}, {"port": 0}]), good.clone(), &["ports[1].port 0 is no port"]);
        check(json!([{"name": "http"}]), good, &["ports[0].port is missing"]);
        check(
            json!([{"port": 80}]),
            json!([{"addresses": ["198.18.1.1", "db.example"]}]),
            &["endpoints[0].addresses[1] \"db.example\" is no IP address"],
        );
    }

    #[test]
    fn a_mistake_that_is_made_everywhere_is_told_in_short() {
        let endpoints: Vec<_> = (0..100).map(|number| json!({"addresses": [format!("db-{number}")]})).collect();
        let found = faults(&mk_slice(json!([]), json!(endpoints)));
        assert_eq!(found.len(), LIMIT);
        assert_eq!(found[2], "endpoints[2].addresses[0] \"db-2\" is no IP address, and 97 more");
    }

    #[test]
    fn it_is_told_when_it_changes_and_when_it_is_over() {
        let mut known = SliceFaults::default();
        let bad = mk_slice(json!([{"port": 0}]), json!([]));
        let told = |observation: Option<Observation>| match observation {
            Some(Observation::Slice { slice, service, faults }) => Some((slice.name, service.name, faults.len())),
            _ => None,
        };
        let id = ObjectId::new("demo", "web-1");
        assert_eq!(told(known.on_slice(&mk_slice(json!([]), json!([])))), None);
        assert_eq!(told(known.on_slice(&bad)), Some(("web-1".into(), "web".into(), 1)));
        assert_eq!(told(known.on_slice(&bad)), None, "once");
        assert_eq!(told(known.on_slice(&mk_slice(json!([]), json!([])))), Some(("web-1".into(), "web".into(), 0)));
        known.on_slice(&bad);
        assert_eq!(known.on_listed(&BTreeSet::from([id])).len(), 0);
        assert_eq!(known.on_listed(&BTreeSet::new()).len(), 1);
    }
}
