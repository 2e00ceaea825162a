use controller_core::explain::BackendExplanation;
use controller_core::output::TransitionKind;
use controller_core::weights::Weight;

use super::*;
use crate::findings::Subject;

fn now() -> Time {
    Time(60_000_000_000)
}

fn mk_view(asks: mpsc::Sender<Ask>) -> View {
    let registry = Registry::with_prefix("splitsecond_controller");
    View::new((Mode::Observe, "default"), now, Arc::new(Progress::default()), asks, registry)
}

fn mk_snapshot(split: &str, health: &'static str) -> Arc<Snapshot> {
    let backend = BackendExplanation {
        service: "web".into(),
        weight: Weight::ONE,
        health,
        ready: 1,
        failing: 0,
        evidence: 0,
        nodes: Default::default(),
        observers: 0,
        abstaining: Vec::new(),
        meshed: 0,
        refusing_proxies: 0,
        last_success: None,
    };
    let explanation = Explanation { state: "steady", backends: vec![backend], ..Explanation::default() };
    let agents =
        vec![AgentRow { node: "n1".into(), freshness: Freshness::Fresh, stream: Some((4, Time(59_000_000_000))) }];
    let finding = Finding {
        subject: Subject::Split(ObjectId::new("demo", split)),
        kind: FindingKind::MissingService,
        text: "spec.service \"web\" does not exist".into(),
    };
    Arc::new(Snapshot {
        at: now(),
        splits: vec![(ObjectId::new("demo", split), explanation)],
        agents,
        findings: vec![(finding, Time(58_000_000_000))],
        sums: Sums { unknown_destinations: 7, ..Sums::default() },
    })
}

/// Answers every ask with the snapshots in turn, the last one for ever.
fn answering(mut asks: mpsc::Receiver<Ask>, snapshots: Vec<Arc<Snapshot>>) -> tokio::task::JoinHandle<()> {
    #[expect(clippy::disallowed_methods, reason = "a test's own task, joined by its runtime")]
    tokio::spawn(async move {
        let mut served = 0;
        while let Some(ask) = asks.recv().await {
            ask.try_send(Arc::clone(&snapshots[served.min(snapshots.len() - 1)])).expect("the reader waits");
            served += 1;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_gets_what_the_loop_knows_now() {
    let (sender, asks) = mpsc::channel(ASKS);
    let view = mk_view(sender);
    answering(asks, vec![mk_snapshot("one", "healthy"), mk_snapshot("two", "suspect")]);
    let state = view.state();
    assert_eq!(state["splits"][0]["split"], "demo/one");
    assert_eq!(state["mode"], "observe");
    assert_eq!(
        state["findings"],
        serde_json::json!([{"object": "trafficsplit demo/one", "kind": "missing-service", "age_ms": 2000,
                            "text": "spec.service \"web\" does not exist"}])
    );
    assert_eq!(state["ready"], false);
    assert_eq!(state["disbelieved"], serde_json::json!({"unknown_destinations": 7, "foreign_endpoints": 0}));
    assert_eq!(
        state["agents"][0],
        serde_json::json!({"node": "n1", "freshness": "fresh", "stream": 4, "stream_age_ms": 1000})
    );
    assert_eq!(view.state()["splits"][0]["split"], "demo/two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_follow_the_snapshot_and_forget_what_is_gone() {
    let (sender, asks) = mpsc::channel(ASKS);
    let view = mk_view(sender);
    answering(asks, vec![mk_snapshot("one", "healthy"), mk_snapshot("two", "suspect")]);
    let mut first = String::new();
    view.encode_metrics(&mut first).expect("writes");
    let state =
        "splitsecond_controller_backend_state{namespace=\"demo\",split=\"one\",backend=\"web\",state=\"healthy\"} 1";
    assert!(first.contains(state), "{first}");
    assert!(first.contains("splitsecond_controller_agents{freshness=\"fresh\"} 1"), "{first}");
    assert!(first.contains("splitsecond_controller_agents{freshness=\"stale\"} 0"), "{first}");
    for line in [
        "splitsecond_controller_findings{kind=\"missing-service\"} 1",
        "splitsecond_controller_findings{kind=\"undecodable\"} 0",
        "splitsecond_controller_disbelieved_total{kind=\"unknown-destination\"} 7",
    ] {
        assert!(first.contains(line), "{line} in {first}");
    }
    let mut second = String::new();
    view.encode_metrics(&mut second).expect("writes");
    assert!(!second.contains("split=\"one\""), "{second}");
    assert!(second.contains("state=\"suspect\""), "{second}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_does_not_answer_leaves_the_last_snapshot() {
    let (sender, asks) = mpsc::channel(ASKS);
    let view = mk_view(sender);
    answering(asks, vec![mk_snapshot("one", "healthy")]).abort();
    assert_eq!(view.state()["splits"], serde_json::json!([]));
}

#[test]
fn the_last_transitions_are_kept_in_order() {
    let (sender, _asks) = mpsc::channel(ASKS);
    let view = mk_view(sender);
    for at in 0..100 {
        let kind = TransitionKind::Suspect { backend: "web".into() };
        view.on_transition(Transition { at: Time(at), split: None, kind });
    }
    let kept: Vec<_> = lock(&view.transitions).iter().map(|transition| transition.at.0).collect();
    assert_eq!(kept, (36..100).collect::<Vec<_>>());
}
