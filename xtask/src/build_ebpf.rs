//! `cargo xtask build-ebpf`: the kernel programs' sources in, `<target>/ebpf/probe.o` out, checked.
//!
//! The BPF target has no prebuilt `core`, so that the compiler has to come with the library's sources, and bpf-linker has
//! to match its LLVM. This finds such a pair, or installs Debian's; then builds, checks the object and says what is in
//! it. Cargo decides whether anything has to be compiled. The agent embeds the object at its next build.

mod object;
mod toolchain;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::setup;
use toolchain::Toolchain;

/// What rustc is told beside the linker. BTF makes tracepoint arguments and socket storage possible; v3 of the
/// instruction set (Linux 5.12) has the atomic instructions that the programs use.
const RUSTC_FLAGS: [&str; 3] = ["-Clink-arg=--btf", "-Cdebuginfo=2", "-Ctarget-cpu=v3"];

const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Settings of the cargo or rustup that runs us, which must not reach the one that builds for BPF.
const OTHERS: [&str; 9] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// Build the kernel programs into <target>/ebpf/probe.o and check them.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compiler to use: a rustup toolchain that has rust-src, or a folder with bin/cargo and bin/rustc (say, /usr).
    /// Without it: any rustup toolchain with rust-src, then Debian's rustc-web, which is installed when it is missing.
    #[arg(long, env = "SPLITSECOND_BPF_TOOLCHAIN")]
    toolchain: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let toolchain = Toolchain::find(arguments.toolchain.as_deref())?;
    let linker = toolchain::linker(&toolchain)?;
    println!("Compiler: {} ({})", toolchain.version, toolchain.rustc.display());
    println!("Linker:   {}", linker.display());
    let target = target_folder()?;
    let built = build(&toolchain, &linker, &target.join("ebpf-build"))?;
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let contents = object::Contents::read(&bytes).context("the object is not what the agent can load")?;
    let object = target.join("ebpf").join("probe.o");
    place(&bytes, &object)?;
    print!("{contents}");
    println!("Object:   {} ({} KiB)", object.display(), bytes.len() / 1024);
    Ok(())
}

/// Where the agent looks for the object.
pub(crate) fn target_folder() -> anyhow::Result<PathBuf> {
    let program = env::current_exe().context("cannot tell where this program is")?;
    // Cargo marks its target folder with a tag file; this program was built into it.
    let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    target.map(Path::to_owned).context("this program does not lie in a target folder of cargo")
}

/// A target folder of its own, so that this build neither waits for a host build nor disturbs its fingerprints.
fn build(toolchain: &Toolchain, linker: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    let mut flags = OsString::from("-Clinker=");
    flags.push(linker);
    for flag in RUSTC_FLAGS {
        flags.push("\u{1f}");
        flags.push(flag);
    }
    let mut command = Command::new(&toolchain.cargo);
    for name in OTHERS {
        command.env_remove(name);
    }
    command
        .current_dir(root)
        .env("RUSTC", &toolchain.rustc)
        // `-Z build-std` on a stable compiler: the only unstable features are those that every BPF build needs.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .args(["build", "--locked", "--quiet", "--release", "-Z", "build-std=core", "--target", TARGET])
        .args(["--package", "probe-ebpf", "--bin", "probe-ebpf", "--features", "program"])
        .arg("--target-dir")
        .arg(folder);
    setup::run(&mut command)?;
    Ok(folder.join(TARGET).join("release").join("probe-ebpf"))
}

/// Puts the object where the agent's build looks for it; an equal one stays, so that the agent is not rebuilt.
fn place(bytes: &[u8], object: &Path) -> anyhow::Result<()> {
    if fs::read(object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = object.parent().context("the object lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let fresh = object.with_extension("new");
    fs::write(&fresh, bytes).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, object).with_context(|| format!("cannot write {}", object.display()))
}
