//! Sockets of the agent's own in, nothing out: the probe leaves them alone.
//!
//! Checks are evidence of their own; counted as traffic they would be evidence twice. A socket is marked in the very
//! storage that the programs look at when it connects, so that neither process nor cgroup nor address has to be known.

use std::os::fd::AsRawFd;

use aya::maps::{MapData, SkStorage};
use probe_common::abi::{Attempt, AttemptState, maps};

use super::MapError;

/// Marks sockets, as long as the probe lives.
pub struct Exemption {
    attempts: SkStorage<MapData, Attempt>,
}

impl Exemption {
    pub(super) const fn new(attempts: SkStorage<MapData, Attempt>) -> Self {
        Self { attempts }
    }

    /// Takes a socket out of the count. To be called before it connects.
    ///
    /// # Errors
    /// When the kernel has no memory for the mark.
    pub fn exempt(&mut self, socket: &impl AsRawFd) -> Result<(), MapError> {
        let state = AttemptState::Exempt as u32;
        let mark = Attempt { started_ns: 0, index: 0, generation: 0, late_slots: 0, state, client: 0, padding: 0 };
        self.attempts.insert(socket, mark, 0).map_err(MapError::access(maps::ATTEMPTS))
    }
}
