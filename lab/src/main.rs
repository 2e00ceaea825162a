//! `splitsecond-lab`: drills on one machine. In: a command line. Out: an exit code. Everything else is in the library.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::bench::BenchArgs;
use lab::drill::args::DrillArgs;
use lab::load::PodArgs;

/// Splitsecond's lab: network namespaces as nodes, real traffic, real faults, and a clock.
#[derive(Parser)]
#[command(name = "splitsecond-lab", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Breaks something under real traffic and measures how fast it leaves. `cargo xtask drill` builds what it needs.
    Drill(DrillArgs),
    /// Measures a figure of the product. `cargo xtask bench` builds what it needs.
    Bench(BenchArgs),
    /// Becomes a program in a pod: the drill itself starts these.
    #[command(hide = true)]
    Pod(PodArgs),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Drill(args) => {
            log_to_stderr();
            ExitCode::from(lab::drill::main(&args))
        }
        Command::Bench(args) => {
            log_to_stderr();
            ExitCode::from(lab::bench::main(&args))
        }
        Command::Pod(args) => match lab::load::pod_main(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // A pod's errors go to its log; there is nobody else to tell.
                writeln!(io::stderr(), "{error:#}").ok();
                ExitCode::FAILURE
            }
        },
    }
}

/// Warnings of the lab itself; the programs under drill have logs of their own.
fn log_to_stderr() {
    tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(tracing::Level::WARN).without_time().init();
}
