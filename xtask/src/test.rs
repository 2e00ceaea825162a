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

/// Each scenario with few runs: enough to see that it works. Claims about figures need `cargo xtask drill --runs 20`.
const DRILLS: [&[&str]; 5] = [
    &["refused", "process-killed", "blackhole", "noise", "failback", "--runs", "2"],
    &["scale-to-zero", "--runs", "3"],
    &["scale-to-zero", "--agents", "off", "--runs", "3"],
    &["refused", "--shape", "workshop", "--runs", "3"],
    &["refused", "--rate", "100", "--runs", "2"],
];

/// The packages that are checked alone: a workspace build unifies features and hides a manifest that lacks one.
const ALONE: [&[&str]; 10] = [
    &["-p", "probe-common"],
    &["-p", "probe-common", "--features", "abi"],
    &["-p", "probe-common", "--features", "wire"],
    &["-p", "probe-common", "--features", "admin"],
    &["-p", "probe-ebpf"],
    &["-p", "probe-agent"],
    &["-p", "controller-core"],
    &["-p", "controller"],
    &["-p", "lab"],
    &["-p", "xtask"],
];

/// The version whose verdict is known; a newer one may know more lints.
const CARGO_DENY: &str = "0.20.2";

/// The embedded API server's test drives it with the real client.
const KUBECTL: Requirement = Requirement {
    what: "kubectl, which the embedded API server is tested with",
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

/// Tests that need root: each of a target of its own, one test at a time, since they measure or count what is there.
fn privileged(package: &str, target: &str) -> Result<()> {
    cargo(&["test", "--locked", "-p", package, "--test", target, "--", "--ignored", "--test-threads", "1"])
}

fn kernel_tests() -> Result<()> {
    privileged("probe-agent", "kernel")?;
    privileged("probe-agent", "agent")
}

fn world_tests() -> Result<()> {
    privileged("lab", "world")
}

fn drills() -> Result<()> {
    for drill in DRILLS {
        cargo(&[&["xtask", "drill"], drill].concat())?;
    }
    // Interrupted, told to end twice, panicking: with the programs that the drills have just built.
    privileged("lab", "drill")
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
