//! What runs beside the drill: the API server's listeners, the drill's own watch, the signals. In: futures that should
//! not end. Out: a halt when one does. The drill itself is one thread of plain blocking code.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use tokio::task::{AbortHandle, JoinSet};

use crate::drill::halt::{Cause, Halt};

/// The API server and the drill's own watch share these: one for each of the two processors that a drill may count on.
const WORKERS: usize = 2;

/// How long tasks that are in the middle of something may go on at the end.
const END_LIMIT: Duration = Duration::from_secs(1);

/// A runtime and the tasks on it. Dropping it ends them.
#[derive(Debug)]
pub struct Background {
    // Before the runtime, so that tasks are aborted while it still lives.
    tasks: Mutex<JoinSet<()>>,
    runtime: Option<Runtime>,
    halt: Halt,
}

impl Background {
    /// A runtime without tasks.
    ///
    /// # Errors
    ///
    /// The machine gives no threads.
    pub fn start(halt: Halt) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .context("cannot build the drill's runtime")?;
        Ok(Self { tasks: Mutex::default(), runtime: Some(runtime), halt })
    }

    /// Starts a task whose end, unless it is aborted, ends the drill.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = Result<()>> + Send + 'static) -> AbortHandle {
        let halt = self.halt.clone();
        let watched = async move {
            let why = match task.await {
                Ok(()) => format!("the {name} ended"),
                Err(error) => format!("the {name} failed: {error:#}"),
            };
            halt.now(Cause::Broken(why));
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn_on(watched, self.runtime().handle())
    }

    /// Runs a future on the calling thread, which must not be one of the runtime's.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime().block_on(future)
    }

    /// For things that look for a runtime where they are made.
    pub fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.runtime().enter()
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the runtime is taken only when this is dropped")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner).abort_all();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(END_LIMIT);
        }
    }
}
