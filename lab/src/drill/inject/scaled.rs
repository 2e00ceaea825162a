//! `kubectl scale --replicas=0`, as a cluster carries it out. In: the primary's programs and endpoints. Out: times; the
//! first is that of the API server's acknowledgement. What anybody makes of it is not known here.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::apiserver::Resource;
use crate::drill::cluster::Cluster;
use crate::drill::shape::{self, APP_PORT, PRIMARY, PRIMARY_IP};
use crate::world::clock::{now_ns, pause};
use crate::world::fault::{Fault, Span, Terminated};

/// Between the endpoints' loss of readiness and the end of their pods.
const TERMINATION_DELAY: Duration = Duration::from_millis(50);

/// All endpoints of the primary not ready, then their pods gone.
pub(super) struct ScaledToZero<'a> {
    /// Its API server and its nodes hear of it.
    pub(super) cluster: &'a Cluster,
    /// Of the Service.
    pub(super) namespace: String,
    /// The primary's programs.
    pub(super) pods: Terminated,
    /// Where they listen.
    pub(super) endpoints: Vec<SocketAddr>,
}

impl ScaledToZero<'_> {
    /// The API server's acknowledgement is the return of the call.
    fn set_ready(&self, ready: bool) -> Result<u64> {
        let name = shape::slice_name(PRIMARY);
        let api = self.cluster.api();
        let changed = api.update_with(Resource::EndpointSlices, &self.namespace, &name, |slice| {
            shape::set_ready(slice, ready);
        });
        let acknowledged_ns = now_ns();
        match changed {
            Ok(_) => Ok(acknowledged_ns),
            Err(status) => bail!("the API server does not take the slice {name}: {}", status.to_json()),
        }
    }
}

impl Fault for ScaledToZero<'_> {
    fn inject(&mut self) -> Result<Span> {
        let first_ns = self.set_ready(false)?;
        pause(TERMINATION_DELAY);
        self.pods.inject()?;
        self.cluster.world().set_service(PRIMARY_IP, APP_PORT, &[])?;
        Ok(Span { first_ns, last_ns: now_ns() })
    }

    fn heal(&mut self) -> Result<Span> {
        let first_ns = now_ns();
        self.pods.heal()?;
        self.cluster.world().set_service(PRIMARY_IP, APP_PORT, &self.endpoints)?;
        self.set_ready(true)?;
        Ok(Span { first_ns, last_ns: now_ns() })
    }
}
