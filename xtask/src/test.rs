//! `cargo xtask test`: everything that has to hold, in one command. In: a clone. Out: exit code 0 when all of it holds,
//! a time budget, and cargo test's own closing line.
//!
//! Every part runs even when an earlier one failed, so that one run tells all; only what is built on a failed build is
//! skipped, and counts as failed. Nothing is left out silently: what a machine cannot run fails here, with the reason.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build_ebpf, drill,
    setup::{self, Requirement},
};

/// What the whole is meant to take on two cores, from a fresh clone.
const BUDGET: Duration = Duration::from_secs(25 * 60);

/// Beside one run of every scenario that the lab has: enough to see that it works. Claims about figures need
/// `cargo xtask drill --runs 100`.
const DRILLS: [&[&str]; 5] = [
    &["refused", "scale-to-zero", "--runs", "3"],
    &["scale-to-zero", "--agents", "off", "--runs", "3"],
    &["refused", "--shape", "workshop", "--runs", "3"],
    &["refused", "--rate", "100", "--runs", "2"],
    &["refused", "--nodes", "2"],
];

/// Tests that need root, in the order in which they run: package, target, and the part that they belong to.
const PRIVILEGED: [(&str, &str, Rooted); 7] = [
    ("probe-agent", "kernel", Rooted::Kernel),
    ("probe-agent", "agent", Rooted::Kernel),
    ("cli", "node", Rooted::Kernel),
    ("cli", "cluster", Rooted::Kernel),
    ("lab", "world", Rooted::World),
    // With the programs that the drills have just built: interrupted, told to end twice, panicking; and started again.
    ("lab", "drill", Rooted::Drills),
    ("lab", "restart", Rooted::Drills),
];

/// Parts that run tests as root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rooted {
    Kernel,
    World,
    Drills,
}

/// The packages that are checked alone: a workspace build unifies features and hides a manifest that lacks one.
const ALONE: [&[&str]; 11] = [
    &["-p", "probe-common"],
    &["-p", "probe-common", "--features", "abi"],
    &["-p", "probe-common", "--features", "wire"],
    &["-p", "probe-common", "--features", "admin"],
    &["-p", "probe-ebpf"],
    &["-p", "probe-agent"],
    &["-p", "controller-core"],
    &["-p", "controller"],
    &["-p", "cli"],
    &["-p", "lab"],
    &["-p", "xtask"],
];

/// The version whose verdict is known; a newer one may know more lints.
const CARGO_DENY: &str = "0.20.2";

/// The embedded API server's test drives it with the real client, and the manifests are rendered by it.
const KUBECTL: Requirement = Requirement {
    what: "kubectl, which renders the manifests and asks the embedded API server",
    found: || setup::on_path("kubectl").is_some(),
    packages: &["kubernetes-client"],
    otherwise: "install kubectl",
};

struct Part {
    name: &'static str,
    run: fn() -> Result<()>,
}

const PARTS: [Part; 11] = [
    Part { name: "set-up", run: set_up },
    Part { name: "format", run: || cargo(&["fmt", "--all", "--check"]) },
    Part { name: "build-ebpf", run: || cargo(&["xtask", "build-ebpf"]) },
    Part { name: "clippy", run: clippy },
    Part { name: "each crate alone", run: each_alone },
    Part { name: "unit and property tests", run: || cargo(&["test", "--locked", "--workspace"]) },
    Part { name: "kernel tests", run: kernel_tests },
    Part { name: "world tests", run: world_tests },
    Part { name: "drills", run: drills },
    Part { name: "counts and metrics", run: counts_and_metrics },
    Part { name: "licences, bans, sources", run: deny },
];

/// Runs every part.
///
/// # Errors
///
/// When any part failed; it names them.
#[expect(clippy::disallowed_methods, reason = "this chore is an edge: it measures its own parts")]
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    let mut took = Vec::new();
    for part in &PARTS {
        println!("\n=== {}", part.name);
        let from = Instant::now();
        let outcome = (part.run)();
        if let Err(error) = &outcome {
            println!("=== {}: FAILED: {error:#}", part.name);
        }
        took.push((part.name, from.elapsed(), outcome.is_ok()));
    }
    print_budget(&took, started.elapsed());
    let failed: Vec<_> = took.iter().filter(|(_, _, passed)| !passed).map(|(name, ..)| *name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    // The smallest package's tests again, so that the last line is a test runner's own; its doc tests are none.
    cargo(&["test", "--locked", "--quiet", "-p", "probe-common", "--features", "abi,wire", "--lib"])
}

fn print_budget(took: &[(&str, Duration, bool)], total: Duration) {
    println!("\n=== time budget");
    for (name, span, passed) in took {
        println!("{:>6.1} s  {}{name}", span.as_secs_f64(), if *passed { "" } else { "FAILED " });
    }
    let verdict = if total <= BUDGET { "within" } else { "over" };
    println!(
        "{:>6.1} s  in all, {verdict} the {} minutes that are aimed at\n",
        total.as_secs_f64(),
        BUDGET.as_secs() / 60
    );
}

fn cargo(arguments: &[&str]) -> Result<()> {
    command("cargo", arguments)
}

fn command(program: &str, arguments: &[&str]) -> Result<()> {
    println!("$ {program} {}", arguments.join(" "));
    let status = Command::new(program).args(arguments).status().with_context(|| format!("start {program}"))?;
    if !status.success() {
        bail!("{program} {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}

fn set_up() -> Result<()> {
    setup::ensure(&drill::TOOLS)?;
    setup::ensure(&[KUBECTL])
}

fn clippy() -> Result<()> {
    cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"])
}

fn each_alone() -> Result<()> {
    for package in ALONE {
        cargo(&[&["check", "--locked", "--quiet"], package].concat())?;
    }
    Ok(())
}

/// Tests that need root: each target by itself, one test at a time, since they measure or count what is there. Every target
/// runs even when an earlier one failed.
fn privileged(part: Rooted) -> Result<()> {
    let mut failed = Vec::new();
    for (package, target, _) in PRIVILEGED.iter().filter(|(.., of)| *of == part) {
        let line = ["test", "--locked", "-p", package, "--test", target, "--", "--ignored", "--test-threads", "1"];
        if let Err(error) = cargo(&line) {
            println!("=== {error:#}");
            failed.push(*target);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn kernel_tests() -> Result<()> {
    privileged(Rooted::Kernel)
}

fn world_tests() -> Result<()> {
    privileged(Rooted::World)
}

fn drills() -> Result<()> {
    drill::build_kernel_programs()?;
    let lab = drill::build_programs()?.join("splitsecond-lab");
    let scenarios = drill::scenarios(&lab)?;
    let every: Vec<&str> = scenarios.iter().map(String::as_str).collect();
    let mut failed = Vec::new();
    for drill in std::iter::once(every.as_slice()).chain(DRILLS) {
        if let Err(error) = cargo(&[&["xtask", "drill"], drill].concat()) {
            println!("=== {error:#}");
            failed.push(drill.join(" "));
        }
    }
    let tests = privileged(Rooted::Drills);
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    tests
}

/// The agents' counts have to be the truth, and what both binaries answer at /metrics has to pass Prometheus' own check.
fn counts_and_metrics() -> Result<()> {
    let folder = build_ebpf::target_folder()?.join("bench");
    let to = folder.to_str().context("the target folder's path is no text")?;
    cargo(&["xtask", "bench", "loss", "--metrics-to", to])?;
    let promtool = promtool()?;
    for exposition in ["agent.metrics", "controller.metrics"] {
        let path = folder.join(exposition);
        let file = std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
        println!("$ {} check metrics < {}", promtool.display(), path.display());
        let status =
            Command::new(&promtool).args(["check", "metrics"]).stdin(file).status().context("start promtool")?;
        if !status.success() {
            bail!("promtool rejects {}", path.display());
        }
    }
    Ok(())
}

/// Debian has promtool only in the package of the server, whose installation would start one: it is unpacked instead.
fn promtool() -> Result<PathBuf> {
    if let Some(promtool) = setup::on_path("promtool") {
        return Ok(promtool);
    }
    let folder = build_ebpf::target_folder()?.join("tools");
    let promtool = folder.join("usr/bin/promtool");
    if !promtool.is_file() {
        if !setup::can_install() {
            return Err(setup::Missing::new("promtool is missing: install Prometheus' command line tools").into());
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        println!("Unpacking promtool from Debian's package prometheus into {}", folder.display());
        setup::run(Command::new("apt-get").args(["update", "--quiet=2"]))?;
        setup::run(Command::new("apt-get").args(["download", "--quiet=2", "prometheus"]).current_dir(&folder))?;
        unpack(&folder)?;
    }
    Ok(promtool)
}

fn unpack(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "deb") {
            setup::run(Command::new("dpkg").arg("--extract").arg(&path).arg(folder))?;
        }
    }
    Ok(())
}

fn deny() -> Result<()> {
    if setup::on_path("cargo-deny").is_none() {
        println!("Installing cargo-deny with cargo");
        cargo(&["install", "--locked", "cargo-deny", "--version", CARGO_DENY])?;
    }
    command("cargo", &["deny", "--locked", "check", "bans", "licenses", "sources"])?;
    println!(
        "Advisories are left out: their database is not in a registry. Where it can be fetched: cargo deny check advisories"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files in `tests/` folders that have a test for root only, as package folder and target.
    fn targets_for_root() -> Vec<(String, String)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
        let mut found = Vec::new();
        for package in ["probe-common", "probe-agent", "controller/core", "controller", "cli", "lab", "xtask"] {
            let Ok(entries) = std::fs::read_dir(root.join(package).join("tests")) else { continue };
            for entry in entries {
                let path = entry.expect("is readable").path();
                let target = path.file_stem().expect("has a name").to_string_lossy().into_owned();
                let is_for_root = text_of(&path).contains("ignore = \"needs root");
                if is_for_root && !found.contains(&(package.to_owned(), target.clone())) {
                    found.push((package.to_owned(), target));
                }
            }
        }
        found
    }

    /// A target's file, or all files of its folder of modules.
    fn text_of(path: &Path) -> String {
        if path.is_file() {
            return std::fs::read_to_string(path).expect("is readable");
        }
        let entries = std::fs::read_dir(path).expect("is readable");
        entries.map(|entry| text_of(&entry.expect("is readable").path())).collect()
    }

    #[test]
    fn no_test_for_root_is_left_out() {
        let mut found = targets_for_root();
        let mut run: Vec<_> =
            PRIVILEGED.iter().map(|(package, target, _)| ((*package).to_owned(), (*target).to_owned())).collect();
        found.sort();
        run.sort();
        assert_eq!(run, found);
    }
}
