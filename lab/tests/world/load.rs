//! Load on the real kernel with an API server beside it: clients follow a split's weights and its ready endpoints as a
//! mesh's proxy does, also through a gateway.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use lab::apiserver::ApiServer;
use lab::load::records::Records;
use lab::load::wire::{
    ClientSpec, DEFAULT_BACKLOG, DEFAULT_TIMEOUT_MS, FIRST_BYTE_ANNOTATION, GatewaySpec, Order, PodProgram, ServerSpec,
    Target,
};
use lab::world::fault::{Fault, Filter, Refused};
use lab::world::{Layout, NodeSpec, PodChild, PodSpec, World, clock};
use serde_json::{Value, json};

use crate::pause;

const PORT: u16 = 8080;
const READY: Duration = Duration::from_secs(5);
const NAMESPACE: &str = "emoji";
const EAST: &str = "emoji-svc";
const WEST: &str = "emoji-svc-west";

/// A world with an API server in its control namespace: a split of an eastern and a mirrored western leaf.
struct Lab {
    world: World,
    api: ApiServer,
    /// Serves the API; ends with the test.
    _runtime: tokio::runtime::Runtime,
    servers: Vec<PodChild>,
    kubeconfig: PathBuf,
}

fn mk_lab() -> Lab {
    let began_ns = clock::now_ns();
    let node = |name: &str| NodeSpec { name: name.into(), zone: "zone-a".into() };
    let pod = |name: &str, node: &str| PodSpec { name: name.into(), node: node.into(), uid: format!("uid-{name}") };
    let mut pods = vec![pod("gateway", "west"), pod("west-0", "west")];
    for number in 0..6 {
        pods.push(pod(&format!("client-{number}"), "clients"));
        pods.push(pod(&format!("east-{number}"), "east"));
    }
    let world = World::create(&Layout {
        nodes: ["clients", "east", "west"].map(node).to_vec(),
        pods,
        executable: Some(PathBuf::from(env!("CARGO_BIN_EXE_splitsecond-lab"))),
        ..Layout::default()
    })
    .unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let api = ApiServer::new();
    let control = world.control();
    let listener = control.netns().within(|| std::net::TcpListener::bind((control.address(), 6443))).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let serving = api.clone();
    runtime.spawn(async move { serving.serve(tokio::net::TcpListener::from_std(listener).unwrap()).await });
    let kubeconfig = world.run_dir().join("kubeconfig");
    std::fs::write(&kubeconfig, ApiServer::kubeconfig("http://198.51.100.250:6443")).unwrap();

    let mut servers = Vec::new();
    let mut east = Vec::new();
    for number in 0..6 {
        servers.push(mk_pod(&world, &format!("east-{number}"), &PodProgram::Server(ServerSpec::new(PORT, b'e'))));
        east.push(world.pod(&format!("east-{number}")).unwrap().address());
    }
    servers.push(mk_pod(&world, "west-0", &PodProgram::Server(ServerSpec::new(PORT, b'w'))));
    let west = SocketAddr::new(world.pod("west-0").unwrap().address(), PORT);
    let gateway =
        GatewaySpec { port: PORT, ready_port: 8081, backlog: DEFAULT_BACKLOG, mirrors: vec![vec![], vec![west]] };
    servers.push(mk_pod(&world, "gateway", &PodProgram::Gateway(gateway)));
    for server in &servers {
        server.wait_ready(READY).unwrap();
    }

    println!("3 nodes, 14 pods and 8 listening servers in {:.0} ms", millis(began_ns, clock::now_ns()));
    api.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).unwrap();
    api.create(mk_slice(EAST, 0, &east, true)).unwrap();
    api.create(mk_slice(WEST, 1, &[world.pod("gateway").unwrap().address()], true)).unwrap();
    api.create(mk_split(&json!("1"), &json!(0))).unwrap();
    Lab { world, api, _runtime: runtime, servers, kubeconfig }
}

fn mk_pod(world: &World, pod: &str, program: &PodProgram) -> PodChild {
    world.pod(pod).unwrap().spawn(program, &Records::new()).unwrap()
}

fn mk_slice(service: &str, first_byte: u8, addresses: &[IpAddr], ready: bool) -> Value {
    let endpoints: Vec<Value> =
        addresses.iter().map(|address| json!({"addresses": [address], "conditions": {"ready": ready}})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-x"), "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": service},
            "annotations": {FIRST_BYTE_ANNOTATION: first_byte.to_string()},
        },
        "endpoints": endpoints, "ports": [{"port": PORT, "protocol": "TCP"}],
    })
}

fn mk_split(east: &Value, west: &Value) -> Value {
    json!({
        "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit",
        "metadata": {"name": "emoji", "namespace": NAMESPACE},
        "spec": {"service": EAST, "backends": [{"service": EAST, "weight": east}, {"service": WEST, "weight": west}]},
    })
}

impl Lab {
    fn client(&self, pod: &str, rate: f64, records: &Records) -> PodChild {
        let target = Target::Mesh {
            kubeconfig: self.kubeconfig.clone(),
            namespace: NAMESPACE.into(),
            splits: vec!["emoji".into()],
        };
        let seed = pod.bytes().map(u64::from).sum();
        let spec = ClientSpec { target, rate, seed, timeout_ms: DEFAULT_TIMEOUT_MS };
        self.world.pod(pod).unwrap().spawn(&PodProgram::Client(spec), records).unwrap()
    }

    fn weights(&self, east: &Value, west: &Value) {
        self.api.put(mk_split(east, west)).unwrap();
    }

    fn gateway(&self) -> &PodChild {
        self.servers.last().unwrap()
    }
}

fn run_for(millis: u64) -> (u64, u64) {
    let from_ns = clock::now_ns();
    pause(millis);
    (from_ns, clock::now_ns())
}

/// Rows arrive up to a flush after their connection ended.
fn settle(client: &PodChild) {
    pause(50);
    client.order(Order::Flush).unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_client_follows_weights_endpoints_and_mirrors() {
    let lab = mk_lab();
    let records = Records::new();
    let client = lab.client("client-0", 300.0, &records);
    client.wait_ready(READY).unwrap();
    let (from_ns, _) = run_for(500);
    settle(&client);
    let since = records.since(from_ns);
    assert_eq!(since.failed, 0, "{since:?}");
    assert_eq!(since.by_leaf.keys().collect::<Vec<_>>(), [EAST], "{since:?}");

    // To the mirror: the split moves, and the next connection goes through the gateway.
    let moved_ns = clock::now_ns();
    lab.weights(&json!(0), &json!("1"));
    run_for(300);
    settle(&client);
    let first_west_ns = records.first_start_to(WEST, moved_ns).unwrap();
    let last_east_ns = records.last_start_to(EAST, u64::MAX).unwrap();
    println!("shifted {:.3} ms after the write", (first_west_ns - moved_ns) as f64 / 1e6);
    println!("last connection to the old leaf {:.3} ms after the write", (last_east_ns as f64 - moved_ns as f64) / 1e6);
    assert!(first_west_ns - moved_ns < 100_000_000, "the watch delivers within milliseconds");
    assert!(last_east_ns < first_west_ns);
    assert_eq!(records.since(from_ns).failed, 0);
    let accepted = || lab.servers[6].counts().accepted;
    assert!(accepted() > 30, "the western server itself saw them: {}", accepted());

    // The gateway learns of no endpoints: its clients get a connection and no byte.
    lab.gateway().order(Order::Mirror { index: 1, endpoints: vec![] }).unwrap();
    let (from_ns, _) = run_for(200);
    settle(&client);
    let since = records.since(from_ns);
    assert!(since.sent > 20 && since.by_outcome.get("ended") == Some(&since.sent), "{since:?}");

    // Thousandths of a weight.
    let west = SocketAddr::new(lab.world.pod("west-0").unwrap().address(), PORT);
    lab.gateway().order(Order::Mirror { index: 1, endpoints: vec![west] }).unwrap();
    lab.weights(&json!("900m"), &json!("100m"));
    run_for(50);
    let (from_ns, _) = run_for(2000);
    settle(&client);
    let since = records.since(from_ns);
    let share = since.by_leaf[WEST].0 as f64 / since.sent as f64;
    assert!((0.04..=0.16).contains(&share), "five deviations of 600 draws at 10 %: {share}");

    // No endpoint is ready: as in a mesh the leaf keeps its share and fails it.
    lab.weights(&json!(1), &json!(0));
    lab.api.put(mk_slice(EAST, 0, &[lab.world.pod("east-0").unwrap().address()], false)).unwrap();
    run_for(50);
    let (from_ns, _) = run_for(200);
    settle(&client);
    let since = records.since(from_ns);
    assert!(since.sent > 20 && since.by_outcome.get("no-endpoint") == Some(&since.sent), "{since:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn clients_carry_a_thousand_connections_a_second() {
    let lab = mk_lab();
    let records = Records::new();
    let clients: Vec<PodChild> =
        (0..6).map(|number| lab.client(&format!("client-{number}"), 1000.0 / 6.0, &records)).collect();
    for client in &clients {
        client.wait_ready(READY).unwrap();
    }
    let pids: Vec<u32> = clients.iter().chain(&lab.servers).map(PodChild::pid).collect();
    let before: Vec<f64> = pids.iter().map(|pid| cpu_seconds(*pid)).collect();
    let own = cpu_seconds(std::process::id());
    let ended = records.ended();
    let (from_ns, to_ns) = run_for(5000);
    let seconds = (to_ns - from_ns) as f64 / 1e9;
    let rate = (records.ended() - ended) as f64 / seconds;
    let used: Vec<f64> = pids.iter().zip(&before).map(|(pid, before)| cpu_seconds(*pid) - before).collect();
    let own = (cpu_seconds(std::process::id()) - own) / seconds * 100.0;
    let (of_clients, of_servers) = (used[..6].iter().sum::<f64>(), used[6..].iter().sum::<f64>());
    clients.iter().for_each(settle);
    let since = records.since(from_ns);
    println!("{rate:.0} connections a second, {} failed", since.failed);
    println!("six clients {:.1} % of a processor", of_clients / seconds * 100.0);
    println!("six servers {:.1} %, the lab itself {own:.1} %", of_servers / seconds * 100.0);
    assert_eq!(since.failed, 0, "{since:?}");
    assert!((900.0..=1100.0).contains(&rate), "seven deviations of 5,000: {rate}");

    // A fault of six listeners at once, and one of the path, while the load goes on.
    let mut refused = Refused(lab.servers[..6].to_vec());
    let span = refused.inject().unwrap();
    run_for(300);
    clients.iter().for_each(settle);
    let since = records.since(span.first_ns);
    let first_ms = (since.first_failure_ns.unwrap() - span.first_ns) as f64 / 1e6;
    println!(
        "refused: injected in {:.3} ms, first failure after {first_ms:.3} ms",
        millis(span.first_ns, span.last_ns)
    );
    assert!(since.failed > 150, "{since:?}");
    refused.heal().unwrap();
    run_for(100);
    let pods: Vec<_> = (0..6).map(|number| lab.world.pod(&format!("east-{number}")).unwrap()).collect();
    let mut blackhole = Filter::blackhole(&pods);
    blackhole.arm().unwrap();
    let span = blackhole.inject().unwrap();
    println!("blackhole: injected in {:.3} ms", millis(span.first_ns, span.last_ns));
    run_for(1400);
    clients.iter().for_each(settle);
    let since = records.since(span.last_ns);
    assert!(since.sent > 200 && since.by_outcome.get("no-handshake") == Some(&since.failed), "{since:?}");
    assert_eq!(since.sent, since.failed, "{since:?}");
    blackhole.heal().unwrap();
}

fn millis(from_ns: u64, to_ns: u64) -> f64 {
    (to_ns - from_ns) as f64 / 1e6
}

/// utime and stime, fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
fn cpu_seconds(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|index| after_name[*index].parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}
