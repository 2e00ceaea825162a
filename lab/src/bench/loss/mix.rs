//! The mixture of outcomes. In: a stage and a load. Out: rounds of faults, each mended before the next begins. Refusals at
//! random go on all the time; the other faults take turns, each on endpoints of its own.
//!
//! Each fault is switched so that what a client sees and what its kernel does cannot differ: resets strike only
//! connections that have sent their byte, and ICMP errors only handshakes, of which none outlives the fault. (The kernel
//! holds an ICMP error back that arrives within connect(), and tries on; were the fault mended before it tries, the same
//! attempt would be unreachable and then established: one sample for the probe, which is the first of the two.)

use anyhow::{Context, Result};

use super::load::Load;
use crate::drill::cluster::Cluster;
use crate::drill::shape::Cast;
use crate::drill::stage::Stage;
use crate::load::wire::{DEFAULT_BACKLOG, Order};
use crate::world::fault::{Fault, Filter};
use crate::world::{Node, Pod, PodChild};

/// Of the connections to every endpoint, in thousandths.
const REFUSED_PERMILLE: u32 = 100;

/// All of the connections.
const ALL_PERMILLE: u32 = 1_000;

/// The endpoints that a fault of its own strikes, by their place among the primary's.
const BLACKHOLED: [usize; 2] = [0, 1];
const REFUSED_LATE: usize = 2;
const RESET: usize = 3;
const UNREACHABLE: usize = 4;

/// Longer than the first wait for an answer to a SYN: the attempts of its first part are given up, those of its last
/// second are established late.
const BLACKHOLE_MS: u64 = 1_400;

/// Until the SYNs that met a fault have been sent again.
const RETRANSMIT_MS: u64 = 1_300;

/// A blackhole after which everything is refused: the SYNs sent again after a second all meet the refusal.
const BEFORE_LATE_REFUSAL_MS: u64 = 700;

/// How long connections gather in the backlog; at 600 a second there are some hundred.
const GATHER_MS: u64 = 200;

/// Until no handshake is under way any more, and every client has sent its byte.
const HANDSHAKE_MS: u64 = 100;

/// How long ICMP answers.
const UNREACHABLE_MS: u64 = 500;

/// Between two faults.
const CALM_MS: u64 = 300;

/// The faults of one stage, armed.
pub struct Mix {
    some: Filter,
    blackhole: Filter,
    before_refusal: Filter,
    late_refusal: Filter,
    no_more: Filter,
    unreachable: Filter,
    server: PodChild,
}

/// One fault, from breaking to mending.
type Step = fn(&mut Mix, &Load<'_>) -> Result<()>;

const ROUND: [Step; 4] = [Mix::blackhole, Mix::refuse_late, Mix::reset, Mix::make_unreachable];

impl Mix {
    /// Prepares everything and breaks nothing.
    ///
    /// # Errors
    ///
    /// A tool fails, or the stage has too few endpoints.
    pub fn arm(cluster: &Cluster, stage: &Stage) -> Result<Self> {
        let world = cluster.world();
        let Cast { primary, .. } = cluster.cast();
        let pods: Vec<&Pod> = primary.iter().map(|name| world.pod(name)).collect::<Result<_>>()?;
        let pod = |place: usize| pods.get(place).copied().context("a stage with too few endpoints");
        let blackholed = BLACKHOLED.map(pod).into_iter().collect::<Result<Vec<_>>>()?;
        let gone = pod(UNREACHABLE)?;
        let node: &Node = world.node(gone.node())?;
        let mut mix = Self {
            some: Filter::refuse_some(&pods, REFUSED_PERMILLE),
            blackhole: Filter::blackhole(&blackholed),
            before_refusal: Filter::blackhole(&[pod(REFUSED_LATE)?]),
            late_refusal: Filter::refuse_some(&[pod(REFUSED_LATE)?], ALL_PERMILLE),
            no_more: Filter::refuse_some(&[pod(RESET)?], ALL_PERMILLE),
            unreachable: Filter::unreachable(&[node], &[gone]),
            server: stage.primary.get(RESET).context("a stage with too few programs")?.clone(),
        };
        for filter in [
            &mut mix.some,
            &mut mix.blackhole,
            &mut mix.before_refusal,
            &mut mix.late_refusal,
            &mut mix.no_more,
            &mut mix.unreachable,
        ] {
            filter.arm()?;
        }
        Ok(mix)
    }

    /// Rounds until the load has had enough: at least a whole one, so that every outcome occurs.
    ///
    /// # Errors
    ///
    /// A fault could not be made or mended, or a client is gone.
    pub fn play(&mut self, load: &Load<'_>) -> Result<()> {
        self.some.inject()?;
        for step in ROUND {
            step(self, load)?;
        }
        // Each step takes its time, and the load is open-loop: an end comes.
        for step in ROUND.into_iter().cycle() {
            if load.is_enough() {
                break;
            }
            step(self, load)?;
        }
        self.some.heal().map(drop)
    }

    fn blackhole(&mut self, load: &Load<'_>) -> Result<()> {
        self.blackhole.inject()?;
        load.wait_ms(BLACKHOLE_MS)?;
        self.blackhole.heal()?;
        load.wait_ms(RETRANSMIT_MS)
    }

    fn refuse_late(&mut self, load: &Load<'_>) -> Result<()> {
        self.before_refusal.inject()?;
        load.wait_ms(BEFORE_LATE_REFUSAL_MS)?;
        self.late_refusal.inject()?;
        self.before_refusal.heal()?;
        load.wait_ms(RETRANSMIT_MS)?;
        self.late_refusal.heal()?;
        load.wait_ms(CALM_MS)
    }

    /// What waits in a backlog is reset when the listener goes.
    fn reset(&mut self, load: &Load<'_>) -> Result<()> {
        self.server.order(Order::StopAccepting { backlog: DEFAULT_BACKLOG })?;
        load.wait_ms(GATHER_MS)?;
        self.no_more.inject()?;
        load.wait_ms(HANDSHAKE_MS)?;
        self.server.order(Order::StopListening)?;
        self.server.order(Order::Listen)?;
        self.no_more.heal()?;
        load.wait_ms(CALM_MS)
    }

    fn make_unreachable(&mut self, load: &Load<'_>) -> Result<()> {
        load.pause()?;
        self.unreachable.inject()?;
        load.resume()?;
        load.wait_ms(UNREACHABLE_MS)?;
        load.pause()?;
        self.unreachable.heal()?;
        load.resume()?;
        load.wait_ms(CALM_MS)
    }
}
