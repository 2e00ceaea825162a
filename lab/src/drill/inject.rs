//! The faults of the scenarios. In: a scenario and a stage. Out: a [`Breakage`], which breaks the stage, can be looked
//! at, and mends it. How a packet is dropped or a program killed is the world's business; here is what a scenario's one
//! line means.

mod agent;
mod hung;
mod proof;
mod reset;
mod scaled;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use self::agent::AgentRestarted;
use self::hung::Hung;
use self::proof::{CUT_OFF, DIAL_LIMIT, Proof, TRIES_BY_CHANCE, UNANSWERED, all_end};
use self::reset::Reset;
use self::scaled::ScaledToZero;
use crate::drill::args::{Plan, Shape};
use crate::drill::cluster::Cluster;
use crate::drill::halt::Halt;
use crate::drill::scenario::{BLIP, FLAP_LENGTH, FLAP_PHASE, FaultKind};
use crate::drill::shape::{self, APP_PORT, GATEWAY_PORT};
use crate::drill::stage::Stage;
use crate::drill::stalls::Stalls;
use crate::load::outcome::Outcome;
use crate::load::records::Since;
use crate::load::wire::EXTRA_LOOP;
use crate::world::fault::{
    Brief, ExtraLoop, Fault, Filter, Flapping, Frozen, Hang, Killed, Refused, Span, Terminated, Then, Together,
    Unplugged,
};
use crate::world::{Node, Pod, PodChild};

/// From the secondary's death to the primary's in `secondary-down`.
const SECONDARY_FIRST_BY: Duration = Duration::from_secs(1);

/// From t0 to the agent's death in `agent-restart`.
const AGENT_DIES_AFTER: Duration = Duration::from_millis(50);

/// Of the connections, in thousandths: the 1 % of `noise`.
const NOISE_PERMILLE: u32 = 10;

/// How fast the one client of `noise` loops.
const LOOP_PER_SECOND: f64 = 500.0;

/// How often that loop has to be refused for the noise to be what it says: a fifth of what it makes in three seconds.
const LOOP_PROOF: u64 = 300;

/// Where nothing listens: what the one client of `noise` loops on when there is no second client that could still reach
/// the endpoint.
const DEAD_PORT: u16 = APP_PORT + 1;

/// What a router's answer looks like to who dials: EHOSTUNREACH.
const UNREACHABLE: Outcome = Outcome::Errno(113);

/// Connections per second from which the load fills the backlogs of `hang` within a second or two.
const FILLS_FROM: u32 = 100;

/// How often the drill looks whether everything answers again.
const ANSWER_GAP: Duration = Duration::from_millis(20);

/// How long everything may take to answer again.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// A scenario's fault on a stage.
pub struct Breakage<'a> {
    kind: FaultKind,
    cluster: &'a Cluster,
    fault: Box<dyn Fault + 'a>,
    proof: Proof,
    /// The primary's endpoints that the fault puts out of everybody's reach, so that none can tell who listens there.
    out_of_reach: Vec<SocketAddr>,
    is_broken: bool,
}

impl<'a> Breakage<'a> {
    /// Breaks nothing yet.
    ///
    /// # Errors
    ///
    /// The stage lacks a part.
    pub fn of(
        kind: FaultKind,
        plan: &Plan,
        cluster: &'a Cluster,
        stage: &Stage,
        halt: &'a Halt,
    ) -> Result<Breakage<'a>> {
        let made = Making { kind, shape: plan.shape, rate: plan.rate, cluster, stage, halt };
        let (fault, proof) = made.fault()?;
        let out_of_reach = match kind {
            FaultKind::NodeLoss => made.endpoints_on(made.first_backend_node()?)?,
            _ => Vec::new(),
        };
        Ok(Breakage { kind, cluster, fault, proof, out_of_reach, is_broken: false })
    }

    /// Does what costs time beforehand.
    ///
    /// # Errors
    ///
    /// A tool could not be started.
    pub fn arm(&mut self) -> Result<()> {
        self.fault.arm()
    }

    /// Breaks it; what was broken only in part is mended.
    ///
    /// # Errors
    ///
    /// It cannot be broken.
    pub fn inject(&mut self) -> Result<Span> {
        self.is_broken = true;
        let broken = self.fault.inject();
        if broken.is_err()
            && let Err(error) = self.heal()
        {
            tracing::error!(error = format!("{error:#}"), "Half a fault could not be mended");
        }
        broken
    }

    /// Mends it; none where nothing is broken.
    ///
    /// # Errors
    ///
    /// A part cannot be mended.
    pub fn heal(&mut self) -> Result<Option<Span>> {
        if !std::mem::take(&mut self.is_broken) {
            return Ok(None);
        }
        self.fault.heal().map(Some)
    }

    /// Whether the drill itself meets the fault.
    ///
    /// # Errors
    ///
    /// The place to look from is gone.
    pub fn is_met(&self) -> Result<bool> {
        self.proof.is_met()
    }

    /// Whether the parts of a fault that no figure shows took place: the one client's loop of `noise`, and that
    /// `unreachable` was told and not only felt. (A stall that could not be made is an error where it is made.)
    ///
    /// # Errors
    ///
    /// One did not: the run would prove less than its name says.
    pub fn prove_parts(&self, stage: &Stage, since: &Since) -> Result<()> {
        match self.kind {
            FaultKind::Noise => {
                let refused = (EXTRA_LOOP.to_owned(), Outcome::REFUSED.to_string());
                let totals = stage.records.totals();
                let looped: u64 = totals.values().filter_map(|client| client.by_leaf_and_outcome.get(&refused)).sum();
                ensure!(looped >= LOOP_PROOF, "the client's loop on a dead address was refused only {looped} times");
            }
            FaultKind::Unreachable => {
                let told = since.by_outcome.get(&UNREACHABLE.to_string()).copied().unwrap_or(0);
                let failed = since.failed;
                ensure!(told * 10 >= failed * 9, "of {failed} failed connections ICMP answered only {told}");
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether nobody answers for the primary any more: every endpoint refuses the drill, but for those to which the
    /// fault lets no packet come.
    ///
    /// # Errors
    ///
    /// The control namespace is gone.
    pub fn nobody_answers(&self, stage: &Stage) -> Result<bool> {
        if stage.is_meshed() {
            let all = shape::app_addresses(&self.cluster.endpoints(&stage.cast.primary)?);
            return all_end(self.cluster.world().control().netns(), &all, UNANSWERED);
        }
        let all = shape::app_addresses(&self.cluster.endpoints(&stage.cast.primary)?);
        let (lost, reached): (Vec<SocketAddr>, Vec<SocketAddr>) =
            all.into_iter().partition(|address| self.out_of_reach.contains(address));
        let from = self.cluster.world().control().netns();
        Ok(all_end(from, &reached, &[Outcome::REFUSED])? && (lost.is_empty() || all_end(from, &lost, CUT_OFF)?))
    }
}

/// What makes the primary refuse in a control: the listeners of those of its programs that still run; meshed, the
/// programs themselves, behind proxies that live.
#[must_use]
pub fn control_fault(stage: &Stage) -> Box<dyn Fault> {
    let running = stage.primary.iter().filter(|program| program.is_running()).cloned().collect();
    if stage.is_meshed() { Box::new(Killed(running)) } else { Box::new(Refused(running)) }
}

/// What takes the primary's readiness in a control, and nothing else.
///
/// # Errors
///
/// The world lacks an endpoint.
pub fn unready<'a>(cluster: &'a Cluster, stage: &Stage) -> Result<Box<dyn Fault + 'a>> {
    let endpoints = shape::app_addresses(&cluster.endpoints(&stage.cast.primary)?);
    let pods = Terminated(stage.primary.clone());
    Ok(Box::new(ScaledToZero { cluster, namespace: stage.namespace.clone(), pods, endpoints }))
}

/// Waits until every endpoint of primary and secondary answers the drill.
///
/// # Errors
///
/// One does not within 15 s.
pub fn until_all_answer(cluster: &Cluster, stage: &Stage, halt: &Halt) -> Result<()> {
    let mut wanted = shape::app_addresses(&cluster.endpoints(&stage.cast.primary)?);
    wanted.push(gateway_address(cluster, stage)?);
    let from = cluster.world().control().netns();
    let tries = ANSWER_LIMIT.as_millis() / ANSWER_GAP.as_millis();
    for _ in 0..tries {
        if all_end(from, &wanted, &[Outcome::Ok])? {
            return Ok(());
        }
        halt.wait(ANSWER_GAP)?;
    }
    bail!("not every endpoint answers {} s after the fault was mended", ANSWER_LIMIT.as_secs())
}

fn gateway_address(cluster: &Cluster, stage: &Stage) -> Result<SocketAddr> {
    Ok(SocketAddr::new(cluster.world().pod(&stage.cast.gateway)?.address(), GATEWAY_PORT))
}

/// What a fault is made from.
struct Making<'a, 's> {
    kind: FaultKind,
    shape: Shape,
    rate: u32,
    cluster: &'a Cluster,
    stage: &'s Stage,
    halt: &'a Halt,
}

impl<'a> Making<'a, '_> {
    fn fault(&self) -> Result<(Box<dyn Fault + 'a>, Proof)> {
        let primary = self.stage.primary.clone();
        let primary_pods = self.primary_pods()?;
        let all = self.endpoints()?;
        let first = all.first().copied().context("a primary without endpoints")?;
        Ok(match self.kind {
            FaultKind::Refused => (Box::new(Refused(primary)), self.refuses(all)),
            FaultKind::ProcessKilled => (Box::new(Killed(primary)), self.refuses(all)),
            FaultKind::Blackhole => (Box::new(Filter::blackhole(&primary_pods)), self.dials(vec![first], CUT_OFF)),
            FaultKind::Unreachable => (Box::new(self.unreachable()?), self.dials(all, &[UNREACHABLE])),
            FaultKind::Hang => {
                // One backlog is full; the others are about to be.
                let proof = self.one_of(all.clone(), CUT_OFF, 2 * all.len());
                (Box::new(self.hung(all)), proof)
            }
            FaultKind::ScaleToZero => (Box::new(self.scaled_to_zero(all)), Proof::Acknowledged),
            FaultKind::Brownout { permille } => {
                let proof = self.one_of(all, &[Outcome::REFUSED], TRIES_BY_CHANCE);
                (Box::new(Filter::refuse_some(&primary_pods, permille)), proof)
            }
            FaultKind::Flap => {
                (Box::new(Flapping::new(Box::new(Refused(primary)), FLAP_PHASE, FLAP_LENGTH)), self.refuses(all))
            }
            FaultKind::Blip => self.blip(first),
            // One dial of a hundred would meet it, and the stalls none: the clients prove it.
            FaultKind::Noise => (Box::new(self.noise()?), Proof::Clients),
            FaultKind::OneBadClientNode => self.one_bad_client_node(&all)?,
            FaultKind::OneBadEndpoint => {
                let victim = primary.into_iter().take(1).collect();
                (Box::new(Killed(victim)), self.refuses(vec![first]))
            }
            FaultKind::NodeLoss => {
                let node = self.first_backend_node()?;
                let lost = self.endpoints_on(node)?;
                (Box::new(Unplugged::new(self.cluster.world(), &[node])), self.dials(lost, CUT_OFF))
            }
            FaultKind::AllDown => {
                let mut refusing = vec![gateway_address(self.cluster, self.stage)?];
                refusing.extend(all);
                (Box::new(Together(vec![self.secondary_dies(), Box::new(Refused(primary))])), self.refuses(refusing))
            }
            FaultKind::SecondaryDown => {
                let mut refusing = vec![gateway_address(self.cluster, self.stage)?];
                refusing.extend(all);
                let then = Then::new(self.secondary_dies(), SECONDARY_FIRST_BY, Box::new(Refused(primary)));
                (Box::new(then), self.refuses(refusing))
            }
            FaultKind::Frozen => (Box::new(Frozen(primary.clone())), Proof::Stopped(primary)),
            FaultKind::AgentRestart => {
                let restarted = AgentRestarted { cluster: self.cluster, node: self.first_client()?.node().to_owned() };
                let then = Then::new(Box::new(Refused(primary)), AGENT_DIES_AFTER, Box::new(restarted));
                (Box::new(then), self.refuses(all))
            }
            FaultKind::MeshCrash => {
                let victim = primary.into_iter().take(1).collect();
                (Box::new(Killed(victim)), self.dials(vec![first], UNANSWERED))
            }
            FaultKind::ZoneLoss => {
                let nodes = self.zone_of_primary()?;
                (Box::new(Unplugged::new(self.cluster.world(), &nodes)), self.dials(all, CUT_OFF))
            }
            FaultKind::GatewayDown => {
                let gateway = gateway_address(self.cluster, self.stage)?;
                (Box::new(Killed(vec![self.stage.gateway.clone()])), self.refuses(vec![gateway]))
            }
            FaultKind::Reset => {
                let (clients, records) = (self.stage.clients.clone(), self.stage.records.clone());
                let at = Arc::new(AtomicU64::new(u64::MAX));
                let seen = reset::Seen { clients: clients.clone(), records, at: at.clone() };
                (Box::new(Reset { servers: primary, clients, addresses: all, at, halt: self.halt }), Proof::Reset(seen))
            }
        })
    }

    /// All nodes of the zone that the primary's first endpoint is in.
    fn zone_of_primary(&self) -> Result<Vec<&'a Node>> {
        let zone = self.first_backend_node()?.zone();
        Ok(self.cluster.world().nodes().filter(|node| node.zone() == zone).collect())
    }

    fn refuses(&self, to: Vec<SocketAddr>) -> Proof {
        self.dials(to, &[Outcome::REFUSED])
    }

    fn dials(&self, to: Vec<SocketAddr>, ends: &'static [Outcome]) -> Proof {
        Proof::Dials { from: self.cluster.world().control().netns().clone(), to, ends }
    }

    fn one_of(&self, to: Vec<SocketAddr>, ends: &'static [Outcome], tries: usize) -> Proof {
        Proof::OneOfMany { from: self.cluster.world().control().netns().clone(), to, ends, tries }
    }

    fn primary_pods(&self) -> Result<Vec<&'a Pod>> {
        self.stage.cast.primary.iter().map(|name| self.cluster.world().pod(name)).collect()
    }

    fn endpoints(&self) -> Result<Vec<SocketAddr>> {
        Ok(shape::app_addresses(&self.cluster.endpoints(&self.stage.cast.primary)?))
    }

    fn first_backend_node(&self) -> Result<&'a Node> {
        let pods = self.primary_pods()?;
        self.cluster.world().node(pods.first().context("a primary without endpoints")?.node())
    }

    fn endpoints_on(&self, node: &Node) -> Result<Vec<SocketAddr>> {
        let pods = self.primary_pods()?;
        let there = pods.iter().filter(|pod| pod.node() == node.name());
        Ok(there.map(|pod| SocketAddr::new(pod.address(), APP_PORT)).collect())
    }

    fn first_client(&self) -> Result<&'a Pod> {
        let name = self.stage.cast.clients.first().context("a stage without clients")?;
        self.cluster.world().pod(name)
    }

    /// Gateway and everything behind it: neither its traffic nor its readiness is answered any more.
    fn secondary_dies(&self) -> Box<dyn Fault> {
        let gateway: PodChild = self.stage.gateway.clone();
        Box::new(Together(vec![Box::new(Killed(vec![gateway])), Box::new(Refused(self.stage.west.clone()))]))
    }

    fn unreachable(&self) -> Result<Filter> {
        let pods = self.primary_pods()?;
        let world = self.cluster.world();
        let mut names: Vec<&str> = pods.iter().map(|pod| pod.node()).collect();
        names.sort_unstable();
        names.dedup();
        let nodes = names.into_iter().map(|name| world.node(name)).collect::<Result<Vec<_>>>()?;
        Ok(Filter::unreachable(&nodes, &pods))
    }

    fn hung(&self, endpoints: Vec<SocketAddr>) -> Hung<'a> {
        Hung {
            hang: Hang(self.stage.primary.clone()),
            slow_to_fill: if self.rate < FILLS_FROM { endpoints } else { Vec::new() },
            from: self.cluster.world().control().netns().clone(),
            fillers: Vec::new(),
            halt: self.halt,
        }
    }

    fn scaled_to_zero(&self, endpoints: Vec<SocketAddr>) -> ScaledToZero<'a> {
        let pods = Terminated(self.stage.primary.clone());
        ScaledToZero { cluster: self.cluster, namespace: self.stage.namespace.clone(), pods, endpoints }
    }

    /// Over before the drill could look: it looks in the middle.
    fn blip(&self, endpoint: SocketAddr) -> (Box<dyn Fault + 'a>, Proof) {
        let seen = Arc::new(AtomicBool::new(false));
        let (control, noted) = (self.cluster.world().control(), seen.clone());
        let look = move || {
            noted.store(control.dial(endpoint, DIAL_LIMIT)? == Outcome::REFUSED, Ordering::Relaxed);
            Ok(())
        };
        (Box::new(Brief::new(Box::new(Refused(self.stage.primary.clone())), BLIP, look)), Proof::Noted(seen))
    }

    /// Looked at from that node's own namespace: its agent counts what its pods' cgroups do, and the drill is in none.
    fn one_bad_client_node(&self, endpoints: &[SocketAddr]) -> Result<(Box<dyn Fault + 'a>, Proof)> {
        let node = self.cluster.world().node(self.first_client()?.node())?;
        let to = endpoints.iter().take(1).copied().collect();
        let proof = Proof::Dials { from: node.netns().clone(), to, ends: CUT_OFF };
        Ok((Box::new(Filter::cut_path(&[node], endpoints)), proof))
    }

    fn noise(&self) -> Result<Together<'a>> {
        let looper = self.stage.clients.first().context("a stage without clients")?.clone();
        let pods = self.primary_pods()?;
        let victim = SocketAddr::new(pods.first().context("a stage without endpoints")?.address(), APP_PORT);
        let client = self.first_client()?;
        let mut faults: Vec<Box<dyn Fault + 'a>> = vec![Box::new(Filter::refuse_some(&pods, NOISE_PERMILLE))];
        let address = match self.shape {
            Shape::Standard => {
                let node = self.cluster.world().node(client.node())?;
                faults.push(Box::new(Filter::refuse_one(node, client, victim)));
                victim
            }
            Shape::Workshop => SocketAddr::new(victim.ip(), DEAD_PORT),
        };
        faults.push(Box::new(ExtraLoop { client: looper, address, per_second: LOOP_PER_SECOND }));
        let nodes: Vec<&Node> = self.cluster.world().nodes().collect();
        faults.push(Box::new(Stalls::new(&nodes)));
        Ok(Together(faults))
    }
}
