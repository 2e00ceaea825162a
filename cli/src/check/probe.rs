//! The probe: loaded, attached, asked what it takes, unloaded. In: the agent's settings. Out: a check for each step.

use std::error::Error;
use std::io;

use probe_agent::kernel::{LoadError, Probe, Settings};
use probe_common::abi::programs;
use rustix::process::{Resource, getrlimit};

use super::kernel;
use super::report::{Category, Check, chain};
use super::rights::Rights;

/// From here on the kernel charges maps to the memory cgroup and not to RLIMIT_MEMLOCK
/// (<https://github.com/torvalds/linux/commit/97306be45fbe>).
const CHARGED_TO_CGROUP: (u32, u32) = (5, 11);

/// One step of loading, in the order in which the agent takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Embedded,
    Members,
    Maps,
    Load(&'static str),
    Attach(&'static str),
}

impl Step {
    fn all() -> Vec<Self> {
        let first = [Self::Embedded, Self::Members, Self::Maps];
        let load = programs::ALL.map(Self::Load);
        let attach = programs::ALL.map(Self::Attach);
        [first.as_slice(), &load, &attach].concat()
    }

    /// At which step loading ended.
    fn of(error: &LoadError) -> Self {
        match error {
            LoadError::NotBuilt => Self::Embedded,
            LoadError::Btf { .. } | LoadError::BtfFormat { .. } | LoadError::Member { .. } => Self::Members,
            LoadError::Program { program, .. } => Self::Load(program),
            LoadError::Attach { program, .. } => Self::Attach(program),
            LoadError::Missing { name } if programs::ALL.contains(name) => Self::Load(name),
            // Sizes, making, form and first value of maps.
            _ => Self::Maps,
        }
    }

    fn description(self) -> String {
        match self {
            Self::Embedded => "this program carries the probe".to_owned(),
            Self::Members => "kernel's structures are as the probe reads them".to_owned(),
            Self::Maps => "maps can be made".to_owned(),
            Self::Load(program) => format!("program {program} loads"),
            Self::Attach(program) => format!("program {program} attaches"),
        }
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::Embedded => "cargo xtask build-ebpf, then build again",
            Self::Members => "use a kernel that describes its types (BTF), Linux 6.1 or later",
            Self::Maps => "see the rights above, and the memory limit of this container",
            Self::Load(_) | Self::Attach(_) => {
                "see the rights above; with all of them, a security policy (seccomp, AppArmor, SELinux, lockdown) may forbid it"
            }
        }
    }
}

/// What to do where a filter of system calls stands before the kernel.
const FILTERED_HINT: &str = "the capabilities are there, and a seccomp filter is on: older default profiles (CRI-O, Podman, containerd \
                             before 1.7) allow bpf() to CAP_SYS_ADMIN only; use deploy/components/agent-seccomp-unconfined, \
                             or a profile that allows bpf()";

/// Tries it.
pub(super) fn category(settings: &Settings, rights: &Rights) -> Category {
    let checks = match Probe::load(settings) {
        Ok(probe) => {
            let mut checks = steps(None, rights);
            checks.push(memory(&probe));
            checks
        }
        Err(error) => steps(Some(&error), rights),
    };
    Category::new("probe", checks)
}

fn steps(error: Option<&LoadError>, rights: &Rights) -> Vec<Check> {
    let steps = Step::all();
    let ended = error.and_then(|error| steps.iter().position(|step| *step == Step::of(error)));
    let check = |(index, step): (usize, &Step)| match (error, ended) {
        (Some(error), Some(ended)) if index == ended => {
            let is_denied = matches!(step, Step::Maps | Step::Load(_) | Step::Attach(_)) && is_denied(error);
            let hint = if is_denied && rights.may_be_filtered() { FILTERED_HINT } else { step.hint() };
            Check::failed(step.description(), chain(error), hint)
        }
        (Some(_), Some(ended)) if index > ended => Check::not_tried(step.description(), &steps[ended].description()),
        _ => Check::passed(step.description()),
    };
    steps.iter().enumerate().map(check).collect()
}

/// Whether the system said no, anywhere in the chain of causes.
fn is_denied(error: &(dyn Error + 'static)) -> bool {
    let is_no = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    error.downcast_ref::<io::Error>().is_some_and(is_no) || error.source().is_some_and(is_denied)
}

fn memory(probe: &Probe) -> Check {
    let version = kernel::parse(&rustix::system::uname().release().to_string_lossy());
    match probe.memory_bytes() {
        Ok(bytes) => room(bytes, version, getrlimit(Resource::Memlock).current),
        Err(error) => Check::warned("kernel memory of maps and programs is known", chain(&error), "mount /proc"),
    }
}

/// What it took is there: it was loaded. Whoever sets limits wants to know how much, and which limit it counts against.
fn room(bytes: u64, version: Option<(u32, u32)>, memlock: Option<u64>) -> Check {
    let description = format!("maps and programs fit: {} KiB of kernel memory", bytes / 1024);
    if version.is_some_and(|version| version >= CHARGED_TO_CGROUP) {
        return Check::passed(format!("{description}, charged to the memory cgroup"));
    }
    match memlock {
        Some(limit) if limit < bytes.saturating_mul(2) => Check::warned(
            format!("{description}, of {} KiB that may be locked", limit / 1024),
            "less than twice as much may be locked: an agent that restarts may not fit beside what is being freed",
            "raise RLIMIT_MEMLOCK, or use Linux 5.11 or later, which charges the memory cgroup",
        ),
        _ => Check::passed(format!("{description}, charged to RLIMIT_MEMLOCK")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(error: Option<&LoadError>) -> Vec<String> {
        let report = super::super::Report::new(vec![Category::new("probe", steps(error, &Rights::own()))]).json();
        let checks = report["categories"][0]["checks"].as_array().expect("a list").clone();
        checks.iter().map(|check| format!("{} {}", check["result"], check["error"])).collect()
    }

    #[test]
    fn what_came_before_the_failure_passed_and_what_came_after_was_not_tried() {
        let all = Step::all().len();
        assert!(results(None).iter().all(|result| result == "\"success\" null"));
        let member = LoadError::Member { member: "sock.sk".to_owned(), reason: "it is not there" };
        let found = results(Some(&member));
        assert_eq!(found.len(), all);
        assert_eq!(found[0], "\"success\" null");
        assert_eq!(found[1], "\"error\" \"this kernel has no usable sock.sk: it is not there\"");
        assert!(found[2..].iter().all(|result| result == "\"error\" \"not tried\""), "{found:?}");
    }

    #[test]
    fn each_program_is_its_own_step() {
        let missing = LoadError::Missing { name: programs::ALL[1] };
        let found = results(Some(&missing));
        let passed = found.iter().filter(|result| result.starts_with("\"success\"")).count();
        assert_eq!(passed, 4, "carried, structures, maps and the first program: {found:?}");
        let map = LoadError::Missing { name: "HOT" };
        assert_eq!(Step::of(&map), Step::Maps);
    }

    #[test]
    fn memory_counts_against_the_limit_that_the_kernel_uses() {
        let is_passed = |check: Check| format!("{check:?}").contains("Passed");
        assert!(is_passed(room(8 << 20, Some((6, 18)), Some(64 << 10))), "the limit does not count");
        assert!(!is_passed(room(8 << 20, Some((5, 10)), Some(9 << 20))));
        assert!(is_passed(room(8 << 20, Some((5, 10)), None)), "no limit");
    }
}
