//! What both binaries say to their operator: `GET /live`, `/ready`, `/metrics`, `/state`, over HTTP/1. IO.
//!
//! In: a listener and a [`Surface`], the view of the binary that serves. Out: plain answers. The server holds no state,
//! starts nothing and knows no metric. It does not yet decide who may read `/state`, which shows every tenant: until it
//! does, whoever reaches the port reads it, and the shipped network policy is what keeps others out.

use core::convert::Infallible;
use core::fmt;
use core::time::Duration;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

mod exposition;

/// Connections served at the same time; more wait in the listen queue. A node has a kubelet and one or two scrapers.
const CONNECTIONS_LIMIT: usize = 64;

/// How long a client may take for the head of a request, which is also how long an idle connection is kept: longer than
/// Prometheus' default scrape interval of 1 min would only hold slots for clients that went away.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How long any connection may live. Only a client that reads nothing meets this one.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);

/// Pause after a failed accept. EMFILE and ENFILE stay until some other file is closed: without a pause the loop spins.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a binary shows. Called on the server's tasks, so every method has to be short and must not block.
pub trait Surface: Send + Sync + 'static {
    /// Whether it does its work.
    ///
    /// # Errors
    ///
    /// Why not, in one line for people.
    fn ready(&self) -> Result<(), String>;

    /// What it knows, for people and for the drill.
    fn state(&self) -> serde_json::Value;

    /// Writes a complete OpenMetrics exposition, as `prometheus_client::encoding::text::encode` does.
    ///
    /// # Errors
    ///
    /// Only those of `into`; writing to a `String` has none.
    fn encode_metrics(&self, into: &mut String) -> fmt::Result;
}

/// Serves until it is dropped; dropping ends every connection too.
///
/// # Errors
///
/// None today: an accept that fails is retried after a pause. The type leaves room for a listener that is beyond help.
pub async fn serve(listener: TcpListener, surface: Arc<dyn Surface>) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
    let mut connections = JoinSet::new();
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let surface = Arc::clone(&surface);
                connections.spawn(async move {
                    serve_connection(stream, surface).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "Admin connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, surface: Arc<dyn Surface>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), request.headers(), surface.as_ref());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_LIFETIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "Admin connection ended early"),
        Err(_) => tracing::debug!("Admin connection outlived its time"),
    }
}

fn answer(method: &Method, path: &str, headers: &HeaderMap, surface: &dyn Surface) -> Response<Full<Bytes>> {
    let answer = match path {
        "/live" => text(StatusCode::OK, "alive\n".to_owned()),
        "/ready" => match surface.ready() {
            Ok(()) => text(StatusCode::OK, "ready\n".to_owned()),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        "/metrics" => metrics(headers, surface),
        "/state" => body(StatusCode::OK, "application/json", surface.state().to_string()),
        _ => return text(StatusCode::NOT_FOUND, "not found: /live /ready /metrics /state\n".to_owned()),
    };
    // Hyper leaves the body out of an answer to HEAD and keeps its length.
    if matches!(*method, Method::GET | Method::HEAD) {
        return answer;
    }
    let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
    refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    refused
}

fn metrics(headers: &HeaderMap, surface: &dyn Surface) -> Response<Full<Bytes>> {
    let mut openmetrics = String::new();
    if let Err(error) = surface.encode_metrics(&mut openmetrics) {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be written: {error}\n"));
    }
    if accepts_openmetrics(headers) {
        return body(StatusCode::OK, exposition::OPENMETRICS_CONTENT_TYPE, openmetrics);
    }
    body(StatusCode::OK, exposition::TEXT_CONTENT_TYPE, exposition::text_format(&openmetrics))
}

/// Whether the client names OpenMetrics at all: Prometheus lists it first when it is willing to take it, and a client
/// that asks for anything (`*/*`) gets the format that every tool reads.
fn accepts_openmetrics(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(
        |range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
            named && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        },
    )
}

fn text(status: StatusCode, content: String) -> Response<Full<Bytes>> {
    body(status, "text/plain; charset=utf-8", content)
}

fn body(status: StatusCode, content_type: &'static str, content: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(content)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests;
