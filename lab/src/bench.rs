//! Benches: figures of the real programs under real load. In: a name and a few settings. Out: a table for people, JSON
//! for programs, and an exit code: 0 when every figure is within its limit, 1 when one is not, 2 for a wrong command
//! line, 3 when this machine cannot run it. Not here: scenarios and their verdicts, which are the drill's.

pub mod figures;
pub mod loss;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::drill::halt::{Cause, Halt};
use crate::drill::programs::Programs;
use crate::drill::progress::Progress;
use crate::world::lacks;

/// The most connections that one bench takes: the records keep a million in full.
const CONNECTIONS_LIMIT: u64 = 1_000_000;

/// `splitsecond-lab bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// What to measure.
    #[arg(value_enum)]
    pub name: Bench,
    /// At least so many connections are begun, 1000 to 1000000; the claim needs 100000.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=CONNECTIONS_LIMIT))]
    pub connections: u64,
    /// The highest rate that is tried, all clients together; it sinks until the clients keep up.
    #[arg(long, default_value_t = 4_000, value_name = "CONNS_PER_S", value_parser = clap::value_parser!(u32).range(100..=10_000))]
    pub rate: u32,
    /// Where the figures go, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where `agent.metrics` and `controller.metrics` go: what the programs answered at /metrics in the end.
    #[arg(long, value_name = "DIR")]
    pub metrics_to: Option<PathBuf>,
    /// The agent; by default `splitsecond-agent` beside this program.
    #[arg(long, value_name = "FILE")]
    pub agent_program: Option<PathBuf>,
    /// The controller; by default `splitsecond-controller` beside this program.
    #[arg(long, value_name = "FILE")]
    pub controller_program: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// Connections that the agents do not count, of connections of every outcome.
    Loss,
}

/// The whole command. Returns the exit code.
#[must_use]
pub fn main(args: &BenchArgs) -> u8 {
    let progress = Progress::to_stderr();
    let mut missing = lacks();
    let programs = Programs::find(args.agent_program.as_deref(), args.controller_program.as_deref());
    let programs = programs.map_err(|lacks| missing.extend(lacks));
    let (Ok(programs), true) = (programs, missing.is_empty()) else {
        progress.line(&format!("This machine cannot run the bench:\n  {}", missing.join("\n  ")));
        return 3;
    };
    let halt = Halt::default();
    let done = match args.name {
        Bench::Loss => loss::run(args, programs, &halt, progress),
    };
    exit_code(done, progress)
}

fn exit_code(done: Result<bool>, progress: Progress) -> u8 {
    match done {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            if let Some(Cause::Asked(signal)) = error.downcast_ref::<Cause>() {
                progress.line(&format!("{signal}: the bench ends before its time and removes what it made."));
            } else {
                progress.line(&format!("The bench cannot go on: {error:#}"));
            }
            1
        }
    }
}
