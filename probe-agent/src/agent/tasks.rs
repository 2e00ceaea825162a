//! Every task of the agent, in one set.
//!
//! Tasks run on worker threads with a reactor of their own; the loop has another for itself. A loop that shares one is
//! woken by a worker that was woken by the clock or by the kernel's ring: two threads and a fifth of a millisecond for
//! each of fifty wake-ups a second.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};

/// All tasks. Dropping it ends them.
pub(super) struct Tasks {
    set: JoinSet<&'static str>,
    workers: Handle,
}

impl Tasks {
    pub(super) fn new(workers: Handle) -> Self {
        Self { set: JoinSet::new(), workers }
    }

    /// Begins a task. One that ends without having been aborted ends the agent, under this name.
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let named = async move {
            task.await;
            name
        };
        self.set.spawn_on(named, &self.workers)
    }

    /// Waits for a task that ends although nobody aborted it, and names it.
    pub(super) async fn ended(&mut self) -> String {
        loop {
            match self.set.join_next().await {
                Some(Ok(name)) => return name.to_owned(),
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(error)) => return error.to_string(),
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_aborted_task_is_no_news_and_one_that_ends_is() {
        let mut tasks = Tasks::new(Handle::current());
        tasks.spawn("aborted", std::future::pending()).abort();
        tasks.spawn("living", std::future::pending());
        tasks.spawn("ended", async {});
        assert_eq!(tasks.ended().await, "ended");
    }

    #[tokio::test]
    async fn a_panic_is_an_end_too() {
        let mut tasks = Tasks::new(Handle::current());
        tasks.spawn("panics", async { panic!("on purpose") });
        assert!(tasks.ended().await.contains("panicked"));
    }
}
