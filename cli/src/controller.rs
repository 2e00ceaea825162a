//! The controller's admin server: an address in, its /state out. IO.
//!
//! One request, no retry: whoever typed the command tries again.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long connecting may take: a forwarded port answers at once or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the answer may take; the controller itself never waits longer than 250 ms for its snapshot.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest /state that is read: ten thousand splits seen by a thousand nodes stay below it.
const STATE_LIMIT_BYTES: usize = 256 * 1024 * 1024;

/// How to reach the default address.
const FORWARD: &str = "kubectl --namespace splitsecond port-forward deployment/splitsecond-controller 8080";

/// Why the controller could not be asked. The person who asked tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// There is no runtime for one request.
    #[error("this machine has no resources for one request")]
    Runtime(#[source] std::io::Error),
    /// Nobody answers there.
    #[error(
        "cannot reach a controller at {address}: {reason}\n  \
         in a cluster, forward its port in another terminal: {FORWARD}\n  \
         elsewhere, name it: --address ADDRESS:PORT"
    )]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The connection broke, or what came was no HTTP.
    #[error("{address} does not answer as a controller's admin server does (its port is 8080): {reason}")]
    Request {
        /// Where.
        address: String,
        /// What happened.
        reason: String,
    },
    /// It took too long.
    #[error("{address} did not answer within {} s; its /live tells whether it runs", ANSWER_TIMEOUT.as_secs())]
    Timeout {
        /// Where.
        address: String,
    },
    /// An answer that is none.
    #[error("{address} answered GET /state with {status}: is it a controller's admin server (port 8080)?")]
    Status {
        /// Where.
        address: String,
        /// Its answer.
        status: StatusCode,
    },
    /// Not JSON.
    #[error("what {address} answered to GET /state is no JSON: is it a controller's admin server (port 8080)?")]
    Json {
        /// Where.
        address: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// What the controller at this address says about itself.
///
/// # Errors
///
/// [`AskError`]: each says what to do.
pub(crate) fn state(address: &str) -> Result<Value, AskError> {
    let address = address.trim_start_matches("http://").trim_end_matches('/');
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AskError::Runtime)?;
    runtime.block_on(async {
        let stream = connect(address).await?;
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, get(stream, address)).await;
        let body = asked.map_err(|_| AskError::Timeout { address: address.to_owned() })??;
        serde_json::from_slice(&body).map_err(|source| AskError::Json { address: address.to_owned(), source })
    })
}

async fn connect(address: &str) -> Result<TcpStream, AskError> {
    let failed = |reason: String| AskError::Connect { address: address.to_owned(), reason };
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|error| failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))),
    }
}

async fn get(stream: TcpStream, address: &str) -> Result<Bytes, AskError> {
    let broken =
        |error: &(dyn Error + 'static)| AskError::Request { address: address.to_owned(), reason: chain(error) };
    let handshake = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    let mut driver = JoinSet::new();
    // How the connection ends is told by the request's own error.
    driver.spawn(async move { connection.await.ok() });
    let request = Request::get("/state").header(header::HOST, address).body(Empty::new());
    let request = request.map_err(|error| broken(&error))?;
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    if response.status() != StatusCode::OK {
        return Err(AskError::Status { address: address.to_owned(), status: response.status() });
    }
    let body = Limited::new(response.into_body(), STATE_LIMIT_BYTES).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| broken(error.as_ref()))
}

/// An error with its causes, each once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
