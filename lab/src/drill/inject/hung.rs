//! A hang, from the moment at which it can be felt. In: programs. Out: times; t0 is the first SYN that the kernel drops
//! because a backlog is full, not the order that lets it fill. Where the load would take long to fill it, the drill helps.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::drill::halt::Halt;
use crate::world::clock::now_ns;
use crate::world::fault::{Fault, Hang, Span};
use crate::world::netns::Netns;

/// How long a backlog may take to fill: at 100 connections a second to six endpoints, a second.
const FILL_LIMIT: Duration = Duration::from_secs(10);

/// The most connections that the drill adds to one backlog, which holds fewer.
const FILLERS: usize = 32;

/// How long a filler waits for its handshake: one that gets none has found the backlog full.
const FILLER_LIMIT: Duration = Duration::from_millis(20);

/// Between two looks at the count of dropped SYNs.
const LOOK_GAP: Duration = Duration::from_millis(2);

/// See the module's header.
pub(super) struct Hung<'a> {
    /// Which programs.
    pub(super) hang: Hang,
    /// Their backlogs that the load alone would not fill soon.
    pub(super) slow_to_fill: Vec<SocketAddr>,
    /// Where the drill fills them from: no agent counts what it does.
    pub(super) from: Netns,
    /// Held until the programs accept again.
    pub(super) fillers: Vec<TcpStream>,
    /// Ends the wait early.
    pub(super) halt: &'a Halt,
}

impl Hung<'_> {
    fn fill(&mut self) -> Result<()> {
        let (from, all) = (self.from.clone(), self.slow_to_fill.clone());
        let connect =
            |to: SocketAddr| (0..FILLERS).map_while(move |_| TcpStream::connect_timeout(&to, FILLER_LIMIT).ok());
        self.fillers = from.within(move || all.into_iter().flat_map(connect).collect())?;
        Ok(())
    }
}

impl Fault for Hung<'_> {
    fn inject(&mut self) -> Result<Span> {
        let ordered = self.hang.inject()?;
        self.fill()?;
        loop {
            if let Some(dropped_ns) = self.hang.first_drop_ns() {
                // The last call that made it came before: there is no later one.
                return Ok(Span { first_ns: dropped_ns, last_ns: dropped_ns });
            }
            if Duration::from_nanos(now_ns().saturating_sub(ordered.last_ns)) > FILL_LIMIT {
                bail!("no backlog was full {} s after the programs ceased to accept", FILL_LIMIT.as_secs());
            }
            self.halt.wait(LOOK_GAP)?;
        }
    }

    fn heal(&mut self) -> Result<Span> {
        self.fillers.clear();
        self.hang.heal()
    }
}
