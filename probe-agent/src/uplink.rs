//! One stream to one controller replica: reports up, splits and requests for checks down. IO.
//!
//! In: what the loop puts into the [`Outbox`]. Out: [`News`] of the stream. The stream is one HTTP/2 request with prior
//! knowledge (no TLS yet), `POST /v1/stream`, whose body never ends; it is tried again for ever. Nothing is judged here,
//! and nothing waits for a controller that does not read: the outbox drops its oldest rows and says so in a report.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{Method, Request, StatusCode, header};
use kube::runtime::utils::Backoff as _;
use probe_common::wire::{
    CONTENT_TYPE, ControllerFrame, DecodeError, Decoded, Decoder, Hello, MESSAGES_PER_SECOND, STREAM_PATH,
};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use crate::backoff::Pauses;
use crate::budget::Budget;
use crate::report::Reporter;

/// How long a connection may take to come about: a node of the same cluster answers in a millisecond, and a lost SYN is
/// repeated by the kernel only after a second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// How often a living stream is asked for a sign of life, and how long that may take. A peer that vanished without a
/// FIN is noticed after two seconds at most, where the kernel's own retransmissions take a quarter of an hour.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Frames that may leave at once after quiet; on average [`MESSAGES_PER_SECOND`] is kept, less a little for clocks.
const FRAMES_BURST: u32 = 20;

/// Bytes of frames from the controller that may be under way: a node's splits in one go.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// What is on its way to one controller: filled by the loop, emptied by the stream.
#[derive(Debug, Default)]
pub struct Outbox {
    reporter: Mutex<Reporter>,
    filled: Notify,
    frames_sent: AtomicU64,
}

/// What a stream has to tell the loop.
#[derive(Debug)]
pub enum News {
    /// The controller answered: it will tell its splits now.
    Up,
    /// A frame.
    Frame(ControllerFrame),
    /// A frame of a kind that this build does not know, or one that cannot be read, was passed over.
    Skipped {
        /// The frame's.
        kind: u8,
        /// What is wrong with it.
        reason: String,
    },
    /// The stream ended; it is tried again after a pause.
    Down(StreamError),
}

/// As whom the agent speaks.
#[derive(Clone, Debug)]
pub struct Speaker {
    /// The Kubernetes node.
    pub node: String,
    /// Differs with every start of the agent.
    pub incarnation: u64,
}

/// Why a stream ended. [`run`] itself tries again.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No connection came about.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// No connection came about in time.
    #[error("no connection within {} ms", CONNECT_TIMEOUT.as_millis())]
    ConnectTimeout,
    /// The peer does not speak HTTP/2, or went away before the request.
    #[error("cannot begin HTTP/2")]
    Handshake(#[source] h2::Error),
    /// The request could not be sent.
    #[error("cannot ask for the stream")]
    Request(#[source] h2::Error),
    /// The controller refused the stream.
    #[error("controller answered {0}")]
    Refused(StatusCode),
    /// The connection or the stream broke.
    #[error("stream broke")]
    Broken(#[source] h2::Error),
    /// The controller ended the stream in good order.
    #[error("controller ended the stream")]
    Ended,
    /// No answer to a PING.
    #[error("no sign of life within {} s", (PING_INTERVAL + PING_TIMEOUT).as_secs())]
    Silent,
    /// The controller's bytes cannot be followed.
    #[error("cannot follow the stream: {0}")]
    Frame(DecodeError),
    /// The loop is gone; the process is about to end.
    #[error("agent is stopping")]
    Stopping,
}

impl Outbox {
    /// Changes what is on its way, and wakes the stream when something is due.
    pub fn with<T>(&self, change: impl FnOnce(&mut Reporter) -> T) -> T {
        let mut reporter = self.reporter();
        let result = change(&mut reporter);
        if reporter.is_due() {
            self.filled.notify_one();
        }
        result
    }

    /// Frames given to the connection so far.
    pub fn frames_sent(&self) -> u64 {
        self.frames_sent.load(Ordering::Relaxed)
    }

    fn reporter(&self) -> MutexGuard<'_, Reporter> {
        // Nothing panics while it holds the lock in a way that leaves the reporter half changed.
        self.reporter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one stream alive until the loop is gone or this is dropped.
pub async fn run(
    controller: SocketAddr,
    speaker: Speaker,
    outbox: Arc<Outbox>,
    news: mpsc::Sender<(SocketAddr, News)>,
    clock: fn() -> u64,
) {
    let mut pauses = Pauses::new(clock() ^ u64::from(controller.port()) << 48);
    let stream = Stream { controller, speaker, outbox, news, clock };
    loop {
        let began_ns = clock();
        let error = match stream.live().await {
            StreamError::Stopping => return,
            error => error,
        };
        // A stream that lived for a while was no failed try.
        if clock().saturating_sub(began_ns) > 5_000_000_000 {
            pauses.reset();
        }
        if stream.tell(News::Down(error)).await.is_err() {
            return;
        }
        tokio::time::sleep(pauses.next().unwrap_or(CONNECT_TIMEOUT)).await;
    }
}

struct Stream {
    controller: SocketAddr,
    speaker: Speaker,
    outbox: Arc<Outbox>,
    news: mpsc::Sender<(SocketAddr, News)>,
    clock: fn() -> u64,
}

impl Stream {
    /// One stream, from connect to end.
    async fn live(&self) -> StreamError {
        match self.try_live().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_live(&self) -> Result<core::convert::Infallible, StreamError> {
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(self.controller));
        let tcp = connect.await.map_err(|_| StreamError::ConnectTimeout)?.map_err(StreamError::Connect)?;
        tcp.set_nodelay(true).map_err(StreamError::Connect)?;
        let (requests, mut connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false)
            .handshake::<_, Bytes>(tcp)
            .await
            .map_err(StreamError::Handshake)?;
        let pings = connection.ping_pong().expect("taken once per connection");
        let stream = async {
            let (answer, body) = self.ask(requests).await?;
            tokio::select! {
                error = self.write(body) => Err(error),
                error = self.read(answer) => Err(error),
            }
        };
        tokio::select! {
            ended = connection => Err(ended.map_or_else(StreamError::Broken, |()| StreamError::Ended)),
            error = stream => error,
            error = keep_alive(pings) => Err(error),
        }
    }

    async fn ask(&self, requests: SendRequest<Bytes>) -> Result<(ResponseFuture, SendStream<Bytes>), StreamError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}{STREAM_PATH}", self.controller))
            .header(header::CONTENT_TYPE, CONTENT_TYPE)
            .body(())
            .expect("an address and constants make a request");
        let mut requests = requests.ready().await.map_err(StreamError::Request)?;
        requests.send_request(request, false).map_err(StreamError::Request)
    }

    async fn write(&self, mut body: SendStream<Bytes>) -> StreamError {
        let mut budget = Budget::new(MESSAGES_PER_SECOND - 10, FRAMES_BURST);
        self.outbox.with(|reporter| {
            let blind = reporter.blind().map(str::to_owned);
            let version = env!("CARGO_PKG_VERSION").to_owned();
            let Speaker { node, incarnation } = self.speaker.clone();
            reporter.begin(Hello { node, incarnation, version, now_ns: (self.clock)(), blind });
        });
        loop {
            if !self.outbox.reporter().is_due() {
                self.outbox.filled.notified().await;
                continue;
            }
            if let Err(next_ns) = budget.take((self.clock)()) {
                tokio::time::sleep(Duration::from_nanos(next_ns.saturating_sub((self.clock)()))).await;
                continue;
            }
            // Asking for room before a frame is taken leaves the rows where they can be merged, or dropped and counted.
            if let Err(error) = has_room(&mut body).await {
                return error;
            }
            let Some(frame) = self.outbox.reporter().next_frame() else { continue };
            if let Err(error) = body.send_data(Bytes::from(frame), false) {
                return StreamError::Broken(error);
            }
            self.outbox.frames_sent.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn read(&self, answer: ResponseFuture) -> StreamError {
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(error) => return StreamError::Broken(error),
        };
        if answer.status() != StatusCode::OK {
            return StreamError::Refused(answer.status());
        }
        if self.tell(News::Up).await.is_err() {
            return StreamError::Stopping;
        }
        self.read_frames(answer.into_body()).await
    }

    async fn read_frames(&self, mut body: RecvStream) -> StreamError {
        let mut decoder = Decoder::<ControllerFrame>::default();
        loop {
            let bytes = match body.data().await {
                None => return decoder.finish().map_or_else(StreamError::Frame, |()| StreamError::Ended),
                Some(Err(error)) => return StreamError::Broken(error),
                Some(Ok(bytes)) => bytes,
            };
            decoder.push(&bytes);
            loop {
                let news = match decoder.next_frame() {
                    Ok(None) => break,
                    Ok(Some(Decoded::Frame(frame))) => News::Frame(frame),
                    Ok(Some(Decoded::Skipped { kind })) => {
                        News::Skipped { kind, reason: format!("frame of kind {kind} is not known to this build") }
                    }
                    Err(error @ DecodeError::Payload { kind, .. }) => News::Skipped { kind, reason: error.to_string() },
                    Err(error) => return StreamError::Frame(error),
                };
                if self.tell(news).await.is_err() {
                    return StreamError::Stopping;
                }
            }
            if let Err(error) = body.flow_control().release_capacity(bytes.len()) {
                return StreamError::Broken(error);
            }
        }
    }

    async fn tell(&self, news: News) -> Result<(), StreamError> {
        self.news.send((self.controller, news)).await.map_err(|_| StreamError::Stopping)
    }
}

/// Waits until the controller takes at least one more byte.
async fn has_room(body: &mut SendStream<Bytes>) -> Result<(), StreamError> {
    body.reserve_capacity(1);
    while body.capacity() == 0 {
        match poll_fn(|context| body.poll_capacity(context)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(StreamError::Broken(error)),
            None => return Err(StreamError::Ended),
        }
    }
    Ok(())
}

async fn keep_alive(mut pings: PingPong) -> StreamError {
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        match tokio::time::timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return StreamError::Broken(error),
            Err(_) => return StreamError::Silent,
        }
    }
}
