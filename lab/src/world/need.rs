//! What a machine must have before a world can be built on it. In: this machine. Out: one clear sentence per lack.
//! Nothing is installed or changed here.

use std::path::Path;

use super::{cgroup, tool};

/// The programs that the world starts, and the Debian package each comes from.
const TOOLS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
];

/// One sentence for each thing that this machine lacks; empty when a world can be built.
#[must_use]
pub fn lacks() -> Vec<String> {
    let mut lacks = Vec::new();
    if !rustix::process::geteuid().is_root() {
        lacks.push("The lab makes network namespaces and loads eBPF programs, which needs root.".to_owned());
    }
    if cgroup::mount_point().is_err() {
        lacks.push("No cgroup2 file system is mounted, and a node is a cgroup2 directory.".to_owned());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        lacks.push("The kernel has no BTF (/sys/kernel/btf/vmlinux), which the agent's programs need.".to_owned());
    }
    for (name, package) in TOOLS {
        if !tool::exists(name) {
            lacks.push(format!("The program {name} is missing (Debian package {package})."));
        }
    }
    if lacks.is_empty() && tool::run("nft", &["list", "tables"], "").is_err() {
        lacks.push("The kernel has no nf_tables, with which nodes translate ClusterIPs and paths break.".to_owned());
    }
    lacks
}
