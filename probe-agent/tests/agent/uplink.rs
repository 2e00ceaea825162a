//! One stream at a time: what is said first, what happens when the controller goes, stalls or talks nonsense.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use probe_agent::kernel::now_ns;
use probe_agent::report::ROWS_LIMIT;
use probe_agent::uplink::{self, News, Outbox, Speaker, StreamError};
use probe_common::wire::{ControllerFrame, Row, SplitsSent, VERSION};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::controller::{Controller, Mood, mk_split};

struct Uplink {
    outbox: Arc<Outbox>,
    news: mpsc::Receiver<(SocketAddr, News)>,
    _tasks: JoinSet<()>,
}

impl Uplink {
    fn start(controller: SocketAddr) -> Self {
        let outbox = Arc::new(Outbox::default());
        let (sender, news) = mpsc::channel(64);
        let speaker = Speaker { node: "n1".into(), incarnation: 7 };
        let mut tasks = JoinSet::new();
        tasks.spawn(uplink::run(controller, speaker, Arc::clone(&outbox), sender, now_ns));
        Self { outbox, news, _tasks: tasks }
    }

    async fn next(&mut self) -> News {
        let next = tokio::time::timeout(Duration::from_secs(10), self.news.recv()).await;
        next.expect("news within 10 s").expect("runs").1
    }

    async fn up(&mut self) {
        while !matches!(self.next().await, News::Up) {}
    }

    async fn down(&mut self) -> StreamError {
        loop {
            if let News::Down(error) = self.next().await {
                return error;
            }
        }
    }
}

fn mk_row(refused: u64) -> Row {
    let now_ns = now_ns();
    Row { attempts: refused, refused, ..Row::empty("198.18.0.1:80".parse().expect("an address"), now_ns - 1, now_ns) }
}

#[tokio::test]
async fn a_stream_says_hello_then_history_then_what_happens() {
    let mut controller = Controller::start(Mood::Attentive).await;
    let mut uplink = Uplink::start(controller.address);
    uplink.up().await;
    let hello = controller.hello().await;
    assert_eq!((hello.node.as_str(), hello.incarnation, hello.blind), ("n1", 7, None));
    controller.send(&ControllerFrame::Split(mk_split(&[], 25))).await;
    controller.send(&ControllerFrame::SplitsSent(SplitsSent {})).await;
    assert!(matches!(uplink.next().await, News::Frame(ControllerFrame::Split(_))));
    assert!(matches!(uplink.next().await, News::Frame(ControllerFrame::SplitsSent(_))));
    uplink.outbox.with(|reporter| reporter.push_totals([], now_ns()));
    assert!(controller.totals().await.complete);
    for seq in 1..=3 {
        uplink.outbox.with(|reporter| reporter.push_rows(&[mk_row(seq)], now_ns()));
        let (_, report) = controller.report().await;
        assert_eq!((report.seq, report.rows[0].refused), (seq, seq));
    }
}

#[tokio::test]
async fn a_broken_stream_begins_anew() {
    let mut controller = Controller::start(Mood::Attentive).await;
    let mut uplink = Uplink::start(controller.address);
    uplink.up().await;
    uplink.outbox.with(|reporter| reporter.flush(now_ns()));
    assert_eq!(controller.report().await.1.seq, 1);
    // Another version ends the stream; the connection is begun anew.
    controller.send_bytes(vec![VERSION + 1, 131, 0, 0, 0, 0, 0, 0]).await;
    assert!(matches!(uplink.down().await, StreamError::Frame(_)));
    uplink.up().await;
    controller.hello().await;
    uplink.outbox.with(|reporter| reporter.flush(now_ns()));
    assert_eq!(controller.report().await.1.seq, 1);
}

#[tokio::test]
async fn nonsense_within_a_frame_is_passed_over() {
    let controller = Controller::start(Mood::Attentive).await;
    let mut uplink = Uplink::start(controller.address);
    uplink.up().await;
    controller.send_bytes(vec![VERSION, 200, 0, 0, 0, 0, 0, 1, b'x']).await;
    controller.send_bytes(vec![VERSION, 130, 0, 0, 0, 0, 0, 1, b'x']).await;
    controller.send(&ControllerFrame::SplitsSent(SplitsSent {})).await;
    assert!(matches!(uplink.next().await, News::Skipped { .. }));
    assert!(matches!(uplink.next().await, News::Skipped { .. }));
    assert!(matches!(uplink.next().await, News::Frame(ControllerFrame::SplitsSent(_))));
}

#[tokio::test]
async fn a_controller_that_goes_and_comes_is_found_again() {
    let mut controller = Controller::start(Mood::Refusing).await;
    let mut uplink = Uplink::start(controller.address);
    assert!(matches!(uplink.down().await, StreamError::Refused(status) if status.as_u16() == 503));
    controller.set_mood(Mood::Attentive);
    uplink.up().await;
    controller.stop();
    uplink.down().await;
    let error = uplink.down().await;
    assert!(matches!(error, StreamError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn a_frozen_controller_is_noticed_within_two_seconds() {
    let controller = Controller::start(Mood::Attentive).await;
    let mut uplink = Uplink::start(controller.address);
    uplink.up().await;
    let frozen_ns = now_ns();
    controller.set_mood(Mood::Frozen);
    let error = uplink.down().await;
    assert!(matches!(error, StreamError::Silent), "{error:?}");
    assert!(now_ns() - frozen_ns < 2_500_000_000);
}

#[tokio::test]
async fn a_controller_that_does_not_read_costs_the_oldest_rows_and_is_told_so() {
    let mut controller = Controller::start(Mood::Deaf).await;
    let mut uplink = Uplink::start(controller.address);
    uplink.up().await;
    uplink.outbox.with(|reporter| reporter.push_totals([], now_ns()));
    let mut dropped = 0;
    let mut pushed = 0;
    while dropped < 100 {
        pushed += 100;
        let rows = vec![mk_row(1); 100];
        dropped += uplink.outbox.with(|reporter| reporter.push_rows(&rows, now_ns())).rows;
        assert!(pushed < 10 * ROWS_LIMIT as u64, "nothing is dropped");
        // Lets the stream fill its window.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    controller.set_mood(Mood::Attentive);
    let (mut told, mut admitted) = (0, 0);
    while told + admitted < pushed {
        let (_, report) = controller.report().await;
        told += report.rows.len() as u64;
        admitted += report.dropped_rows;
    }
    assert_eq!((told, admitted), (pushed - dropped, dropped));
}
