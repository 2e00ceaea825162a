//! Which endpoints on this node stand behind a mesh's proxy.
//!
//! In: the endpoints that the cluster places here, and when the kernel last saw a proxy at each of their addresses. Out:
//! those seen lately, told to the controllers when they change. It does not judge what that means for their Services.

use std::net::IpAddr;

use probe_common::abi;
use probe_common::wire::{MESHED_FOR_NS, MESHED_LIMIT};

use super::{Agent, Sight};
use crate::cluster::chain;
use crate::kernel::MapError;

// The kernel stops counting what applications dial for as long as the controllers take their pods for meshed.
const _: () = assert!(abi::PROXY_SEEN_FOR_NS == MESHED_FOR_NS);

/// What is known of the mesh.
#[derive(Debug, Default)]
pub(super) struct Mesh {
    /// Meshed endpoints on this node, sorted.
    pub(super) endpoints: Vec<IpAddr>,
    /// Network namespaces with a proxy.
    pub(super) spaces: usize,
    /// For which endpoints on this node it was read.
    local_revision: u64,
}

impl Agent {
    /// Reads anew when an endpoint has turned up here or left: its proxy may have been at work before.
    pub(super) fn follow_endpoints(&mut self) {
        if self.mesh.local_revision != self.resolver.local_revision() {
            self.read_mesh();
        }
    }

    /// Reads what the kernel saw of proxies, and tells the controllers if the meshed endpoints are others than before.
    pub(super) fn read_mesh(&mut self) {
        let Sight::Counting(ledger) = &self.sight else { return };
        self.mesh.local_revision = self.resolver.local_revision();
        let probe = ledger.counters();
        let now_ns = (self.clock)();
        let endpoints = meshed(self.resolver.local_endpoints(), now_ns, |address| probe.proxy_seen_ns(address));
        let read = endpoints.and_then(|endpoints| Ok((endpoints, probe.proxy_spaces()?)));
        match read {
            Ok((endpoints, spaces)) => {
                self.mesh.spaces = spaces;
                if self.mesh.endpoints != endpoints {
                    tracing::info!(endpoints = endpoints.len(), "Meshed endpoints on this node changed");
                    self.links.push_meshed(&endpoints);
                    self.mesh.endpoints = endpoints;
                }
            }
            Err(error) => {
                // What was known stays: it is read again in a second.
                self.metrics.map_errors.inc();
                tracing::debug!(error = chain(&error), "Sightings of proxies could not be read");
            }
        }
    }
}

/// Of these addresses, in their order, those at which a proxy was seen lately; no more than a frame takes.
fn meshed(
    local: impl Iterator<Item = IpAddr>,
    now_ns: u64,
    seen_ns: impl Fn(IpAddr) -> Result<Option<u64>, MapError>,
) -> Result<Vec<IpAddr>, MapError> {
    let mut endpoints = Vec::new();
    for address in local {
        let is_meshed = seen_ns(address)?.is_some_and(|seen_ns| now_ns.saturating_sub(seen_ns) < MESHED_FOR_NS);
        if is_meshed && endpoints.len() < MESHED_LIMIT {
            endpoints.push(address);
        }
    }
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> IpAddr {
        IpAddr::from([198, 18, 0, last])
    }

    #[test]
    fn an_endpoint_is_meshed_for_ten_minutes_after_its_proxy_was_seen() {
        let now_ns = 2 * MESHED_FOR_NS;
        let seen_ns = |address| {
            Ok(match address {
                address if address == at(1) => Some(now_ns),
                address if address == at(2) => Some(now_ns - MESHED_FOR_NS + 1),
                address if address == at(3) => Some(now_ns - MESHED_FOR_NS),
                // The kernel's sighting may be younger than the time at which the read began.
                address if address == at(4) => Some(now_ns + 1),
                _ => None,
            })
        };
        let found = meshed([at(1), at(2), at(3), at(4), at(5)].into_iter(), now_ns, seen_ns).expect("reads");
        assert_eq!(found, [at(1), at(2), at(4)]);
    }

    #[test]
    fn no_more_than_a_frame_takes_is_told() {
        let many = (0..2000u32).map(|number| IpAddr::from(number.to_be_bytes()));
        assert_eq!(meshed(many, 1, |_| Ok(Some(1))).expect("reads").len(), MESHED_LIMIT);
    }

    #[test]
    fn an_address_that_cannot_be_read_leaves_all_as_it_was() {
        let failed = meshed([at(1)].into_iter(), 1, |_| Err(MapError::Missing { map: abi::maps::PROXY_ADDRESSES }));
        assert!(failed.is_err());
    }
}
