//! One agent's stream: bytes in, frames out, and the frames for it on the way back.
//!
//! In: a request's body. Out: [`Arrival`]s; and a response body that ends when the shell drops its sender. The first frame
//! has to be a Hello and binds the stream to its node: what later frames say of their sender is not asked. Deliberately no
//! meaning: what a frame means is the core's.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body, Frame as BodyFrame, Incoming};
use probe_common::wire::{AgentFrame, ControllerFrame, Decoded, Decoder, Frame as _};
use tokio::sync::{mpsc, oneshot};

use super::fault::Fault;
use super::rate::Allowance;
use super::sense;
use super::{Arrival, DOWNSTREAM_FRAMES, Ingest};

/// Kubernetes' limit for a node's name (a DNS subdomain, RFC 1123).
const NODE_NAME_BYTES: usize = 253;

/// Of a name that is none, so much is shown.
const SHOWN_CHARS: usize = 64;

/// Numbers streams, over all connections.
static NEXT_STREAM: AtomicU64 = AtomicU64::new(1);

/// A stream, ready to run.
pub(super) struct Stream {
    ingest: Arc<Ingest>,
    peer: SocketAddr,
    bound: Arc<AtomicUsize>,
    body: Incoming,
    /// Given to the shell with the Hello.
    downstream: Option<mpsc::Sender<ControllerFrame>>,
    /// Resolves when the response's body is gone: the shell ended the stream, or the peer did.
    gone: oneshot::Receiver<Infallible>,
    decoder: Decoder<AgentFrame>,
    allowance: Allowance,
    binding: Option<Binding>,
}

/// Whom a stream speaks for.
struct Binding {
    node: String,
    stream: u64,
}

/// How a stream ended without a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The agent ended its request in good order.
    Finished,
    /// The connection or the agent's half broke off.
    Broken,
    /// The shell let go of it: another stream of the node came, or its queue was full.
    Released,
}

impl End {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Broken => "broken",
            Self::Released => "released",
        }
    }
}

/// A stream, and the body of its response.
pub(super) fn open(
    ingest: Arc<Ingest>,
    peer: SocketAddr,
    bound: Arc<AtomicUsize>,
    body: Incoming,
) -> (Stream, impl Body<Data = Bytes, Error = Infallible> + Send + Sync + 'static) {
    let (downstream, frames) = mpsc::channel(DOWNSTREAM_FRAMES);
    let (alive, gone) = oneshot::channel();
    let response = StreamBody::new(downstream_bytes(frames, alive, Arc::clone(&ingest)));
    let stream = Stream {
        ingest,
        peer,
        bound,
        body,
        downstream: Some(downstream),
        gone,
        decoder: Decoder::default(),
        allowance: Allowance::default(),
        binding: None,
    };
    (stream, response)
}

/// Encodes what the shell sends. Holds `alive` for as long as somebody reads.
fn downstream_bytes(
    mut frames: mpsc::Receiver<ControllerFrame>,
    alive: oneshot::Sender<Infallible>,
    ingest: Arc<Ingest>,
) -> impl futures::Stream<Item = Result<BodyFrame<Bytes>, Infallible>> + Send + Sync {
    stream::poll_fn(move |context| {
        let _held = &alive;
        loop {
            let frame = std::task::ready!(frames.poll_recv(context));
            match frame.map(|frame| frame.encode()) {
                None => return std::task::Poll::Ready(None),
                Some(Ok(bytes)) => {
                    ingest.counters.sent();
                    return std::task::Poll::Ready(Some(Ok(BodyFrame::data(Bytes::from(bytes)))));
                }
                Some(Err(error)) => {
                    ingest.counters.unsendable();
                    tracing::error!(%error, "Frame for an agent cannot be sent");
                }
            }
        }
    })
}

impl Stream {
    /// Reads until the stream ends, and says so.
    pub(super) async fn run(mut self) {
        let ended = self.read().await;
        let node = self.binding.as_ref().map(|binding| binding.node.as_str());
        match &ended {
            Ok(end) => tracing::info!(node, peer = %self.peer, reason = end.as_str(), "Agent stream ended"),
            Err(fault) => self.ingest.tell(node, Some(self.peer), fault, "Agent stream was ended"),
        }
        if let Some(Binding { node, stream }) = self.binding.take() {
            self.bound.fetch_sub(1, Ordering::Relaxed);
            self.ingest.counters.stream_ended();
            // Nobody listens any more when the shell is gone, and then nobody needs to know.
            self.ingest.arrivals.send(Arrival::Ended { node, stream }).await.ok();
        }
    }

    async fn read(&mut self) -> Result<End, Fault> {
        loop {
            let frame = tokio::select! {
                frame = self.body.frame() => frame,
                _ = &mut self.gone => return Ok(End::Released),
            };
            match frame {
                None => return self.decoder.finish().map(|()| End::Finished).map_err(Fault::Decode),
                Some(Err(error)) => {
                    tracing::debug!(peer = %self.peer, %error, "Agent stream broke off");
                    return Ok(End::Broken);
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.decoder.push(&bytes);
                        if let Some(end) = self.take_frames().await? {
                            return Ok(end);
                        }
                    }
                }
            }
        }
    }

    /// Takes every whole frame that is there.
    async fn take_frames(&mut self) -> Result<Option<End>, Fault> {
        loop {
            match self.decoder.next_frame() {
                Ok(None) => return Ok(None),
                Ok(Some(Decoded::Skipped { kind })) => {
                    self.ingest.counters.skipped();
                    tracing::debug!(peer = %self.peer, kind, "Frame of an unknown kind was passed over");
                    self.slow_down().await;
                }
                Ok(Some(Decoded::Frame(frame))) => {
                    self.slow_down().await;
                    if let Some(end) = self.take(frame).await? {
                        return Ok(Some(end));
                    }
                }
                Err(error) if error.is_fatal() => return Err(Fault::Decode(error)),
                Err(error) => {
                    self.pass_over(&Fault::Payload(error));
                    self.slow_down().await;
                }
            }
        }
    }

    /// Waits for as long as the stream is ahead of its rate.
    async fn slow_down(&mut self) {
        let wait = self.allowance.take((self.ingest.now)());
        if wait > Duration::ZERO {
            self.ingest.counters.delayed();
            tokio::time::sleep(wait).await;
        }
    }

    fn pass_over(&self, fault: &Fault) {
        let node = self.binding.as_ref().map(|binding| binding.node.as_str());
        self.ingest.tell(node, Some(self.peer), fault, "Agent's frame was passed over");
    }

    async fn take(&mut self, frame: AgentFrame) -> Result<Option<End>, Fault> {
        let decoded = (self.ingest.now)();
        match (&frame, &self.binding) {
            (AgentFrame::Hello(hello), None) => {
                let node = hello.node.clone();
                if !is_node_name(&node) {
                    return Err(Fault::NodeName(shown(&node)));
                }
                tracing::info!(node, peer = %self.peer, version = hello.version, "Agent stream began");
                if !self.bind(node).await? {
                    return Ok(Some(End::Released));
                }
            }
            (AgentFrame::Hello(hello), Some(binding)) => {
                return Err(Fault::SecondHello { bound: binding.node.clone(), named: shown(&hello.node) });
            }
            (_, None) => return Err(Fault::FirstFrame),
            (frame, Some(_)) => {
                if let Err(field) = sense::check(frame) {
                    self.pass_over(&Fault::Nonsense { kind: kind(frame), field });
                    return Ok(None);
                }
            }
        }
        self.ingest.counters.frame(kind(&frame));
        let Some(Binding { node, stream }) = &self.binding else { return Err(Fault::FirstFrame) };
        let arrival = Arrival::Frame { node: node.clone(), stream: *stream, frame, decoded };
        let taken = self.ingest.arrivals.send(arrival).await;
        Ok(taken.is_err().then_some(End::Released))
    }

    /// Binds the stream to a node; whether anybody listens.
    async fn bind(&mut self, node: String) -> Result<bool, Fault> {
        let Some(downstream) = self.downstream.take() else {
            return Err(Fault::SecondHello { bound: node.clone(), named: node });
        };
        let stream = NEXT_STREAM.fetch_add(1, Ordering::Relaxed);
        let began = Arrival::Began { node: node.clone(), stream, downstream };
        if self.ingest.arrivals.send(began).await.is_err() {
            return Ok(false);
        }
        self.bound.fetch_add(1, Ordering::Relaxed);
        self.ingest.counters.stream_began();
        self.binding = Some(Binding { node, stream });
        Ok(true)
    }
}

/// A name as a stranger gave it, cut short for the log.
fn shown(name: &str) -> String {
    name.chars().take(SHOWN_CHARS).collect()
}

fn is_node_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    name.len() <= NODE_NAME_BYTES
        && name.bytes().all(legal)
        && edge(name.bytes().next())
        && edge(name.bytes().next_back())
}

const fn kind(frame: &AgentFrame) -> &'static str {
    match frame {
        AgentFrame::Hello(_) => "hello",
        AgentFrame::Report(_) => "report",
        AgentFrame::Totals(_) => "totals",
        AgentFrame::CheckResults(_) => "check-results",
        AgentFrame::Meshed(_) => "meshed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_what_kubernetes_takes_for_one() {
        for good in ["n1", "node-1.zone-a.example", "0", &"a".repeat(253)] {
            assert!(is_node_name(good), "{good}");
        }
        for bad in ["", "N1", "-n", "n-", ".n", "n_1", "n/1", "n 1", "näh", &"a".repeat(254)] {
            assert!(!is_node_name(bad), "{bad}");
        }
    }
}
