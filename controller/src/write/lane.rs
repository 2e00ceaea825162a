//! One way to the API server: a client with connections of its own and short deadlines.
//!
//! In: requests. Out: status and body within a deadline, or why not. After a request that got no answer the client is built
//! anew: its kept connections may all lead to a server that is gone without a word, and each would cost one more deadline
//! to find out. Deliberately no retry.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::{Body, ClientBuilder};

use crate::cluster::Chain;

/// How long to wait for a TCP and TLS connection: within a cluster it takes some milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// The largest answer that is read; etcd takes no object above 1.5 MiB.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Why there is no answer. The caller decides whether to try again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneError {
    /// The client could not be built from its settings.
    #[error("client cannot be built: {0}")]
    Build(String),
    /// No connection, or it broke before the answer was whole: the request may have been taken.
    #[error("{0}")]
    Transport(String),
    /// Nothing in time: the request may have been taken.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
}

/// See the file's header.
pub(crate) struct Lane {
    config: kube::Config,
    current: Mutex<Generation>,
}

#[derive(Clone)]
struct Generation {
    number: u64,
    client: Client,
}

impl Lane {
    /// A lane to the server of `config`, whose time-outs it replaces.
    ///
    /// # Errors
    ///
    /// [`LaneError::Build`] when the settings lead to no client.
    pub(crate) fn new(mut config: kube::Config) -> Result<Self, LaneError> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // The client's own repetition would send an old decision once more.
        config.default_retry = false;
        let client = build(&config)?;
        Ok(Self { config, current: Mutex::new(Generation { number: 0, client }) })
    }

    /// Sends `request` and reads the whole answer.
    ///
    /// # Errors
    ///
    /// [`LaneError`].
    pub(crate) async fn send(
        &self,
        request: Request<Bytes>,
        deadline: Duration,
    ) -> Result<(StatusCode, Bytes), LaneError> {
        let generation = self.lock().clone();
        let answer = async {
            let answer = generation.client.send(request.map(Body::from)).await;
            let answer = answer.map_err(|error| LaneError::Transport(Chain(&error).to_string()))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(|error| LaneError::Transport(error.to_string()))?.to_bytes()))
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(answer) => answer,
            Err(_) => {
                self.renew(generation.number)?;
                Err(LaneError::Deadline(deadline))
            }
        }
    }

    /// Replaces the client that a request failed on, unless another request's failure has already.
    fn renew(&self, failed: u64) -> Result<(), LaneError> {
        let mut current = self.lock();
        if current.number == failed {
            *current = Generation { number: failed + 1, client: build(&self.config)? };
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Generation> {
        // The client is replaced as a whole, so a panic elsewhere under the lock leaves a whole one.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn build(config: &kube::Config) -> Result<Client, LaneError> {
    let builder =
        ClientBuilder::try_from(config.clone()).map_err(|error| LaneError::Build(Chain(&error).to_string()))?;
    Ok(builder.build())
}
