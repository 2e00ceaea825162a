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

/// Checks of this process' capabilities.
pub(super) fn category() -> Category {
    let effective = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(effective);
    let checks = match effective {
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

/// The set that counts when a system call asks.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
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
    fn the_effective_set_is_read() {
        assert_eq!(
            effective("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001c000000000\n"),
            Some(0x1c0_0000_0000)
        );
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
