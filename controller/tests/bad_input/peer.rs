//! A peer that says what it likes: bytes on a socket, or frames on a stream.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::RecvStream;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use probe_common::wire::{AgentFrame, Frame, Hello, STREAM_PATH};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// The node that the peer speaks for.
pub(crate) const NODE: &str = "x9";

/// One stream, for as long as it is kept.
pub(crate) struct Peer {
    up: SendStream<Bytes>,
    _requests: SendRequest<Bytes>,
    _answer: Answer,
    _driver: JoinSet<()>,
}

/// What the peer does with what it is told.
enum Answer {
    /// It never looked.
    Unread(ResponseFuture),
    /// It reads nothing of it.
    Open(#[expect(dead_code, reason = "held, so that the stream lives")] RecvStream),
}

impl Peer {
    /// A stream that has said nothing yet.
    pub(crate) async fn connect(controller: SocketAddr) -> Self {
        Self::request(controller, STREAM_PATH).await
    }

    /// A request for another path.
    pub(crate) async fn request(controller: SocketAddr, path: &str) -> Self {
        let socket = TcpStream::connect(controller).await.unwrap();
        let (requests, connection) = h2::client::handshake(socket).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            connection.await.ok();
        });
        let mut requests = requests.ready().await.unwrap();
        let request = http::Request::post(format!("http://controller{path}")).body(()).unwrap();
        let (answer, up) = requests.send_request(request, false).unwrap();
        Self { up, _requests: requests, _answer: Answer::Unread(answer), _driver: driver }
    }

    /// A stream that has said Hello for [`NODE`].
    pub(crate) async fn hello(controller: SocketAddr) -> Self {
        let mut peer = Self::connect(controller).await;
        peer.say(&mk_hello(NODE));
        peer
    }

    /// Waits for the head of the answer, and reads nothing of the rest.
    pub(crate) async fn answered(mut self) -> Self {
        if let Answer::Unread(answer) = self._answer {
            self._answer = Answer::Open(answer.await.unwrap().into_body());
        }
        self
    }

    pub(crate) fn say(&mut self, frame: &AgentFrame) {
        self.bytes(frame.encode().unwrap());
    }

    pub(crate) fn bytes(&mut self, bytes: impl Into<Bytes>) {
        // A controller that has ended the stream hears no more.
        self.up.send_data(bytes.into(), false).ok();
    }

    /// Ends the stream in good order.
    pub(crate) fn end(&mut self) {
        self.up.send_data(Bytes::new(), true).ok();
    }
}

pub(crate) fn mk_hello(node: &str) -> AgentFrame {
    AgentFrame::Hello(Hello { node: node.into(), incarnation: 1, version: "9".into(), now_ns: 1, blind: None })
}

/// Bytes that are no HTTP/2.
pub(crate) async fn scribble(controller: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(controller).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nhost: controller\r\n\r\n").await.unwrap();
    socket
}
