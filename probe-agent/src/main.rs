//! The agent's binary: arguments in, exit code out. What it does is in the library.
//!
//! Exit codes, after sysexits.h where it has one: 0 stopped by a signal, or `--once` found that the node can count; 64
//! wrong usage; 69 `--once` found that it cannot; 70 a task ended that never should; 71 the system refused something.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use clap::error::ErrorKind;
use probe_agent::agent::{self, RunError};
use probe_agent::config::{Args, Config, LogFormat};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

const EX_USAGE: u8 = 64;
const EX_UNAVAILABLE: u8 = 69;
const EX_SOFTWARE: u8 = 70;
const EX_OSERR: u8 = 71;

/// Threads for streams, watches and checks; the loop that reads the counters has the main thread for itself. A second one
/// would keep 6 MiB more of what a list of a large cluster took.
const WORKERS: usize = 1;

/// How long tasks may take to notice that they are to end.
const SHUTDOWN: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let config = match configured() {
        Ok(config) => config,
        Err(code) => return code,
    };
    start_log(&config);
    if config.once {
        return once(&config);
    }
    let (own, workers) = match runtimes() {
        Ok(runtimes) => runtimes,
        Err(error) => {
            tracing::error!(%error, "Runtime cannot be started");
            return ExitCode::from(EX_OSERR);
        }
    };
    let ended = own.block_on(agent::run(config, workers.handle().clone()));
    workers.shutdown_timeout(SHUTDOWN);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = match &error {
                RunError::TaskEnded { .. } => EX_SOFTWARE,
                RunError::Listen { .. } | RunError::Signals(_) => EX_OSERR,
            };
            tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "Agent ends");
            ExitCode::from(code)
        }
    }
}

/// One for the loop, on this thread, and one for everything else.
fn runtimes() -> std::io::Result<(Runtime, Runtime)> {
    let own = Builder::new_current_thread().enable_all().build()?;
    let workers = Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    Ok((own, workers))
}

fn configured() -> Result<Config, ExitCode> {
    let args = Args::try_parse().map_err(|error| {
        let is_wrong = !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        // A closed standard output leaves nobody to tell.
        drop(error.print());
        if is_wrong { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS }
    })?;
    args.check().map_err(|faults| {
        for fault in faults {
            eprintln!("splitsecond-agent: {fault}");
        }
        ExitCode::from(EX_USAGE)
    })
}

fn start_log(config: &Config) {
    let filter = EnvFilter::new(&config.log_level);
    let is_colored = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_colored);
    match config.log_format {
        LogFormat::Plain => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

fn once(config: &Config) -> ExitCode {
    match agent::try_once(config) {
        Ok(able) => {
            println!("{able}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("this node cannot count: {reason}");
            ExitCode::from(EX_UNAVAILABLE)
        }
    }
}
