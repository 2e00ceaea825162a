//! An agent as the controller sees it: the real frames at the real pace. Every destination of every split is busy, and fails
//! or not as the test says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use h2::SendStream;
use probe_common::cause::FailureCause;
use probe_common::wire::{
    AgentFrame, CheckOutcome, CheckResult, CheckResults, ControllerFrame, Decoded, Decoder, Destination, First, Frame,
    Hello, Report, Row, STREAM_PATH, Total, Totals,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How often it reads its counters.
const READ_EVERY: Duration = Duration::from_millis(10);

/// Connections of this node to each destination between two reads.
const ATTEMPTS: u64 = 3;

/// Whether everything in the primary's network refuses.
pub(crate) type Dead = Arc<AtomicBool>;

/// The primary's network.
pub(crate) const PRIMARY: &str = "198.18.1";

/// An agent on each of these nodes, until it is dropped.
pub(crate) fn start(nodes: &[&'static str], controller: SocketAddr, dead: &Dead) -> JoinSet<()> {
    let mut agents = JoinSet::new();
    for node in nodes {
        agents.spawn(run(node, controller, Arc::clone(dead)));
    }
    agents
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn send(up: &mut SendStream<bytes::Bytes>, frame: &AgentFrame) {
    // A controller that has gone needs no answer.
    up.send_data(frame.encode().unwrap().into(), false).ok();
}

async fn run(node: &'static str, controller: SocketAddr, dead: Dead) {
    let socket = TcpStream::connect(controller).await.unwrap();
    let (requests, connection) = h2::client::handshake(socket).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        connection.await.ok();
    });
    let request = http::Request::post(format!("http://controller{STREAM_PATH}")).body(()).unwrap();
    let (response, mut up) = requests.ready().await.unwrap().send_request(request, false).unwrap();
    let hello =
        Hello { node: node.into(), incarnation: now_ns(), version: "test".into(), now_ns: now_ns(), blind: None };
    send(&mut up, &AgentFrame::Hello(hello));
    let mut down = response.await.unwrap().into_body();
    let mut decoder = Decoder::<ControllerFrame>::default();
    let mut node = Node { dead, read_at: BTreeMap::new(), seq: 0 };
    let mut read = tokio::time::interval(READ_EVERY);
    loop {
        tokio::select! {
            bytes = down.data() => {
                let Some(Ok(bytes)) = bytes else { return };
                down.flow_control().release_capacity(bytes.len()).unwrap();
                decoder.push(&bytes);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    if let Some(answer) = node.on_frame(frame) {
                        send(&mut up, &answer);
                    }
                }
            }
            _ = read.tick() => send(&mut up, &AgentFrame::Report(node.report())),
        }
    }
}

struct Node {
    dead: Dead,
    read_at: BTreeMap<Destination, u64>,
    seq: u64,
}

impl Node {
    fn refuses(&self, to: Destination) -> bool {
        self.dead.load(Ordering::Relaxed) && to.ip().to_string().starts_with(PRIMARY)
    }

    fn on_frame(&mut self, frame: Decoded<ControllerFrame>) -> Option<AgentFrame> {
        match frame {
            Decoded::Frame(ControllerFrame::Checks(request)) => {
                let results = request.targets.iter().map(|target| CheckResult {
                    id: request.id,
                    to: target.to,
                    started_ns: now_ns(),
                    ended_ns: now_ns(),
                    outcome: match self.refuses(target.to) {
                        true => CheckOutcome::Failed(FailureCause::Refused),
                        false => CheckOutcome::Passed,
                    },
                });
                Some(AgentFrame::CheckResults(CheckResults { now_ns: now_ns(), results: results.collect() }))
            }
            Decoded::Frame(ControllerFrame::Split(split)) => {
                let watched = split.backends.iter().flat_map(|backend| &backend.destinations);
                self.read_at.extend(watched.map(|watched| (watched.to, now_ns())));
                None
            }
            Decoded::Frame(ControllerFrame::SplitsSent(_)) => {
                let row = |to: &Destination| Total {
                    to: *to,
                    attempts: 100,
                    established: 100,
                    last_success_age_ns: Some(1_000_000),
                    last_check_age_ns: None,
                };
                let rows = self.read_at.keys().map(row).collect();
                Some(AgentFrame::Totals(Totals { now_ns: now_ns(), complete: true, rows }))
            }
            _ => None,
        }
    }

    fn report(&mut self) -> Report {
        self.seq += 1;
        let now = now_ns();
        let known: Vec<Destination> = self.read_at.keys().copied().collect();
        let mut rows = Vec::new();
        for to in known {
            let from_ns = self.read_at.insert(to, now).unwrap();
            let mut row = Row { attempts: ATTEMPTS, ..Row::empty(to, from_ns, now) };
            if self.refuses(to) {
                row.refused = ATTEMPTS;
                row.clients = 2;
                row.first = Some(First { started_ns: from_ns + 1, failed_ns: from_ns + 2 });
            } else {
                row.established = ATTEMPTS;
            }
            rows.push(row);
        }
        Report { seq: self.seq, now_ns: now, rows, ..Report::default() }
    }
}
