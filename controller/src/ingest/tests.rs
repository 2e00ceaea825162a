//! The ingest against real loopback connections: what agents send, and what they had better not.

use std::collections::VecDeque;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Method, Request, StatusCode};
use probe_common::wire::{Frame, Hello, Report, STREAM_PATH, SplitsSent, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::clock;

/// Far longer than anything here takes, and shorter than a person's patience.
const PATIENCE: Duration = Duration::from_secs(10);

struct Server {
    address: SocketAddr,
    arrivals: mpsc::Receiver<Arrival>,
    counters: Counters,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        Self::serve(address, listener, limits)
    }

    fn serve(address: SocketAddr, listener: impl Accept + Send + 'static, limits: Limits) -> Self {
        let (sender, arrivals) = mpsc::channel(1_024);
        let counters = Counters::default();
        let ingest = Ingest {
            allowed: Vec::new(),
            arrivals: sender,
            counters: counters.clone(),
            limits,
            now: clock::monotonic,
            telling: Told::default(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, ingest));
        Self { address, arrivals, counters, _tasks: tasks }
    }

    async fn next(&mut self) -> Arrival {
        timeout(PATIENCE, self.arrivals.recv()).await.expect("in time").expect("the ingest lives")
    }

    /// The next arrival, which is a stream of `node` with its Hello behind it.
    async fn began(&mut self, node: &'static str) -> (u64, mpsc::Sender<ControllerFrame>) {
        let Arrival::Began { node: seen, stream, downstream } = self.next().await else { panic!("no stream began") };
        assert_eq!(seen, node);
        let Arrival::Frame { frame: AgentFrame::Hello(hello), stream: of, .. } = self.next().await else {
            panic!("no Hello")
        };
        assert_eq!((hello.node.as_str(), of), (node, stream));
        (stream, downstream)
    }

    async fn report(&mut self) -> (u64, Report) {
        let Arrival::Frame { frame: AgentFrame::Report(report), stream, .. } = self.next().await else {
            panic!("no report")
        };
        (stream, report)
    }

    async fn ended(&mut self) -> (String, u64) {
        loop {
            if let Arrival::Ended { node, stream } = self.next().await {
                return (node, stream);
            }
        }
    }

    /// Waits until a fault was counted.
    async fn fault(&self, kind: &'static str) {
        let counted = async {
            while self.counters.faults_of(kind) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("{kind} was not counted: {:?}", self.counters));
    }
}

struct Client {
    requests: SendRequest<Bytes>,
    _driver: JoinSet<()>,
}

impl Client {
    async fn connect(server: &Server) -> Self {
        let socket = TcpStream::connect(server.address).await.expect("connects");
        let (requests, connection) = h2::client::handshake(socket).await.expect("speaks HTTP/2");
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            connection.await.ok();
        });
        Self { requests: requests.ready().await.expect("ready"), _driver: driver }
    }

    async fn request(&mut self, method: Method, path: &str) -> (ResponseFuture, SendStream<Bytes>) {
        let uri = format!("http://controller{path}");
        let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
        let ready = self.requests.clone().ready().await.expect("ready");
        self.requests = ready;
        self.requests.send_request(request, false).expect("sends")
    }

    async fn stream(&mut self) -> (RecvStream, SendStream<Bytes>) {
        let (response, body) = self.request(Method::POST, STREAM_PATH).await;
        let response = timeout(PATIENCE, response).await.expect("in time").expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        (response.into_body(), body)
    }
}

/// Reads an answer to its end, which may be a reset; whether there was nothing in it.
async fn ends_empty(mut response: RecvStream) -> bool {
    let read = async {
        loop {
            match response.data().await {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(_)) => return false,
                Some(Err(_)) | None => return true,
            }
        }
    };
    timeout(PATIENCE, read).await.expect("in time")
}

fn mk_hello(node: &str) -> Bytes {
    let hello = Hello { node: node.into(), incarnation: 1, version: "0".into(), now_ns: 1, blind: None };
    AgentFrame::Hello(hello).encode().expect("encodes").into()
}

fn mk_report(seq: u64) -> Bytes {
    AgentFrame::Report(Report { seq, ..Report::default() }).encode().expect("encodes").into()
}

/// Sends `bytes` after a Hello, and expects the stream to end for `kind` while the connection lives on.
async fn check_ends(bytes: &[u8], end_stream: bool, kind: &'static str) {
    let mut server = Server::start(Limits::default()).await;
    let mut client = Client::connect(&server).await;
    let (_response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1"), false).expect("sends");
    let (stream, _downstream) = server.began("n1").await;
    body.send_data(Bytes::copy_from_slice(bytes), end_stream).expect("sends");
    assert_eq!(server.ended().await, ("n1".to_owned(), stream));
    server.fault(kind).await;
    let (_response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1"), false).expect("sends");
    let (next, _downstream) = server.began("n1").await;
    assert!(next > stream, "a later stream has a higher number");
}

#[tokio::test]
async fn frames_arrive_in_order_and_frames_go_back() {
    let mut server = Server::start(Limits::default()).await;
    let mut client = Client::connect(&server).await;
    let (mut response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1"), false).expect("sends");
    let before = clock::monotonic();
    let (stream, downstream) = server.began("n1").await;
    for seq in 1..=20 {
        body.send_data(mk_report(seq), false).expect("sends");
    }
    for seq in 1..=20 {
        let Arrival::Frame { node, stream: of, frame: AgentFrame::Report(report), decoded } = server.next().await
        else {
            panic!("no report")
        };
        assert_eq!((node.as_str(), of, report.seq), ("n1", stream, seq));
        assert!(decoded >= before && decoded <= clock::monotonic());
    }
    let frame = ControllerFrame::SplitsSent(SplitsSent {});
    downstream.send(frame.clone()).await.expect("the stream lives");
    let bytes = timeout(PATIENCE, response.data()).await.expect("in time").expect("data").expect("no error");
    assert_eq!(bytes, frame.encode().expect("encodes"));
    body.send_data(Bytes::new(), true).expect("sends");
    assert_eq!(server.ended().await, ("n1".to_owned(), stream));
}

#[tokio::test]
async fn a_frame_over_the_limit_ends_its_stream_only() {
    check_ends(&[VERSION, 2, 0, 0, 0, 1, 0, 1], false, "too-large").await;
}

#[tokio::test]
async fn another_version_ends_its_stream_only() {
    check_ends(&[VERSION + 1, 2, 0, 0, 0, 0, 0, 0], false, "version").await;
}

#[tokio::test]
async fn a_stream_that_ends_within_a_frame_is_told_from_one_that_ends_well() {
    check_ends(&[VERSION, 2, 0, 0, 0, 0, 0, 9, b'{'], true, "truncated").await;
}

#[tokio::test]
async fn a_second_hello_ends_its_stream_only() {
    check_ends(&mk_hello("n2"), false, "second-hello").await;
}

#[tokio::test]
async fn garbage_within_a_stream_ends_its_stream_only() {
    check_ends(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n", false, "version").await;
}

#[tokio::test]
async fn what_comes_before_a_hello_binds_nothing() {
    let mut server = Server::start(Limits::default()).await;
    let mut client = Client::connect(&server).await;
    for (bytes, kind) in [
        (mk_report(1), "first-frame"),
        (mk_hello("Node 1"), "node-name"),
        (mk_hello(""), "node-name"),
        (Bytes::from_static(&[9, 9, 9, 9, 9, 9, 9, 9]), "version"),
    ] {
        let (response, mut body) = client.stream().await;
        body.send_data(bytes, false).expect("sends");
        assert!(ends_empty(response).await);
        server.fault(kind).await;
    }
    assert!(server.arrivals.try_recv().is_err(), "nothing reached the core");
}

#[tokio::test]
async fn a_bad_payload_and_an_unknown_kind_cost_their_own_frame_only() {
    let mut server = Server::start(Limits::default()).await;
    let mut client = Client::connect(&server).await;
    let (_response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1"), false).expect("sends");
    let (stream, _downstream) = server.began("n1").await;
    body.send_data(Bytes::from_static(&[VERSION, 2, 0, 0, 0, 0, 0, 2, b'n', b'o']), false).expect("sends");
    body.send_data(Bytes::from_static(&[VERSION, 99, 0, 0, 0, 0, 0, 1, b'x']), false).expect("sends");
    body.send_data(mk_report(7), false).expect("sends");
    let (of, report) = server.report().await;
    assert_eq!((of, report.seq), (stream, 7));
    assert_eq!(server.counters.faults_of("payload"), 1);
    assert_eq!(server.counters.skipped_frames(), 1);
}

#[tokio::test]
async fn frames_may_be_cut_anywhere() {
    let mut server = Server::start(Limits::default()).await;
    let mut client = Client::connect(&server).await;
    let (_response, mut body) = client.stream().await;
    for byte in mk_hello("n1").iter().chain(&mk_report(1)) {
        body.send_data(Bytes::copy_from_slice(&[*byte]), false).expect("sends");
    }
    let (_, _downstream) = server.began("n1").await;
    assert_eq!(server.report().await.1.seq, 1);
}

#[tokio::test]
async fn a_flood_is_slowed_and_nothing_of_it_is_lost() {
    let mut server = Server::start(Limits::default()).await;
    let mut client = Client::connect(&server).await;
    let (_response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1"), false).expect("sends");
    for seq in 1..=300 {
        body.send_data(mk_report(seq), false).expect("sends");
    }
    let (_, _downstream) = server.began("n1").await;
    for seq in 1..=300 {
        assert_eq!(server.report().await.1.seq, seq);
    }
    assert!(server.counters.delayed_frames() >= 10, "{:?}", server.counters);
}

#[tokio::test]
async fn the_shell_ends_a_stream_by_letting_go_of_it() {
    let mut server = Server::start(Limits::default()).await;
    let mut client = Client::connect(&server).await;
    let (response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1"), false).expect("sends");
    let (stream, downstream) = server.began("n1").await;
    drop(downstream);
    assert!(ends_empty(response).await);
    assert_eq!(server.ended().await, ("n1".to_owned(), stream));
}

#[tokio::test]
async fn two_streams_of_one_node_have_rising_numbers() {
    let mut server = Server::start(Limits::default()).await;
    let (mut one, mut two) = (Client::connect(&server).await, Client::connect(&server).await);
    let (_response_one, mut body_one) = one.stream().await;
    body_one.send_data(mk_hello("n1"), false).expect("sends");
    let (first, _kept) = server.began("n1").await;
    let (_response_two, mut body_two) = two.stream().await;
    body_two.send_data(mk_hello("n1"), false).expect("sends");
    let (second, _kept) = server.began("n1").await;
    assert!(second > first);
}

#[tokio::test]
async fn an_agent_that_just_goes_is_no_fault() {
    let mut server = Server::start(Limits::default()).await;
    let mut client = Client::connect(&server).await;
    let (response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1"), false).expect("sends");
    let (stream, _downstream) = server.began("n1").await;
    drop((client, response, body));
    assert_eq!(server.ended().await, ("n1".to_owned(), stream));
    for kind in ["transport", "truncated", "no-hello"] {
        assert_eq!(server.counters.faults_of(kind), 0, "{kind}");
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_told_so() {
    let server = Server::start(Limits::default()).await;
    let mut client = Client::connect(&server).await;
    for (method, path, status) in [
        (Method::GET, STREAM_PATH, StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "/v1/streams", StatusCode::NOT_FOUND),
        (Method::GET, "/", StatusCode::NOT_FOUND),
    ] {
        let (response, _body) = client.request(method, path).await;
        assert_eq!(timeout(PATIENCE, response).await.expect("in time").expect("an answer").status(), status);
    }
    assert_eq!(server.counters.faults_of("request"), 3);
}

/// Writes `bytes` to a bare socket; the server has to end it without a stream.
async fn check_bare(bytes: &[u8], kind: &'static str) {
    let limits = Limits { hello_within: Duration::from_millis(300), ..Limits::default() };
    let mut server = Server::start(limits).await;
    let mut socket = TcpStream::connect(server.address).await.expect("connects");
    socket.write_all(bytes).await.expect("writes");
    let mut rest = Vec::new();
    // A reset is an end as well.
    timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("in time").ok();
    server.fault(kind).await;
    assert!(server.arrivals.try_recv().is_err());
}

#[tokio::test]
async fn a_stranger_that_speaks_another_protocol_is_sent_away() {
    check_bare(b"GET /v1/stream HTTP/1.1\r\nhost: controller\r\n\r\n", "transport").await;
    check_bare(&[0x16, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "transport").await;
}

#[tokio::test]
async fn a_stranger_that_says_nothing_is_sent_away() {
    check_bare(b"", "no-hello").await;
    check_bare(b"PRI * HTTP/2.0\r\n\r\n", "no-hello").await;
}

#[tokio::test]
async fn a_stream_without_a_hello_does_not_keep_a_connection() {
    let limits = Limits { hello_within: Duration::from_millis(300), ..Limits::default() };
    let mut server = Server::start(limits).await;
    let mut client = Client::connect(&server).await;
    let (response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1").slice(..20), false).expect("sends");
    assert!(ends_empty(response).await);
    server.fault("no-hello").await;
    assert!(server.arrivals.try_recv().is_err());
}

#[tokio::test]
async fn a_connection_with_a_stream_outlives_the_strangers_time() {
    let limits = Limits { hello_within: Duration::from_millis(200), ..Limits::default() };
    let mut server = Server::start(limits).await;
    let mut client = Client::connect(&server).await;
    let (_response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1"), false).expect("sends");
    let (_, _downstream) = server.began("n1").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    body.send_data(mk_report(1), false).expect("sends");
    assert_eq!(server.report().await.1.seq, 1);
}

#[tokio::test]
async fn strangers_cannot_take_every_place() {
    let limits = Limits { strangers: 1, ..Limits::default() };
    let mut server = Server::start(limits).await;
    let mut known = Client::connect(&server).await;
    let (_response, mut body) = known.stream().await;
    let mut refused = TcpStream::connect(server.address).await.expect("connects");
    let mut rest = Vec::new();
    timeout(PATIENCE, refused.read_to_end(&mut rest)).await.expect("in time").ok();
    server.fault("connections").await;
    assert_eq!(rest, b"");
    body.send_data(mk_hello("n1"), false).expect("sends");
    let (_, _downstream) = server.began("n1").await;
    // The place is free after the next tick.
    let taken = async {
        loop {
            let socket = TcpStream::connect(server.address).await.expect("connects");
            if let Ok((requests, connection)) = h2::client::handshake(socket).await {
                let mut driver = JoinSet::new();
                driver.spawn(async move { connection.await.is_ok() });
                if requests.ready().await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, taken).await.expect("a second stranger is taken");
}

/// What accept answers, in turn, before it is the listener's own.
enum Scripted {
    Fails(i32),
    ComesFrom(IpAddr),
}

struct Script(VecDeque<Scripted>, TcpListener);

impl Accept for Script {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        match self.0.pop_front() {
            Some(Scripted::Fails(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Scripted::ComesFrom(address)) => {
                let (socket, peer) = self.1.accept().await?;
                Ok((socket, SocketAddr::new(address, peer.port())))
            }
            None => self.1.accept().await,
        }
    }
}

async fn start_scripted(script: Vec<Scripted>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("has an address");
    Server::serve(address, Script(script.into(), listener), Limits::default())
}

#[tokio::test]
async fn running_out_of_descriptors_ends_nothing() {
    // EMFILE and ENFILE.
    let mut server = start_scripted(vec![Scripted::Fails(24), Scripted::Fails(23), Scripted::Fails(24)]).await;
    let mut client = Client::connect(&server).await;
    let (_response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1"), false).expect("sends");
    let (_, _downstream) = server.began("n1").await;
    assert_eq!(server.counters.faults_of("accept"), 3);
}

#[tokio::test]
async fn an_address_that_was_not_named_is_refused_before_a_byte_is_read() {
    let stranger = "203.0.113.9".parse().expect("an address");
    let mut server = start_scripted(vec![Scripted::ComesFrom(stranger)]).await;
    let mut socket = TcpStream::connect(server.address).await.expect("connects");
    let mut rest = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("in time").ok();
    assert_eq!(rest, b"", "not even HTTP/2's settings");
    server.fault("address").await;
    assert!(server.arrivals.try_recv().is_err());
}

#[test]
fn loopback_and_named_addresses_are_taken() {
    let (arrivals, _kept) = mpsc::channel(1);
    let ingest = Ingest {
        allowed: vec![Cidr::parse("198.18.0.0/15").expect("a block")],
        arrivals,
        counters: Counters::default(),
        limits: Limits::default(),
        now: clock::monotonic,
        telling: Told::default(),
    };
    for (address, expected) in [
        ("127.0.0.1", true),
        ("127.9.9.9", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("198.18.0.1", true),
        ("::ffff:198.18.0.1", true),
        ("198.51.100.1", false),
        ("2001:db8::1", false),
        ("0.0.0.0", false),
    ] {
        assert_eq!(ingest.is_allowed(address.parse().expect("an address")), expected, "{address}");
    }
}

#[tokio::test]
async fn a_peer_that_goes_silent_is_found_by_its_missing_pong() {
    let mut server = Server::start(Limits::default()).await;
    let socket = TcpStream::connect(server.address).await.expect("connects");
    let (requests, connection) = h2::client::handshake(socket).await.expect("speaks HTTP/2");
    let (freeze, frozen) = tokio::sync::oneshot::channel::<()>();
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = &mut connection => {}
            // Neither reads nor writes nor closes: a node that lost power.
            _ = frozen => std::future::pending().await,
        }
    });
    let mut client = Client { requests: requests.ready().await.expect("ready"), _driver: driver };
    let (_response, mut body) = client.stream().await;
    body.send_data(mk_hello("n1"), false).expect("sends");
    let (stream, _downstream) = server.began("n1").await;
    freeze.send(()).expect("the driver waits");
    assert_eq!(server.ended().await, ("n1".to_owned(), stream));
    server.fault("keep-alive").await;
}

/// An HTTP/2 frame: kind, flags, stream, payload (RFC 9113, 4.1).
fn mk_http2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[tokio::test]
async fn a_peer_that_opens_and_resets_streams_is_sent_away() {
    let mut server = Server::start(Limits::default()).await;
    let mut socket = TcpStream::connect(server.address).await.expect("connects");
    let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    flood.extend(mk_http2_frame(4, 0, 0, &[]));
    for stream in (1..400).step_by(2) {
        // POST http://a/ in HPACK's static table, END_HEADERS; then RST_STREAM with CANCEL.
        flood.extend(mk_http2_frame(1, 4, stream, &[0x83, 0x86, 0x84, 0x41, 1, b'a']));
        flood.extend(mk_http2_frame(3, 0, stream, &[0, 0, 0, 8]));
    }
    socket.write_all(&flood).await.expect("writes");
    let mut answer = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("it may not go on for ever").ok();
    server.fault("transport").await;
    assert!(server.arrivals.try_recv().is_err());
}

#[tokio::test]
async fn headers_over_the_limit_are_refused() {
    let server = Server::start(Limits::default()).await;
    let client = Client::connect(&server).await;
    let request = Request::post(format!("http://controller{STREAM_PATH}"))
        .header("padding", "x".repeat(12 * 1024))
        .body(())
        .expect("a request");
    let mut requests = client.requests.clone().ready().await.expect("ready");
    let (response, _body) = requests.send_request(request, false).expect("sends");
    let response = timeout(PATIENCE, response).await.expect("in time").expect("an answer");
    assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}
