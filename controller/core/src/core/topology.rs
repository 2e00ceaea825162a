//! Splits, Services and endpoints come in; targets and the agents' view of the splits come out. Pure.

use std::collections::{BTreeMap, BTreeSet};

use probe_common::wire::{Backend, ControllerFrame, Destination, SplitGone, SplitsSent, WatchedDestination};

use super::{BackendLinks, Core, Entry, TargetId};
use crate::Output;
use crate::facts::{EndpointFacts, ObjectId, ServiceFacts, ServicePort, SplitFacts};
use crate::output::NoticeReason;
use crate::split::Split;
use crate::target::{Shape, Site, Target, TargetKey};
use crate::time::Time;

/// A Service's port and the target that judges it.
type PortKey = (u16, TargetKey);

impl Core {
    pub(super) fn on_split(&mut self, id: ObjectId, facts: SplitFacts, now: Time) {
        self.invalid.remove(&id);
        let was_failed = self.splits.get(&id).is_some_and(|entry| entry.split.is_failed());
        match self.splits.get_mut(&id) {
            // A split of the same name and another uid is another object: nothing of the old one holds for it.
            Some(entry) if entry.split.facts().uid == facts.uid => entry.split.on_facts(facts, &self.config, now),
            Some(_) | None => {
                let split = Split::new(facts, &self.config, now);
                let entry = Entry {
                    split,
                    backends: Vec::new(),
                    due: None,
                    told: BTreeMap::new(),
                    noticed: None,
                    receipt: None,
                };
                self.splits.insert(id.clone(), entry);
            }
        }
        self.rebuild(now);
        if was_failed && self.splits.get(&id).is_some_and(|entry| !entry.split.is_failed()) {
            // Another replica, or a person, gave the primary its traffic back.
            self.settle_primary(&id);
        }
        self.publish_view(&id);
        self.decide(&id, now);
    }

    pub(super) fn on_split_invalid(&mut self, id: &ObjectId, fault: String) {
        if self.invalid.get(id) != Some(&fault) {
            let note = format!("trafficsplit/{} is held as it is: {fault}", id.name);
            self.outputs.push_back(Output::Notice { split: id.clone(), reason: NoticeReason::InvalidPolicy, note });
        }
        if let Some(entry) = self.splits.get_mut(id) {
            entry.split.on_fault(fault.clone());
        }
        self.invalid.insert(id.clone(), fault);
    }

    pub(super) fn on_split_gone(&mut self, id: &ObjectId, now: Time) {
        self.invalid.remove(id);
        if self.splits.remove(id).is_some() {
            self.rebuild(now);
            self.publish_view(id);
        }
    }

    pub(super) fn on_service(&mut self, id: ObjectId, facts: Option<ServiceFacts>, now: Time) {
        let changed = match facts {
            Some(facts) => self.services.insert(id.clone(), facts.clone()) != Some(facts),
            None => self.services.remove(&id).is_some(),
        };
        if changed {
            self.on_service_changed(&id, now);
        }
    }

    pub(super) fn on_endpoints(&mut self, id: ObjectId, endpoints: Vec<EndpointFacts>, now: Time) {
        let changed = if endpoints.is_empty() {
            self.endpoints.remove(&id).is_some()
        } else {
            self.endpoints.insert(id.clone(), endpoints.clone()) != Some(endpoints)
        };
        if changed {
            self.on_service_changed(&id, now);
        }
    }

    fn on_service_changed(&mut self, id: &ObjectId, now: Time) {
        let uses = |(split, entry): (&ObjectId, &Entry)| {
            let facts = entry.split.facts();
            let named = facts.service == id.name || facts.backends.iter().any(|backend| backend.service == id.name);
            (split.namespace == id.namespace && named).then(|| split.clone())
        };
        let splits: Vec<ObjectId> = self.splits.iter().filter_map(uses).collect();
        if splits.is_empty() {
            return;
        }
        self.rebuild(now);
        for split in splits {
            self.publish_view(&split);
            self.decide(&split, now);
        }
    }

    /// Derives every target from what is known now. A target that stays keeps what it knows.
    pub(super) fn rebuild(&mut self, now: Time) {
        if !self.caches_complete {
            // The first lists come object by object: once they are there is soon enough, and once.
            return;
        }
        let mut shapes: BTreeMap<TargetKey, Shape> = BTreeMap::new();
        let mut links: BTreeMap<ObjectId, Vec<(usize, Vec<PortKey>)>> = BTreeMap::new();
        for (id, entry) in &self.splits {
            let facts = entry.split.facts();
            let of_split = facts.backends.iter().map(|backend| {
                let service = ObjectId::new(&id.namespace, &backend.service);
                let ready =
                    self.endpoints.get(&service).into_iter().flatten().filter(|endpoint| endpoint.ready).count();
                let keys = self.targets_of(id, facts, &service).into_iter().map(|(port, key, shape)| {
                    merge(shapes.entry(key.clone()).or_default(), shape);
                    (port, key)
                });
                (ready, keys.collect())
            });
            links.insert(id.clone(), of_split.collect());
        }
        self.replace_targets(shapes, now);
        for (id, of_split) in links {
            let to_links = |(ready, keys): (usize, Vec<PortKey>)| {
                let found = keys.iter().filter_map(|(port, key)| Some((*port, *self.keys.get(key)?)));
                let (ports, targets) = found.unzip();
                BackendLinks { ready, targets, ports }
            };
            let backends: Vec<_> = of_split.into_iter().map(to_links).collect();
            for target in backends.iter().flat_map(|links| &links.targets) {
                self.users.entry(*target).or_default().insert(id.clone());
            }
            if let Some(entry) = self.splits.get_mut(&id) {
                entry.backends = backends;
            }
        }
        let ids: Vec<_> = self.splits.keys().cloned().collect();
        for id in ids {
            self.mark_wanted(&id);
        }
    }

    /// The targets of one backend: one per port that the apex has too.
    fn targets_of(&self, id: &ObjectId, split: &SplitFacts, service: &ObjectId) -> Vec<(u16, TargetKey, Shape)> {
        let Some(facts) = self.services.get(service) else { return Vec::new() };
        let apex = self.services.get(&ObjectId::new(&id.namespace, &split.service));
        let on_apex = |port: u16| {
            apex.is_none_or(|apex| apex.ports.is_empty() || apex.ports.iter().any(|other| other.port == port))
        };
        let chosen = |port: u16| split.port.is_none_or(|chosen| chosen == port);
        let endpoints = self.endpoints.get(service).map(Vec::as_slice).unwrap_or_default();
        let ports = facts.ports.iter().filter(|port| on_apex(port.port) && chosen(port.port));
        let target = |port: &ServicePort| {
            let (key, mut shape) = target_of(service, facts, port, endpoints);
            shape.unchecked &= !split.check_all_ports;
            (port.port, key, shape)
        };
        ports.map(target).collect()
    }

    fn replace_targets(&mut self, shapes: BTreeMap<TargetKey, Shape>, now: Time) {
        let known: BTreeSet<Destination> = self.by_destination.keys().copied().collect();
        self.keys.retain(|key, id| {
            let stays = shapes.contains_key(key);
            if !stays {
                self.targets.remove(id);
            }
            stays
        });
        self.users.clear();
        self.by_destination.clear();
        for (key, shape) in shapes {
            let id = *self.keys.entry(key).or_insert_with(|| {
                self.next_target += 1;
                TargetId(self.next_target)
            });
            let target = self.targets.entry(id).or_insert_with(|| Target::new(shape.clone(), now));
            target.reshape(shape, now);
            for to in target.destinations() {
                self.by_destination.entry(to).or_default().push(id);
            }
        }
        for to in known {
            if !self.by_destination.contains_key(&to) {
                self.evidence.forget(&to);
            }
        }
    }

    /// The first full set of splits is there: every agent that waits for it gets it.
    pub(super) fn publish_all(&mut self) {
        let ids: Vec<_> = self.splits.keys().cloned().collect();
        for id in ids {
            self.publish_view(&id);
        }
        let streams: Vec<_> = self
            .agents
            .nodes()
            .filter_map(|node| Some((self.agents.name(node).to_owned(), self.agents.stream(node)?)))
            .collect();
        for (node, stream) in streams {
            let frame = ControllerFrame::SplitsSent(SplitsSent {});
            self.outputs.push_back(Output::Send { node, stream, frame });
        }
    }

    /// Tells every agent how a split looks now, if that changed.
    pub(super) fn publish_view(&mut self, id: &ObjectId) {
        let view = self.view(id);
        let frame = match (view, self.views.get(id)) {
            (Some(view), Some(told)) if view == *told => return,
            (Some(view), _) => {
                self.views.insert(id.clone(), view.clone());
                ControllerFrame::Split(view)
            }
            (None, Some(_)) => {
                self.views.remove(id);
                ControllerFrame::SplitGone(SplitGone { namespace: id.namespace.clone(), name: id.name.clone() })
            }
            (None, None) => return,
        };
        let streams: Vec<_> = self
            .agents
            .nodes()
            .filter_map(|node| Some((self.agents.name(node).to_owned(), self.agents.stream(node)?)))
            .collect();
        for (node, stream) in streams {
            self.outputs.push_back(Output::Send { node, stream, frame: frame.clone() });
        }
    }

    fn view(&self, id: &ObjectId) -> Option<probe_common::wire::Split> {
        let entry = self.splits.get(id)?;
        let facts = entry.split.facts();
        let backends = facts.backends.iter().zip(&entry.backends).map(|(backend, links)| {
            let targets = links.targets.iter().filter_map(|id| self.targets.get(id));
            let watched: BTreeSet<WatchedDestination> = targets
                .flat_map(|target| {
                    let late_after_ms = u32::try_from(target.late_after(&self.config).as_millis()).unwrap_or(u32::MAX);
                    target.destinations().map(move |to| WatchedDestination { to, late_after_ms })
                })
                .collect();
            Backend {
                service: backend.service.clone(),
                weight_milli: backend.weight.milli(),
                destinations: watched.into_iter().collect(),
            }
        });
        Some(probe_common::wire::Split {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            service: facts.service.clone(),
            generation: facts.generation,
            backends: backends.collect(),
        })
    }
}

/// One port of one Service as a target. Mirrors behind one gateway meet in one target, so that one volley of checks
/// answers for all of them.
fn target_of(
    service: &ObjectId,
    facts: &ServiceFacts,
    declared: &ServicePort,
    endpoints: &[EndpointFacts],
) -> (TargetKey, Shape) {
    let port = declared.port;
    let ready = || endpoints.iter().filter(|endpoint| endpoint.ready);
    let destinations = |endpoint: &EndpointFacts| -> Option<(String, Vec<Destination>)> {
        let number = *endpoint.ports.get(&declared.name)?;
        let to = endpoint.addresses.iter().map(|address| Destination::new(*address, number)).collect();
        Some((endpoint.identity.clone(), to))
    };
    let places = ready().filter_map(|endpoint| Some((destinations(endpoint)?.1, endpoint.node.clone()?)));
    let nodes = places.flat_map(|(to, node)| to.into_iter().map(move |to| (to, node.clone())));
    let takes = |number: u16| ServicePort { port: number, ..declared.clone() }.takes_bare_connections();
    let endpoints: BTreeMap<String, Vec<Destination>> = ready().filter_map(destinations).collect();
    let shape = Shape {
        nodes: nodes.collect(),
        services: facts.cluster_ips.iter().map(|address| Destination::new(*address, port)).collect(),
        remote: facts.mirror,
        unchecked: !takes(port) || endpoints.values().flatten().any(|to| !takes(to.port())),
        endpoints,
    };
    let gateway: BTreeSet<String> = shape.endpoints.values().flatten().map(|to| to.ip().to_string()).collect();
    let number = shape.endpoints.values().flatten().map(Destination::port).next();
    let key = match number {
        Some(number) if facts.mirror => {
            TargetKey { site: Site::Gateway(gateway.into_iter().collect::<Vec<_>>().join(",")), port: number }
        }
        Some(_) | None => TargetKey { site: Site::Service(service.clone()), port },
    };
    (key, shape)
}

fn merge(into: &mut Shape, shape: Shape) {
    into.endpoints.extend(shape.endpoints);
    into.services.extend(shape.services);
    into.services.sort_unstable();
    into.services.dedup();
    into.remote |= shape.remote;
    into.nodes.extend(shape.nodes);
    into.unchecked |= shape.unchecked;
}
