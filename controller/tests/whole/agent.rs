//! An agent as the controller sees it: the real frames at the real pace, over a world that the test makes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
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

/// Connections of this node to each destination between two reads: 300 a second.
const ATTEMPTS: u64 = 3;

/// Pause between the end of a stream and the next try.
const RECONNECT_AFTER: Duration = Duration::from_millis(50);

/// Which addresses are dead, by prefix, and since when.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<BTreeMap<String, u64>>>);

impl World {
    pub(crate) fn all_alive() -> Self {
        Self::default()
    }

    /// Everything whose address begins so refuses from now on.
    pub(crate) fn kill(&self, prefix: &str) {
        self.0.lock().unwrap().insert(prefix.to_owned(), now_ns());
    }

    /// It answers again.
    pub(crate) fn revive(&self, prefix: &str) {
        self.0.lock().unwrap().remove(prefix);
    }

    fn is_dead(&self, to: Destination) -> bool {
        self.dead_since(to).is_some()
    }

    fn dead_since(&self, to: Destination) -> Option<u64> {
        let address = to.ip().to_string();
        self.0.lock().unwrap().iter().find(|(prefix, _)| address.starts_with(*prefix)).map(|(_, since_ns)| *since_ns)
    }
}

/// Runs until it is dropped, and comes back to its controller as often as that comes back.
pub(crate) struct Agent {
    _task: JoinSet<()>,
}

impl Agent {
    pub(crate) fn start(node: &'static str, controller: SocketAddr, world: World) -> Self {
        let incarnation = now_ns();
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                run(node, incarnation, controller, world.clone()).await.ok();
                tokio::time::sleep(RECONNECT_AFTER).await;
            }
        });
        Self { _task: task }
    }
}

type Ended = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What it has been told, and how far it has come.
struct Told {
    world: World,
    destinations: BTreeMap<Destination, u64>,
    /// Destinations by split, so that a later version of one replaces the earlier.
    splits: BTreeMap<(String, String), Vec<Destination>>,
    seq: u64,
}

async fn run(node: &'static str, incarnation: u64, controller: SocketAddr, world: World) -> Result<(), Ended> {
    let socket = TcpStream::connect(controller).await?;
    let (requests, connection) = h2::client::handshake(socket).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        connection.await.ok();
    });
    let request = http::Request::post(format!("http://controller{STREAM_PATH}")).body(()).unwrap();
    let (response, mut up) = requests.ready().await?.send_request(request, false)?;
    let hello = Hello { node: node.into(), incarnation, version: "test".into(), now_ns: now_ns(), blind: None };
    send(&mut up, &AgentFrame::Hello(hello));
    let mut down = response.await?.into_body();
    let mut decoder = Decoder::<ControllerFrame>::default();
    let mut told = Told { world, destinations: BTreeMap::new(), splits: BTreeMap::new(), seq: 0 };
    let mut read = tokio::time::interval(READ_EVERY);
    loop {
        tokio::select! {
            bytes = down.data() => {
                let Some(Ok(bytes)) = bytes else { return Ok(()) };
                down.flow_control().release_capacity(bytes.len()).unwrap();
                decoder.push(&bytes);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    if let Some(answer) = told.on_frame(frame) {
                        send(&mut up, &answer);
                    }
                }
            }
            _ = read.tick() => send(&mut up, &AgentFrame::Report(told.report())),
        }
    }
}

fn send(up: &mut h2::SendStream<Bytes>, frame: &AgentFrame) {
    // A controller that has gone needs no answer.
    up.send_data(frame.encode().unwrap().into(), false).ok();
}

impl Told {
    fn on_frame(&mut self, frame: Decoded<ControllerFrame>) -> Option<AgentFrame> {
        let Decoded::Frame(frame) = frame else { return None };
        match frame {
            ControllerFrame::Checks(request) => Some(AgentFrame::CheckResults(CheckResults {
                now_ns: now_ns(),
                results: request
                    .targets
                    .iter()
                    .map(|target| CheckResult {
                        id: request.id,
                        to: target.to,
                        started_ns: now_ns(),
                        ended_ns: now_ns(),
                        outcome: match self.world.is_dead(target.to) {
                            true => CheckOutcome::Failed(FailureCause::Refused),
                            false => CheckOutcome::Passed,
                        },
                    })
                    .collect(),
            })),
            ControllerFrame::Split(split) => {
                let destinations =
                    split.backends.iter().flat_map(|backend| backend.destinations.iter().map(|watched| watched.to));
                self.splits.insert((split.namespace, split.name), destinations.collect());
                self.watch();
                None
            }
            ControllerFrame::SplitGone(split) => {
                self.splits.remove(&(split.namespace, split.name));
                self.watch();
                None
            }
            ControllerFrame::SplitsSent(_) => {
                let now_ns = now_ns();
                let row = |(to, _): (&Destination, &u64)| Total {
                    to: *to,
                    attempts: 100,
                    established: 100,
                    last_success_age_ns: Some(now_ns - self.world.dead_since(*to).unwrap_or(now_ns - 1_000_000)),
                    last_check_age_ns: None,
                };
                let rows = self.destinations.iter().map(row).collect();
                Some(AgentFrame::Totals(Totals { now_ns, complete: true, rows }))
            }
        }
    }

    fn watch(&mut self) {
        let wanted: BTreeSet<Destination> = self.splits.values().flatten().copied().collect();
        self.destinations.retain(|to, _| wanted.contains(to));
        for to in wanted {
            self.destinations.entry(to).or_insert_with(now_ns);
        }
    }

    fn report(&mut self) -> Report {
        self.seq += 1;
        let now = now_ns();
        let world = &self.world;
        let rows = self.destinations.iter_mut().map(|(to, read_at)| {
            let from_ns = std::mem::replace(read_at, now);
            let mut row = Row { attempts: ATTEMPTS, ..Row::empty(*to, from_ns, now) };
            if world.is_dead(*to) {
                row.refused = ATTEMPTS;
                row.clients = 2;
                row.first = Some(First { started_ns: from_ns + 1, failed_ns: from_ns + 2 });
            } else {
                row.established = ATTEMPTS;
            }
            row
        });
        let rows = rows.collect();
        Report { seq: self.seq, now_ns: now, rows, ..Report::default() }
    }
}
