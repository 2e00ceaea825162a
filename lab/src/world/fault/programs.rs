//! Faults of the programs in the pods: listeners that go, processes that die, hang, stop or are told to end. In: the
//! programs. Out: times. The times of listeners are read by the programs themselves, around their own system calls.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::super::PodChild;
use super::{Fault, Span};
use crate::load::wire::Order;

/// How long a restarted program may take to listen again.
const RESTART_LIMIT: Duration = Duration::from_secs(5);
/// The backlog of a program that hangs: full after this many connections and one.
const HANG_BACKLOG: i32 = 16;

/// Every listener gone; processes and readiness live on.
#[derive(Debug)]
pub struct Refused(pub Vec<PodChild>);

/// SIGKILL. Mended by starting the programs again.
#[derive(Debug)]
pub struct Killed(pub Vec<PodChild>);

/// SIGTERM, as the kubelet ends a pod. Mended by starting the programs again.
#[derive(Debug)]
pub struct Terminated(pub Vec<PodChild>);

/// SIGSTOP: the kernel still ends handshakes, nobody answers.
#[derive(Debug)]
pub struct Frozen(pub Vec<PodChild>);

/// A short backlog and no more accept: once it is full, SYNs are dropped.
#[derive(Debug)]
pub struct Hang(pub Vec<PodChild>);

/// One client dials one address over and over, beside its load.
#[derive(Debug)]
pub struct ExtraLoop {
    /// The client.
    pub client: PodChild,
    /// Usually refused by a [`super::Filter`].
    pub address: SocketAddr,
    /// Connections per second.
    pub per_second: f64,
}

impl Fault for Refused {
    fn inject(&mut self) -> Result<Span> {
        order_all(&self.0, &Order::StopListening)
    }

    fn heal(&mut self) -> Result<Span> {
        order_all(&self.0, &Order::Listen)
    }
}

impl Fault for Killed {
    fn inject(&mut self) -> Result<Span> {
        Span::around(|| signal_all(&self.0, Signal::KILL))
    }

    fn heal(&mut self) -> Result<Span> {
        restart_all(&self.0)
    }
}

impl Fault for Terminated {
    fn inject(&mut self) -> Result<Span> {
        Span::around(|| signal_all(&self.0, Signal::TERM))
    }

    fn heal(&mut self) -> Result<Span> {
        restart_all(&self.0)
    }
}

impl Fault for Frozen {
    fn inject(&mut self) -> Result<Span> {
        Span::around(|| signal_all(&self.0, Signal::STOP))
    }

    fn heal(&mut self) -> Result<Span> {
        Span::around(|| signal_all(&self.0, Signal::CONT))
    }
}

impl Hang {
    /// When the kernel first dropped a SYN on one of them, once that was seen: the `t0` of a hang.
    #[must_use]
    pub fn first_drop_ns(&self) -> Option<u64> {
        self.0.iter().filter_map(PodChild::overflowed_ns).min()
    }
}

impl Fault for Hang {
    /// The span is that of the orders; the fault itself begins at [`Hang::first_drop_ns`].
    fn inject(&mut self) -> Result<Span> {
        order_all(&self.0, &Order::StopAccepting { backlog: HANG_BACKLOG })
    }

    fn heal(&mut self) -> Result<Span> {
        order_all(&self.0, &Order::Accept)
    }
}

impl Fault for ExtraLoop {
    fn inject(&mut self) -> Result<Span> {
        let order = Order::Loop { address: self.address, per_second: self.per_second };
        self.client.order(order).map(Span::from)
    }

    fn heal(&mut self) -> Result<Span> {
        self.client.order(Order::Loop { address: self.address, per_second: 0.0 }).map(Span::from)
    }
}

/// Sends to all before it waits for any, so that they act at the same time.
fn order_all(programs: &[PodChild], order: &Order) -> Result<Span> {
    let pending = programs.iter().map(|program| program.send(order.clone())).collect::<Result<Vec<_>>>()?;
    let done = pending.into_iter().map(|pending| pending.wait().map(Span::from)).collect::<Result<Vec<_>>>()?;
    Span::over(done).context("no program to break")
}

fn signal_all(programs: &[PodChild], signal: Signal) -> Result<()> {
    programs.iter().try_for_each(|program| program.signal(signal))
}

fn restart_all(programs: &[PodChild]) -> Result<Span> {
    Span::around(|| {
        programs.iter().try_for_each(PodChild::restart)?;
        programs.iter().try_for_each(|program| program.wait_ready(RESTART_LIMIT).map(drop))
    })
}
