//! Splitsecond's controller: fuses the agents' reports and drives TrafficSplit weights.
//!
//! In: arguments. Out: an exit code: 0 after a signal, 64 for wrong settings, 70 when a task ended that never should, 71 when
//! the machine refuses what is needed to start, 130 when a second signal cut the draining short. What it does is in [`shell`].

mod clock;
mod cluster;
mod config;
mod findings;
mod ingest;
mod record;
mod shell;
mod state;
mod write;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::config::{Args, Faults, LogFormat, Settings};
use crate::shell::{Ending, StartError};

/// sysexits(3): EX_USAGE.
const EXIT_USAGE: u8 = 64;

/// sysexits(3): EX_SOFTWARE.
const EXIT_SOFTWARE: u8 = 70;

/// sysexits(3): EX_OSERR.
const EXIT_OSERR: u8 = 71;

/// What shells report of a program that SIGINT ended.
const EXIT_ABORTED: u8 = 130;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nothing is left to be done when even stderr is gone.
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(Faults(faults)) => {
            for fault in faults {
                eprintln!("splitsecond-controller: {fault}");
            }
            return ExitCode::from(EXIT_USAGE);
        }
    };
    log_to_stderr(&settings);
    match run(settings) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "Controller cannot start");
            let usage = matches!(error.downcast_ref(), Some(StartError::Kubeconfig(_) | StartError::Client(_)));
            ExitCode::from(if usage { EXIT_USAGE } else { EXIT_OSERR })
        }
    }
}

fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(ExitCode::from(exit_code(runtime.block_on(shell::run(settings))?)))
}

const fn exit_code(ending: Ending) -> u8 {
    match ending {
        Ending::Drained => 0,
        Ending::Aborted => EXIT_ABORTED,
        Ending::TaskEnded => EXIT_SOFTWARE,
    }
}

fn log_to_stderr(settings: &Settings) {
    // The settings were checked with the same parser.
    let filter = EnvFilter::builder().parse_lossy(&settings.log_level);
    // A log that is collected has no use for colours.
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match settings.log_format {
        LogFormat::Plain => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_never_should_be_is_told_from_those_that_may() {
        assert_eq!([Ending::Drained, Ending::Aborted, Ending::TaskEnded].map(exit_code), [0, 130, 70]);
    }
}
