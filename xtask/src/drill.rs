//! `cargo xtask drill`: a clone in, a drill out. Sees to the system's tools, builds the kernel programs, the *release*
//! agent, controller and lab, and becomes the lab: from there on arguments, output, signals and exit code are the lab's.
//!
//! The lab alone knows its arguments. Where an earlier build of it is still of today's source, it is asked first: what is
//! wrong with them, and `--help`, need no build.

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::Context as _;

use crate::{
    build_ebpf,
    setup::{self, Requirement},
};

/// What the lab makes its nodes and pods with.
pub(crate) const TOOLS: [Requirement; 3] = [
    Requirement {
        what: "ip, which makes network namespaces",
        found: || setup::on_path("ip").is_some(),
        packages: &["iproute2"],
        otherwise: "install iproute2",
    },
    Requirement {
        what: "nft, which filters and translates packets",
        found: || setup::on_path("nft").is_some(),
        packages: &["nftables"],
        otherwise: "install nftables",
    },
    Requirement {
        what: "nsenter, unshare and setpriv, which start programs inside namespaces",
        found: || ["nsenter", "unshare", "setpriv"].iter().all(|tool| setup::on_path(tool).is_some()),
        packages: &["util-linux"],
        otherwise: "install util-linux",
    },
];

/// Break something under real traffic and measure how fast the traffic leaves; --help lists what can be asked for.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// The lab's own arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// No scenario has this name: with it the lab judges every other argument, and never drills.
const NO_SCENARIO: &str = "no-such-scenario";

/// What the lab begins each fault with.
const FAULT: &str = "error:";

/// What the lab begins its list of scenarios with; one follows on each line, its name first, or after a star.
const LIST: &str = "The scenarios are";

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let arguments = &arguments.arguments;
    let asks_for_help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    let lab = match earlier_build()? {
        // Help needs the lab, and neither the kernel programs nor any tool.
        None if asks_for_help => Some(build_programs()?.join("splitsecond-lab")),
        earlier => earlier,
    };
    if let Some(lab) = lab
        && (asks_for_help || !are_right(&lab, arguments)?)
    {
        // It tells, and ends.
        let error = Command::new(&lab).arg("drill").args(arguments).exec();
        return Err(error).with_context(|| format!("cannot start {}", lab.display()));
    }
    setup::ensure(&TOOLS)?;
    build_kernel_programs()?;
    let release = build_programs()?;
    let lab = release.join("splitsecond-lab");
    let mut command = Command::new(&lab);
    command.arg("drill").args(arguments);
    command.arg("--agent-program").arg(release.join("splitsecond-agent"));
    command.arg("--controller-program").arg(release.join("splitsecond-controller"));
    // Only returns when it could not.
    Err(command.exec()).with_context(|| format!("cannot start {}", lab.display()))
}

/// The names of all scenarios, as a lab that was built lists them.
pub(crate) fn scenarios(lab: &Path) -> anyhow::Result<Vec<String>> {
    let told = told(lab, &[])?;
    let names = listed(&told);
    let as_arguments: Vec<OsString> = names.iter().map(OsString::from).collect();
    // Names that were read wrong are names that it does not know.
    let are_known = !names.is_empty() && are_right(lab, &as_arguments)?;
    anyhow::ensure!(are_known, "{} lists no scenarios that it would drill:\n{told}", lab.display());
    Ok(names)
}

fn listed(told: &str) -> Vec<String> {
    let lines = told.lines().skip_while(|line| !line.starts_with(LIST)).skip(1);
    let name = |line: &str| line.split_whitespace().find(|word| *word != "*").map(str::to_owned);
    lines.map_while(name).collect()
}

/// Whether the lab would drill with these arguments.
fn are_right(lab: &Path, arguments: &[OsString]) -> anyhow::Result<bool> {
    Ok(has_one_fault(&told(lab, arguments)?))
}

/// Whether the scenario that does not exist is all that is wrong.
fn has_one_fault(told: &str) -> bool {
    let mut faults = told.lines().filter(|line| line.starts_with(FAULT));
    faults.next().is_some_and(|fault| fault.contains(NO_SCENARIO)) && faults.next().is_none()
}

/// What the lab says to these arguments and a scenario that does not exist.
fn told(lab: &Path, arguments: &[OsString]) -> anyhow::Result<String> {
    // In front: behind an option without its value it would become that value.
    let output = Command::new(lab).arg("drill").arg(NO_SCENARIO).args(arguments).output();
    let output = output.with_context(|| format!("cannot start {}", lab.display()))?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The lab of an earlier build, unless its source has changed since.
fn earlier_build() -> anyhow::Result<Option<PathBuf>> {
    let lab = build_ebpf::target_folder()?.join("release").join("splitsecond-lab");
    let Ok(built) = fs::metadata(&lab).and_then(|metadata| metadata.modified()) else { return Ok(None) };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("lab");
    Ok(newest(&source)?.is_some_and(|newest| newest < built).then_some(lab))
}

/// When the newest file below a folder was written.
fn newest(folder: &Path) -> anyhow::Result<Option<SystemTime>> {
    let mut newest_time = None;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let written = if metadata.is_dir() { newest(&entry.path())? } else { Some(metadata.modified()?) };
        newest_time = newest_time.max(written);
    }
    Ok(newest_time)
}

/// Standard output is the drill's table alone.
pub(crate) fn build_kernel_programs() -> anyhow::Result<()> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    let mut command = Command::new(own);
    let status = command.arg("build-ebpf").stdout(Stdio::from(io::stderr())).status();
    let status = status.context("cannot start build-ebpf")?;
    match status.code() {
        Some(0) => Ok(()),
        // It has said what this machine lacks.
        Some(code) if code == i32::from(crate::CANNOT) => {
            Err(setup::Missing::new("the kernel programs cannot be built here").into())
        }
        _ => anyhow::bail!("the kernel programs were not built ({status})"),
    }
}

/// The folder with the three programs.
pub(crate) fn build_programs() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    // Cargo names itself to what it runs.
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["build", "--release", "--locked"]);
    command.args(["-p", "probe-agent", "-p", "controller", "-p", "lab"]);
    setup::run(&mut command)?;
    Ok(build_ebpf::target_folder()?.join("release"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = "error: There is no scenario no-such-scenario.\n\n\
                        The scenarios are, the tour's with a star:\n  * refused         all listeners close\n    \
                        process-killed  SIGKILL\n\nMore about them: ...\n";

    #[test]
    fn the_list_of_scenarios_is_read() {
        assert_eq!(listed(TOLD), ["refused", "process-killed"]);
        assert_eq!(listed("error: something else\n"), Vec::<String>::new());
    }

    #[test]
    fn arguments_are_right_when_nothing_else_is_wrong() {
        assert!(has_one_fault(TOLD));
        assert!(!has_one_fault(&format!("error: --runs takes 1 to 1000, not 0.\n{TOLD}")));
        assert!(!has_one_fault("error: unexpected argument '--bogus' found\n\nUsage: splitsecond-lab drill\n"));
        assert!(!has_one_fault(""), "a lab that says nothing was not asked what we think");
    }
}
