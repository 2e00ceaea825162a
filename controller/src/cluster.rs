//! What the cluster says: watches of TrafficSplits, Services and EndpointSlices.
//!
//! In: a client of the API server. Out: [`Observation`]s on one bounded channel, and [`Progress`] for /ready. Each watch is
//! a task that retries for ever: a cluster that cannot be watched leaves the last facts standing and says so. Deliberately
//! no filter by relevance (the core knows what it needs) and no write.

mod endpoints;
mod retry;
pub(crate) mod revision;
mod service;
mod slice_faults;
mod split;
mod version;
mod watch;

use std::collections::BTreeSet;

use controller_core::Input;
use controller_core::facts::ObjectId;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DynamicObject};
use kube::{Client, ResourceExt};
use tokio::sync::{mpsc, watch as cell};

pub(crate) use service::ServiceOutline;
pub(crate) use version::SplitVersion;

use crate::clock;
use crate::record::{self, Place};
use crate::state::progress::{Progress, Watch};
pub(crate) use watch::Chain;
use watch::{Cache, Ended};

/// Name of the agents' headless Service: its ready endpoints are the nodes that an agent runs on.
const AGENTS_SERVICE: &str = "splitsecond-agent";

/// One fact from the cluster.
#[derive(Debug)]
pub(crate) enum Observation {
    /// For the core alone.
    Fact(Input),
    /// A split, and which object it was: an Event on it has to say so.
    Split {
        /// For the core.
        input: Input,
        /// For Events and guards.
        object: SplitObject,
    },
    /// A Service.
    Service {
        /// For the core.
        input: Input,
        /// Whose it is.
        service: ObjectId,
        /// What splits that name it have to know of it.
        outline: ServiceOutline,
    },
    /// What is wrong with an EndpointSlice of a Service; empty when nothing is, or it is gone.
    Slice {
        /// Which slice.
        slice: ObjectId,
        /// Whose.
        service: ObjectId,
        /// One sentence each.
        faults: Vec<String>,
    },
}

/// A TrafficSplit as an Event refers to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SplitObject {
    /// `metadata.uid`.
    pub(crate) uid: String,
    /// `metadata.resourceVersion`, in the order of [`revision`].
    pub(crate) resource_version: String,
    /// What it has of annotations at that version.
    pub(crate) place: Place,
    /// Our annotation at that version, word for word.
    pub(crate) record: Option<String>,
}

impl From<Input> for Observation {
    fn from(input: Input) -> Self {
        Self::Fact(input)
    }
}

/// What every watch needs.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// One client for all watches and lists; writes have their own.
    pub(crate) client: Client,
    /// Where facts go.
    pub(crate) observations: mpsc::Sender<Observation>,
    /// Who is told how far we are.
    pub(crate) progress: std::sync::Arc<Progress>,
}

impl Cluster {
    /// Watches the splits that match `selector`, once the server serves them, and publishes in which version.
    pub(crate) async fn watch_splits(self, selector: String, version: cell::Sender<Option<SplitVersion>>) {
        let mut splits = Splits::default();
        loop {
            let served = version::negotiate(&self.client, &self.progress).await;
            version.send_replace(Some(served));
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &served.resource());
            match watch::run(api, Some(&selector), &mut splits, Watch::TrafficSplits, &self).await {
                Ended::NotServed => {}
                Ended::NobodyListens => return,
            }
        }
    }

    /// Watches all Services.
    pub(crate) async fn watch_services(self) {
        let api: Api<Service> = Api::all(self.client.clone());
        let mut services = Services::default();
        while let Ended::NotServed = watch::run(api.clone(), None, &mut services, Watch::Services, &self).await {}
    }

    /// Watches all EndpointSlices; those of the agents' Service in `namespace` also say which agents to expect.
    pub(crate) async fn watch_endpoints(self, namespace: String) {
        let api: Api<EndpointSlice> = Api::all(self.client.clone());
        let mut endpoints = Endpoints {
            slices: endpoints::Slices::default(),
            faults: slice_faults::SliceFaults::default(),
            agents: ObjectId::new(namespace, AGENTS_SERVICE),
            expected: None,
        };
        while let Ended::NotServed = watch::run(api.clone(), None, &mut endpoints, Watch::EndpointSlices, &self).await {
        }
    }
}

/// The splits that were there last.
#[derive(Default)]
struct Splits {
    known: BTreeSet<ObjectId>,
    /// How often the server began to count its versions anew.
    era: u64,
}

impl Cache for Splits {
    type Object = DynamicObject;

    fn id(object: &DynamicObject) -> Option<ObjectId> {
        split::id(object)
    }

    fn on_object(&mut self, object: &DynamicObject) -> Vec<Observation> {
        let Some(id) = split::id(object) else { return Vec::new() };
        self.known.insert(id.clone());
        let annotations = object.metadata.annotations.as_ref();
        let reference = SplitObject {
            uid: object.uid().unwrap_or_default(),
            resource_version: revision::ordered(self.era, &object.resource_version().unwrap_or_default()),
            place: Place::of(annotations),
            record: annotations.and_then(|annotations| annotations.get(record::ANNOTATION)).cloned(),
        };
        let input = match split::facts(object, self.era, clock::wall()) {
            Ok(facts) => Input::Split(id, facts),
            Err(fault) => Input::SplitInvalid { split: id, fault },
        };
        vec![Observation::Split { input, object: reference }]
    }

    fn on_renumbered(&mut self) {
        self.era += 1;
    }

    fn on_gone(&mut self, object: &DynamicObject) -> Vec<Observation> {
        let gone = split::id(object).filter(|id| self.known.remove(id));
        gone.map(|id| Input::SplitGone(id).into()).into_iter().collect()
    }

    fn on_listed(&mut self, listed: &BTreeSet<ObjectId>) -> Vec<Observation> {
        watch::forget(&mut self.known, listed).into_iter().map(|id| Input::SplitGone(id).into()).collect()
    }
}

/// The Services that were there last.
#[derive(Default)]
struct Services {
    known: BTreeSet<ObjectId>,
}

impl Cache for Services {
    type Object = Service;

    fn id(object: &Service) -> Option<ObjectId> {
        Some(ObjectId::new(object.namespace()?, object.metadata.name.clone()?))
    }

    fn on_object(&mut self, object: &Service) -> Vec<Observation> {
        let Some(id) = Self::id(object) else { return Vec::new() };
        self.known.insert(id.clone());
        let input = Input::Service(id.clone(), service::facts(object));
        vec![Observation::Service { input, service: id, outline: service::outline(object) }]
    }

    fn on_gone(&mut self, object: &Service) -> Vec<Observation> {
        let gone = Self::id(object).filter(|id| self.known.remove(id));
        gone.map(|id| Input::ServiceGone(id).into()).into_iter().collect()
    }

    fn on_listed(&mut self, listed: &BTreeSet<ObjectId>) -> Vec<Observation> {
        watch::forget(&mut self.known, listed).into_iter().map(|id| Input::ServiceGone(id).into()).collect()
    }
}

/// The endpoints that were there last, and the agents among them.
struct Endpoints {
    slices: endpoints::Slices,
    faults: slice_faults::SliceFaults,
    agents: ObjectId,
    /// What was said last; `None` before anything was.
    expected: Option<BTreeSet<String>>,
}

impl Endpoints {
    fn observations(&mut self, changed: Vec<endpoints::Changed>) -> Vec<Observation> {
        let agents_changed = changed.iter().any(|(service, _)| *service == self.agents);
        let mut observations: Vec<Observation> =
            changed.into_iter().map(|(service, endpoints)| Input::Endpoints(service, endpoints).into()).collect();
        if agents_changed {
            observations.extend(self.expect());
        }
        observations
    }

    fn expect(&mut self) -> Option<Observation> {
        let nodes = Some(self.slices.nodes(&self.agents));
        if nodes == self.expected {
            return None;
        }
        self.expected = nodes;
        self.expected.clone().map(|nodes| Input::ExpectedAgents(nodes).into())
    }
}

impl Cache for Endpoints {
    type Object = EndpointSlice;

    fn id(object: &EndpointSlice) -> Option<ObjectId> {
        endpoints::id(object)
    }

    fn on_object(&mut self, object: &EndpointSlice) -> Vec<Observation> {
        let changed = self.slices.on_slice(object);
        let mut observations = self.observations(changed);
        observations.extend(self.faults.on_slice(object));
        observations
    }

    fn on_gone(&mut self, object: &EndpointSlice) -> Vec<Observation> {
        let changed = self.slices.on_gone(object);
        let mut observations = self.observations(changed);
        observations.extend(endpoints::id(object).and_then(|id| self.faults.on_gone(&id)));
        observations
    }

    fn on_listed(&mut self, listed: &BTreeSet<ObjectId>) -> Vec<Observation> {
        let changed = self.slices.on_listed(listed);
        let mut observations = self.observations(changed);
        observations.extend(self.faults.on_listed(listed));
        // Said once even when the Service is not there: "no agents" is a fact, "not looked yet" is not.
        observations.extend(self.expect());
        observations
    }
}

#[cfg(test)]
mod tests;
