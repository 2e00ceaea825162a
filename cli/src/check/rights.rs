//! This process' capabilities. In: /proc/self/status. Out: a check for each that an agent has in its manifest.

use std::fs;

use super::report::{Category, Check};

/// A capability that the agent's manifest adds.
struct Capability {
    name: &'static str,
    /// Its bit (<https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/capability.h>).
    bit: u32,
    /// What an agent does with it.
    purpose: &'static str,
    /// Whether an agent cannot count without it.
    is_needed: bool,
}

const CAPABILITIES: [Capability; 3] = [
    Capability { name: "BPF", bit: 39, purpose: "make maps and load programs", is_needed: true },
    Capability { name: "PERFMON", bit: 38, purpose: "attach programs that trace", is_needed: true },
    Capability { name: "NET_ADMIN", bit: 12, purpose: "attach programs that steer", is_needed: false },
];

/// CAP_SYS_ADMIN stands for the first two: it is what they were split from.
const SYS_ADMIN: u32 = 21;

/// Value of `Seccomp:` in /proc/self/status when a filter judges system calls (proc_pid_status(5)).
const FILTERED: &str = "2";

/// What this process may do.
pub(super) struct Rights {
    effective: Option<u64>,
    is_filtered: bool,
}

impl Rights {
    /// This process'.
    pub(super) fn own() -> Self {
        Self::read(&fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn read(status: &str) -> Self {
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let effective = field("CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok());
        Self { effective, is_filtered: field("Seccomp:") == Some(FILTERED) }
    }

    /// Whether the kernel would let it make maps, but a filter stands before the kernel.
    pub(super) fn may_be_filtered(&self) -> bool {
        let may = |bit: u32| self.effective.is_some_and(|effective| effective & (1 << bit) != 0);
        self.is_filtered && CAPABILITIES.iter().filter(|one| one.is_needed).all(|one| may(one.bit) || may(SYS_ADMIN))
    }
}

/// Checks of this process' capabilities.
pub(super) fn category(rights: &Rights) -> Category {
    let checks = match rights.effective {
        Some(effective) => CAPABILITIES.iter().map(|capability| check(capability, effective)).collect(),
        None => vec![Check::failed(
            "this process' capabilities can be read",
            "/proc/self/status does not tell them",
            "mount /proc",
        )],
    };
    Category::new("rights", checks)
}

fn check(capability: &Capability, effective: u64) -> Check {
    let Capability { name, bit, purpose, is_needed } = capability;
    let has = |bit: u32| effective & (1 << bit) != 0;
    let description = format!("CAP_{name}, to {purpose}");
    if has(*bit) {
        return Check::passed(description);
    }
    if *is_needed && has(SYS_ADMIN) {
        return Check::passed(format!("{description}: by CAP_SYS_ADMIN"));
    }
    let error = "this process does not have it";
    let hint = format!(
        "run as uid 0 with it: securityContext.capabilities.add: [{name}] in a manifest, sudo or setpriv in a shell"
    );
    if *is_needed {
        return Check::failed(description, error, hint);
    }
    Check::warned(description, format!("{error}; counting works without it"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(effective: u64) -> Vec<String> {
        let checks = CAPABILITIES.iter().map(|capability| check(capability, effective));
        let category = Category::new("rights", checks.collect());
        let json = super::super::Report::new(vec![category]).json();
        let checks = json["categories"][0]["checks"].as_array().expect("a list").clone();
        checks.iter().map(|check| check["result"].as_str().expect("text").to_owned()).collect()
    }

    #[test]
    fn each_capability_is_judged_by_itself() {
        assert_eq!(outcomes(1 << 39 | 1 << 38 | 1 << 12), ["success", "success", "success"]);
        assert_eq!(outcomes(1 << 39), ["success", "error", "warning"]);
        assert_eq!(outcomes(1 << 38), ["error", "success", "warning"]);
        assert_eq!(outcomes(0), ["error", "error", "warning"]);
        assert_eq!(outcomes(1 << SYS_ADMIN), ["success", "success", "warning"]);
    }

    #[test]
    fn a_filter_is_suspected_where_capabilities_cannot_be_missing() {
        let read = |set: u64, mode: u32| {
            Rights::read(&format!("Name:\tx\nCapPrm:\t0\nCapEff:\t{set:016x}\nSeccomp:\t{mode}\n"))
        };
        assert_eq!(read(1 << 39, 0).effective, Some(1 << 39));
        assert!(Rights::read("Name:\tx\n").effective.is_none());
        assert!(read(1 << 39 | 1 << 38, 2).may_be_filtered());
        assert!(!read(1 << 39 | 1 << 38, 0).may_be_filtered(), "there is no filter");
        assert!(!read(1 << 39, 2).may_be_filtered(), "PERFMON is missing");
    }
}
