//! Finds a compiler with the sources of `core`, and the bpf-linker that goes with it; installs Debian's where it may.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::setup::{self, Missing, Requirement};

/// Debian's LLVM, which bpf-linker links against. Without the prefix its build finds another version's folder.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";

const OTHERWISE: &str = "rustup toolchain install nightly --component rust-src && cargo install bpf-linker";

/// Debian 12's security updates carry a compiler with its library's sources, and the LLVM it was built with.
const DEBIAN: Requirement = Requirement {
    what: "a Rust compiler with the sources of core",
    found: || Toolchain::in_folder(Path::new("/usr")).is_some(),
    packages: &["rustc-web", "cargo-web", "rust-web-src"],
    otherwise: OTHERWISE,
};

const LLVM: Requirement = Requirement {
    what: "LLVM 22's library",
    found: || Path::new(LLVM_PREFIX).join("bin/llvm-config").exists(),
    packages: &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"],
    otherwise: OTHERWISE,
};

/// A compiler that can build `core`.
pub(super) struct Toolchain {
    pub(super) cargo: PathBuf,
    pub(super) rustc: PathBuf,
    /// As the compiler calls itself.
    pub(super) version: String,
}

impl Toolchain {
    /// The chosen one, or the first that will do.
    pub(super) fn find(chosen: Option<&str>) -> anyhow::Result<Self> {
        if let Some(name) = chosen {
            let found = if name.contains('/') { Self::in_folder(Path::new(name)) } else { Self::of_rustup(name) };
            return found.ok_or_else(|| {
                let text = format!("{name} is no toolchain with cargo, rustc and rust-src.\n  Try: {OTHERWISE}");
                Missing::new(text).into()
            });
        }
        if let Some(found) = rustup_toolchains().iter().find_map(|name| Self::of_rustup(name)) {
            return Ok(found);
        }
        setup::ensure(&[DEBIAN])?;
        Self::in_folder(Path::new("/usr")).context("the compiler vanished after it was found")
    }

    fn of_rustup(name: &str) -> Option<Self> {
        let rustc = output(Command::new("rustup").args(["which", "--toolchain", name, "rustc"]))?;
        Self::in_folder(Path::new(&rustc).parent()?.parent()?)
    }

    /// The toolchain of that folder, when it is whole.
    fn in_folder(folder: &Path) -> Option<Self> {
        let (cargo, rustc) = (folder.join("bin/cargo"), folder.join("bin/rustc"));
        let root = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let sources = Path::new(&root).join("lib/rustlib/src/rust/library/core/src/lib.rs");
        let version = output(Command::new(&rustc).arg("--version"))?;
        (cargo.is_file() && sources.is_file()).then_some(Self { cargo, rustc, version })
    }
}

/// Names of installed toolchains, nightly ones first: those of BPF users usually have rust-src.
fn rustup_toolchains() -> Vec<String> {
    let list = output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let mut names: Vec<String> =
        list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    names.sort_by_key(|name| !name.starts_with("nightly"));
    names
}

/// The linker, installed when it is missing.
pub(super) fn linker(toolchain: &Toolchain) -> anyhow::Result<PathBuf> {
    if let Some(found) = setup::on_path(LINKER) {
        return Ok(found);
    }
    if !setup::can_install() {
        return Err(Missing::new(format!("{LINKER} is missing.\n  Try: cargo install {LINKER}")).into());
    }
    setup::ensure(&[LLVM])?;
    eprintln!("Installing {LINKER} {LINKER_VERSION} with cargo");
    // The cargo that runs us: Debian's would do, but need not be the compiler that was chosen.
    let cargo = setup::on_path("cargo").unwrap_or_else(|| toolchain.cargo.clone());
    setup::run(
        Command::new(cargo)
            .args(["install", LINKER, "--version", LINKER_VERSION, "--locked", "--quiet"])
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", LLVM_PREFIX)
            // Its own folder: the one of a workspace build that runs us may be locked.
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    setup::on_path(LINKER).with_context(|| format!("cargo installed {LINKER} into a folder that is not searched"))
}

/// What a program printed, if it could be run and ended well.
fn output(command: &mut Command) -> Option<String> {
    let output = command.env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
