//! `splitsecond`, the operator's command. In: a command line. Out: text or JSON, and an exit code: 0 done and well, 1 a check
//! failed or the controller cannot be asked, 2 wrong usage.
//!
//! It reads only: what changes weights or pauses the controller is not here.

mod args;
mod check;
mod controller;
mod explain;
mod span;
mod state;
mod status;
mod table;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, error::ErrorKind};

use crate::args::{Arguments, ExplainArguments, Output, Source, Task};
use crate::explain::Explained;
use crate::state::State;
use crate::status::Listed;

fn main() -> ExitCode {
    let mut words = std::env::args_os().peekable();
    let command = Arguments::command().bin_name(args::typed_name(words.peek().map(|word| word.as_os_str())));
    let arguments = command.try_get_matches_from(words).and_then(|found| Arguments::from_arg_matches(&found));
    let task = match arguments {
        Ok(arguments) => arguments.task,
        // clap knows whether this is a mistake (exit code 2) or an answer, such as --help (0).
        Err(error) => error.exit(),
    };
    match run(&task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Check(arguments) => {
            if !arguments.node {
                usage("check", "what to check is missing: --node checks this node");
            }
            let report = check::node(arguments)?;
            print(&match arguments.output {
                Output::Table => report.text(),
                Output::Json => pretty(&report.json())?,
            })?;
            Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Task::Status(source) => status(source),
        Task::Explain(arguments) => explain(arguments),
    }
}

fn status(source: &Source) -> anyhow::Result<ExitCode> {
    let state = State::read(controller::state(&source.address)?)?;
    let listed = Listed::of(&state);
    print(&match source.output {
        Output::Table => listed.text(),
        Output::Json => pretty(&listed.json())?,
    })?;
    Ok(ExitCode::SUCCESS)
}

fn explain(arguments: &ExplainArguments) -> anyhow::Result<ExitCode> {
    let Some(named) = args::object_name(&arguments.split) else {
        usage("explain", &format!("{:?} does not name a split: write NAMESPACE/NAME", arguments.split))
    };
    let state = State::read(controller::state(&arguments.source.address)?)?;
    let explained = Explained::of(&state, named)?;
    print(&match arguments.source.output {
        Output::Table => explained.text(),
        Output::Json => pretty(&explained.json())?,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the process as clap does for what it finds itself.
fn usage(subcommand: &str, fault: &str) -> ! {
    let typed = args::typed_name(std::env::args_os().next().as_deref());
    let mut command = Arguments::command().bin_name(typed);
    command.build();
    let part = command.find_subcommand_mut(subcommand).expect("it is one of ours");
    part.error(ErrorKind::ValueValidation, fault).exit()
}

fn pretty(value: &serde_json::Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
