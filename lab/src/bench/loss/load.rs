//! The bench's load: the six clients of the drill's cluster, with a patience of their own. In: rates. Out: connections,
//! and a record of how each ended. It is open-loop, and finds the highest rate at which the clients keep up.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::drill::cluster::Cluster;
use crate::drill::halt::Halt;
use crate::drill::shape::PRIMARY;
use crate::load::records::Records;
use crate::load::wire::{ClientSpec, Order, PodProgram, Target};
use crate::world::PodChild;
use crate::world::clock::now_ns;

/// A client's patience for a handshake, and for its byte. No retransmission falls near it: SYNs are sent again after
/// 1 s and 2 s (`TCP_TIMEOUT_INIT` in <https://github.com/torvalds/linux/blob/v6.12/include/net/tcp.h>), the byte after
/// 0.2, 0.4, 0.8, 1.6 and 3.2 s in sum at most (its least interval is `TCP_RTO_MIN`, 0.2 s). One that came in the moment
/// in which the client gives up could be established for the kernel and given up for the client.
pub const PATIENCE_MS: u64 = 1_800;

/// How long a rate is tried.
const TRIAL: Duration = Duration::from_secs(1);

/// Clients keep up when no more connections wait than they begin in this part of a second: 50 ms.
const KEPT_UP: u32 = 20;

/// Under this rate the machine is too busy to measure anything.
const LEAST_RATE: u32 = 500;

/// How long programs may take to start.
const START_LIMIT: Duration = Duration::from_secs(15);

/// How long connections may take to end, beyond the clients' patience for handshake and byte.
const END_LIMIT: Duration = Duration::from_millis(2 * PATIENCE_MS + 3_000);

/// Between two looks.
const LOOK_GAP: Duration = Duration::from_millis(20);

/// Clients that dial the split's backends as a mesh's proxies do.
pub struct Load<'a> {
    clients: Vec<PodChild>,
    records: Records,
    halt: &'a Halt,
    rate: u32,
    wanted: u64,
}

impl<'a> Load<'a> {
    /// Starts the clients; they send nothing yet. `wanted` connections are enough.
    ///
    /// # Errors
    ///
    /// One does not start.
    pub fn start(cluster: &Cluster, namespace: &str, wanted: u64, halt: &'a Halt) -> Result<Self> {
        let records = Records::new();
        let mut clients = Vec::new();
        for (seed, name) in (0_u64..).zip(&cluster.cast().clients) {
            let spec = ClientSpec {
                target: Target::Mesh {
                    kubeconfig: cluster.inside().kubeconfig.clone(),
                    namespace: namespace.to_owned(),
                    splits: vec![PRIMARY.to_owned()],
                },
                rate: 0.0,
                seed,
                timeout_ms: PATIENCE_MS,
            };
            clients.push(cluster.world().pod(name)?.spawn(&PodProgram::Client(spec), &records)?);
        }
        for client in &clients {
            client.wait_ready(START_LIMIT)?;
        }
        Ok(Self { clients, records, halt, rate: 0, wanted })
    }

    /// Tries rates from `highest` downwards and stays at the first at which the clients keep up.
    ///
    /// # Errors
    ///
    /// They keep up with none.
    pub fn find_rate(&mut self, highest: u32) -> Result<u32> {
        let mut rate = highest;
        while rate >= LEAST_RATE.min(highest) {
            self.rate = rate;
            self.resume()?;
            self.halt.wait(TRIAL)?;
            if self.outstanding()? <= rate / KEPT_UP {
                return Ok(rate);
            }
            self.pause()?;
            rate -= (rate / 8).max(1);
        }
        bail!("the clients do not keep up with {LEAST_RATE} connections a second: the machine is too busy")
    }

    /// Begins connections at the rate found.
    ///
    /// # Errors
    ///
    /// A client is gone.
    pub fn resume(&self) -> Result<()> {
        self.set_rate(self.rate)
    }

    /// Begins no more, and waits until all have ended and are recorded.
    ///
    /// # Errors
    ///
    /// A client is gone, or its connections do not end.
    pub fn pause(&self) -> Result<()> {
        self.set_rate(0)?;
        let deadline_ns = now_ns() + u64::try_from(END_LIMIT.as_nanos())?;
        while self.outstanding()? > 0 {
            if now_ns() > deadline_ns {
                bail!("connections have no end {} ms after the last began", END_LIMIT.as_millis());
            }
            self.halt.wait(LOOK_GAP)?;
        }
        Ok(())
    }

    /// Waits, and looks whether all clients still live.
    ///
    /// # Errors
    ///
    /// One does not, or somebody wants the end.
    pub fn wait_ms(&self, length_ms: u64) -> Result<()> {
        self.halt.wait(Duration::from_millis(length_ms))?;
        match self.clients.iter().find(|client| !client.is_running()) {
            Some(client) => bail!("the client in pod {} is gone", client.pod().name()),
            None => Ok(()),
        }
    }

    /// Whether enough connections have ended.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.records.ended() >= self.wanted
    }

    /// What the clients saw.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Connections without an end. All that have one are recorded when this returns: the answer follows the rows.
    fn outstanding(&self) -> Result<u32> {
        let pending = self.clients.iter().map(|client| client.send(Order::Flush)).collect::<Result<Vec<_>>>()?;
        let mut outstanding = 0;
        for order in pending {
            outstanding += order.wait()?.outstanding;
        }
        Ok(outstanding)
    }

    fn set_rate(&self, rate: u32) -> Result<()> {
        let count = u32::try_from(self.clients.len()).context("too many clients")?;
        let per_second = f64::from(rate) / f64::from(count.max(1));
        let pending =
            self.clients.iter().map(|client| client.send(Order::Rate { per_second })).collect::<Result<Vec<_>>>()?;
        pending.into_iter().try_for_each(|order| order.wait().map(drop))
    }
}
