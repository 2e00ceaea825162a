//! One HTTP/2 connection, with the limits that a stranger meets.
//!
//! In: a socket. Out: streams, each a future that this connection's own task drives, so that nothing outlives it. It
//! deliberately knows nothing of frames.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use probe_common::wire::{CONTENT_TYPE, STREAM_PATH};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::fault::Fault;
use super::{Ingest, stream};

/// An agent has one stream; the rest is for one that reconnects within its connection.
const STREAMS_LIMIT: u32 = 4;

/// HTTP/2's smallest legal maximum: no reason for more.
const FRAME_BYTES: u32 = 16_384;

/// An agent's request has five headers.
const HEADER_LIST_BYTES: u32 = 8 * 1024;

/// One wire frame, [`probe_common::wire::AGENT_PAYLOAD_LIMIT`]: what one stream may send ahead of us.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;

/// The same for all streams of the connection.
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;

/// Streams that a peer may open and reset before it is sent away (CVE-2023-44487); h2's default is 20.
const PENDING_RESETS_LIMIT: usize = 8;

/// Streams that we may have to reset for a peer's faults; hyper's default is 1,024.
const FAULTY_STREAMS_LIMIT: usize = 64;

/// What waits to be sent on one stream before its queue is asked to wait; hyper's default is about 400 KB.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// A peer that died in silence is noticed after these two. The core itself calls a node stale after 350 ms without a report.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// See [`PING_INTERVAL`].
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the connection is asked whether it has a stream that said Hello.
const HELLO_TICK: Duration = Duration::from_millis(100);

type ResponseBody = BoxBody<Bytes, Infallible>;

/// What a connection's requests share.
struct Connection {
    ingest: Arc<Ingest>,
    peer: SocketAddr,
    /// Streams that have said Hello and live.
    bound: Arc<AtomicUsize>,
    /// Streams for the connection's task to drive. As many as may live.
    streams: mpsc::Sender<stream::Stream>,
}

/// Serves one connection until it ends, and its streams until they have said so.
pub(super) async fn serve(socket: TcpStream, peer: SocketAddr, ingest: Arc<Ingest>, stranger: OwnedSemaphorePermit) {
    // Reports are small and each one counts: none may wait for the acknowledgement of the one before.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%peer, %error, "Connection ended before it began");
        return;
    }
    let (streams, mut opened) = mpsc::channel(STREAMS_LIMIT as usize);
    let shared = Arc::new(Connection { ingest: Arc::clone(&ingest), peer, bound: Arc::default(), streams });
    let service = {
        let shared = Arc::clone(&shared);
        service_fn(move |request| {
            let response = shared.answer(&request).unwrap_or_else(|| shared.open(request));
            async move { Ok::<_, Infallible>(response) }
        })
    };
    let mut http = Box::pin(builder().serve_connection(TokioIo::new(socket), service));
    let mut running = FuturesUnordered::new();
    let mut tick = tokio::time::interval(HELLO_TICK);
    let mut unbound = Unbound { ticks: 0, stranger: Some(stranger) };
    loop {
        tokio::select! {
            ended = &mut http => {
                if let Some(fault) = ended.err().and_then(|error| fault_of(&error)) {
                    ingest.fault(Some(peer), &fault);
                }
                break;
            }
            Some(stream) = opened.recv() => running.push(stream.run()),
            Some(()) = running.next() => {}
            _ = tick.tick() => if unbound.for_longer_than(ingest.limits.hello_within, shared.bound.load(Ordering::Relaxed)) {
                ingest.fault(Some(peer), &Fault::NoHello(ingest.limits.hello_within));
                break;
            }
        }
    }
    // The streams' bodies end with the connection; what is left is to say so to the core.
    drop(http);
    opened.close();
    while let Some(stream) = opened.recv().await {
        running.push(stream.run());
    }
    while let Some(()) = running.next().await {}
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_LIMIT)
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_pending_accept_reset_streams(PENDING_RESETS_LIMIT)
        .max_local_error_reset_streams(FAULTY_STREAMS_LIMIT)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

impl Connection {
    /// The answer to a request that is no stream.
    fn answer(&self, request: &Request<Incoming>) -> Option<Response<ResponseBody>> {
        let status = match (request.method(), request.uri().path()) {
            (&Method::POST, STREAM_PATH) => return None,
            (_, STREAM_PATH) => StatusCode::METHOD_NOT_ALLOWED,
            _ => StatusCode::NOT_FOUND,
        };
        self.ingest.fault(Some(self.peer), &Fault::Request);
        Some(empty(status))
    }

    fn open(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let (stream, downstream) =
            stream::open(Arc::clone(&self.ingest), self.peer, Arc::clone(&self.bound), request.into_body());
        if self.streams.try_send(stream).is_err() {
            return empty(StatusCode::SERVICE_UNAVAILABLE);
        }
        let mut response = Response::new(downstream.boxed());
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(CONTENT_TYPE));
        response
    }
}

fn empty(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(Empty::new().boxed());
    *response.status_mut() = status;
    response
}

/// For how many ticks in a row no stream has said Hello. The permit of a stranger goes back with the first that did.
struct Unbound {
    ticks: u32,
    stranger: Option<OwnedSemaphorePermit>,
}

impl Unbound {
    /// To be called once per [`HELLO_TICK`].
    fn for_longer_than(&mut self, limit: Duration, bound: usize) -> bool {
        if bound > 0 {
            self.ticks = 0;
            self.stranger = None;
            return false;
        }
        self.ticks += 1;
        // The first tick of an interval is at once.
        HELLO_TICK * (self.ticks - 1) >= limit
    }
}

/// What a connection's end says about its peer; `None` when it just went.
fn fault_of(error: &hyper::Error) -> Option<Fault> {
    if error.is_timeout() {
        return Some(Fault::KeepAlive);
    }
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return (!error.is_io() && !error.is_remote()).then(|| Fault::Transport(error.to_string()));
        }
        if cause.is::<std::io::Error>() {
            return None;
        }
        source = cause.source();
    }
    Some(Fault::Transport(error.to_string()))
}
