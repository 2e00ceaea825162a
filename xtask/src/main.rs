//! Splitsecond's chores: `cargo xtask CHORE`. In: arguments. Out: an exit code, and what a person wants to read.
//!
//! One file per chore. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 this machine cannot do it (one clear sentence says
//! why). Nothing here is part of the product.

mod bench;
mod build_ebpf;
mod drill;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Splitsecond's chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    Bench(bench::Arguments),
    BuildEbpf(build_ebpf::Arguments),
    Drill(drill::Arguments),
    /// Everything that has to hold: format, clippy, each crate alone, tests, kernel tests, drills, licences.
    Test,
}

/// The machine lacks something that cannot be installed here.
const CANNOT: u8 = 3;

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Bench(arguments) => bench::run(&arguments),
        Chore::BuildEbpf(arguments) => build_ebpf::run(&arguments),
        Chore::Drill(arguments) => drill::run(&arguments),
        Chore::Test => test::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<setup::Missing>() { ExitCode::from(CANNOT) } else { ExitCode::FAILURE }
        }
    }
}
