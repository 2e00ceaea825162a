//! The controller's own binary between an embedded API server and agents that speak the real protocol over loopback. What
//! the kernel sees is the drill's business: here the agents are told which endpoints live. No root, no cluster.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions that its steps share")]

#[path = "whole/agent.rs"]
mod agent;
#[expect(dead_code, reason = "shared with the other tests of the whole binary")]
#[path = "whole/bench.rs"]
mod bench;

use std::time::Duration;

use agent::{Agent, World};
use bench::{Bench, Controller, weights_of};
use lab::apiserver::Status;
use serde_json::{Value, json};

/// The weights after a failover, and before.
const FAILED_OVER: [u64; 2] = [0, 1];
const STEADY: [u64; 2] = [1, 0];

fn kinds<'a>(state: &'a Value, split: &str) -> Vec<&'a str> {
    let transitions = state["transitions"].as_array().unwrap();
    transitions.iter().filter(|one| one["split"] == split).map(|one| one["kind"].as_str().unwrap()).collect()
}

fn first<'a>(state: &'a Value, kind: &str, direction: Option<&str>) -> &'a Value {
    let transitions = state["transitions"].as_array().unwrap();
    let wanted = |one: &&Value| one["kind"] == kind && direction.is_none_or(|direction| one["direction"] == direction);
    transitions.iter().find(wanted).unwrap_or_else(|| panic!("no {kind} in {state:#}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_alone_moves_a_split_and_brings_it_back() {
    let bench = Bench::new().await;
    let mut controller = Controller::start(&bench, &["--readiness-hold=200ms"]).await;
    controller.until_ready().await;
    bench.set_ready("web", false);
    bench.until_weights("emoji", FAILED_OVER).await;
    let split = bench.split("emoji");
    let annotations = &split["metadata"]["annotations"];
    assert_eq!(annotations["theirs"], "kept");
    let record: Value = serde_json::from_str(annotations["splitsecond.dev/state"].as_str().unwrap()).unwrap();
    assert_eq!((&record["state"], &record["cause"]), (&json!("failed"), &json!("readiness")));
    bench.until_event("trafficsplit/emoji failing over to fallbacks").await;

    controller.until(|state| state["splits"][0]["state"] == "failed").await;
    let state = controller.state().await;
    let decided = first(&state, "decided", Some("failover"));
    assert_eq!((&decided["split"], &decided["cause"]), (&json!("demo/emoji"), &json!("readiness")));
    let acknowledged = first(&state, "acknowledged", Some("failover"));
    assert!(acknowledged["at_ns"].as_u64() > decided["at_ns"].as_u64());
    assert_eq!(state["watches"], json!({"trafficsplits": "synced", "services": "synced", "endpointslices": "synced"}));

    bench.set_ready("web", true);
    bench.until_weights("emoji", STEADY).await;
    bench.until_event("trafficsplit/emoji switching traffic to primary").await;
    assert_eq!(controller.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_move_a_split_and_recovery_brings_it_back_in_steps() {
    let bench = Bench::new().await;
    let settings =
        ["--dwell=500ms", "--recovery-successes=5", "--recovery-span=200ms", "--ramp=100,500", "--ramp-step=300ms"];
    let mut controller = Controller::start(&bench, &settings).await;
    let world = World::all_alive();
    let mut agents = Vec::new();
    for node in ["n1", "n2", "n3"] {
        agents.push(Agent::start(node, controller.ingest, world.clone()));
    }
    controller.until_ready().await;
    controller.until(|state| state["splits"][0]["backends"][1]["health"] == "healthy").await;
    // Long enough for evidence of health, and for a restart's grace to pass.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(weights_of(&bench.split("emoji")), STEADY, "a healthy split is never written");

    world.kill("198.18.1.");
    bench.until_weights("emoji", FAILED_OVER).await;
    bench.until_event("trafficsplit/emoji failing over to fallbacks").await;
    let state = controller.state().await;
    let order = kinds(&state, "demo/emoji");
    let place =
        |kind: &str| order.iter().position(|one| *one == kind).unwrap_or_else(|| panic!("no {kind}: {order:?}"));
    assert!(place("reported") < place("suspect"), "{order:?}");
    assert!(place("suspect") < place("condemned"), "{order:?}");
    assert!(place("condemned") < place("decided"), "{order:?}");
    assert!(place("decided") < place("acknowledged"), "{order:?}");
    let reported = first(&state, "reported", None);
    let (at, failed, started) = (&reported["at_ns"], &reported["failed_ns"], &reported["started_ns"]);
    assert!(at.as_u64() >= failed.as_u64() && failed.as_u64() >= started.as_u64(), "one clock: {reported}");
    let metrics = controller.get("/metrics").await.1;
    for line in [
        "splitsecond_controller_agents{freshness=\"fresh\"} 3",
        "splitsecond_controller_writes_total{direction=\"failover\",outcome=\"applied\"} 1",
        "splitsecond_controller_events_total{outcome=\"published\"} 1",
        "splitsecond_controller_detection_seconds_count 1",
        "splitsecond_controller_streams 3",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }

    world.revive("198.18.1.");
    bench.until_weights("emoji", STEADY).await;
    bench.until_history("emoji", &[STEADY, FAILED_OVER, [100, 900], [500, 500], STEADY]).await;
    drop(agents);
    assert_eq!(controller.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_under_way_and_its_event_survive_the_first_signal() {
    let bench = Bench::new().await;
    let mut controller = Controller::start(&bench, &[]).await;
    controller.until_ready().await;
    bench.server.set_latency(Duration::from_millis(120));
    bench.set_ready("web", false);
    controller.until(|state| kinds(state, "demo/emoji").contains(&"decided")).await;
    assert_eq!(weights_of(&bench.split("emoji")), STEADY, "still under way");
    assert_eq!(controller.stop().await, 0);
    assert_eq!(weights_of(&bench.split("emoji")), FAILED_OVER);
    bench.until_event("trafficsplit/emoji failing over to fallbacks").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observe_mode_decides_and_writes_nothing() {
    let bench = Bench::new().await;
    let mut controller = Controller::start(&bench, &["--mode=observe"]).await;
    controller.until_ready().await;
    let revision = bench.split("emoji")["metadata"]["resourceVersion"].clone();
    bench.set_ready("web", false);
    controller.until(|state| state["splits"][0]["guard"] == "observe-mode").await;
    assert_eq!(bench.split("emoji")["metadata"]["resourceVersion"], revision);
    assert_eq!(controller.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_split_gets_an_event_and_the_others_are_driven() {
    let bench = Bench::new().await;
    bench.create_split("bad", json!("abc"));
    let mut controller = Controller::start(&bench, &[]).await;
    controller.until_ready().await;
    bench.until_event_about("bad", "InvalidPolicy", "spec.backends[0].weight \"abc\" is not a number").await;
    bench.set_ready("web", false);
    bench.until_weights("emoji", FAILED_OVER).await;
    assert_eq!(controller.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_writes_are_decided_again() {
    let bench = Bench::new().await;
    let mut controller = Controller::start(&bench, &[]).await;
    controller.until_ready().await;
    bench.server.refuse_writes(3, &Status::scripted(503, "ServiceUnavailable", "not now"));
    bench.set_ready("web", false);
    bench.until_weights("emoji", FAILED_OVER).await;
    let state = controller.state().await;
    let lost = kinds(&state, "demo/emoji").iter().filter(|kind| **kind == "not-applied").count();
    assert_eq!(lost, 3, "{state:#}");
    assert_eq!(controller.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_outage_leaves_the_controller_running_and_is_caught_up_with() {
    let bench = Bench::new().await;
    let mut controller = Controller::start(&bench, &[]).await;
    controller.until_ready().await;
    bench.server.stop().await;
    controller.until(|state| state["watches"]["services"] != "synced").await;
    assert_eq!(controller.get("/ready").await.0, 200, "the last facts stand");
    bench.set_ready("web", false);
    bench.server.start().await;
    bench.until_weights("emoji", FAILED_OVER).await;
    controller.until(|state| state["watches"]["services"] == "synced").await;
    assert_eq!(controller.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_starts_in_an_outage_waits_for_its_end() {
    let bench = Bench::new().await;
    bench.server.stop().await;
    let mut controller = Controller::start(&bench, &[]).await;
    let (status, reason) = controller.get("/ready").await;
    assert_eq!(status, 503);
    assert!(reason.contains("trafficsplits: "), "{reason}");
    assert_eq!(controller.get("/live").await.0, 200);
    bench.server.start().await;
    controller.until_ready().await;
    assert_eq!(controller.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_replica_never_writes_what_the_first_has_written() {
    let bench = Bench::new().await;
    let mut one = Controller::start(&bench, &[]).await;
    let mut two = Controller::start(&bench, &[]).await;
    one.until_ready().await;
    two.until_ready().await;
    bench.set_ready("web", false);
    bench.until_weights("emoji", FAILED_OVER).await;
    for controller in [&mut one, &mut two] {
        controller.until(|state| state["splits"][0]["state"] == "failed").await;
    }
    bench.until_history("emoji", &[STEADY, FAILED_OVER]).await;
    bench.until_event("trafficsplit/emoji failing over to fallbacks").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.events().len(), 1, "the replica that wrote says so, the other does not");
    assert_eq!((one.stop().await, two.stop().await), (0, 0));
}

#[tokio::test]
async fn wrong_settings_are_told_together_with_exit_code_64() {
    let (code, text) = bench::run(&["--dwell=30", "--mode=on", "--ingest-addr=0.0.0.0:9443"]).await;
    assert_eq!(code, 64);
    assert_eq!(text.lines().count(), 3, "{text}");
    let (code, text) = bench::run(&["--no-such-flag"]).await;
    assert_eq!(code, 64, "{text}");
    let (code, text) = bench::run(&["--kubeconfig=/nonexistent/kubeconfig"]).await;
    assert_eq!(code, 64, "{text}");
    assert!(text.contains("/nonexistent/kubeconfig"), "{text}");
    assert_eq!(bench::run(&["--help"]).await.0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_is_exit_code_71() {
    let bench = Bench::new().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("--ingest-addr={}", taken.local_addr().unwrap());
    let kubeconfig = format!("--kubeconfig={}", bench.kubeconfig.display());
    let (code, text) = bench::run(&[&kubeconfig, "--admin-addr=127.0.0.1:0", &address]).await;
    assert_eq!(code, 71, "{text}");
    assert!(text.contains("--ingest-addr"), "{text}");
}
