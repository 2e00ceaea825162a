//! What ends a drill before its time. In: signals, and background tasks that fail. Out: every wait of the drill returns
//! at once with the cause. Nothing is cleaned up here: whoever made something drops it on the way out.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::drill::progress::Progress;
use crate::world::clock::now_ns;

/// Ends all waits. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Halt {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    cause: Mutex<Option<Cause>>,
    bell: Condvar,
}

/// Why the drill ends before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Somebody wants it to end.
    Asked(&'static str),
    /// A part of the lab that has to live does not.
    Broken(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked(signal) => write!(f, "{signal} ended the drill"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Cause {}

impl Halt {
    /// From now on no wait waits. The first cause stays.
    pub fn now(&self, cause: Cause) {
        self.lock().get_or_insert(cause);
        self.inner.bell.notify_all();
    }

    /// Whether the drill goes on.
    ///
    /// # Errors
    ///
    /// It does not, and why.
    pub fn check(&self) -> Result<(), Cause> {
        self.lock().clone().map_or(Ok(()), Err)
    }

    /// Waits.
    ///
    /// # Errors
    ///
    /// The drill does not go on.
    pub fn wait(&self, length: Duration) -> Result<(), Cause> {
        let waited = self.inner.bell.wait_timeout_while(self.lock(), length, |cause| cause.is_none());
        let (cause, _) = waited.unwrap_or_else(PoisonError::into_inner);
        cause.clone().map_or(Ok(()), Err)
    }

    /// Waits until that moment of the lab's clock.
    ///
    /// # Errors
    ///
    /// The drill does not go on.
    pub fn wait_until(&self, at_ns: u64) -> Result<(), Cause> {
        self.wait(Duration::from_nanos(at_ns.saturating_sub(now_ns())))
    }

    /// Waits until somebody wants the end.
    ///
    /// # Errors
    ///
    /// Something broke meanwhile.
    pub fn wait_for_signal(&self) -> Result<(), Cause> {
        loop {
            match self.wait(Duration::from_secs(3_600)) {
                Ok(()) => {}
                Err(Cause::Asked(_)) => return Ok(()),
                Err(broken) => return Err(broken),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Cause>> {
        self.inner.cause.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The signals by which people and systems end a program, taken over from the kernel's default.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on they no longer end the program. To be called inside a runtime.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn take_over() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Turns them into a halt, for as long as it runs. Further signals change nothing: removing what the drill made takes
    /// about a second, and a drill that leaves it behind would be the worse end.
    pub async fn halt(mut self, halt: Halt) -> Result<()> {
        let mut before = false;
        loop {
            let name = tokio::select! {
                _ = self.interrupt.recv() => "Ctrl-C",
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.hangup.recv() => "SIGHUP",
            };
            if before {
                Progress::to_stderr().line("Still removing what the drill made.");
            }
            before = true;
            halt.now(Cause::Asked(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halt_ends_every_wait_and_keeps_its_first_cause() {
        let halt = Halt::default();
        assert_eq!(halt.check(), Ok(()));
        assert_eq!(halt.wait(Duration::ZERO), Ok(()));
        let other = halt.clone();
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(60)));
        halt.now(Cause::Asked("Ctrl-C"));
        halt.now(Cause::Broken("later".into()));
        assert_eq!(waiter.join().expect("no panic"), Err(Cause::Asked("Ctrl-C")));
        assert_eq!(halt.wait_for_signal(), Ok(()));
    }
}
