//! A hang, from the moment at which it can be felt. In: programs. Out: times; t0 is the first SYN that the kernel drops
//! because a backlog is full, not the order that lets it fill.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::drill::halt::Halt;
use crate::world::clock::now_ns;
use crate::world::fault::{Fault, Hang, Span};

/// How long a backlog may take to fill: with the agents' checks alone, two a second per endpoint, eight seconds.
const FILL_LIMIT: Duration = Duration::from_secs(30);

/// Between two looks at the count of dropped SYNs.
const LOOK_GAP: Duration = Duration::from_millis(2);

/// See the module's header.
pub(super) struct Hung<'a> {
    /// Which programs.
    pub(super) hang: Hang,
    /// Ends the wait early.
    pub(super) halt: &'a Halt,
}

impl Fault for Hung<'_> {
    fn inject(&mut self) -> Result<Span> {
        let ordered = self.hang.inject()?;
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
        self.hang.heal()
    }
}
