//! `cargo xtask drill`: a clone in, a drill out. Sees to the system's tools, builds the kernel programs, the *release*
//! agent, controller and lab, and becomes the lab: from there on arguments, output, signals and exit code are the lab's.

use std::{
    env,
    ffi::OsString,
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    setup::ensure(&TOOLS)?;
    build_kernel_programs()?;
    let release = build_programs()?;
    let lab = release.join("splitsecond-lab");
    let mut command = Command::new(&lab);
    command.arg("drill").args(&arguments.arguments);
    command.arg("--agent-program").arg(release.join("splitsecond-agent"));
    command.arg("--controller-program").arg(release.join("splitsecond-controller"));
    // Only returns when it could not.
    Err(command.exec()).with_context(|| format!("cannot start {}", lab.display()))
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
