//! Object and settings in, attached programs and their maps out.

use aya::{
    Btf, Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf, SkStorage},
    programs::{BtfTracePoint, ProgramError},
};
use probe_common::abi::{Control, HOT_LIMIT, constants, maps, members, programs};

use super::{Exemption, LoadError, MapError, Probe, Settings, btf::Types, map_descriptors};

/// The object that build.rs found. The loader wants it aligned.
#[cfg(probe_object)]
static OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("SPLITSECOND_EMBEDDED_PROBE")));
#[cfg(not(probe_object))]
static OBJECT: Option<&[u8]> = None;

/// What this binary carries.
pub(super) fn embedded() -> Result<&'static [u8], LoadError> {
    OBJECT.ok_or(LoadError::NotBuilt)
}

/// Loads, initialises, attaches: in this order, so that the first event finds everything in place.
pub(super) fn load(object: &[u8], settings: &Settings) -> Result<Probe, LoadError> {
    if settings.hot_capacity > HOT_LIMIT {
        return Err(LoadError::Capacity { hot: settings.hot_capacity });
    }
    let mut ebpf = create_maps(object, settings, &offsets()?)?;
    let mut control: Array<MapData, Control> = array(&mut ebpf, maps::CONTROL)?;
    control
        .set(0, Control { round: 1 }, 0)
        .map_err(|source| LoadError::Start { source: MapError::access(maps::CONTROL)(source) })?;
    let mut probe = Probe {
        settings: *settings,
        round: 1,
        map_descriptors: map_descriptors(&ebpf),
        control,
        destinations: HashMap::try_from(take(&mut ebpf, maps::DESTINATIONS)?).map_err(form(maps::DESTINATIONS))?,
        generations: array(&mut ebpf, maps::GENERATIONS)?,
        hot: per_cpu(&mut ebpf, maps::HOT)?,
        cold: array(&mut ebpf, maps::COLD)?,
        stamps: array(&mut ebpf, maps::STAMPS)?,
        losses: per_cpu(&mut ebpf, maps::LOSSES)?,
        proxy_spaces: HashMap::try_from(take(&mut ebpf, maps::PROXY_SPACES)?).map_err(form(maps::PROXY_SPACES))?,
        proxy_addresses: HashMap::try_from(take(&mut ebpf, maps::PROXY_ADDRESSES)?)
            .map_err(form(maps::PROXY_ADDRESSES))?,
        exemption: Some(Exemption::new(
            SkStorage::try_from(take(&mut ebpf, maps::ATTEMPTS)?).map_err(form(maps::ATTEMPTS))?,
        )),
        events: Some(RingBuf::try_from(take(&mut ebpf, maps::EVENTS)?).map_err(form(maps::EVENTS))?),
        ebpf,
    };
    attach(&mut probe.ebpf)?;
    return_freed_memory();
    Ok(probe)
}

/// The kernel's type information takes tens of MiB while it is read, in small pieces that the allocator would keep: most
/// of the agent's memory, for something that it never does again. A list of a large cluster does the same.
pub fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            /// `malloc_trim(3)`: gives free pages back to the system.
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: may be called at any time, by any thread; it touches free memory only.
        unsafe { malloc_trim(0) };
    }
}

/// Where the running kernel keeps what the programs read, in the order of [`members::ALL`].
fn offsets() -> Result<[u64; members::ALL.len()], LoadError> {
    let types = Types::of_kernel()?;
    let mut offsets = [0; members::ALL.len()];
    for (offset, member) in offsets.iter_mut().zip(&members::ALL) {
        let place = types.member(member.structure, member.path)?;
        if place.size != member.size {
            let member = format!("{}.{}", member.structure, member.path);
            return Err(LoadError::Member { member, reason: "it has another size than the probe expects" });
        }
        *offset = place.offset;
    }
    Ok(offsets)
}

fn create_maps(object: &[u8], settings: &Settings, offsets: &[u64]) -> Result<Ebpf, LoadError> {
    let Settings { node_cgroup, hot_capacity, cold_capacity, proxy_uid } = settings;
    let all = hot_capacity + cold_capacity;
    let mut loader = EbpfLoader::new();
    for (member, offset) in members::ALL.iter().zip(offsets) {
        loader.override_global(member.constant, offset, true);
    }
    loader
        .override_global(constants::NODE_CGROUP, node_cgroup, true)
        .override_global(constants::HOT_CAPACITY, hot_capacity, true)
        .override_global(constants::COLD_CAPACITY, cold_capacity, true)
        .override_global(constants::PROXY_UID, proxy_uid, true)
        // The kernel makes no empty maps; an index beyond the capacity is refused before it is assigned.
        .map_max_entries(maps::HOT, (*hot_capacity).max(1))
        .map_max_entries(maps::COLD, (*cold_capacity).max(1))
        .map_max_entries(maps::GENERATIONS, all.max(1))
        .map_max_entries(maps::DESTINATIONS, all.max(1));
    loader.load(object).map_err(|source| LoadError::Maps { source: Box::new(source) })
}

fn attach(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let refused = |program| move |source: ProgramError| LoadError::Program { program, source: Box::new(source) };
    let btf = Btf::from_sys_fs().map_err(|source| LoadError::Maps { source: Box::new(source.into()) })?;
    for name in programs::ALL {
        tracepoint(ebpf, name)?.load(name, &btf).map_err(refused(name))?;
    }
    for name in programs::ALL {
        let attached = tracepoint(ebpf, name)?.attach();
        attached.map_err(|source| LoadError::Attach { program: name, source: Box::new(source) })?;
    }
    Ok(())
}

fn tracepoint<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut BtfTracePoint, LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing { name })?;
    program.try_into().map_err(|source| LoadError::Program { program: name, source: Box::new(source) })
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Missing { name })
}

fn form(map: &'static str) -> impl Fn(aya::maps::MapError) -> LoadError {
    move |source| LoadError::MapForm { map, source }
}

fn array<T: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Array<MapData, T>, LoadError> {
    Array::try_from(take(ebpf, name)?).map_err(form(name))
}

fn per_cpu<T: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<PerCpuArray<MapData, T>, LoadError> {
    PerCpuArray::try_from(take(ebpf, name)?).map_err(form(name))
}
