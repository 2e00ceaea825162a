//! The kernel: its version, its type information, its tracepoints. In: uname and /sys. Out: checks.

use std::fs;
use std::io;
use std::path::Path;

use probe_common::abi::programs;

use super::report::{Category, Check};

/// The oldest kernel that the project names; older ones may do, and nobody has tried.
const OLDEST: (u32, u32) = (6, 1);

/// Where the kernel describes its own types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Checks of the kernel.
pub(super) fn category() -> Category {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut checks = vec![version(&release)];
    let types = fs::read(Path::new(BTF));
    checks.push(type_information(types.as_deref()));
    if let Ok(types) = &types {
        // A program on a tracepoint has the tracepoint's name.
        checks.extend(programs::ALL.map(|tracepoint| has_tracepoint(types, tracepoint)));
    }
    Category::new("kernel", checks)
}

fn version(release: &str) -> Check {
    let description = format!("Linux {release} is {}.{} or later", OLDEST.0, OLDEST.1);
    match parse(release) {
        Some(version) if version >= OLDEST => Check::passed(description),
        Some(_) => Check::warned(
            description,
            "it is older than any kernel that was tried",
            "see whether the probe loads, below",
        ),
        None => Check::warned(description, "its version cannot be read", "see whether the probe loads, below"),
    }
}

/// Major and minor number.
pub(super) fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|sign: char| !sign.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn type_information(types: Result<&[u8], &io::Error>) -> Check {
    let description = "kernel describes its types (BTF)";
    match types {
        Ok(types) => Check::passed(format!("{description}: {} KiB", types.len() / 1024)),
        Err(error) => Check::failed(
            description,
            format!("{BTF}: {error}"),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF, as current distributions have; in a container, mount /sys",
        ),
    }
}

/// BTF has a type `btf_trace_NAME` for each tracepoint that programs can be attached to, by name in its strings, which end
/// in a zero byte (`__BPF_DECLARE_TRACE` in <https://github.com/torvalds/linux/blob/v6.12/include/trace/bpf_probe.h>).
fn has_tracepoint(types: &[u8], tracepoint: &str) -> Check {
    let description = format!("tracepoint {tracepoint} is there");
    let wanted = format!("\0btf_trace_{tracepoint}\0");
    if types.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
        return Check::passed(description);
    }
    let (major, minor) = OLDEST;
    Check::failed(
        description,
        "the kernel's type information does not name it",
        format!("use Linux {major}.{minor} or later, built with CONFIG_BPF_EVENTS"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_compared_by_its_numbers() {
        let check = |release, version| assert_eq!(parse(release), version, "{release}");
        check("6.18.0", Some((6, 18)));
        check("6.1.0-28-cloud-amd64", Some((6, 1)));
        check("5.10", Some((5, 10)));
        check("6", None);
        check("strange", None);
        assert_eq!(version("6.1.0"), Check::passed("Linux 6.1.0 is 6.1 or later"));
        assert_ne!(version("5.15.0"), Check::passed("Linux 5.15.0 is 6.1 or later"));
    }

    #[test]
    fn a_tracepoint_is_a_whole_name() {
        let types = b"\0int\0btf_trace_inet_sock_set_state\0btf_trace_tcp_destroy_sockets\0";
        let is_there = |name| has_tracepoint(types, name) == Check::passed(format!("tracepoint {name} is there"));
        assert!(is_there("inet_sock_set_state"));
        assert!(!is_there("tcp_destroy_sock"));
        assert!(!is_there("sock_set_state"));
    }
}
