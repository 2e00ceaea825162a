//! `cargo xtask bench NAME`: a clone in, figures out. Sees to the system's tools, builds the kernel programs, the
//! *release* agent, controller and lab, and becomes the lab: from there on arguments, output, signals and exit code are
//! the lab's. An unknown name is told with the list before anything is built.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::Context as _;
use clap::ValueEnum as _;

use crate::{drill, setup};

/// Measure a figure of the product; exit code 1 when it is not as required.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure.
    #[arg(value_enum)]
    name: Name,
    /// The lab's own arguments, such as --json FILE; `NAME -- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Name {
    /// Connections that the agents do not count, of 100,000 connections of every outcome.
    Loss,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    setup::ensure(&drill::TOOLS)?;
    drill::build_kernel_programs()?;
    let release = drill::build_programs()?;
    let lab = release.join("splitsecond-lab");
    let name = arguments.name.to_possible_value().context("every bench has a name")?;
    let mut command = Command::new(&lab);
    command.arg("bench").arg(name.get_name()).args(&arguments.arguments);
    command.arg("--agent-program").arg(release.join("splitsecond-agent"));
    command.arg("--controller-program").arg(release.join("splitsecond-controller"));
    // Only returns when it could not.
    Err(command.exec()).with_context(|| format!("cannot start {}", lab.display()))
}
