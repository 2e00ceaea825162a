//! Kernel in, plain values out: loads and attaches the probe, reads what it counted.
//!
//! In: the probe's object (embedded by build.rs), [`Settings`], and which destinations to count. Out: counters, stamps
//! and first failures as the plain values of `probe_common::abi`.
//!
//! This is the only folder that names aya or holds unsafe code. It judges nothing: what a counter means is decided by
//! its readers, when to read is decided by the shell. Dropping a [`Probe`] detaches everything; nothing is pinned.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues, RingBuf},
    programs::Program,
};
use probe_common::abi::{
    Cold, Control, DestinationKey, DestinationValue, Hot, Loss, PROXY_SEEN_FOR_NS, Stamps, maps, programs,
};

mod btf;
mod cgroup;
mod clock;
mod error;
mod exemption;
mod figures;
mod load;
mod ring;

pub use error::{CgroupError, LoadError, MapError};
pub use exemption::Exemption;
pub use figures::ProgramFigures;
pub use load::return_freed_memory;
pub use ring::Events;

/// How often a value is copied again when the kernel was moving leftovers in it. A move takes well under a microsecond
/// and happens at most once per slot of 8 ms; needing a third copy means that the reader itself was held up twice.
const COPIES: u32 = 8;

/// The user that a mesh's proxies run as unless the agent is told otherwise: Linkerd's default, `proxy.uid` of its chart
/// (<https://github.com/linkerd/linkerd2/blob/main/charts/linkerd-control-plane/values.yaml>).
pub const PROXY_UID: u32 = 2102;

/// What has to be known before loading: sizes cannot change afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Cgroup id above every socket of this node: [`node_cgroup`].
    pub node_cgroup: u64,
    /// Destinations counted per CPU and by age, at most [`probe_common::abi::HOT_LIMIT`].
    pub hot_capacity: u32,
    /// Destinations counted by one shared value each.
    pub cold_capacity: u32,
    /// The user that a mesh's proxies run as; `u32::MAX`, which no process can be, for no mesh.
    pub proxy_uid: u32,
}

/// The id (inode) of the cgroup2 root that this process sees: `explicit`, else the cgroup2 mount that
/// `/proc/self/mountinfo` names.
///
/// # Errors
/// When there is no cgroup2 mount, or its root cannot be read.
pub fn node_cgroup(explicit: Option<&Path>) -> Result<u64, CgroupError> {
    cgroup::root_id(explicit)
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of `bpf_ktime_get_ns`, and of every `_ns` in `probe_common::abi`.
#[must_use]
pub fn now_ns() -> u64 {
    clock::monotonic_ns()
}

/// The loaded and attached programs with their maps. Dropping it detaches them; the kernel then frees everything.
pub struct Probe {
    ebpf: Ebpf,
    settings: Settings,
    round: u64,
    control: Array<MapData, Control>,
    destinations: HashMap<MapData, DestinationKey, DestinationValue>,
    generations: Array<MapData, u32>,
    hot: PerCpuArray<MapData, Hot>,
    cold: Array<MapData, Cold>,
    stamps: Array<MapData, Stamps>,
    losses: PerCpuArray<MapData, [u64; Loss::COUNT]>,
    proxy_spaces: HashMap<MapData, u64, u64>,
    proxy_addresses: HashMap<MapData, [u8; 16], u64>,
    events: Option<RingBuf<MapData>>,
    exemption: Option<Exemption>,
    /// Of the maps that live as long as the probe, for [`Self::memory_bytes`].
    map_descriptors: Vec<(&'static str, RawFd)>,
}

impl Probe {
    /// Loads the object that this binary carries and attaches all programs.
    ///
    /// Takes some 0.2 s and, for that time, 25 MiB for the kernel's type information. Call it on the main thread: the
    /// memory of another thread's allocator arena is not given back to the system.
    ///
    /// # Errors
    /// Each phase has its variant; [`LoadError::NotBuilt`] when the agent was built without an object.
    pub fn load(settings: &Settings) -> Result<Self, LoadError> {
        load::load(load::embedded()?, settings)
    }

    /// The same with another object than the embedded one: for measurements that compare objects.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_object(object: &[u8], settings: &Settings) -> Result<Self, LoadError> {
        load::load(object, settings)
    }

    /// Raises [`probe_common::abi::Control::round`]; returns the round that just ended, whose windows are complete now and stay until
    /// the next call.
    ///
    /// # Errors
    /// When the map cannot be written; the round is then unchanged.
    pub fn next_round(&mut self) -> Result<u64, MapError> {
        self.control.set(0, Control { round: self.round + 1 }, 0).map_err(MapError::access(maps::CONTROL))?;
        self.round += 1;
        Ok(self.round - 1)
    }

    /// In which round each hot index was last touched.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn stamps(&self) -> Result<Box<Stamps>, MapError> {
        self.stamps.get(&0, 0).map(Box::new).map_err(MapError::access(maps::STAMPS))
    }

    /// The value at a hot index, one per possible CPU.
    ///
    /// Take [`now_ns`] before the call, and judge lateness by that: an attempt that the copy shows as outstanding cannot
    /// have ended in time before it. While ends are being counted the copy may miss them for a moment, but never holds
    /// one twice: `late so far` may dip below what an earlier read found, and does not mean anything then.
    ///
    /// # Errors
    /// When the index is beyond the capacity, or the map cannot be read.
    pub fn hot(&self, index: u32) -> Result<Vec<Hot>, MapError> {
        if index >= self.settings.hot_capacity {
            return Err(MapError::OutOfRange { map: maps::HOT, index });
        }
        for _ in 0..COPIES {
            let values = self.hot.get(&index, 0).map_err(MapError::access(maps::HOT))?;
            if values.iter().all(|value| value.folds_begun == value.folds_ended) {
                return Ok(values.to_vec());
            }
        }
        Err(MapError::Unsteady { map: maps::HOT, index })
    }

    /// The value of a destination that no split uses. `index` is that of [`probe_common::abi::DestinationValue::index`], which counts
    /// from `hot_capacity` on.
    ///
    /// # Errors
    /// When the index is not a cold one, or the map cannot be read.
    pub fn cold(&self, index: u32) -> Result<Cold, MapError> {
        self.cold.get(&self.cold_position(index)?, 0).map_err(MapError::access(maps::COLD))
    }

    /// Zeroes the value at the (rested) index, sets its generation, then lets the kernel count the destination there.
    /// A destination that was counted elsewhere moves; its old index then has to rest.
    ///
    /// # Errors
    /// [`MapError::OutOfRange`] and [`MapError::Full`] mean that the probe was loaded too small.
    pub fn assign(&mut self, key: &DestinationKey, value: &DestinationValue) -> Result<(), MapError> {
        let index = value.index;
        if index < self.settings.hot_capacity {
            let zeros = vec![Hot::ZERO; self.possible_cpus()?];
            let zeros = PerCpuValues::try_from(zeros).map_err(|source| MapError::Wait { map: maps::HOT, source })?;
            self.hot.set(index, zeros, 0).map_err(MapError::access(maps::HOT))?;
        } else {
            let position = self.cold_position(index)?;
            self.cold.set(position, Cold::default(), 0).map_err(MapError::access(maps::COLD))?;
        }
        self.generations.set(index, value.generation, 0).map_err(MapError::access(maps::GENERATIONS))?;
        self.destinations.insert(key, value, 0).map_err(MapError::access(maps::DESTINATIONS))
    }

    /// Stops counting new attempts to the destination; ends of those begun are still counted at its index, which
    /// therefore has to rest for [`probe_common::abi::INDEX_REST_NS`]. Releasing an unknown destination is no error.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn release(&mut self, key: &DestinationKey) -> Result<(), MapError> {
        match self.destinations.remove(key).map_err(MapError::access(maps::DESTINATIONS)) {
            Err(MapError::Unknown { .. }) => Ok(()),
            released => released,
        }
    }

    /// When a mesh's proxy was last seen to dial from the address, or to have taken a connection there ([`now_ns`]'s clock,
    /// to about a second); `None` for never, or for too long ago to be remembered.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn proxy_seen_ns(&self, address: IpAddr) -> Result<Option<u64>, MapError> {
        let address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        match self.proxy_addresses.get(&address.octets(), 0).map_err(MapError::access(maps::PROXY_ADDRESSES)) {
            Ok(seen_ns) => Ok(Some(seen_ns)),
            Err(MapError::Unknown { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// In how many network namespaces a proxy was seen lately, so that what others dial there is not counted.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn proxy_spaces(&self) -> Result<usize, MapError> {
        let now_ns = now_ns();
        let mut spaces = 0;
        for entry in self.proxy_spaces.iter() {
            let (_, seen_ns) = entry.map_err(MapError::access(maps::PROXY_SPACES))?;
            spaces += usize::from(now_ns.saturating_sub(seen_ns) < PROXY_SEEN_FOR_NS);
        }
        Ok(spaces)
    }

    /// What the programs gave up or could not attribute: sums over CPUs, in the order of [`Loss::ALL`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn losses(&self) -> Result<[u64; Loss::COUNT], MapError> {
        let values = self.losses.get(&0, 0).map_err(MapError::access(maps::LOSSES))?;
        let mut sums = [0; Loss::COUNT];
        for value in values.iter() {
            for (sum, lost) in sums.iter_mut().zip(value) {
                *sum += lost;
            }
        }
        Ok(sums)
    }

    /// Events that the kernel did not give to a program because it was running on that CPU already; sum over programs.
    /// Most were transitions of no interest; a missed end is made good later and told as [`Loss::Repaired`].
    ///
    /// # Errors
    /// When the kernel's figures cannot be read.
    pub fn recursion_misses(&self) -> Result<u64, MapError> {
        Ok(self.programs()?.iter().map(|(_, figures)| figures.recursion_misses).sum())
    }

    /// The kernel's figures about each program, by name.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn programs(&self) -> Result<Vec<(&'static str, ProgramFigures)>, MapError> {
        programs::ALL
            .into_iter()
            .map(|program| {
                let failed = |source| MapError::ProgramFigures { program, source };
                let fd = self.ebpf.program(program).and_then(descriptor).ok_or_else(|| failed(not_loaded()))?;
                Ok((program, figures::of_program(fd).map_err(failed)?))
            })
            .collect()
    }

    /// Memory that the kernel charges for programs and maps, in bytes. The ring (256 KiB) and what sockets remember
    /// (charged to them) are not in it.
    ///
    /// # Errors
    /// When the kernel's figures cannot be read.
    pub fn memory_bytes(&self) -> Result<u64, MapError> {
        let mut sum = self.programs()?.iter().map(|(_, figures)| figures.memory_bytes).sum();
        for &(map, fd) in &self.map_descriptors {
            sum += figures::map_bytes(fd).map_err(|source| MapError::Wait { map, source })?;
        }
        Ok(sum)
    }

    /// The stream of first failures, to be awaited apart from the reads.
    ///
    /// # Errors
    /// [`MapError::Missing`] when it was taken before; [`MapError::Wait`] when the system has no room to wait for it.
    ///
    /// # Panics
    /// Outside a tokio runtime with IO.
    pub fn take_events(&mut self) -> Result<Events, MapError> {
        Events::new(self.events.take().ok_or(MapError::Missing { map: maps::EVENTS })?)
    }

    /// What lets sockets of this process connect without being counted, to be used apart from the reads.
    ///
    /// # Errors
    /// [`MapError::Missing`] when it was taken before.
    pub fn take_exemption(&mut self) -> Result<Exemption, MapError> {
        self.exemption.take().ok_or(MapError::Missing { map: maps::ATTEMPTS })
    }

    fn cold_position(&self, index: u32) -> Result<u32, MapError> {
        let position = index.checked_sub(self.settings.hot_capacity);
        position
            .filter(|&position| position < self.settings.cold_capacity)
            .ok_or(MapError::OutOfRange { map: maps::COLD, index })
    }

    fn possible_cpus(&self) -> Result<usize, MapError> {
        aya::util::nr_cpus().map_err(|(_, source)| MapError::Wait { map: maps::HOT, source })
    }
}

fn descriptor(program: &Program) -> Option<RawFd> {
    program.fd().ok().map(|fd| fd.as_fd().as_raw_fd())
}

fn not_loaded() -> std::io::Error {
    std::io::Error::from(std::io::ErrorKind::NotFound)
}

/// The descriptors of the object's maps but the ring, which leaves with its [`Events`]. The others live in the probe.
fn map_descriptors(ebpf: &Ebpf) -> Vec<(&'static str, RawFd)> {
    let descriptor = |name| match ebpf.map(name)? {
        Map::Array(map) | Map::HashMap(map) | Map::LruHashMap(map) | Map::PerCpuArray(map) => {
            Some((name, map.fd().as_fd().as_raw_fd()))
        }
        _ => None,
    };
    maps::ALL.into_iter().filter_map(descriptor).collect()
}
