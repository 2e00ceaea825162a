//! `status` and `explain` against a real controller, and what they say when there is none.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::agent::{self, Dead};
use crate::bench::{Bench, Controller};
use crate::programs::{Ended, splitsecond};

/// The Services `web` (three endpoints) and `web-west` (two), and the split `emoji` over them.
async fn mk_bench() -> Bench {
    let bench = Bench::new().await;
    for namespace in ["demo", "splitsecond"] {
        bench.namespace(namespace);
    }
    for (service, address) in [("web", "198.18.0.1"), ("web-west", "198.18.0.2")] {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": service, "namespace": "demo"},
            "spec": {"clusterIP": address, "clusterIPs": [address],
                     "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}});
        bench.server.create(service).unwrap();
    }
    let port = json!({"name": "http", "port": 8080, "protocol": "TCP"});
    bench.endpoints(("demo", "web"), agent::PRIMARY, 3, &port, true);
    bench.endpoints(("demo", "web-west"), "198.18.2", 2, &port, true);
    create_split(&bench, "emoji", json!(1));
    bench
}

fn create_split(bench: &Bench, name: &str, weight: Value) {
    let split = json!({
        "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit",
        "metadata": {"name": name, "namespace": "demo",
                     "labels": {"failover.linkerd.io/controlled-by": "linkerd-failover"}},
        "spec": {"service": "web", "backends": [
            {"service": "web", "weight": weight}, {"service": "web-west", "weight": 0}]},
    });
    bench.server.create(split).unwrap();
}

async fn ask(controller: &Controller, arguments: &[&str]) -> Ended {
    let address = controller.admin.to_string();
    splitsecond(&[arguments, &["--address", &address]].concat()).await
}

#[track_caller]
fn json_of(ended: &Ended) -> Value {
    assert_eq!(ended.code, 0, "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_is_told_with_everything_that_it_rests_on() {
    let bench = mk_bench().await;
    let controller = Controller::start(&bench, &["--mode=enforce".to_owned()]).await;
    let dead = Dead::default();
    let _agents = agent::start(&["n1", "n2", "n3"], controller.ingest, &dead);
    controller.until(|state| state["ready"] == true).await;
    controller.until(|state| state["splits"][0]["backends"][1]["health"] == "healthy").await;
    // Long enough for evidence of health, and for a restart's grace to pass.
    tokio::time::sleep(Duration::from_millis(1_500)).await;

    let steady = ask(&controller, &["status"]).await;
    assert_eq!(steady.code, 0, "{steady:?}");
    let line = steady.stdout.lines().nth(1).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..6], ["demo", "emoji", "steady", "web", "-", "3/3"], "{line}");
    assert_eq!(words[6], ">", "nothing was written yet: {line}");

    dead.store(true, Ordering::Relaxed);
    bench.until_weights(("demo", "emoji"), &["0", "1"], &controller.running.log).await;
    controller.until(|state| state["splits"][0]["state"] == "failed").await;
    let failed = ask(&controller, &["status"]).await;
    let line = failed.stdout.lines().nth(1).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..4], ["demo", "emoji", "failed", "web-west"], "{line}");
    assert_ne!(words[6], ">", "it knows when it wrote: {line}");
    let listed = json_of(&ask(&controller, &["status", "--output", "json"]).await);
    assert_eq!(listed[0]["status"], "fallback");
    assert_eq!(listed[0]["services"], json!(["web-west"]));
    assert_eq!(listed[0]["since_is_exact"], true);

    let text = ask(&controller, &["explain", "demo/emoji"]).await;
    assert_eq!(text.code, 0, "{text:?}");
    for part in [
        "demo/emoji is failed; its traffic goes to web-west",
        "mode enforce, profile default; 3 of 3 agents fresh",
        "backend web (primary): ",
        "weight 0",
        "3 ready, 3 of them failing",
        "NODE   ENDPOINT",
        "n1     198.18.1.1:8080",
        "n3     198.18.1.3:8080",
        "  failing\n",
        "backend web-west: healthy, weight 1",
        "condemned      web",
        "decided        failover, because of connections",
        "acknowledged   failover",
    ] {
        assert!(text.stdout.contains(part), "no {part:?} in\n{}", text.stdout);
    }
    let explained = json_of(&ask(&controller, &["explain", "demo/emoji", "-o", "json"]).await);
    assert_eq!(explained["split"]["split"], "demo/emoji");
    let evidence = explained["split"]["backends"][0]["nodes"]["n2"]["198.18.1.2:8080"].as_u64().unwrap();
    assert!(evidence >= explained["thresholds_millinats"]["failing"].as_u64().unwrap(), "{explained:#}");
    let kinds: Vec<&str> =
        explained["transitions"].as_array().unwrap().iter().map(|one| one["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"condemned") && kinds.contains(&"acknowledged"), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_a_split_and_what_is_wrong_with_one_is_told() {
    let bench = mk_bench().await;
    create_split(&bench, "bad", json!("abc"));
    let controller = Controller::start(&bench, &["--mode=observe".to_owned()]).await;
    controller.until(|state| state["splits"].as_array().is_some_and(|splits| splits.len() == 2)).await;
    let port = json!({"name": "http", "port": 8080, "protocol": "TCP"});
    bench.endpoints(("demo", "web"), agent::PRIMARY, 3, &port, false);
    controller.until(|state| state["splits"][1]["guard"] == "observe-mode").await;
    let status = ask(&controller, &["status"]).await;
    assert!(status.stdout.contains("observe-mode"), "{}", status.stdout);
    assert!(status.stdout.contains("\nThe controller observes: it decides and records, and writes nothing.\n"));
    assert!(status.stdout.contains("\ntrafficsplit demo/bad: spec.backends[0].weight \"abc\""), "{}", status.stdout);
    let held = ask(&controller, &["explain", "demo/emoji"]).await;
    assert!(held.stdout.contains("held by:    observe-mode: the controller runs in observe mode"), "{}", held.stdout);
    let bad = ask(&controller, &["explain", "demo/bad"]).await;
    assert!(bad.stdout.contains("wrong:      spec.backends[0].weight \"abc\""), "{}", bad.stdout);
    let unknown = ask(&controller, &["explain", "demo/none"]).await;
    assert_eq!((unknown.code, unknown.stdout.as_str()), (1, ""));
    assert!(unknown.stderr.contains("no split demo/none; it drives demo/bad, demo/emoji"), "{}", unknown.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_a_controller_is_told_from_one() {
    let bench = Bench::new().await;
    let check = async |address: &str, part: &str| {
        for arguments in [["status"].as_slice(), &["explain", "demo/emoji"]] {
            let ended = splitsecond(&[arguments, &["--address", address]].concat()).await;
            assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{ended:?}");
            assert!(ended.stderr.contains(part), "no {part:?} in {}", ended.stderr);
        }
    };
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = free.local_addr().unwrap().to_string();
    drop(free);
    check(&nobody, "port-forward deployment/splitsecond-controller 8080").await;
    check("no such host:1", "--address ADDRESS:PORT").await;
    check(&bench.address.to_string(), "answered GET /state with 404").await;
    let controller = Controller::start(&bench, &[]).await;
    check(&controller.ingest.to_string(), "does not answer as a controller's admin server does").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_tells_a_controller_that_listens_from_one_that_does_not() {
    let bench = Bench::new().await;
    let controller = Controller::start(&bench, &[]).await;
    let check = async |address: String| {
        let ended = splitsecond(&["check", "--node", "--output", "json", "--controller", &address]).await;
        let found: Value = serde_json::from_str(&ended.stdout).unwrap();
        let mut categories = found["categories"].as_array().unwrap().clone();
        let last = categories.pop().unwrap();
        assert_eq!(last["categoryName"], "controller");
        last["checks"][0].clone()
    };
    assert_eq!(check(controller.ingest.to_string()).await["result"], "success");
    let admin = check(controller.admin.to_string()).await;
    assert_eq!(admin["result"], "error", "{admin}");
    assert!(admin["hint"].as_str().unwrap().contains("9443"), "{admin}");
    let log = controller.running.log.text();
    assert!(!log.contains("was not taken"), "greeting it is no fault: {log}");
}
