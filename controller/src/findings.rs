//! What is wrong with the objects that splits are made of, beyond one object alone. Pure.
//!
//! In: splits, Services and faulty EndpointSlices as they come and go. Out: findings, each told once when it has stood for a
//! moment and once when it is mended. A finding holds nothing and moves nothing: what can be judged is judged on what is
//! right, and the core holds a split that it cannot understand by itself. Deliberately no word before every list is
//! complete, when half of everything seems to be missing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use controller_core::Time;
use controller_core::facts::{ObjectId, SplitFacts};

use crate::cluster::ServiceOutline;

/// How long a finding has to stand before it is told: objects that belong together are created one after the other.
const SETTLE: Duration = Duration::from_secs(1);

/// Findings that are kept of one object; a split may have 1,000 backends that do not exist.
const PER_OBJECT: usize = 16;

/// What follows from an apex Service that is not there: nobody says which ports count.
const APEX_MISSING: &str = "until it does, every port of the backends counts";

/// What follows from a backend's that is not.
const BACKEND_MISSING: &str = "it counts as a Service without endpoints";

/// What kind of mistake it is: the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FindingKind {
    /// A field or an annotation of the split cannot be understood; the core holds it as it is.
    Undecodable,
    /// A Service that the split names does not exist.
    MissingService,
    /// A Service that the split names is only a name in the DNS.
    ExternalName,
    /// A backend has no port that the apex has: no connection to it counts.
    NoCommonPort,
    /// The port that is to decide is not there.
    PortNotServed,
    /// Another split has the same apex.
    SharedApex,
    /// A split has nowhere to go.
    NoOtherBackend,
    /// An EndpointSlice has endpoints or ports that cannot be read.
    EndpointSlice,
}

impl FindingKind {
    /// Every kind.
    pub(crate) const ALL: [Self; 8] = [
        Self::Undecodable,
        Self::MissingService,
        Self::ExternalName,
        Self::NoCommonPort,
        Self::PortNotServed,
        Self::SharedApex,
        Self::NoOtherBackend,
        Self::EndpointSlice,
    ];

    /// Its name in logs, metrics and /state.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::MissingService => "missing-service",
            Self::ExternalName => "external-name",
            Self::NoCommonPort => "no-common-port",
            Self::PortNotServed => "port-not-served",
            Self::SharedApex => "shared-apex",
            Self::NoOtherBackend => "no-other-backend",
            Self::EndpointSlice => "endpoint-slice",
        }
    }
}

/// Which object has to be mended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// A TrafficSplit.
    Split(ObjectId),
    /// An EndpointSlice, and the Service that it is of.
    Slice {
        /// The slice.
        slice: ObjectId,
        /// Its Service's name.
        service: String,
    },
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Split(id) => write!(f, "trafficsplit {id}"),
            Self::Slice { slice, .. } => write!(f, "endpointslice {slice}"),
        }
    }
}

/// One mistake in one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// In which object.
    pub(crate) subject: Subject,
    /// Of which kind.
    pub(crate) kind: FindingKind,
    /// What is wrong, field first.
    pub(crate) text: String,
}

/// A change of what stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It is there.
    Found(Finding),
    /// It was told, and is mended, or its object is gone.
    Mended(Finding),
}

/// Since when a finding stands.
#[derive(Clone, Copy, Debug)]
struct Standing {
    since: Time,
    told: bool,
}

/// What is kept of a split.
#[derive(Clone, Debug, Default)]
struct Outline {
    fault: Option<String>,
    /// Empty while nothing of it was ever understood.
    service: String,
    backends: Vec<String>,
    port: Option<u16>,
}

impl Outline {
    fn names(&self, service: &str) -> bool {
        self.service == service || self.backends.iter().any(|backend| backend == service)
    }
}

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    splits: BTreeMap<ObjectId, Outline>,
    services: BTreeMap<ObjectId, ServiceOutline>,
    slices: BTreeMap<ObjectId, (ObjectId, Vec<String>)>,
    standing: BTreeMap<Finding, Standing>,
    /// What was told, and is over.
    mended: Vec<Finding>,
    complete: bool,
}

impl Findings {
    /// A split is as it says, or cannot be understood. What was understood of it before stands until then.
    pub(crate) fn on_split(&mut self, id: &ObjectId, seen: Result<&SplitFacts, &String>, now: Time) {
        let before = self.splits.get(id).map(|outline| outline.service.clone());
        let outline = match seen {
            Ok(facts) => {
                let backends: Vec<String> = facts.backends.iter().map(|backend| backend.service.clone()).collect();
                Outline { fault: None, service: facts.service.clone(), backends, port: facts.port }
            }
            Err(fault) => {
                let known = self.splits.get(id).cloned().unwrap_or_default();
                Outline { fault: Some(fault.clone()), ..known }
            }
        };
        let apexes = BTreeSet::from([before.unwrap_or_default(), outline.service.clone()]);
        self.splits.insert(id.clone(), outline);
        self.review_sharing(&id.namespace, &apexes, now);
    }

    /// A split is gone, or no longer ours.
    pub(crate) fn on_split_gone(&mut self, id: &ObjectId, now: Time) {
        let Some(outline) = self.splits.remove(id) else { return };
        self.replace(&Subject::Split(id.clone()), Vec::new(), now);
        self.review_sharing(&id.namespace, &BTreeSet::from([outline.service]), now);
        self.review_slices(&id.namespace, now);
    }

    /// A Service is as it says, or gone.
    pub(crate) fn on_service(&mut self, id: &ObjectId, seen: Option<ServiceOutline>, now: Time) {
        let changed = match seen {
            Some(outline) => self.services.insert(id.clone(), outline.clone()) != Some(outline),
            None => self.services.remove(id).is_some(),
        };
        if changed {
            self.review(now, |split, outline| split.namespace == id.namespace && outline.names(&id.name));
        }
    }

    /// What is wrong with a slice; nothing, when `faults` is empty.
    pub(crate) fn on_slice(&mut self, slice: &ObjectId, service: &ObjectId, faults: Vec<String>, now: Time) {
        if faults.is_empty() {
            self.slices.remove(slice);
            self.replace(&subject_of(slice, service), Vec::new(), now);
        } else {
            self.slices.insert(slice.clone(), (service.clone(), faults));
            self.review_slices(&slice.namespace, now);
        }
    }

    /// Every list is complete.
    pub(crate) fn on_complete(&mut self, now: Time) {
        self.complete = true;
        self.review(now, |_, _| true);
        let namespaces: BTreeSet<String> = self.slices.keys().map(|slice| slice.namespace.clone()).collect();
        for namespace in namespaces {
            self.review_slices(&namespace, now);
        }
    }

    /// What is to be told now, in order; to be called after every change and at [`Findings::due`].
    pub(crate) fn step(&mut self, now: Time) -> Vec<News> {
        let mut news = Vec::new();
        for (finding, standing) in &mut self.standing {
            if !standing.told && now.since(standing.since) >= settle(finding.kind) {
                standing.told = true;
                news.push(News::Found(finding.clone()));
            }
        }
        news.extend(self.mended.drain(..).map(News::Mended));
        news
    }

    /// When [`Findings::step`] has something to tell although nothing changes.
    pub(crate) fn due(&self) -> Option<Time> {
        let waiting = self.standing.iter().filter(|(_, standing)| !standing.told);
        waiting.map(|(finding, standing)| standing.since + settle(finding.kind)).min()
    }

    /// What was told and still stands, and since when.
    pub(crate) fn standing(&self) -> impl Iterator<Item = (&Finding, Time)> {
        self.standing.iter().filter(|(_, standing)| standing.told).map(|(finding, standing)| (finding, standing.since))
    }

    /// A split came, went or changed its apex: whoever has one of these apexes may share it now, or no longer.
    fn review_sharing(&mut self, namespace: &str, apexes: &BTreeSet<String>, now: Time) {
        self.review(now, |split, outline| split.namespace == namespace && apexes.contains(&outline.service));
        self.review_slices(namespace, now);
    }

    fn review(&mut self, now: Time, concerns: impl Fn(&ObjectId, &Outline) -> bool) {
        let concerned: Vec<ObjectId> =
            self.splits.iter().filter(|(id, outline)| concerns(id, outline)).map(|(id, _)| id.clone()).collect();
        for id in concerned {
            let found = self.of_split(&id);
            self.replace(&Subject::Split(id), found, now);
        }
    }

    /// A slice matters where a split names its Service.
    fn review_slices(&mut self, namespace: &str, now: Time) {
        if !self.complete {
            return;
        }
        let of_namespace: Vec<_> = self
            .slices
            .iter()
            .filter(|(slice, _)| slice.namespace == namespace)
            .map(|(slice, (service, faults))| (slice.clone(), service.clone(), faults.clone()))
            .collect();
        for (slice, service, faults) in of_namespace {
            let matters =
                self.splits.iter().any(|(id, outline)| id.namespace == namespace && outline.names(&service.name));
            let found = faults.into_iter().filter(|_| matters).map(|text| (FindingKind::EndpointSlice, text));
            let found = found.collect();
            self.replace(&subject_of(&slice, &service), found, now);
        }
    }

    fn of_split(&self, id: &ObjectId) -> Vec<(FindingKind, String)> {
        let Some(outline) = self.splits.get(id) else { return Vec::new() };
        if let Some(fault) = &outline.fault {
            return vec![(FindingKind::Undecodable, fault.clone())];
        }
        if !self.complete {
            return Vec::new();
        }
        let mut found = Vec::new();
        let service = |name: &str| self.services.get(&ObjectId::new(&id.namespace, name));
        let apex = service(&outline.service);
        found.extend(check_named("spec.service", &outline.service, apex, APEX_MISSING));
        for (index, name) in outline.backends.iter().enumerate() {
            let field = format!("spec.backends[{index}].service");
            let backend = service(name);
            if *name != outline.service {
                found.extend(check_named(&field, name, backend, BACKEND_MISSING));
            }
            if let Some(backend) = backend.filter(|backend| !backend.is_external) {
                check_ports(outline, (&field, name, backend), apex, &mut found);
            }
        }
        if outline.backends.len() == 1 {
            let text = "spec.backends has one entry: there is no other backend to go to".to_owned();
            found.push((FindingKind::NoOtherBackend, text));
        }
        let shares = |(other, of_other): &(&ObjectId, &Outline)| {
            *other != id && other.namespace == id.namespace && of_other.service == outline.service
        };
        if let Some((other, _)) = self.splits.iter().find(shares) {
            let text = format!(
                "spec.service {:?} is the apex of trafficsplit/{} too: both are driven, and which of them a mesh follows is \
                 not defined",
                outline.service, other.name
            );
            found.push((FindingKind::SharedApex, text));
        }
        found
    }

    /// Puts what was found in an object now in the place of what stood there.
    fn replace(&mut self, subject: &Subject, found: Vec<(FindingKind, String)>, now: Time) {
        let found: BTreeSet<Finding> = found
            .into_iter()
            .take(PER_OBJECT)
            .map(|(kind, text)| Finding { subject: subject.clone(), kind, text })
            .collect();
        let over: Vec<Finding> = self
            .standing
            .keys()
            .filter(|standing| standing.subject == *subject && !found.contains(*standing))
            .cloned()
            .collect();
        for finding in over {
            if self.standing.remove(&finding).is_some_and(|standing| standing.told) {
                self.mended.push(finding);
            }
        }
        for finding in found {
            self.standing.entry(finding).or_insert(Standing { since: now, told: false });
        }
    }
}

fn subject_of(slice: &ObjectId, service: &ObjectId) -> Subject {
    Subject::Slice { slice: slice.clone(), service: service.name.clone() }
}

/// A field that makes no sense is told at once: nothing else can come that makes it right.
const fn settle(kind: FindingKind) -> Duration {
    match kind {
        FindingKind::Undecodable => Duration::ZERO,
        FindingKind::MissingService
        | FindingKind::ExternalName
        | FindingKind::NoCommonPort
        | FindingKind::PortNotServed
        | FindingKind::SharedApex
        | FindingKind::NoOtherBackend
        | FindingKind::EndpointSlice => SETTLE,
    }
}

fn check_named(
    field: &str,
    name: &str,
    service: Option<&ServiceOutline>,
    missing: &str,
) -> Option<(FindingKind, String)> {
    match service {
        None => Some((FindingKind::MissingService, format!("{field} {name:?} does not exist: {missing}"))),
        Some(service) if service.is_external => Some((
            FindingKind::ExternalName,
            format!(
                "{field} {name:?} is of type ExternalName: it has no endpoints that could be watched or get traffic"
            ),
        )),
        Some(_) => None,
    }
}

/// The ports of a backend against the apex's and against the one that is to decide, as the core counts them.
fn check_ports(
    split: &Outline,
    (field, name, backend): (&str, &str, &ServiceOutline),
    apex: Option<&ServiceOutline>,
    found: &mut Vec<(FindingKind, String)>,
) {
    let common: BTreeSet<u16> = match apex.filter(|apex| !apex.ports.is_empty()) {
        Some(apex) => backend.ports.intersection(&apex.ports).copied().collect(),
        None => backend.ports.clone(),
    };
    if common.is_empty() {
        let text = format!(
            "{field} {name:?} has no TCP port in common with spec.service {:?}: its readiness is watched, connections to it \
             are not",
            split.service
        );
        found.push((FindingKind::NoCommonPort, text));
        return;
    }
    if let Some(port) = split.port.filter(|port| !common.contains(port)) {
        let text = format!(
            "annotation splitsecond.dev/port {port} is no port of {field} {name:?}: its readiness is watched, connections to \
             it are not"
        );
        found.push((FindingKind::PortNotServed, text));
    }
}

#[cfg(test)]
mod tests;
