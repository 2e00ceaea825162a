//! EndpointSlices of the controllers' headless Service in, the addresses to stream to out. Pure.
//!
//! Every endpoint counts, ready or not: a replica that has just started becomes ready only once agents speak to it. The
//! set is remembered while the API server is away; only a slice that says otherwise changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::cluster::News;
use crate::resolve::{Addresses, Kind, ObjectName};

/// Which controllers there are, as the cluster says.
#[derive(Debug)]
pub struct Directory {
    service: ObjectName,
    port: String,
    slices: BTreeMap<ObjectName, BTreeSet<SocketAddr>>,
    listed: Option<BTreeSet<ObjectName>>,
}

impl Directory {
    /// `port` is the number or the name of the controllers' port.
    #[must_use]
    pub const fn new(service: ObjectName, port: String) -> Self {
        Self { service, port, slices: BTreeMap::new(), listed: None }
    }

    /// Takes what became known, and says whether the set changed.
    pub fn on_news(&mut self, news: &News) -> bool {
        match news {
            News::ListBegin(Kind::EndpointSlice) => {
                self.listed = Some(BTreeSet::new());
                false
            }
            News::Object(Kind::EndpointSlice, name, addresses) if addresses.service == self.service => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(name.clone());
                }
                let found = self.streams_of(addresses);
                self.slices.insert(name.clone(), found.clone()) != Some(found)
            }
            // A slice may also change hands.
            News::Object(Kind::EndpointSlice, name, _) | News::Gone(Kind::EndpointSlice, name) => {
                self.slices.remove(name).is_some()
            }
            News::ListComplete(Kind::EndpointSlice) => {
                let Some(listed) = self.listed.take() else { return false };
                let before = self.slices.len();
                self.slices.retain(|name, _| listed.contains(name));
                self.slices.len() != before
            }
            News::ListBegin(Kind::Service)
            | News::Object(Kind::Service, ..)
            | News::Gone(Kind::Service, _)
            | News::ListComplete(Kind::Service)
            | News::Undecodable(..)
            | News::Failed(..)
            | News::Unconfigured(_) => false,
        }
    }

    /// Where the controllers are.
    #[must_use]
    pub fn controllers(&self) -> BTreeSet<SocketAddr> {
        self.slices.values().flatten().copied().collect()
    }

    fn streams_of(&self, addresses: &Addresses) -> BTreeSet<SocketAddr> {
        let is_ours = |(name, number): &&(String, u16)| *name == self.port || number.to_string() == self.port;
        let ports: Vec<u16> = addresses.ports.iter().filter(is_ours).map(|(_, number)| *number).collect();
        let all = addresses.addresses.iter();
        all.flat_map(|&address| ports.iter().map(move |&port| SocketAddr::new(address, port))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_name(name: &str) -> ObjectName {
        ObjectName { namespace: "splitsecond".into(), name: name.into() }
    }

    fn mk_slice(slice: &str, service: &str, addresses: &[&str]) -> News {
        let addresses = Addresses {
            service: mk_name(service),
            addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
            local: Vec::new(),
            ports: vec![("ingest".into(), 9443), ("admin".into(), 8080)],
        };
        News::Object(Kind::EndpointSlice, mk_name(slice), addresses)
    }

    fn mk_directory(port: &str) -> Directory {
        Directory::new(mk_name("controller"), port.into())
    }

    #[track_caller]
    fn check(directory: &Directory, expected: &[&str]) {
        let found: Vec<_> = directory.controllers().iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_port_is_found_by_number_or_name() {
        for port in ["9443", "ingest"] {
            let mut directory = mk_directory(port);
            assert!(directory.on_news(&mk_slice("a", "controller", &["198.51.100.1", "2001:db8::1"])));
            check(&directory, &["198.51.100.1:9443", "[2001:db8::1]:9443"]);
        }
    }

    #[test]
    fn other_services_do_not_matter() {
        let mut directory = mk_directory("9443");
        assert!(!directory.on_news(&mk_slice("a", "else", &["198.51.100.1"])));
        check(&directory, &[]);
    }

    #[test]
    fn the_set_follows_its_slices() {
        let mut directory = mk_directory("9443");
        assert!(directory.on_news(&mk_slice("a", "controller", &["198.51.100.1"])));
        assert!(!directory.on_news(&mk_slice("a", "controller", &["198.51.100.1"])));
        assert!(directory.on_news(&mk_slice("b", "controller", &["198.51.100.2"])));
        assert!(directory.on_news(&News::Gone(Kind::EndpointSlice, mk_name("a"))));
        check(&directory, &["198.51.100.2:9443"]);
        directory.on_news(&News::ListBegin(Kind::EndpointSlice));
        directory.on_news(&News::Failed(Kind::EndpointSlice, "away".into()));
        check(&directory, &["198.51.100.2:9443"]);
        assert!(directory.on_news(&News::ListComplete(Kind::EndpointSlice)));
        check(&directory, &[]);
    }
}
