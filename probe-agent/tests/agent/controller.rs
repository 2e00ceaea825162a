//! A controller's side of the stream, as wire.rs and HTTP/2 define it: takes agents' frames, sends what a test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use probe_agent::kernel::now_ns;
use probe_common::wire::{
    AgentFrame, Backend, CheckRequest, CheckResult, CheckTarget, ControllerFrame, Decoded, Decoder, Frame as _, Hello,
    Report, STREAM_PATH, Split, SplitsSent, Totals, WatchedDestination,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// How the stand-in behaves from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Takes streams and reads them.
    Attentive,
    /// Answers 503.
    Refusing,
    /// Keeps streams, answers PINGs, reads nothing.
    Deaf,
    /// Keeps connections and does nothing at all.
    Frozen,
}

/// A controller replica.
pub(crate) struct Controller {
    pub(crate) address: SocketAddr,
    frames: mpsc::Receiver<(u64, AgentFrame)>,
    down: Arc<Mutex<Option<SendStream<Bytes>>>>,
    mood: watch::Sender<Mood>,
    tasks: JoinSet<()>,
}

impl Controller {
    pub(crate) async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        // Reports come at most 250 times a second; a test that does not take them for a minute has failed.
        let (told, frames) = mpsc::channel(15_000);
        let (mood, moods) = watch::channel(mood);
        let down = Arc::new(Mutex::new(None));
        let mut tasks = JoinSet::new();
        let ours = Arc::clone(&down);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.expect("accepts");
                connections.spawn(serve(tcp, told.clone(), Arc::clone(&ours), moods.clone()));
            }
        });
        Self { address, frames, down, mood, tasks }
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Closes the listener and every connection.
    pub(crate) fn stop(&mut self) {
        self.tasks.abort_all();
    }

    /// The next frame, with the time of its arrival.
    pub(crate) async fn next(&mut self) -> (u64, AgentFrame) {
        let next = tokio::time::timeout(Duration::from_secs(10), self.frames.recv()).await;
        next.expect("a frame within 10 s").expect("the stand-in runs")
    }

    /// The frames that are there already.
    pub(crate) fn drain(&mut self) -> Vec<(u64, AgentFrame)> {
        std::iter::from_fn(|| self.frames.try_recv().ok()).collect()
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        loop {
            if let (_, AgentFrame::Hello(hello)) = self.next().await {
                return hello;
            }
        }
    }

    pub(crate) async fn totals(&mut self) -> Totals {
        loop {
            if let (_, AgentFrame::Totals(totals)) = self.next().await {
                return totals;
            }
        }
    }

    pub(crate) async fn report(&mut self) -> (u64, Report) {
        loop {
            if let (arrived_ns, AgentFrame::Report(report)) = self.next().await {
                return (arrived_ns, report);
            }
        }
    }

    pub(crate) async fn results(&mut self, count: usize) -> Vec<CheckResult> {
        let mut results = Vec::new();
        while results.len() < count {
            if let (_, AgentFrame::CheckResults(more)) = self.next().await {
                results.extend(more.results);
            }
        }
        results
    }

    pub(crate) async fn send(&self, frame: &ControllerFrame) {
        self.send_bytes(frame.encode().expect("encodes")).await;
    }

    pub(crate) async fn send_bytes(&self, bytes: Vec<u8>) {
        self.send_data(bytes, false).await;
    }

    /// Sends these bytes and ends the stream in good order.
    pub(crate) async fn send_last_bytes(&self, bytes: Vec<u8>) {
        self.send_data(bytes, true).await;
    }

    async fn send_data(&self, bytes: Vec<u8>, is_last: bool) {
        for _ in 0..500 {
            if let Some(stream) = self.down.lock().expect("not poisoned").as_mut() {
                stream.send_data(bytes.into(), is_last).expect("the stream lives");
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no stream to send on");
    }

    /// Tells one split with these destinations, then that this was all.
    pub(crate) async fn tell(&self, destinations: &[SocketAddr], late_after_ms: u32) {
        self.send(&ControllerFrame::Split(mk_split(destinations, late_after_ms))).await;
        self.send(&ControllerFrame::SplitsSent(SplitsSent {})).await;
    }

    pub(crate) async fn ask(&self, id: u64, targets: &[SocketAddr]) {
        let targets = targets.iter().map(|&to| CheckTarget { to, timeout_ms: 200 }).collect();
        self.send(&ControllerFrame::Checks(CheckRequest { id, targets })).await;
    }
}

pub(crate) fn mk_split(destinations: &[SocketAddr], late_after_ms: u32) -> Split {
    let destinations = destinations.iter().map(|&to| WatchedDestination { to, late_after_ms }).collect();
    Split {
        namespace: "shop".into(),
        name: "emoji".into(),
        service: "emoji-svc".into(),
        generation: 1,
        backends: vec![Backend { service: "emoji-svc".into(), weight_milli: 1000, destinations }],
    }
}

async fn serve(
    tcp: TcpStream,
    told: mpsc::Sender<(u64, AgentFrame)>,
    down: Arc<Mutex<Option<SendStream<Bytes>>>>,
    moods: watch::Receiver<Mood>,
) {
    let mut changes = moods.clone();
    let mut connection = h2::server::handshake(tcp).await.expect("speaks HTTP/2");
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            request = connection.accept() => {
                let Some(Ok((request, answer))) = request else { return };
                take_stream(request, answer, &told, &down, &moods, &mut streams);
            }
            () = until(&mut changes, Mood::Frozen) => until(&mut changes, Mood::Attentive).await,
        }
    }
}

async fn until(moods: &mut watch::Receiver<Mood>, wanted: Mood) {
    drop(moods.wait_for(|mood| *mood == wanted).await);
}

fn take_stream(
    request: Request<RecvStream>,
    mut answer: SendResponse<Bytes>,
    told: &mpsc::Sender<(u64, AgentFrame)>,
    down: &Arc<Mutex<Option<SendStream<Bytes>>>>,
    moods: &watch::Receiver<Mood>,
    streams: &mut JoinSet<()>,
) {
    assert_eq!((request.method(), request.uri().path()), (&Method::POST, STREAM_PATH));
    if *moods.borrow() == Mood::Refusing {
        let refusal = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(()).expect("a response");
        answer.send_response(refusal, true).expect("answers");
        return;
    }
    let body = answer.send_response(Response::new(()), false).expect("answers");
    *down.lock().expect("not poisoned") = Some(body);
    streams.spawn(read(request.into_body(), told.clone(), moods.clone()));
}

async fn read(mut body: RecvStream, told: mpsc::Sender<(u64, AgentFrame)>, mut moods: watch::Receiver<Mood>) {
    let mut decoder = Decoder::<AgentFrame>::default();
    while let Some(Ok(bytes)) = body.data().await {
        let arrived_ns = now_ns();
        if moods.wait_for(|mood| *mood == Mood::Attentive).await.is_err() {
            return;
        }
        body.flow_control().release_capacity(bytes.len()).expect("was received");
        decoder.push(&bytes);
        while let Some(decoded) = decoder.next_frame().expect("the agent speaks the wire") {
            let Decoded::Frame(frame) = decoded else { panic!("unknown kind") };
            if told.send((arrived_ns, frame)).await.is_err() {
                return;
            }
        }
    }
}
