//! Address and port to destination, to the Services it serves, and to how closely it is counted. Pure.
//!
//! In: Services and EndpointSlices as plain values from the API, splits as the controllers' streams tell them. Out:
//! which destinations are to be counted in which tier (as changes since the last question), those of endpoints on this
//! node for self-hops too; which endpoints this node has; and the Services behind an address. It neither touches a map nor
//! knows whether a destination is well or meshed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use probe_common::abi;
use probe_common::wire::{Split, SplitGone};

use crate::tally::LATE_SLOTS_LIMIT;

/// A namespaced name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Which of the two watched kinds an object is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1/Service`: cluster addresses.
    Service,
    /// `discovery.k8s.io/v1/EndpointSlice`: endpoints' addresses.
    EndpointSlice,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Service, Self::EndpointSlice];

    /// Its name in metrics, logs and `/state`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        }
    }
}

/// What the agent needs of one object: whose destinations it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The Service that they serve.
    pub service: ObjectName,
    /// Cluster addresses or endpoints.
    pub addresses: Vec<IpAddr>,
    /// Of those, the endpoints on this agent's own node.
    pub local: Vec<IpAddr>,
    /// TCP ports, with their names.
    pub ports: Vec<(String, u16)>,
}

/// Something that is counted apart: the attempts of all clients to a destination, or only those that a mesh's proxy makes
/// from the destination's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted {
    /// Where the attempts go to.
    pub to: SocketAddr,
    /// Whether they are the proxy's.
    pub self_hop: bool,
}

/// How a destination is to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Per CPU and by age.
    Hot {
        /// After how many age slots an attempt is late.
        late_slots: u32,
    },
    /// In a few shared counters.
    Cold,
    /// Not at all.
    Nothing,
}

/// Everything that decides what a destination is.
#[derive(Debug, Default)]
pub struct Resolver {
    objects: BTreeMap<(Kind, ObjectName), Named>,
    listing: BTreeMap<Kind, BTreeSet<ObjectName>>,
    /// By the kernel's key, which is smaller than a socket address: there are 50,000 of them.
    services: BTreeMap<abi::DestinationKey, Serving>,
    streams: BTreeMap<SocketAddr, StreamSplits>,
    /// Smallest lateness in slots that any stream asks for.
    hot: BTreeMap<SocketAddr, u32>,
    /// Endpoints on this node, each with how many objects place it here.
    local: BTreeMap<IpAddr, u32>,
    /// Destinations whose self-hops were wanted when that was last told.
    self_hops: BTreeSet<SocketAddr>,
    touched: BTreeSet<SocketAddr>,
    touched_by_splits: BTreeSet<SocketAddr>,
    revision: u64,
    local_revision: u64,
}

/// The Services that objects name for a destination; nearly always one.
#[derive(Debug)]
enum Serving {
    One(Arc<ObjectName>),
    Several(Vec<Arc<ObjectName>>),
}

/// What one object contributes.
#[derive(Debug)]
struct Named {
    service: Arc<ObjectName>,
    destinations: Vec<SocketAddr>,
    local: Vec<IpAddr>,
}

/// The splits that one controller told.
#[derive(Debug, Default)]
struct StreamSplits {
    splits: BTreeMap<ObjectName, Split>,
    /// Names told since the stream began, until the first full set is complete.
    retold: Option<BTreeSet<ObjectName>>,
    /// Whether a full set was complete once.
    is_complete: bool,
}

impl From<SocketAddr> for Counted {
    fn from(to: SocketAddr) -> Self {
        Self { to, self_hop: false }
    }
}

impl Resolver {
    /// A list of that kind begins: what it does not name is gone when it is complete.
    pub fn on_list_begin(&mut self, kind: Kind) {
        self.listing.insert(kind, BTreeSet::new());
    }

    /// A list is complete.
    pub fn on_list_complete(&mut self, kind: Kind) {
        let Some(listed) = self.listing.remove(&kind) else { return };
        let is_gone = |(other, name): &(Kind, ObjectName)| *other == kind && !listed.contains(name);
        let gone: Vec<ObjectName> =
            self.objects.keys().filter(|key| is_gone(key)).map(|(_, name)| name.clone()).collect();
        for name in gone {
            self.on_gone(kind, name);
        }
    }

    /// An object is there, or changed. What is kept of it is copied: names that came out of a page of a list lie
    /// scattered over the memory of that page, and would keep all of it from being given back.
    pub fn on_object(&mut self, kind: Kind, name: &ObjectName, addresses: &Addresses) {
        if let Some(listed) = self.listing.get_mut(&kind) {
            listed.insert(name.clone());
        }
        let destinations = destinations_of(addresses);
        let local: BTreeSet<IpAddr> = addresses.local.iter().map(IpAddr::to_canonical).collect();
        let local: Vec<IpAddr> = local.into_iter().collect();
        let key = (kind, name.clone());
        if let Some(known) = self.objects.get(&key)
            && *known.service == addresses.service
            && known.destinations == destinations
            && known.local == local
        {
            return;
        }
        self.revision += 1;
        self.forget(&key);
        let service = Arc::new(addresses.service.clone());
        for &to in &destinations {
            let more = Arc::clone(&service);
            self.services
                .entry(key_of(to))
                .and_modify(|serving| serving.add(Arc::clone(&more)))
                .or_insert_with(|| Serving::One(more.clone()));
            self.touched.insert(to);
        }
        if !destinations.is_empty() {
            for &address in &local {
                *self.local.entry(address).or_default() += 1;
                self.touch_local(address);
            }
            self.objects.insert(key, Named { service, destinations, local });
        }
    }

    /// An object is gone.
    pub fn on_gone(&mut self, kind: Kind, name: ObjectName) {
        self.forget(&(kind, name));
    }

    /// A controller's stream began: it tells every split anew.
    pub fn on_stream(&mut self, controller: SocketAddr) {
        self.streams.entry(controller).or_default().retold = Some(BTreeSet::new());
    }

    /// A controller told a split.
    pub fn on_split(&mut self, controller: SocketAddr, split: Split) {
        let name = ObjectName { namespace: split.namespace.clone(), name: split.name.clone() };
        let stream = self.streams.entry(controller).or_default();
        if let Some(retold) = &mut stream.retold {
            retold.insert(name.clone());
        }
        let before = stream.splits.insert(name, split.clone());
        self.settle(before.iter().chain([&split]));
    }

    /// A controller told that a split is gone.
    pub fn on_split_gone(&mut self, controller: SocketAddr, gone: SplitGone) {
        let name = ObjectName { namespace: gone.namespace, name: gone.name };
        let before = self.streams.get_mut(&controller).and_then(|stream| stream.splits.remove(&name));
        self.settle(before.iter());
    }

    /// A controller told all of its splits: those that it did not tell again are gone.
    pub fn on_splits_sent(&mut self, controller: SocketAddr) {
        let Some(stream) = self.streams.get_mut(&controller) else { return };
        stream.is_complete = true;
        let Some(retold) = stream.retold.take() else { return };
        let (kept, gone) = std::mem::take(&mut stream.splits).into_iter().partition(|(name, _)| retold.contains(name));
        stream.splits = kept;
        let gone: BTreeMap<ObjectName, Split> = gone;
        self.settle(gone.values());
    }

    /// Which controllers there are. What another one told is forgotten once one of these told everything: while there
    /// is no controller at all, the agent goes on counting what it counted.
    pub fn retain_controllers(&mut self, known: &BTreeSet<SocketAddr>) {
        if !known.iter().any(|controller| self.streams.get(controller).is_some_and(|stream| stream.is_complete)) {
            return;
        }
        let gone: Vec<SocketAddr> =
            self.streams.keys().filter(|controller| !known.contains(*controller)).copied().collect();
        for controller in gone {
            let splits = self.streams.remove(&controller).map(|stream| stream.splits).unwrap_or_default();
            self.settle(splits.values());
        }
    }

    /// Destinations whose wish may have changed, with what is wanted now, each change once: those of splits all at once,
    /// of the others no more than `limit`. Self-hops of a destination follow it, if they are or were wanted.
    pub fn take_changes(&mut self, limit: usize) -> Vec<(Counted, Wanted)> {
        let mut touched = std::mem::take(&mut self.touched_by_splits);
        for _ in 0..limit {
            let Some(to) = self.touched.pop_first() else { break };
            touched.insert(to);
        }
        let mut changes = Vec::with_capacity(touched.len());
        for to in touched {
            let mut take = |self_hop| {
                let counted = Counted { to, self_hop };
                changes.push((counted, self.wanted(counted)));
            };
            take(false);
            let had_self_hops = self.self_hops.contains(&to);
            let has_self_hops = self.has_self_hops(to);
            if had_self_hops || has_self_hops {
                take(true);
            }
            if has_self_hops {
                self.self_hops.insert(to);
            } else {
                self.self_hops.remove(&to);
            }
        }
        changes
    }

    /// Whether [`take_changes`](Self::take_changes) has more.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        !self.touched.is_empty() || !self.touched_by_splits.is_empty()
    }

    /// The endpoints on this node, in order.
    pub fn local_endpoints(&self) -> impl Iterator<Item = IpAddr> {
        self.local.keys().copied()
    }

    /// Rises whenever an endpoint turns up on this node, or leaves it.
    #[must_use]
    pub const fn local_revision(&self) -> u64 {
        self.local_revision
    }

    /// How a destination is to be counted. Self-hops are of interest only where they are evidence: those of destinations
    /// of splits.
    #[must_use]
    pub fn wanted(&self, Counted { to, self_hop }: Counted) -> Wanted {
        match self.hot.get(&to) {
            Some(&late_slots) if !self_hop || self.has_self_hops(to) => Wanted::Hot { late_slots },
            _ if self_hop => Wanted::Nothing,
            _ if self.services.contains_key(&key_of(to)) => Wanted::Cold,
            _ => Wanted::Nothing,
        }
    }

    /// The Services that a destination serves, each once.
    #[must_use]
    pub fn services_of(&self, to: SocketAddr) -> BTreeSet<&ObjectName> {
        self.services.get(&key_of(to)).into_iter().flat_map(Serving::all).map(AsRef::as_ref).collect()
    }

    /// The backends that each hot destination serves, as `namespace/split/service`.
    #[must_use]
    pub fn backends(&self) -> BTreeMap<SocketAddr, BTreeSet<String>> {
        let mut backends: BTreeMap<SocketAddr, BTreeSet<String>> = BTreeMap::new();
        for (name, split) in self.streams.values().flat_map(|stream| &stream.splits) {
            for backend in &split.backends {
                for watched in &backend.destinations {
                    let text = format!("{}/{}/{}", name.namespace, name.name, backend.service);
                    backends.entry(canonical(watched.to)).or_default().insert(text);
                }
            }
        }
        backends
    }

    /// Rises with every change of what a destination is or serves.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Makes every destination a change again: for a probe that was just loaded and counts nothing.
    pub fn touch_all(&mut self) {
        self.touched_by_splits.extend(self.hot.keys());
        self.touched.extend(self.services.keys().map(address_of));
    }

    /// Splits known, each once however many controllers told it.
    #[must_use]
    pub fn splits(&self) -> usize {
        self.streams.values().flat_map(|stream| stream.splits.keys()).collect::<BTreeSet<_>>().len()
    }

    fn forget(&mut self, key: &(Kind, ObjectName)) {
        let Some(named) = self.objects.remove(key) else { return };
        self.revision += 1;
        for to in named.destinations {
            let key = key_of(to);
            if self.services.get_mut(&key).is_some_and(|serving| serving.is_empty_without(&named.service)) {
                self.services.remove(&key);
            }
            self.touched.insert(to);
        }
        for address in named.local {
            if let Some(objects) = self.local.get_mut(&address) {
                *objects -= 1;
                if *objects == 0 {
                    self.local.remove(&address);
                }
            }
            self.touch_local(address);
        }
    }

    /// An endpoint came to this node or went, so that self-hops of its ports may or may no longer be wanted.
    fn touch_local(&mut self, address: IpAddr) {
        self.local_revision += 1;
        let ports = SocketAddr::new(address, 0)..=SocketAddr::new(address, u16::MAX);
        self.touched_by_splits.extend(self.hot.range(ports).map(|(&to, _)| to));
    }

    fn has_self_hops(&self, to: SocketAddr) -> bool {
        self.hot.contains_key(&to) && self.local.contains_key(&to.ip())
    }

    /// Recomputes the wish for every destination that these splits name.
    fn settle<'a>(&mut self, splits: impl Iterator<Item = &'a Split>) {
        let named: BTreeSet<SocketAddr> = splits.flat_map(watched).map(|(to, _)| to).collect();
        if named.is_empty() {
            return;
        }
        self.revision += 1;
        let mut wanted: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for split in self.streams.values().flat_map(|stream| stream.splits.values()) {
            for (to, late_slots) in watched(split).filter(|(to, _)| named.contains(to)) {
                wanted.entry(to).and_modify(|known| *known = late_slots.min(*known)).or_insert(late_slots);
            }
        }
        for to in named {
            let changed = match wanted.get(&to) {
                Some(&late_slots) => self.hot.insert(to, late_slots) != Some(late_slots),
                None => self.hot.remove(&to).is_some(),
            };
            if changed {
                self.touched_by_splits.insert(to);
            }
        }
    }
}

impl Serving {
    fn all(&self) -> &[Arc<ObjectName>] {
        match self {
            Self::One(service) => std::slice::from_ref(service),
            Self::Several(services) => services,
        }
    }

    fn add(&mut self, service: Arc<ObjectName>) {
        match self {
            Self::One(first) => *self = Self::Several(vec![Arc::clone(first), service]),
            Self::Several(services) => services.push(service),
        }
    }

    /// Forgets one contribution, and says whether none is left.
    fn is_empty_without(&mut self, service: &Arc<ObjectName>) -> bool {
        match self {
            Self::One(only) => Arc::ptr_eq(only, service),
            Self::Several(services) => {
                if let Some(position) = services.iter().position(|known| Arc::ptr_eq(known, service)) {
                    services.swap_remove(position);
                }
                services.is_empty()
            }
        }
    }
}

/// The destinations of a split, with the lateness in slots that the probe takes.
fn watched(split: &Split) -> impl Iterator<Item = (SocketAddr, u32)> {
    split.backends.iter().flat_map(|backend| &backend.destinations).map(|watched| {
        let late_slots = abi::late_slots_for(u64::from(watched.late_after_ms) * 1_000_000);
        (canonical(watched.to), late_slots.clamp(1, LATE_SLOTS_LIMIT))
    })
}

fn destinations_of(addresses: &Addresses) -> Vec<SocketAddr> {
    let all: BTreeSet<SocketAddr> = addresses
        .addresses
        .iter()
        .flat_map(|&address| addresses.ports.iter().map(move |&(_, port)| canonical(SocketAddr::new(address, port))))
        .collect();
    all.into_iter().collect()
}

/// A v4-mapped address is the IPv4 address: the kernel keys both alike.
fn canonical(to: SocketAddr) -> SocketAddr {
    SocketAddr::new(to.ip().to_canonical(), to.port())
}

/// What is counted, as the kernel keys it.
#[must_use]
pub fn key_of(counted: impl Into<Counted>) -> abi::DestinationKey {
    let Counted { to, self_hop } = counted.into();
    let kind = if self_hop { abi::DestinationKey::SELF_HOP } else { abi::DestinationKey::ORDINARY };
    let address = match to.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    abi::DestinationKey { address: address.octets(), port: to.port(), protocol: IPPROTO_TCP, kind }
}

/// The address behind a key.
fn address_of(key: &abi::DestinationKey) -> SocketAddr {
    canonical(SocketAddr::new(Ipv6Addr::from(key.address).into(), key.port))
}

/// <https://www.iana.org/assignments/protocol-numbers>
const IPPROTO_TCP: u8 = 6;

#[cfg(test)]
mod tests {
    use probe_common::wire::{Backend, WatchedDestination};

    use super::*;

    fn mk_name(name: &str) -> ObjectName {
        ObjectName { namespace: "shop".into(), name: name.into() }
    }

    fn mk_to(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn mk_addresses(service: &str, addresses: &[&str], ports: &[u16]) -> Addresses {
        Addresses {
            service: mk_name(service),
            addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
            local: Vec::new(),
            ports: ports.iter().map(|&port| (String::new(), port)).collect(),
        }
    }

    fn mk_split(name: &str, destinations: &[(&str, u32)]) -> Split {
        let destinations =
            destinations.iter().map(|&(to, late_after_ms)| WatchedDestination { to: mk_to(to), late_after_ms });
        Split {
            namespace: "shop".into(),
            name: name.into(),
            service: name.into(),
            generation: 1,
            backends: vec![Backend {
                service: "leaf".into(),
                weight_milli: 1000,
                destinations: destinations.collect(),
            }],
        }
    }

    const ONE: &str = "198.18.0.1:80";
    const TWO: &str = "198.18.0.2:80";
    const HOT: Wanted = Wanted::Hot { late_slots: 4 };

    fn controllers() -> (SocketAddr, SocketAddr) {
        (mk_to("198.51.100.1:9443"), mk_to("198.51.100.2:9443"))
    }

    #[track_caller]
    fn check(resolver: &mut Resolver, expected: &[(&str, Wanted)]) {
        check_some(resolver, 100, expected);
    }

    #[track_caller]
    fn check_some(resolver: &mut Resolver, limit: usize, expected: &[(&str, Wanted)]) {
        let expected: Vec<_> = expected.iter().map(|&(to, wanted)| (Counted::from(mk_to(to)), wanted)).collect();
        assert_eq!(resolver.take_changes(limit), expected);
    }

    #[test]
    fn services_and_slices_are_counted_coldly() {
        let mut resolver = Resolver::default();
        resolver.on_object(Kind::Service, &mk_name("a"), &mk_addresses("a", &["203.0.113.1"], &[80, 443]));
        resolver.on_object(Kind::EndpointSlice, &mk_name("a-x"), &mk_addresses("a", &["198.18.0.1"], &[80]));
        let cold = [(ONE, Wanted::Cold), ("203.0.113.1:80", Wanted::Cold), ("203.0.113.1:443", Wanted::Cold)];
        check(&mut resolver, &cold);
        check(&mut resolver, &[]);
        assert_eq!(resolver.services_of(mk_to(ONE)), BTreeSet::from([&mk_name("a")]));
    }

    #[test]
    fn a_destination_lives_as_long_as_any_object_names_it() {
        let mut resolver = Resolver::default();
        resolver.on_object(Kind::EndpointSlice, &mk_name("a-x"), &mk_addresses("a", &["198.18.0.1"], &[80]));
        resolver.on_object(Kind::EndpointSlice, &mk_name("b-x"), &mk_addresses("b", &["198.18.0.1"], &[80]));
        assert_eq!(resolver.services_of(mk_to(ONE)).len(), 2);
        resolver.take_changes(100);
        resolver.on_gone(Kind::EndpointSlice, mk_name("a-x"));
        check(&mut resolver, &[(ONE, Wanted::Cold)]);
        resolver.on_object(Kind::EndpointSlice, &mk_name("b-x"), &mk_addresses("b", &[], &[80]));
        check(&mut resolver, &[(ONE, Wanted::Nothing)]);
    }

    #[test]
    fn a_new_list_takes_away_what_it_does_not_name() {
        let mut resolver = Resolver::default();
        resolver.on_object(Kind::EndpointSlice, &mk_name("a-x"), &mk_addresses("a", &["198.18.0.1"], &[80]));
        resolver.on_object(Kind::EndpointSlice, &mk_name("b-x"), &mk_addresses("b", &["198.18.0.2"], &[80]));
        resolver.on_object(Kind::Service, &mk_name("a"), &mk_addresses("a", &["203.0.113.1"], &[80]));
        resolver.take_changes(100);
        resolver.on_list_begin(Kind::EndpointSlice);
        resolver.on_object(Kind::EndpointSlice, &mk_name("b-x"), &mk_addresses("b", &["198.18.0.2"], &[80]));
        check(&mut resolver, &[]);
        resolver.on_list_complete(Kind::EndpointSlice);
        check(&mut resolver, &[(ONE, Wanted::Nothing)]);
    }

    #[test]
    fn a_split_makes_its_destinations_hot_and_the_strictest_lateness_wins() {
        let mut resolver = Resolver::default();
        let (one, two) = controllers();
        resolver.on_object(Kind::EndpointSlice, &mk_name("a-x"), &mk_addresses("a", &["198.18.0.1"], &[80]));
        resolver.on_split(one, mk_split("a", &[(ONE, 25), ("[::ffff:198.18.0.2]:80", 25)]));
        check(&mut resolver, &[(ONE, HOT), (TWO, HOT)]);
        resolver.on_split(two, mk_split("b", &[(ONE, 10)]));
        check(&mut resolver, &[(ONE, Wanted::Hot { late_slots: 3 })]);
        resolver.on_split_gone(two, SplitGone { namespace: "shop".into(), name: "b".into() });
        check(&mut resolver, &[(ONE, HOT)]);
        resolver.on_split_gone(one, SplitGone { namespace: "shop".into(), name: "a".into() });
        check(&mut resolver, &[(ONE, Wanted::Cold), (TWO, Wanted::Nothing)]);
    }

    #[test]
    fn an_absurd_lateness_is_what_the_slots_can_tell() {
        let mut resolver = Resolver::default();
        resolver.on_split(controllers().0, mk_split("a", &[(ONE, 0), (TWO, u32::MAX)]));
        let limits = [Wanted::Hot { late_slots: 1 }, Wanted::Hot { late_slots: LATE_SLOTS_LIMIT }];
        check(&mut resolver, &[(ONE, limits[0]), (TWO, limits[1])]);
    }

    #[test]
    fn a_reconnected_controller_takes_back_what_it_no_longer_tells() {
        let mut resolver = Resolver::default();
        let (one, _) = controllers();
        resolver.on_stream(one);
        resolver.on_split(one, mk_split("a", &[(ONE, 25)]));
        resolver.on_split(one, mk_split("b", &[(TWO, 25)]));
        resolver.on_splits_sent(one);
        resolver.take_changes(100);
        resolver.on_stream(one);
        check(&mut resolver, &[]);
        resolver.on_split(one, mk_split("b", &[(TWO, 25)]));
        resolver.on_splits_sent(one);
        check(&mut resolver, &[(ONE, Wanted::Nothing)]);
        assert_eq!(resolver.splits(), 1);
    }

    #[test]
    fn a_vanished_controller_is_believed_until_another_has_told_everything() {
        let mut resolver = Resolver::default();
        let (one, two) = controllers();
        resolver.on_split(one, mk_split("a", &[(ONE, 25)]));
        resolver.on_splits_sent(one);
        resolver.take_changes(100);
        resolver.retain_controllers(&BTreeSet::new());
        resolver.retain_controllers(&BTreeSet::from([two]));
        check(&mut resolver, &[]);
        resolver.on_stream(two);
        resolver.on_splits_sent(two);
        resolver.retain_controllers(&BTreeSet::from([two]));
        check(&mut resolver, &[(ONE, Wanted::Nothing)]);
    }

    #[test]
    fn the_names_behind_a_destination_are_known() {
        let mut resolver = Resolver::default();
        resolver.on_split(controllers().0, mk_split("a", &[(ONE, 25)]));
        resolver.on_split(controllers().1, mk_split("a", &[(ONE, 25)]));
        assert_eq!(resolver.backends()[&mk_to(ONE)], BTreeSet::from(["shop/a/leaf".to_owned()]));
        assert_eq!(resolver.splits(), 1);
        resolver.take_changes(100);
        resolver.touch_all();
        check(&mut resolver, &[(ONE, HOT)]);
    }

    #[test]
    fn changes_come_in_portions_those_of_splits_first() {
        let mut resolver = Resolver::default();
        resolver.on_object(Kind::EndpointSlice, &mk_name("a-x"), &mk_addresses("a", &["198.18.0.1"], &[1, 2, 3]));
        resolver.on_split(controllers().0, mk_split("a", &[("198.18.0.1:3", 25), (TWO, 25)]));
        check_some(&mut resolver, 1, &[("198.18.0.1:1", Wanted::Cold), ("198.18.0.1:3", HOT), (TWO, HOT)]);
        assert!(resolver.has_changes());
        check_some(&mut resolver, 5, &[("198.18.0.1:2", Wanted::Cold), ("198.18.0.1:3", HOT)]);
        assert!(!resolver.has_changes());
    }

    /// The self-hops among the next changes.
    fn self_hops(resolver: &mut Resolver) -> Vec<(SocketAddr, Wanted)> {
        let changes = resolver.take_changes(100).into_iter();
        changes.filter(|(counted, _)| counted.self_hop).map(|(counted, wanted)| (counted.to, wanted)).collect()
    }

    #[test]
    fn self_hops_are_wanted_of_destinations_of_splits_on_this_node() {
        let mut resolver = Resolver::default();
        let here =
            Addresses { local: vec![mk_to(ONE).ip()], ..mk_addresses("a", &["198.18.0.1", "198.18.0.2"], &[80]) };
        resolver.on_object(Kind::EndpointSlice, &mk_name("a-x"), &here);
        assert_eq!(self_hops(&mut resolver), [], "no split names it");
        resolver.on_split(controllers().0, mk_split("a", &[(ONE, 25), (TWO, 25)]));
        assert_eq!(self_hops(&mut resolver), [(mk_to(ONE), HOT)]);
        resolver.touch_all();
        assert_eq!(self_hops(&mut resolver), [(mk_to(ONE), HOT)], "for a probe that was just loaded");
        resolver.on_split(controllers().0, mk_split("a", &[(ONE, 10)]));
        assert_eq!(self_hops(&mut resolver), [(mk_to(ONE), Wanted::Hot { late_slots: 3 })]);
        resolver.on_split_gone(controllers().0, SplitGone { namespace: "shop".into(), name: "a".into() });
        assert_eq!(self_hops(&mut resolver), [(mk_to(ONE), Wanted::Nothing)]);
        resolver.touch_all();
        assert_eq!(self_hops(&mut resolver), []);
    }

    #[test]
    fn an_endpoint_is_here_as_long_as_any_slice_places_it_here() {
        let mut resolver = Resolver::default();
        resolver.on_split(controllers().0, mk_split("a", &[("198.18.0.1:90", 25)]));
        resolver.take_changes(100);
        let here = |service, port| Addresses {
            local: vec!["::ffff:198.18.0.1".parse().expect("an address")],
            ..mk_addresses(service, &["198.18.0.1"], &[port])
        };
        let before = resolver.local_revision();
        resolver.on_object(Kind::EndpointSlice, &mk_name("a-x"), &here("a", 80));
        assert_eq!(self_hops(&mut resolver), [(mk_to("198.18.0.1:90"), HOT)], "a port that the slice does not name");
        assert_ne!(resolver.local_revision(), before);
        resolver.on_object(Kind::EndpointSlice, &mk_name("b-x"), &here("b", 81));
        resolver.on_gone(Kind::EndpointSlice, mk_name("a-x"));
        assert_eq!(resolver.local_endpoints().collect::<Vec<_>>(), [mk_to(ONE).ip()]);
        let known = resolver.local_revision();
        resolver.on_object(Kind::EndpointSlice, &mk_name("b-x"), &here("b", 81));
        assert_eq!(resolver.local_revision(), known, "nothing new");
        let moved = mk_addresses("b", &["198.18.0.1"], &[81]);
        resolver.on_object(Kind::EndpointSlice, &mk_name("b-x"), &moved);
        assert_eq!(resolver.local_endpoints().count(), 0);
        assert_eq!(self_hops(&mut resolver), [(mk_to("198.18.0.1:90"), Wanted::Nothing)]);
    }

    #[test]
    fn the_kernel_keys_both_families_alike() {
        let key = key_of(mk_to(ONE));
        assert_eq!(key.address[10..], [0xff, 0xff, 198, 18, 0, 1]);
        assert_eq!((key.port, key.protocol, key.kind), (80, 6, 0));
        assert_eq!(key_of(Counted { to: mk_to(ONE), self_hop: true }), abi::DestinationKey { kind: 1, ..key });
        assert_eq!(key_of(mk_to("[2001:db8::1]:80")).address[..4], [0x20, 0x01, 0x0d, 0xb8]);
        for text in [ONE, "[2001:db8::1]:80"] {
            assert_eq!(address_of(&key_of(mk_to(text))), mk_to(text));
        }
    }
}
