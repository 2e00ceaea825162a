//! The binary on a node with a meshed endpoint: what it tells of that endpoint, of its proxy's self-hops, and when.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use probe_agent::kernel::{PROXY_UID, now_ns};
use probe_common::wire::{AgentFrame, Row, VERSION};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::cluster::{Api, SLICES, mk_service};
use crate::controller::{Controller, Mood};
use crate::counting::Node;
use crate::running::Running;

const ADDRESS: &str = "198.18.9.9";
const PORT: u16 = 81;
const APP_UID: u32 = 1000;

/// A network namespace with one address.
struct Pod {
    space: String,
}

impl Pod {
    fn start() -> Self {
        let pod = Self { space: format!("ssa{}", std::process::id()) };
        for words in [
            vec!["netns", "add", &pod.space],
            vec!["-n", &pod.space, "link", "set", "lo", "up"],
            vec!["-n", &pod.space, "addr", "add", ADDRESS, "dev", "lo"],
        ] {
            assert!(Command::new("ip").args(&words).status().expect("is installed").success(), "ip {words:?}");
        }
        pod
    }

    /// Whether a process of that user in the pod is taken up by the pod's own address.
    fn dial(&self, user: u32) -> bool {
        let dial = format!("exec 3<>/dev/tcp/{ADDRESS}/{PORT}");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space, "setpriv", "--clear-groups", &format!("--reuid={user}")]);
        let dialled = command.args(["bash", "-c", &dial]).stderr(Stdio::null()).status();
        dialled.expect("is installed").success()
    }

    /// Takes connections from now on, for as long as the test lives.
    fn serve(&self) {
        let space = self.space.clone();
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let namespace = OwnedFd::from(std::fs::File::open(format!("/run/netns/{space}")).expect("is there"));
            let moved = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
            moved.expect("may be entered");
            let listener = TcpListener::bind((ADDRESS, PORT)).expect("the port is free in there");
            ready.send(()).expect("the test waits");
            for stream in listener.incoming() {
                drop(stream);
            }
        });
        is_ready.recv().expect("the listener came up");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "del", &self.space]).status());
    }
}

fn mk_slice(node: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "shop", "name": "emoji-svc-x", "resourceVersion": "7",
            "labels": {"kubernetes.io/service-name": "emoji-svc"},
        },
        "endpoints": [{"addresses": [ADDRESS], "nodeName": node}], "ports": [{"name": "http", "port": PORT}],
    })
}

/// What a controller was told of late.
#[derive(Default)]
struct Told {
    self_hops: Vec<(u64, Row)>,
    ordinary: Vec<Row>,
    meshed: Vec<(u64, Vec<IpAddr>)>,
}

impl Told {
    /// Takes frames until it is enough, for at most three seconds.
    async fn until(controller: &mut Controller, is_enough: impl Fn(&Self) -> bool) -> Self {
        let mut told = Self::default();
        let limit = tokio::time::timeout(Duration::from_secs(3), async {
            while !is_enough(&told) {
                let (arrived_ns, frame) = controller.next().await;
                match frame {
                    AgentFrame::Report(report) => {
                        let (hops, others) = report.rows.into_iter().partition(|row| row.self_hop);
                        let hops: Vec<Row> = hops;
                        told.self_hops.extend(hops.into_iter().map(|row| (arrived_ns, row)));
                        told.ordinary.extend::<Vec<Row>>(others);
                    }
                    AgentFrame::Meshed(meshed) => told.meshed.push((arrived_ns, meshed.endpoints)),
                    AgentFrame::Hello(_) | AgentFrame::Totals(_) | AgentFrame::CheckResults(_) => {}
                }
            }
        });
        assert!(limit.await.is_ok(), "not told within 3 s: {:?} {:?}", told.self_hops, told.meshed);
        told
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
async fn a_meshed_endpoint_and_its_self_hops_are_told_apart() {
    let node = Node::enter();
    let pod = Pod::start();
    let (to, address): (SocketAddr, IpAddr) =
        (SocketAddr::new(ADDRESS.parse().expect("an address"), PORT), ADDRESS.parse().expect("an address"));
    let api = Api::start("meshed", vec![mk_service("emoji-svc", "203.0.113.1")], vec![mk_slice("n1")]).await;
    let mut controller = Controller::start(Mood::Attentive).await;
    let agent = Running::start(&[
        format!("--cgroup-root={}", node.path().display()),
        format!("--kubeconfig={}", api.kubeconfig.display()),
        format!("--controller={}", controller.address),
    ]);
    controller.hello().await;
    for _ in 0..500 {
        if agent.get("/ready").await.0 == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    controller.tell(&[to], 25).await;
    assert_eq!(controller.totals().await.rows.len(), 1, "self-hops have no history");
    // Figures are published every 100 ms.
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(agent.figure("destinations{tier=\"hot\"}").await, 2, "but an index");

    // The application is dead, and its proxy finds out: told as soon as any failure is.
    assert!(!pod.dial(PROXY_UID));
    let told = Told::until(&mut controller, |told| !told.self_hops.is_empty() && !told.meshed.is_empty()).await;
    let [(arrived_ns, row)] = &told.self_hops[..] else { panic!("{:?}", told.self_hops) };
    assert_eq!((row.to, row.attempts, row.refused, row.clients), (to, 1, 1, 1));
    let first = row.first.expect("a failure has times");
    println!("self-hop's failure to controller: {} us", (arrived_ns - first.failed_ns) / 1000);
    assert!(arrived_ns - first.failed_ns < 20_000_000, "later than a read that nothing woke");
    let [(told_ns, endpoints)] = &told.meshed[..] else { panic!("{:?}", told.meshed) };
    assert_eq!(endpoints, &[address]);
    assert!(told_ns - first.started_ns < 1_500_000_000);
    assert_eq!(told.ordinary, []);

    // It lives again; and what it dials itself is nobody's matter.
    pod.serve();
    assert!(pod.dial(APP_UID) && pod.dial(PROXY_UID));
    let told = Told::until(&mut controller, |told| !told.self_hops.is_empty()).await;
    assert_eq!(told.self_hops[0].1.established, 1);
    assert_eq!(told.ordinary, []);

    // A stream that begins is told who is meshed before it is told history.
    controller.send_bytes(vec![VERSION + 1; 8]).await;
    controller.hello().await;
    controller.tell(&[to], 25).await;
    let mut order = Vec::new();
    while order.len() < 2 {
        match controller.next().await.1 {
            AgentFrame::Meshed(meshed) => order.push(format!("meshed {:?}", meshed.endpoints)),
            AgentFrame::Totals(totals) => {
                let attempts: Vec<u64> = totals.rows.iter().map(|total| total.attempts).collect();
                order.push(format!("totals {attempts:?}"));
            }
            _ => {}
        }
    }
    assert_eq!(order, [format!("meshed [{ADDRESS}]"), "totals [0]".to_owned()]);

    // The endpoint leaves the node, and another turns up whose proxy was seen before: each is told at once.
    let mut gone = mk_slice("n2");
    api.event(SLICES, "MODIFIED", &gone).await;
    let told = Told::until(&mut controller, |told| !told.meshed.is_empty()).await;
    assert_eq!(told.meshed[0].1, [] as [IpAddr; 0]);
    assert!(pod.dial(PROXY_UID), "is counted for nobody");
    gone["endpoints"][0]["nodeName"] = json!("n1");
    let began_ns = now_ns();
    api.event(SLICES, "MODIFIED", &gone).await;
    let told = Told::until(&mut controller, |told| !told.meshed.is_empty()).await;
    assert_eq!((told.meshed[0].1.as_slice(), told.self_hops.len(), told.ordinary.len()), (&[address][..], 0, 0));
    println!("an endpoint that turned up was told meshed after {} us", (told.meshed[0].0 - began_ns) / 1000);
    assert!(told.meshed[0].0 - began_ns < 500_000_000);

    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(agent.figure("connect_attempts_total{tier=\"self-hop\"}").await, 2);
    assert_eq!(agent.figure("connect_failures_total{tier=\"self-hop\",cause=\"refused\"}").await, 1);
    assert_eq!(agent.figure("connect_attempts_total{tier=\"hot\"}").await, 0);
    assert_eq!((agent.figure("meshed_endpoints").await, agent.figure("proxy_namespaces").await), (1, 1));
    let state = agent.state().await;
    assert_eq!((&state["meshed"], state["destinations"].as_array().map(Vec::len)), (&json!([ADDRESS]), Some(1)));
    assert_eq!(state["self_hops"][0]["destination"], to.to_string());
    let failing = state["transitions"].as_array().expect("an array").iter().find(|one| one["kind"] == "failing");
    assert_eq!(failing.expect("is kept")["self_hop"], true);
    let (status, log) = agent.terminate().await;
    assert!(status.success(), "{status}: {log}");
}
