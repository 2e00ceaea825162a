//! The loop with the real core behind it: what reaches whom. What the core decides is tested there.

use std::collections::BTreeSet;

use controller_core::facts::{BackendFacts, MoveCause, SplitFacts};
use controller_core::output::{Direction, WriteId};
use controller_core::target::Grounds;
use controller_core::weights::Weight;
use probe_common::admin::Surface;
use probe_common::wire::{AgentFrame, Hello, Report};
use prometheus_client::registry::Registry;

use super::*;
use crate::record::Place;
use crate::state::progress::Progress;

fn split() -> ObjectId {
    ObjectId::new("demo", "emoji")
}

struct Bench {
    turn: Turn,
    jobs: mpsc::Receiver<Job>,
    announcements: mpsc::Receiver<Announcement>,
    view: Arc<View>,
    _asks: mpsc::Receiver<Ask>,
}

fn mk_bench(job_queue: usize) -> Bench {
    let (jobs_in, jobs) = mpsc::channel(job_queue);
    let (announcements_in, announcements) = mpsc::channel(8);
    let (asks_in, asks) = mpsc::channel(1);
    let mut registry = Registry::default();
    let (counters, write_counters) = (Counters::default(), WriteCounters::default());
    counters.register(&mut registry);
    let shown = (controller_core::config::Mode::Enforce, "default");
    let view = Arc::new(View::new(shown, clock::monotonic, Arc::new(Progress::default()), asks_in, registry));
    let config = controller_core::Config::default();
    let counters = (counters, write_counters);
    let turn = Turn::new(config, clock::monotonic, jobs_in, announcements_in, counters, Arc::clone(&view));
    Bench { turn, jobs, announcements, view, _asks: asks }
}

fn mk_object(version: &str, place: Place) -> SplitObject {
    SplitObject { uid: "u-1".into(), resource_version: version.into(), place, record: None }
}

fn mk_split(version: &str) -> Observation {
    let facts = SplitFacts {
        uid: "u-1".into(),
        resource_version: version.into(),
        generation: 1,
        service: "web".into(),
        backends: vec![
            BackendFacts { service: "web".into(), weight: Weight::ONE },
            BackendFacts { service: "web-west".into(), weight: Weight::ZERO },
        ],
        primary: None,
        port: None,
        single_node: false,
        check_all_ports: false,
        record: None,
    };
    Observation::Split { input: Input::Split(split(), facts), object: mk_object(version, Place::NoEntry) }
}

fn mk_write(version: &str, event: Option<&str>) -> Write {
    Write {
        id: WriteId(9),
        split: split(),
        uid: "u-1".into(),
        resource_version: version.into(),
        weights: vec![("web".into(), Weight::ZERO), ("web-west".into(), Weight::ONE)],
        record: None,
        direction: Direction::Failover,
        cause: MoveCause::Connections,
        decided: Time(0),
        expires: Time(u64::MAX),
        event: event.map(ToOwned::to_owned),
    }
}

fn mk_written(write: Write, outcome: WriteOutcome, in_doubt: bool) -> Written {
    Written { write, outcome, place: Some(Place::Entry), record: Some("ours".into()), in_doubt }
}

fn mk_stream(turn: &mut Turn, node: &str, stream: u64, room: usize) -> mpsc::Receiver<ControllerFrame> {
    let (downstream, frames) = mpsc::channel(room);
    turn.on_arrival(Arrival::Began { node: node.into(), stream, downstream });
    frames
}

fn mk_hello(node: &str, stream: u64) -> Arrival {
    let hello = Hello { node: node.into(), incarnation: 1, version: String::new(), now_ns: 1, blind: None };
    Arrival::Frame { node: node.into(), stream, frame: AgentFrame::Hello(hello), decoded: clock::monotonic() }
}

#[test]
fn a_write_carries_the_place_of_the_version_that_guards_it() {
    let mut bench = mk_bench(8);
    bench.turn.on_observation(mk_split("17"));
    bench.turn.objects.on_object(split(), mk_object("18", Place::Entry));
    bench.turn.write(mk_write("17", None));
    assert_eq!(bench.jobs.try_recv().expect("a job").place, Place::NoEntry);
    bench.turn.write(mk_write("18", None));
    assert_eq!(bench.jobs.try_recv().expect("a job").place, Place::Entry);
    bench.turn.write(mk_write("99", None));
    assert!(bench.jobs.try_recv().is_err(), "a version that nobody saw is not guessed about");
}

#[test]
fn a_full_queue_answers_the_write_instead_of_losing_it() {
    let mut bench = mk_bench(1);
    bench.turn.on_observation(mk_split("17"));
    bench.turn.write(mk_write("17", None));
    bench.turn.write(mk_write("17", None));
    assert!(bench.jobs.try_recv().is_ok());
    assert!(bench.jobs.try_recv().is_err());
}

#[test]
fn an_event_is_announced_after_its_write_was_applied_and_only_then() {
    let note = "trafficsplit/emoji failing over to fallbacks";
    let applied = || WriteOutcome::Applied { acknowledged: clock::monotonic(), resource_version: "18".into() };
    let announced = |event: Option<&str>, outcome: WriteOutcome| {
        let mut bench = mk_bench(8);
        bench.turn.on_observation(mk_split("17"));
        bench.turn.on_written(mk_written(mk_write("17", event), outcome, false));
        let place = bench.turn.objects.place(&split(), "18");
        (bench.announcements.try_recv().ok(), place)
    };
    let (announcement, place) = announced(Some(note), applied());
    let announcement = announcement.expect("announced");
    assert_eq!((announcement.reason, announcement.note.as_str()), ("Failover", note));
    let made = SplitObject { record: Some("ours".into()), ..mk_object("18", Place::Entry) };
    assert_eq!(announcement.object, made, "the version that the write made");
    assert_eq!(place, Some(Place::Entry), "the next write may be guarded by it");
    assert_eq!(announced(None, applied()).0, None, "a step of a ramp has none");
    for outcome in [
        WriteOutcome::Conflict,
        WriteOutcome::Gone,
        WriteOutcome::Refused("403".into()),
        WriteOutcome::Failed("503".into()),
        WriteOutcome::Expired,
    ] {
        assert_eq!(announced(Some(note), outcome), (None, None));
    }
}

/// The split as a write of ours left it.
fn mk_moved(version: &str) -> Observation {
    let Observation::Split { input: Input::Split(id, mut facts), mut object } = mk_split(version) else {
        unreachable!("made so above")
    };
    facts.backends[0].weight = Weight::ZERO;
    facts.backends[1].weight = Weight::ONE;
    object.record = Some("ours".into());
    Observation::Split { input: Input::Split(id, facts), object }
}

#[test]
fn a_write_whose_answer_was_lost_is_announced_when_it_shows_whichever_comes_first() {
    let lost = || mk_written(mk_write("17", Some("moved")), WriteOutcome::Failed("no answer".into()), true);
    for shows_first in [true, false] {
        let mut bench = mk_bench(8);
        bench.turn.on_observation(mk_split("17"));
        if shows_first {
            bench.turn.on_observation(mk_moved("18"));
            bench.turn.on_written(lost());
        } else {
            bench.turn.on_written(lost());
            assert!(bench.announcements.try_recv().is_err(), "nobody knows yet");
            bench.turn.on_observation(mk_moved("18"));
        }
        let announcement = bench.announcements.try_recv().expect("announced");
        assert_eq!((announcement.reason, announcement.note.as_str()), ("Failover", "moved"));
        assert_eq!(announcement.object.resource_version, "18");
        bench.turn.on_observation(mk_moved("18"));
        bench.turn.on_observation(mk_moved("19"));
        assert!(bench.announcements.try_recv().is_err(), "once");
    }
}

#[test]
fn an_invalid_split_gets_an_event_on_itself() {
    let mut bench = mk_bench(8);
    bench.turn.on_observation(Observation::Split {
        input: Input::SplitInvalid { split: split(), fault: "spec.backends is missing".into() },
        object: mk_object("17", Place::NoMap),
    });
    let announcement = bench.announcements.try_recv().expect("announced");
    assert_eq!(announcement.reason, "InvalidPolicy");
    assert_eq!(announcement.object.uid, "u-1");
    assert!(announcement.note.contains("spec.backends is missing"), "{}", announcement.note);
}

#[test]
fn frames_of_the_core_reach_the_stream_that_they_are_for() {
    let mut bench = mk_bench(8);
    bench.turn.on_observation(mk_split("17"));
    let mut frames = mk_stream(&mut bench.turn, "n1", 1, 64);
    bench.turn.on_arrival(mk_hello("n1", 1));
    assert!(frames.try_recv().is_err(), "not before the first lists are complete");
    bench.turn.on_observation(Observation::Fact(Input::CachesComplete));
    let mut kinds = Vec::new();
    while let Ok(frame) = frames.try_recv() {
        kinds.push(matches!(frame, ControllerFrame::SplitsSent(_)));
    }
    assert_eq!(kinds.last(), Some(&true), "the first full set ends with its mark: {kinds:?}");
    let stray = ControllerFrame::SplitsSent(probe_common::wire::SplitsSent {});
    bench.turn.send("n1", 2, stray.clone());
    bench.turn.send("n2", 1, stray);
    assert!(frames.try_recv().is_err());
}

#[test]
fn a_stream_that_does_not_read_is_ended() {
    let mut bench = mk_bench(8);
    let mut frames = mk_stream(&mut bench.turn, "n1", 1, 1);
    let frame = ControllerFrame::SplitsSent(probe_common::wire::SplitsSent {});
    bench.turn.send("n1", 1, frame.clone());
    bench.turn.send("n1", 1, frame);
    assert!(frames.try_recv().is_ok());
    assert_eq!(frames.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
}

#[test]
fn a_newer_stream_of_a_node_ends_the_older() {
    let mut bench = mk_bench(8);
    let mut older = mk_stream(&mut bench.turn, "n1", 1, 8);
    let mut newer = mk_stream(&mut bench.turn, "n1", 2, 8);
    assert_eq!(older.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    // Overtaken on the channel by the newer one.
    let mut late = mk_stream(&mut bench.turn, "n1", 0, 8);
    assert_eq!(late.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    bench.turn.on_arrival(Arrival::Ended { node: "n1".into(), stream: 1 });
    assert_eq!(newer.try_recv(), Err(mpsc::error::TryRecvError::Empty), "the end of the older is not its end");
}

#[test]
fn time_never_runs_backwards() {
    let mut bench = mk_bench(8);
    bench.turn.handle(Input::CachesComplete, Time(u64::MAX / 2));
    mk_stream(&mut bench.turn, "n1", 1, 8);
    bench.turn.on_arrival(mk_hello("n1", 1));
    assert_eq!(bench.turn.latest, Time(u64::MAX / 2));
}

#[test]
fn agents_that_are_gone_and_not_expected_are_forgotten() {
    let mut bench = mk_bench(8);
    let _kept = mk_stream(&mut bench.turn, "n1", 1, 8);
    let _other = mk_stream(&mut bench.turn, "n2", 2, 8);
    bench.turn.on_arrival(mk_hello("n1", 1));
    bench.turn.on_arrival(mk_hello("n2", 2));
    for (node, stream) in [("n1", 1), ("n2", 2)] {
        bench.turn.on_arrival(Arrival::Ended { node: node.into(), stream });
    }
    bench.turn.on_observation(Input::ExpectedAgents(BTreeSet::from(["n2".to_owned()])).into());
    let nodes: Vec<_> = bench.turn.look(clock::monotonic()).agents.into_iter().map(|agent| agent.node).collect();
    assert_eq!(nodes, ["n2"]);
}

#[test]
fn detection_is_measured_from_the_episodes_begin_to_the_decision() {
    let mut bench = mk_bench(8);
    let mut at = |seconds: u64, kind: TransitionKind| {
        bench.turn.on_transition(Transition { at: Time(seconds * 1_000_000_000), split: Some(split()), kind });
    };
    let decided = |direction, cause| TransitionKind::Decided { write: WriteId(1), direction, cause };
    at(
        13,
        TransitionKind::Condemned { backend: "web".into(), episode: Time(10_000_000_000), grounds: Grounds::LastLook },
    );
    at(14, decided(Direction::Failover, MoveCause::Connections));
    at(20, decided(Direction::Failback, MoveCause::Connections));
    at(30, decided(Direction::Failover, MoveCause::Readiness));
    let mut text = String::new();
    bench.view.encode_metrics(&mut text).expect("writes");
    for line in [
        "detection_seconds_sum 4.0",
        "detection_seconds_count 1",
        "decisions_total{direction=\"failover\",cause=\"readiness\"} 1",
        "transitions_total{kind=\"condemned\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(bench.view.state()["transitions"].as_array().map(Vec::len), Some(4));
}

#[tokio::test]
async fn frames_that_wait_are_taken_before_a_deadline() {
    let mut bench = mk_bench(8);
    let (arrivals_in, arrivals) = mpsc::channel(8);
    let (_observations, observations) = mpsc::channel(1);
    let (_written, written) = mpsc::channel(1);
    let (_asks, asks) = mpsc::channel(1);
    let mut inlets = Inlets { observations, arrivals, written, asks };
    let _frames = mk_stream(&mut bench.turn, "n1", 1, 64);
    bench.turn.on_arrival(mk_hello("n1", 1));
    for seq in 1..=3 {
        let frame = AgentFrame::Report(Report { seq, now_ns: seq, ..Report::default() });
        let arrival = Arrival::Frame { node: "n1".into(), stream: 1, frame, decoded: clock::monotonic() };
        arrivals_in.send(arrival).await.expect("room");
    }
    bench.turn.on_deadline(&mut inlets);
    assert!(inlets.arrivals.try_recv().is_err());
}
