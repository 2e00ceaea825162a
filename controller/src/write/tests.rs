//! Writing against a scripted API server on loopback: what it may answer, and when.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use controller_core::facts::{MoveCause, ObjectId, Record, RecordedState};
use controller_core::output::{Direction, WriteId};
use controller_core::weights::Weight;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::event::{Announcement, Publisher};
use super::*;
use crate::clock;
use crate::cluster::SplitObject;

/// What the server does with one request.
#[derive(Clone, Debug)]
enum Scenario {
    /// Takes it.
    Applies,
    /// Takes it, and answers after so long.
    AppliesLate(Duration),
    /// Answers so.
    Says(u16, &'static str),
    /// Answers so after so long.
    SaysLate(Duration, u16, &'static str),
    /// Never answers.
    Stalls,
    /// Ends the connection without an answer.
    HangsUp,
}

/// One request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    target: String,
    content_type: String,
    body: Value,
}

struct Server {
    config: kube::Config,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Plays `script`, one entry per request, the last one for ever.
    async fn start(script: Vec<Scenario>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let shared = Arc::clone(&seen);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.expect("accepts");
                let (script, seen) = (script.clone(), Arc::clone(&shared));
                let service = service_fn(move |request| play(script.clone(), Arc::clone(&seen), request));
                connections.spawn(async move {
                    http1::Builder::new().serve_connection(TokioIo::new(socket), service).await.ok();
                });
            }
        });
        let config = kube::Config::new(format!("http://{address}").parse().expect("a URL"));
        Self { config, seen, _tasks: tasks }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }
}

async fn play(
    script: Vec<Scenario>,
    seen: Arc<Mutex<Vec<Seen>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    // A lane that keeps itself warm is no part of the script.
    if request.method() == Method::GET {
        return Ok(Response::new(Full::default()));
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let number = {
        let mut seen = seen.lock().expect("no panic");
        seen.push(Seen {
            method: head.method.to_string(),
            target: head.uri.to_string(),
            content_type: head.headers.get("content-type").map_or("", |value| value.to_str().expect("text")).to_owned(),
            body: serde_json::from_slice(&body)?,
        });
        seen.len() - 1
    };
    let applied = json!({"metadata": {"resourceVersion": "18", "annotations": {"splitsecond.dev/state": "x"}}});
    let (wait, status, answer) = match script[number.min(script.len() - 1)].clone() {
        Scenario::Applies => (Duration::ZERO, 200, applied),
        Scenario::AppliesLate(wait) => (wait, 200, applied),
        Scenario::Says(status, message) => (Duration::ZERO, status, refusal(status, message)),
        Scenario::SaysLate(wait, status, message) => (wait, status, refusal(status, message)),
        Scenario::Stalls => (Duration::from_secs(3_600), 200, json!(null)),
        Scenario::HangsUp => return Err("hangs up".into()),
    };
    tokio::time::sleep(wait).await;
    Ok::<_, Infallible>(Response::builder().status(status).body(Full::from(answer.to_string())).expect("a response"))
        .map_err(Into::into)
}

fn refusal(status: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "message": message})
}

fn mk_writer(server: &Server) -> Writer {
    let lane = || Lane::new(server.config.clone()).expect("a lane");
    let (_, version) = watch::channel(Some(SplitVersion::V1Alpha1));
    Writer { lanes: [lane(), lane()], version, counters: Counters::default(), now: clock::monotonic }
}

fn mk_job(number: u64, direction: Direction) -> Job {
    let decided = clock::monotonic();
    let record = Record {
        state: RecordedState::Failed,
        epoch: 1,
        cause: MoveCause::Connections,
        failovers: 1,
        dwell_left: Duration::from_secs(30),
        age: Duration::ZERO,
        steady: BTreeMap::new(),
    };
    let write = Write {
        id: WriteId(number),
        split: ObjectId::new("demo", format!("emoji-{number}")),
        uid: "u-1".into(),
        resource_version: "17".into(),
        weights: vec![("web".into(), Weight::ZERO), ("web-west".into(), Weight::ONE)],
        record: Some(record),
        direction,
        cause: MoveCause::Connections,
        decided,
        expires: decided + Duration::from_secs(1),
        event: None,
    };
    Job { write, place: Place::NoMap }
}

/// Plays `script` to one write.
async fn outcome(script: Vec<Scenario>, direction: Direction) -> (WriteOutcome, Writer, Server) {
    let server = Server::start(script).await;
    let writer = mk_writer(&server);
    let written = writer.carry(mk_job(1, direction)).await;
    (written.outcome, writer, server)
}

fn is_applied(outcome: &WriteOutcome) -> bool {
    matches!(outcome, WriteOutcome::Applied { resource_version, .. } if resource_version == "18")
}

#[tokio::test]
async fn a_write_is_one_guarded_json_patch() {
    let server = Server::start(vec![Scenario::Applies]).await;
    let job = mk_job(1, Direction::Failover);
    let written = mk_writer(&server).carry(job.clone()).await;
    assert!(is_applied(&written.outcome), "{:?}", written.outcome);
    assert_eq!(written.place, Some(Place::Entry), "as the answer shows it");
    let WriteOutcome::Applied { acknowledged, .. } = written.outcome else { unreachable!("checked above") };
    assert!(acknowledged >= job.write.decided && acknowledged <= clock::monotonic());
    let [seen] = server.seen().try_into().expect("one request");
    assert_eq!(seen.method, "PATCH");
    assert_eq!(
        seen.target,
        "/apis/split.smi-spec.io/v1alpha1/namespaces/demo/trafficsplits/emoji-1?fieldManager=splitsecond"
    );
    assert_eq!(seen.content_type, "application/json-patch+json");
    assert_eq!(seen.body[0], json!({"op": "test", "path": "/metadata/uid", "value": "u-1"}));
    assert_eq!(seen.body[4], json!({"op": "replace", "path": "/spec/backends/0/weight", "value": 0}));
    assert_eq!(seen.body[6]["path"], "/metadata/annotations");
}

#[tokio::test]
async fn each_answer_has_its_outcome_and_is_asked_for_once() {
    let said = |text: &str| text.to_owned();
    for (scenario, expected) in [
        (Scenario::Says(409, "modified"), WriteOutcome::Conflict),
        (Scenario::Says(422, "the server rejected our request due to an error in our request"), WriteOutcome::Conflict),
        (Scenario::Says(404, "no such split"), WriteOutcome::Gone),
        (Scenario::Says(403, "no right"), WriteOutcome::Refused(said("403: no right"))),
        (Scenario::Says(503, "not now"), WriteOutcome::Failed(said("503: not now"))),
        (Scenario::Says(429, "slower"), WriteOutcome::Failed(said("429: slower"))),
    ] {
        for direction in [Direction::Failover, Direction::Failback] {
            let (outcome, _, server) = outcome(vec![scenario.clone()], direction).await;
            assert_eq!(outcome, expected);
            assert_eq!(server.seen().len(), 1, "{scenario:?} {direction:?}");
        }
    }
}

#[tokio::test]
async fn no_answer_and_no_connection_are_failures_with_a_reason() {
    let (hung_up, ..) = outcome(vec![Scenario::HangsUp], Direction::Ramp).await;
    assert!(matches!(&hung_up, WriteOutcome::Failed(reason) if !reason.is_empty()), "{hung_up:?}");
    let (stalled, _, server) = outcome(vec![Scenario::Stalls], Direction::Ramp).await;
    assert_eq!(stalled, WriteOutcome::Failed("no answer within 500ms".into()));
    assert_eq!(server.seen().len(), 1, "a ramp is not hedged");

    let unused = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("has an address");
    let config = kube::Config::new(format!("http://{unused}").parse().expect("a URL"));
    let nobody = Server { config, seen: Arc::default(), _tasks: JoinSet::new() };
    let refused = mk_writer(&nobody).carry(mk_job(1, Direction::Failback)).await.outcome;
    assert!(matches!(&refused, WriteOutcome::Failed(reason) if reason.contains("refused")), "{refused:?}");
}

#[tokio::test]
async fn a_failover_without_an_answer_is_sent_once_more_on_the_second_lane() {
    let (outcome, writer, server) = outcome(vec![Scenario::Stalls, Scenario::Applies], Direction::Failover).await;
    assert!(is_applied(&outcome), "{outcome:?}");
    assert_eq!(server.seen().len(), 2);
    assert_eq!(writer.counters.hedges_sent(), 1);
}

#[tokio::test]
async fn a_hedge_that_lost_against_its_own_first_is_not_believed() {
    let late = Scenario::AppliesLate(Duration::from_millis(300));
    let (outcome, ..) = outcome(vec![late, Scenario::Says(409, "modified")], Direction::Failover).await;
    assert!(is_applied(&outcome), "{outcome:?}");
}

#[tokio::test]
async fn a_hedge_that_meets_a_conflict_twice_is_a_conflict() {
    let late = Scenario::SaysLate(Duration::from_millis(250), 409, "modified");
    let (outcome, ..) = outcome(vec![late, Scenario::Says(409, "modified")], Direction::Failover).await;
    assert_eq!(outcome, WriteOutcome::Conflict);
}

#[tokio::test]
async fn a_quick_answer_is_not_hedged() {
    let (_, writer, server) = outcome(vec![Scenario::Says(503, "not now")], Direction::Failover).await;
    assert_eq!((writer.counters.hedges_sent(), server.seen().len()), (0, 1));
}

#[tokio::test]
async fn a_write_past_its_time_is_not_sent() {
    let server = Server::start(vec![Scenario::Applies]).await;
    let mut job = mk_job(1, Direction::Failover);
    job.write.expires = job.write.decided;
    assert_eq!(mk_writer(&server).carry(job).await.outcome, WriteOutcome::Expired);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_stalled_connection_is_not_used_again() {
    let server = Server::start(vec![Scenario::Applies, Scenario::Stalls, Scenario::Applies]).await;
    let writer = mk_writer(&server);
    for (number, applied) in [(1, true), (2, false), (3, true)] {
        let outcome = writer.carry(mk_job(number, Direction::Ramp)).await.outcome;
        assert_eq!(is_applied(&outcome), applied, "write {number}: {outcome:?}");
    }
}

#[tokio::test]
async fn one_splits_trouble_delays_no_other_and_each_write_is_answered_once() {
    let script = [vec![Scenario::Stalls; 4], vec![Scenario::Applies]].concat();
    let server = Server::start(script).await;
    let (jobs, jobs_out) = mpsc::channel(64);
    let (answers_in, mut answers) = mpsc::channel(IN_FLIGHT);
    let mut tasks = JoinSet::new();
    tasks.spawn(run(mk_writer(&server), jobs_out, answers_in));
    for number in 0..4 {
        jobs.send(mk_job(number, Direction::Ramp)).await.expect("the writer lives");
    }
    while server.seen().len() < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for number in 4..44 {
        jobs.send(mk_job(number, Direction::Ramp)).await.expect("the writer lives");
    }
    drop(jobs);
    let mut ended = Vec::new();
    while let Some(written) = answers.recv().await {
        ended.push((written.write.id.0, is_applied(&written.outcome)));
    }
    let (last, first) = (ended.split_off(40), ended);
    assert!(first.iter().all(|(number, applied)| *number >= 4 && *applied), "{first:?}");
    assert!(last.iter().all(|(number, applied)| *number < 4 && !applied), "{last:?}");
    let numbers: std::collections::BTreeSet<_> = first.iter().chain(&last).map(|(number, _)| *number).collect();
    assert_eq!(numbers.len(), 44);
}

async fn publish(script: Vec<Scenario>, count: usize) -> (Server, Counters) {
    let server = Server::start(script).await;
    let counters = Counters::default();
    let (_, version) = watch::channel(Some(SplitVersion::V1Alpha2));
    let mut config = server.config.clone();
    config.default_retry = false;
    let publisher = Publisher {
        client: kube::Client::try_from(config).expect("a client"),
        version,
        instance: "replica-1".into(),
        counters: counters.clone(),
        now: clock::monotonic,
    };
    let (queue, out) = mpsc::channel(event::QUEUE);
    for _ in 0..count {
        let announcement = Announcement {
            split: ObjectId::new("demo", "emoji"),
            object: SplitObject { uid: "u-1".into(), resource_version: "18".into(), place: Place::Entry, record: None },
            reason: event::FAILOVER,
            note: "trafficsplit/emoji failing over to fallbacks".into(),
            at: "2026-11-22T10:00:00.5Z".parse().expect("a timestamp"),
        };
        event::announce(&queue, &counters, announcement);
    }
    drop(queue);
    event::run(publisher, out).await;
    (server, counters)
}

#[tokio::test]
async fn an_event_is_what_linkerd_failovers_users_know() {
    let (server, _) = publish(vec![Scenario::Applies], 1).await;
    let [seen] = server.seen().try_into().expect("one request");
    assert_eq!(seen.method, "POST");
    assert!(seen.target.starts_with("/apis/events.k8s.io/v1/namespaces/demo/events"), "{}", seen.target);
    assert_eq!(
        seen.body,
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"generateName": "splitsecond-", "namespace": "demo"},
            "reason": "Failover", "action": "Failover", "type": "Normal",
            "note": "trafficsplit/emoji failing over to fallbacks",
            "eventTime": "2026-11-22T10:00:00.500000Z",
            "reportingController": "splitsecond.dev/controller", "reportingInstance": "replica-1",
            "regarding": {"apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit", "namespace": "demo",
                          "name": "emoji", "uid": "u-1", "resourceVersion": "18"},
        })
    );
}

#[tokio::test]
async fn an_event_is_tried_again_until_it_is_taken() {
    let (server, counters) =
        publish(vec![Scenario::Says(503, "not now"), Scenario::Says(409, "taken"), Scenario::Applies], 1).await;
    assert_eq!(server.seen().len(), 3);
    assert_eq!(counters.events_of("published"), 1);
}

#[tokio::test]
async fn an_event_that_would_be_refused_again_is_not_tried_again() {
    let (server, counters) = publish(vec![Scenario::Says(403, "no right")], 1).await;
    assert_eq!(server.seen().len(), 1);
    assert_eq!(counters.events_of("refused"), 1);
}

#[tokio::test]
async fn events_beyond_the_queue_are_dropped_and_counted() {
    let (server, counters) = publish(vec![Scenario::Applies], event::QUEUE + 3).await;
    assert_eq!(server.seen().len(), event::QUEUE);
    assert_eq!((counters.events_of("dropped"), counters.events_of("published")), (3, event::QUEUE as u64));
}
