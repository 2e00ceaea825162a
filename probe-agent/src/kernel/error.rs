//! What can go wrong at the kernel boundary, by phase. The caller decides who retries.

use std::{io, path::PathBuf};

/// Why the probe could not be loaded. The node is blind until the cause is gone; loading again is always safe.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// build.rs found no object.
    #[error(
        "this agent was built without its kernel programs: run `cargo xtask build-ebpf`, then build the agent again"
    )]
    NotBuilt,
    /// The sizes asked for are not possible.
    #[error("cannot count {hot} destinations of splits: the limit is {limit}", limit = probe_common::abi::HOT_LIMIT)]
    Capacity {
        /// What was asked for.
        hot: u32,
    },
    /// The running kernel's type information cannot be had.
    #[error("cannot read the kernel's type information at {path} (a kernel built with CONFIG_DEBUG_INFO_BTF has it)")]
    Btf {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The type information is not in the form that we know.
    #[error("the kernel's type information is malformed: {reason}")]
    BtfFormat {
        /// What is wrong.
        reason: &'static str,
    },
    /// The running kernel lacks a structure member that the programs read, or has it in another form.
    #[error("this kernel has no usable {member}: {reason}")]
    Member {
        /// `struct.member.member`.
        member: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The object could not be parsed, or its maps could not be made.
    #[error("cannot create the probe's maps{hint}", hint = hint(.source))]
    Maps {
        /// aya's report.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// The object lacks a program or a map: agent and object are of different versions.
    #[error("the probe's object has no {name}: build object and agent from one source")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A map of the object is of another kind than the agent expects.
    #[error("the probe's map {map} has an unexpected form: build object and agent from one source")]
    MapForm {
        /// Its name.
        map: &'static str,
        /// aya's report.
        #[source]
        source: aya::maps::MapError,
    },
    /// The kernel's verifier or its permission check refused a program.
    #[error("the kernel refused program {program}{hint}", hint = hint(.source))]
    Program {
        /// Its name.
        program: &'static str,
        /// aya's report; its Debug form holds the verifier's log.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// The program could not be attached to its tracepoint.
    #[error("cannot attach program {program}{hint}", hint = hint(.source))]
    Attach {
        /// Its name.
        program: &'static str,
        /// aya's report.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A map could not be given its first value.
    #[error("cannot initialise the probe")]
    Start {
        /// What failed.
        #[source]
        source: MapError,
    },
}

/// Why a read or write of a map failed. Reads may be tried again; a lasting failure means that the probe is gone.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// No such map, or it was taken already.
    #[error("the probe has no map {map} (any more)")]
    Missing {
        /// Its name.
        map: &'static str,
    },
    /// The index is beyond the capacity of this load.
    #[error("index {index} is beyond the capacity of {map}")]
    OutOfRange {
        /// Its name.
        map: &'static str,
        /// What was asked for.
        index: u32,
    },
    /// Every place is taken (E2BIG): the map was loaded too small.
    #[error("{map} is full")]
    Full {
        /// Its name.
        map: &'static str,
    },
    /// The key is not there.
    #[error("{map} has no such entry")]
    Unknown {
        /// Its name.
        map: &'static str,
    },
    /// The value changed under every attempt to copy it; the next read will do.
    #[error("index {index} of {map} could not be copied while it stood still")]
    Unsteady {
        /// Its name.
        map: &'static str,
        /// Which.
        index: u32,
    },
    /// The system call failed.
    #[error("cannot access {map}")]
    Access {
        /// Its name.
        map: &'static str,
        /// aya's report.
        #[source]
        source: aya::maps::MapError,
    },
    /// Waiting for the ring failed.
    #[error("cannot wait for {map}")]
    Wait {
        /// Its name.
        map: &'static str,
        /// The system's report.
        #[source]
        source: io::Error,
    },
    /// The kernel's own figures about a program cannot be had.
    #[error("cannot ask the kernel about program {program}")]
    ProgramFigures {
        /// Its name.
        program: &'static str,
        /// The system's report.
        #[source]
        source: io::Error,
    },
}

impl MapError {
    /// Tells what a caller can act on from the rest.
    pub(super) fn access(map: &'static str) -> impl Fn(aya::maps::MapError) -> Self {
        move |source| match &source {
            aya::maps::MapError::OutOfBounds { index, .. } => Self::OutOfRange { map, index: *index },
            aya::maps::MapError::KeyNotFound => Self::Unknown { map },
            aya::maps::MapError::SyscallError(error) => match error.io_error.raw_os_error() {
                Some(code) if code == rustix::io::Errno::TOOBIG.raw_os_error() => Self::Full { map },
                Some(code) if code == rustix::io::Errno::NOENT.raw_os_error() => Self::Unknown { map },
                _ => Self::Access { map, source },
            },
            _ => Self::Access { map, source },
        }
    }
}

/// Why the node's cgroup could not be found. Without it the agent does not attach: it would count other nodes' sockets.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// `/proc/self/mountinfo` names no cgroup2 mount.
    #[error("no cgroup2 file system is mounted here: mount one, or name its root explicitly")]
    NotMounted,
    /// `/proc/self/mountinfo` cannot be read.
    #[error("cannot read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// The root cannot be examined.
    #[error("cannot examine the cgroup root {path}")]
    Root {
        /// Which.
        path: PathBuf,
        /// The system's report.
        #[source]
        source: io::Error,
    },
    /// The path is not in a cgroup2 file system, so that its inode says nothing about sockets.
    #[error("{path} is not in a cgroup2 file system")]
    NotCgroup2 {
        /// Which.
        path: PathBuf,
    },
}

/// A hint for the operator when a permission was missing, found anywhere in the chain of causes.
fn hint(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let denied = error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
        if denied {
            return " (the process needs CAP_BPF and CAP_PERFMON, and a security policy that allows bpf())";
        }
        cause = error.source();
    }
    ""
}
