//! Empty on purpose: the programs are in the binary target, which only `cargo xtask build-ebpf` builds.
//! The library target lets host builds check this package and keeps it in the workspace's one lock file.
#![no_std]
