//! The binary on a node of a large cluster: 5,000 Services, 50,000 destinations, 200 splits. Prints what it takes; the
//! figures are judged by the benchmark, not by this test, which only proves that everything is counted.

use std::fs;
use std::time::Duration;

use probe_common::wire::{ControllerFrame, SplitsSent};
use serde_json::{Value, json};

use crate::cluster::{Api, mk_service};
use crate::controller::{Controller, Mood, mk_split};
use crate::counting::Node;
use crate::running::Running;

const SERVICES: usize = 5_000;
const ENDPOINTS: usize = 9;
const SPLITS: usize = 200;

fn mk_slice(number: usize) -> Value {
    let endpoints: Vec<_> = (0..ENDPOINTS)
        .map(|endpoint| {
            let id = number * ENDPOINTS + endpoint;
            json!({
                "addresses": [format!("198.18.{}.{}", id / 250, id % 250)], "nodeName": format!("node-{}", id % 100),
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("s{number}-{endpoint}"),
                    "uid": format!("00000000-0000-0000-0000-{id:012}")},
            })
        })
        .collect();
    let name = format!("s{number}");
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "shop", "name": format!("{name}-x"), "resourceVersion": "6",
            "labels": {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "x"},
        },
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

/// Resident memory in KiB, and CPU time in milliseconds.
fn usage(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("reads");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("has one");
    let rss_kib = line.trim().trim_end_matches(" kB").parse().expect("a number");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("reads");
    let fields: Vec<u64> = stat
        .rsplit(") ")
        .next()
        .expect("has one")
        .split(' ')
        .skip(11)
        .take(2)
        .map(|n| n.parse().expect("a number"))
        .collect();
    // A hundred ticks a second on every Linux of ours.
    (rss_kib, (fields[0] + fields[1]) * 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
async fn a_large_cluster_is_counted() {
    let node = Node::enter();
    let services = (0..SERVICES).map(|number| {
        let mut service = mk_service(&format!("s{number}"), &format!("203.0.113.{}", number % 250));
        service["spec"]["ports"][0]["port"] = json!(1 + number / 250);
        service
    });
    let api = Api::start("size", services.collect(), (0..SERVICES).map(mk_slice).collect()).await;
    let mut controller = Controller::start(Mood::Attentive).await;
    let agent = Running::start(&[
        format!("--cgroup-root={}", node.path().display()),
        format!("--kubeconfig={}", api.kubeconfig.display()),
        format!("--controller={}", controller.address),
    ]);
    controller.hello().await;
    for number in 0..SPLITS {
        let endpoints = (0..ENDPOINTS).map(|endpoint| {
            let id = number * ENDPOINTS + endpoint;
            ([198, 18, (id / 250) as u8, (id % 250) as u8], 8080).into()
        });
        let mut split = mk_split(&endpoints.collect::<Vec<_>>(), 25);
        split.name = format!("split{number}");
        controller.send(&ControllerFrame::Split(split)).await;
    }
    controller.send(&ControllerFrame::SplitsSent(SplitsSent {})).await;
    let (hot, cold) = (SPLITS * ENDPOINTS, SERVICES * ENDPOINTS + SERVICES - SPLITS * ENDPOINTS);
    let count = async |tier: &str| agent.figure(&format!("destinations{{tier=\"{tier}\"}}")).await as usize;
    for _ in 0..600 {
        if agent.get("/ready").await.0 == 200 && (count("hot").await, count("cold").await) == (hot, cold) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((count("hot").await, count("cold").await), (hot, cold), "{}", agent.get("/ready").await.1);
    let (_, started_ms) = usage(agent.pid());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (rss_kib, idle_ms) = usage(agent.pid());
    let memory_kib = agent.figure("probe_memory_bytes").await / 1024;
    println!("start: {started_ms} ms of CPU; idle: {} ms of CPU in 10 s", idle_ms - started_ms);
    println!("resident: {rss_kib} KiB; kernel: {memory_kib} KiB");
    let (status, log) = agent.terminate().await;
    assert!(status.success(), "{status}: {log}");
}
