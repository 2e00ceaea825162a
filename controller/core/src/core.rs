//! The state machine's front: inputs in, outputs out. Pure.

use crate::explain::Explanation;
use crate::facts::ObjectId;
use crate::time::Time;
use crate::{Config, Input, Output};

/// See the crate's header.
#[derive(Debug)]
pub struct Core {
    config: Config,
}

impl Core {
    /// A core that knows nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Takes one fact.
    pub fn handle(&mut self, _input: Input, _now: Time) {}

    /// Lets time pass. To be called at [`Core::deadline`]; harmless at any other time.
    pub fn handle_timeout(&mut self, _now: Time) {}

    /// The next wish. To be called until `None` after every [`Core::handle`] and [`Core::handle_timeout`].
    pub fn poll(&mut self) -> Option<Output> {
        None
    }

    /// When [`Core::handle_timeout`] has something to do next.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        None
    }

    /// Why a split stands as it stands.
    #[must_use]
    pub fn explain(&self, _split: &ObjectId, _now: Time) -> Option<Explanation> {
        None
    }
}
