//! Kernel in, plain values out: loads and attaches the probe, reads what it counted.
//!
//! In: the probe's object (embedded by build.rs), [`Settings`], and which destinations to count. Out: counters, stamps
//! and first failures as the plain values of `probe_common::abi`.
//!
//! This is the only folder that names aya or holds unsafe code. It judges nothing: what a counter means is decided by
//! its readers, when to read is decided by the shell. Dropping a [`Probe`] detaches everything; nothing is pinned.

use std::path::Path;

use probe_common::abi;

mod error;

pub use error::{CgroupError, LoadError, MapError};

/// What has to be known before loading: sizes cannot change afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Cgroup id above every socket of this node: [`node_cgroup`].
    pub node_cgroup: u64,
    /// Destinations counted per CPU and by age, at most [`abi::HOT_LIMIT`].
    pub hot_capacity: u32,
    /// Destinations counted by one shared value each.
    pub cold_capacity: u32,
}

/// The id (inode) of the cgroup2 root that this process sees: `explicit`, else the cgroup2 mount that
/// `/proc/self/mountinfo` names.
///
/// # Errors
/// When there is no cgroup2 mount, or its root cannot be read.
pub fn node_cgroup(explicit: Option<&Path>) -> Result<u64, CgroupError> {
    let _ = explicit;
    Err(CgroupError::NotMounted)
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of `bpf_ktime_get_ns`, and of every `_ns` in `probe_common::abi`.
#[must_use]
pub fn now_ns() -> u64 {
    0
}

/// The loaded and attached programs with their maps.
pub struct Probe {}

impl Probe {
    /// Loads the object that this binary carries and attaches both programs.
    ///
    /// # Errors
    /// Each phase has its variant; [`LoadError::NotBuilt`] when the agent was built without an object.
    pub fn load(settings: &Settings) -> Result<Self, LoadError> {
        let _ = settings;
        Err(LoadError::NotBuilt)
    }

    /// Raises [`abi::Control::round`]; returns the round that just ended, whose windows are complete now.
    pub fn next_round(&mut self) -> Result<u64, MapError> {
        Err(MapError::Missing { map: abi::maps::CONTROL })
    }

    /// In which round each hot index was last touched.
    pub fn stamps(&self) -> Result<Box<abi::Stamps>, MapError> {
        Err(MapError::Missing { map: abi::maps::STAMPS })
    }

    /// One value per possible CPU.
    pub fn hot(&self, index: u32) -> Result<Vec<abi::Hot>, MapError> {
        let _ = index;
        Err(MapError::Missing { map: abi::maps::HOT })
    }

    /// `index` as in [`abi::DestinationValue::index`]: counted from `hot_capacity` on.
    pub fn cold(&self, index: u32) -> Result<abi::Cold, MapError> {
        let _ = index;
        Err(MapError::Missing { map: abi::maps::COLD })
    }

    /// Zeroes the value at the (rested) index, sets its generation, then lets the kernel count the destination there.
    pub fn assign(&mut self, key: &abi::DestinationKey, value: &abi::DestinationValue) -> Result<(), MapError> {
        let _ = (key, value);
        Err(MapError::Missing { map: abi::maps::DESTINATIONS })
    }

    /// Stops counting new attempts to the destination; ends of those begun are still counted at its index, which
    /// therefore has to rest for [`abi::INDEX_REST_NS`]. Releasing an unknown destination is no error.
    pub fn release(&mut self, key: &abi::DestinationKey) -> Result<(), MapError> {
        let _ = key;
        Err(MapError::Missing { map: abi::maps::DESTINATIONS })
    }

    /// Sums over CPUs, in the order of [`abi::Loss::ALL`].
    pub fn losses(&self) -> Result<[u64; abi::Loss::COUNT], MapError> {
        Err(MapError::Missing { map: abi::maps::LOSSES })
    }

    /// Events that the kernel did not give to a program because it was running on that CPU already; sum over programs.
    pub fn recursion_misses(&self) -> Result<u64, MapError> {
        Err(MapError::Missing { map: abi::maps::LOSSES })
    }

    /// The stream of first failures, to be awaited apart from the reads. It can be taken once, inside a tokio runtime.
    pub fn take_events(&mut self) -> Result<Events, MapError> {
        Err(MapError::Missing { map: abi::maps::EVENTS })
    }
}

/// First failures as they happen, one record per destination, CPU and round.
pub struct Events {}

impl Events {
    /// Waits until there is at least one record, then appends all there are. Cancel-safe: a record is either appended
    /// or still in the kernel's ring.
    pub async fn next(&mut self, into: &mut Vec<abi::FirstFailure>) -> Result<(), MapError> {
        let _ = into;
        std::future::pending().await
    }
}
