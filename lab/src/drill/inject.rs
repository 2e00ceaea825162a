//! The faults of the scenarios. In: a kind of fault and a stage. Out: an object that breaks the stage and mends it. How a
//! packet is dropped or a program killed is the world's business; here is what a scenario's one line means.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::apiserver::Resource;
use crate::drill::args::Shape;
use crate::drill::cluster::Cluster;
use crate::drill::scenario::FaultKind;
use crate::drill::shape::{self, APP_PORT, PRIMARY, PRIMARY_IP};
use crate::drill::stage::Stage;
use crate::drill::stalls::Stalls;
use crate::load::outcome::Outcome;
use crate::load::wire::EXTRA_LOOP;
use crate::world::clock::{now_ns, pause};
use crate::world::fault::{ExtraLoop, Fault, Filter, Killed, Refused, Span, Terminated, Together};
use crate::world::{Node, Pod};

/// Between the endpoints' loss of readiness and the end of their pods.
const TERMINATION_DELAY: Duration = Duration::from_millis(50);

/// Of the connections, in thousandths: the 1 % of `noise`.
const NOISE_PERMILLE: u32 = 10;

/// How fast the one client of `noise` loops.
const LOOP_PER_SECOND: f64 = 500.0;

/// How often that loop has to be refused for the noise to be what it says: a fifth of what it makes in three seconds.
const LOOP_PROOF: u64 = 300;

/// Where nothing listens: what the one client of `noise` loops on when there is no second client that could still reach
/// the endpoint.
const DEAD_PORT: u16 = APP_PORT + 1;

/// How long the drill itself waits for an answer when it looks whether a fault is there.
const DIAL_LIMIT: Duration = Duration::from_millis(300);

/// The fault of a scenario.
///
/// # Errors
///
/// The stage lacks a part.
pub fn fault<'a>(kind: FaultKind, shape: Shape, cluster: &'a Cluster, stage: &Stage) -> Result<Box<dyn Fault + 'a>> {
    let world = cluster.world();
    let primary_pods = pods(cluster, &cluster.cast().primary)?;
    Ok(match kind {
        FaultKind::Refused => Box::new(Refused(stage.primary.clone())),
        FaultKind::ProcessKilled => Box::new(Killed(stage.primary.clone())),
        FaultKind::Blackhole => Box::new(Filter::blackhole(&primary_pods)),
        FaultKind::ScaleToZero => Box::new(ScaledToZero {
            cluster,
            namespace: stage.namespace.clone(),
            pods: Terminated(stage.primary.clone()),
            endpoints: shape::app_addresses(&cluster.primary_endpoints()?),
        }),
        FaultKind::Noise => {
            let looper = stage.clients.first().context("a stage without clients")?.clone();
            let victim =
                SocketAddr::new(primary_pods.first().context("a stage without endpoints")?.address(), APP_PORT);
            let pod = world.pod(looper.pod().name())?;
            let mut faults: Vec<Box<dyn Fault>> = vec![Box::new(Filter::refuse_some(&primary_pods, NOISE_PERMILLE))];
            let address = match shape {
                Shape::Standard => {
                    faults.push(Box::new(Filter::refuse_one(world.node(pod.node())?, pod, victim)));
                    victim
                }
                Shape::Workshop => SocketAddr::new(victim.ip(), DEAD_PORT),
            };
            faults.push(Box::new(ExtraLoop { client: looper, address, per_second: LOOP_PER_SECOND }));
            let nodes: Vec<&Node> = world.nodes().collect();
            faults.push(Box::new(Stalls::new(&nodes)));
            Box::new(Together(faults))
        }
    })
}

/// Whether the drill itself meets the fault, dialling from the control namespace, which no agent watches; what the API
/// server acknowledged needs no dial.
///
/// # Errors
///
/// The control namespace is gone.
pub fn is_met(kind: FaultKind, cluster: &Cluster) -> Result<bool> {
    let expected = match kind {
        FaultKind::ScaleToZero => return Ok(true),
        // One dial of a hundred would meet it: the clients prove it.
        FaultKind::Noise => return Ok(false),
        FaultKind::Refused | FaultKind::ProcessKilled => Outcome::REFUSED,
        FaultKind::Blackhole => Outcome::NoHandshake,
    };
    let endpoints = shape::app_addresses(&cluster.primary_endpoints()?);
    let Some(first) = endpoints.first() else { bail!("a primary without endpoints") };
    Ok(cluster.world().control().dial(*first, DIAL_LIMIT)? == expected)
}

/// Whether the parts of a fault that no figure shows took place: the one client's loop of `noise`. (A stall that could
/// not be made is an error where it is made.)
///
/// # Errors
///
/// One did not: the run would prove less than its name says.
pub fn prove_parts(kind: FaultKind, stage: &Stage) -> Result<()> {
    if kind != FaultKind::Noise {
        return Ok(());
    }
    let refused = (EXTRA_LOOP.to_owned(), Outcome::REFUSED.to_string());
    let totals = stage.records.totals();
    let looped: u64 = totals.values().filter_map(|client| client.by_leaf_and_outcome.get(&refused)).sum();
    ensure!(looped >= LOOP_PROOF, "the client's loop on a dead address was refused only {looped} times");
    Ok(())
}

/// Whether every endpoint of the primary refuses the drill.
///
/// # Errors
///
/// The control namespace is gone.
pub fn all_refuse(cluster: &Cluster) -> Result<bool> {
    for address in shape::app_addresses(&cluster.primary_endpoints()?) {
        if cluster.world().control().dial(address, DIAL_LIMIT)? != Outcome::REFUSED {
            return Ok(false);
        }
    }
    Ok(true)
}

fn pods<'a>(cluster: &'a Cluster, names: &[String]) -> Result<Vec<&'a Pod>> {
    names.iter().map(|name| cluster.world().pod(name)).collect()
}

/// All endpoints of the primary not ready, then their pods gone, as after `kubectl scale --replicas=0`.
struct ScaledToZero<'a> {
    cluster: &'a Cluster,
    namespace: String,
    pods: Terminated,
    endpoints: Vec<SocketAddr>,
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
