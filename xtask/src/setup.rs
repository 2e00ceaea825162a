//! What a chore needs of the machine in, a machine that has it (or a sentence saying what to do) out.
//!
//! Packages are installed on Debian, as root, and nowhere else: on another machine the commands are printed for its
//! owner to run. Nothing is installed that was not missing.

use std::{
    env, fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

/// Something that a chore needs.
pub(crate) struct Requirement {
    /// As a person calls it.
    pub(crate) what: &'static str,
    /// Whether it is there. Asked again after an installation.
    pub(crate) found: fn() -> bool,
    /// Debian's packages that bring it.
    pub(crate) packages: &'static [&'static str],
    /// What to do on a machine that is not Debian's.
    pub(crate) otherwise: &'static str,
}

/// Something is missing, and cannot be installed here. The process ends with its own exit code.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl Missing {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Sees to it that all of them are there; installs what is missing where that is possible.
pub(crate) fn ensure(requirements: &[Requirement]) -> anyhow::Result<()> {
    let missing = || requirements.iter().filter(|requirement| !(requirement.found)());
    let packages: Vec<&str> = missing().flat_map(|requirement| requirement.packages.iter().copied()).collect();
    if missing().next().is_none() {
        return Ok(());
    }
    if can_install() {
        let names: Vec<&str> = missing().map(|requirement| requirement.what).collect();
        eprintln!("Installing {} with apt-get: {}", names.join(", "), packages.join(" "));
        install(&packages)?;
    }
    let left: Vec<String> = missing()
        .map(|requirement| {
            let packages = requirement.packages.join(" ");
            format!(
                "{} is missing.\n  Debian: apt-get install {packages}\n  elsewhere: {}",
                requirement.what, requirement.otherwise
            )
        })
        .collect();
    if left.is_empty() { Ok(()) } else { Err(Missing::new(left.join("\n")).into()) }
}

/// Whether packages can be installed without asking anybody.
pub(crate) fn can_install() -> bool {
    is_debian() && is_root() && on_path("apt-get").is_some()
}

/// Where a program is, by the search path and cargo's own folder.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(cargo_bin()).map(|folder| folder.join(program)).find(|file| is_executable(file))
}

/// Where `cargo install` puts programs.
pub(crate) fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    home.map(|home| home.join("bin"))
}

/// Runs a program to its end; an error names it and what it was told.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    anyhow::ensure!(status.success(), "{name} ended with {status}");
    Ok(())
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command)
    };
    apt(&["update", "--quiet=2"])?;
    let arguments = ["install", "--yes", "--quiet=2", "--no-install-recommends"];
    apt(&[&arguments, packages].concat())
}

fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| text.lines().any(|line| line == "ID=debian"))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_needs_nothing() {
        let there = Requirement { what: "this", found: || true, packages: &["no-such-package"], otherwise: "" };
        ensure(&[there]).expect("is there");
    }

    #[test]
    fn a_program_is_found_by_name() {
        assert!(on_path("sh").is_some());
        assert!(on_path("no-such-program-anywhere").is_none());
    }
}
