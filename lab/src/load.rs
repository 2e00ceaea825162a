//! Load: programs that run inside pods and the record of what they saw. In: a [`wire::PodProgram`], orders as JSON lines
//! on standard input. Out: records and replies as JSON lines on standard output. The programs tell what happened to
//! their connections; what that means is judged elsewhere.
//!
//! `splitsecond-lab pod SPEC` becomes one of the programs: it is an inner command of the lab, started by
//! [`crate::world::Pod::spawn`] with a SPEC in JSON, so that both sides share one type.

pub mod client;
pub mod control;
pub mod dial;
pub mod gateway;
pub mod outcome;
pub mod proxy;
pub mod records;
pub mod route;
pub mod server;
pub mod watch;
pub mod wire;

use anyhow::{Context, Result};

use self::wire::PodProgram;

/// Arguments of the lab's inner command `pod`.
#[derive(Clone, Debug, clap::Args)]
pub struct PodArgs {
    /// What to run, as JSON.
    spec: String,
}

/// Becomes the program of the arguments, until its standard input ends. Call it before any runtime is built: it makes
/// its own, on one thread.
///
/// # Errors
/// A malformed spec, or whatever ended the program.
pub fn pod_main(args: &PodArgs) -> Result<()> {
    let program: PodProgram = serde_json::from_str(&args.spec).context("the pod's program is not valid JSON")?;
    if let PodProgram::Proxy(spec) = &program {
        proxy::become_proxy(spec.uid)?;
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot build the pod's runtime")?;
    runtime.block_on(async {
        match program {
            PodProgram::Server(spec) => server::run(spec).await,
            PodProgram::Client(spec) => client::run(spec).await,
            PodProgram::Gateway(spec) => gateway::run(spec).await,
            PodProgram::Proxy(spec) => proxy::run(spec).await,
        }
    })
}
