//! EndpointSlices -> the endpoints of each Service. Pure.
//!
//! In: slices as they come and go. Out: per Service, all its endpoints joined over slices and families, whenever that
//! changed. A pod of a dual-stack Service stands in two slices; an endpoint that moves between slices stands in both for a
//! moment. Deliberately TCP only, and blind to topology hints: which endpoint a client picks is not ours to say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use controller_core::facts::{EndpointFacts, ObjectId};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// Names the Service that a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// What is kept of one slice: its endpoints, each with the slice's ports.
type Slice = Vec<EndpointFacts>;

/// Every slice of the cluster, by Service.
#[derive(Debug, Default)]
pub(super) struct Slices {
    services: BTreeMap<ObjectId, Member>,
    /// Which Service each slice was last seen to belong to, so that one that changes its label leaves the old Service.
    owners: BTreeMap<ObjectId, ObjectId>,
}

#[derive(Debug, Default)]
struct Member {
    slices: BTreeMap<String, Slice>,
    joined: Vec<EndpointFacts>,
}

/// A Service's endpoints, changed.
pub(super) type Changed = (ObjectId, Vec<EndpointFacts>);

impl Slices {
    /// A slice is as it says.
    pub(super) fn on_slice(&mut self, slice: &EndpointSlice) -> Vec<Changed> {
        let Some(id) = id(slice) else { return Vec::new() };
        let service = service(slice);
        let mut changed = Vec::new();
        let before = self.owners.get(&id).cloned();
        if before.is_some() && before != service {
            changed.extend(self.remove(&id));
        }
        if let Some(service) = service {
            let member = self.services.entry(service.clone()).or_default();
            member.slices.insert(id.name.clone(), endpoints(slice));
            if member.rejoin() {
                changed.push((service.clone(), member.joined.clone()));
            }
            self.owners.insert(id, service);
        }
        changed
    }

    /// A slice is gone.
    pub(super) fn on_gone(&mut self, slice: &EndpointSlice) -> Vec<Changed> {
        id(slice).and_then(|id| self.remove(&id)).into_iter().collect()
    }

    /// A full list has ended: whatever is not in `listed` went while nobody watched.
    pub(super) fn on_listed(&mut self, listed: &BTreeSet<ObjectId>) -> Vec<Changed> {
        let gone: Vec<_> = self.owners.keys().filter(|id| !listed.contains(id)).cloned().collect();
        gone.iter().filter_map(|id| self.remove(id)).collect()
    }

    /// The nodes of a Service's ready endpoints.
    pub(super) fn nodes(&self, service: &ObjectId) -> BTreeSet<String> {
        let joined = self.services.get(service).map(|member| member.joined.as_slice()).unwrap_or_default();
        joined.iter().filter(|endpoint| endpoint.ready).filter_map(|endpoint| endpoint.node.clone()).collect()
    }

    fn remove(&mut self, id: &ObjectId) -> Option<Changed> {
        let service = self.owners.remove(id)?;
        let member = self.services.get_mut(&service)?;
        member.slices.remove(&id.name);
        let changed = member.rejoin().then(|| (service.clone(), member.joined.clone()));
        if member.slices.is_empty() {
            self.services.remove(&service);
        }
        changed
    }
}

impl Member {
    /// Joins the slices again; whether that changed anything.
    fn rejoin(&mut self) -> bool {
        let joined = join(self.slices.values());
        let changed = joined != self.joined;
        self.joined = joined;
        changed
    }
}

/// The slice's name, or `None` for one without: no server sends that.
pub(super) fn id(slice: &EndpointSlice) -> Option<ObjectId> {
    Some(ObjectId::new(slice.metadata.namespace.clone()?, slice.metadata.name.clone()?))
}

pub(super) fn service(slice: &EndpointSlice) -> Option<ObjectId> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL).filter(|name| !name.is_empty())?;
    Some(ObjectId::new(slice.metadata.namespace.clone()?, name.clone()))
}

fn endpoints(slice: &EndpointSlice) -> Slice {
    let listed = slice.ports.as_deref().unwrap_or_default();
    let ports: BTreeMap<_, _> = listed
        .iter()
        .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
        .filter_map(|port| {
            let number = u16::try_from(port.port?).ok().filter(|number| *number != 0)?;
            Some((port.name.clone().unwrap_or_default(), number))
        })
        .collect();
    slice.endpoints.iter().filter_map(|endpoint| facts(endpoint, &ports)).collect()
}

/// `None` for an endpoint without an address: a slice of type FQDN has names instead.
fn facts(endpoint: &Endpoint, ports: &BTreeMap<String, u16>) -> Option<EndpointFacts> {
    let addresses: Vec<IpAddr> = endpoint.addresses.iter().filter_map(|text| text.parse().ok()).collect();
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()).filter(|uid| !uid.is_empty());
    let conditions = endpoint.conditions.as_ref();
    Some(EndpointFacts {
        identity: uid.unwrap_or(addresses.first()?.to_string()),
        addresses,
        ports: ports.clone(),
        node: endpoint.node_name.clone(),
        zone: endpoint.zone.clone(),
        // The API says that a missing `ready` means ready.
        ready: conditions.and_then(|conditions| conditions.ready) != Some(false)
            && conditions.and_then(|conditions| conditions.terminating) != Some(true),
    })
}

/// One entry per identity, in the order of identities. An endpoint that one slice calls ready and another does not counts
/// as ready: the two are written moments apart, and taking the pessimist's word could move a split for such a moment.
fn join<'a>(slices: impl Iterator<Item = &'a Slice>) -> Vec<EndpointFacts> {
    let mut joined: BTreeMap<&str, EndpointFacts> = BTreeMap::new();
    for endpoint in slices.flatten() {
        match joined.get_mut(endpoint.identity.as_str()) {
            None => {
                joined.insert(&endpoint.identity, endpoint.clone());
            }
            Some(known) => {
                known.addresses.extend_from_slice(&endpoint.addresses);
                known.ports.extend(endpoint.ports.clone());
                known.ready |= endpoint.ready;
                known.node = known.node.take().or_else(|| endpoint.node.clone());
                known.zone = known.zone.take().or_else(|| endpoint.zone.clone());
            }
        }
    }
    let sorted = |mut endpoint: EndpointFacts| {
        endpoint.addresses.sort_unstable();
        endpoint.addresses.dedup();
        endpoint
    };
    joined.into_values().map(sorted).collect()
}

#[cfg(test)]
mod tests;
