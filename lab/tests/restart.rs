//! Real agents on a real kernel, and the real controller, killed with SIGKILL and started again in the middle of an outage:
//! right weights within two seconds of the last start, and no wrong write on the way. Needs root, and both programs beside the
//! lab's release build; `cargo xtask test` builds them and runs it. With scripted agents, at more moments and with API
//! servers that come back as others, this is `controller/tests/restart.rs`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::apiserver::{ApiServer, Request, Resource};
use lab::drill::shape::cluster_objects;
use lab::load::records::Records;
use lab::load::wire::{ClientSpec, DEFAULT_TIMEOUT_MS, PodProgram, ServerSpec, Target};
use lab::world::clock::now_ns;
use lab::world::fault::{Fault as _, Refused};
use lab::world::{Launch, Layout, NodeChild, NodeSpec, PodChild, PodSpec, World};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Where the applications listen.
const PORT: u16 = 8080;

/// Longer than anything here takes, so that a test that hangs says where.
const PATIENCE: Duration = Duration::from_secs(20);

/// The weights have to be right this soon after the last start.
const RIGHT_WITHIN: Duration = Duration::from_secs(2);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
const STEADY: [u64; 2] = [1, 0];
const FAILED_OVER: [u64; 2] = [0, 1];
const STEPS: [[u64; 2]; 2] = [[100, 900], [500, 500]];

/// Short enough for a test, long enough that a controller comes back within each.
const SETTINGS: [&str; 7] = [
    "--dwell=4s",
    "--recovery-successes=5",
    "--recovery-span=200ms",
    "--ramp=100,500",
    "--ramp-step=2s",
    "--group-spacing=0s",
    "--group-limit=100",
];

/// Who is killed and started.
#[derive(Clone, Copy, Debug)]
enum Who {
    Controller,
    OneAgent,
    EveryAgent,
    /// The controller and one agent.
    Both,
    /// The controller and every agent.
    Everything,
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// As soon as a failure was reported.
    FirstFailure,
    /// As soon as the server has the failover.
    Written,
    /// In the dwell; the primary answers again.
    Dwell,
    /// In the first step of the ramp.
    Ramp,
}

/// A cluster of four nodes, each with an agent: two with clients, two with an endpoint of either backend.
struct Cluster {
    // In the order in which they have to go.
    agents: Vec<(String, NodeChild)>,
    controller: Option<NodeChild>,
    _clients: Vec<PodChild>,
    primary: Vec<PodChild>,
    _secondary: Vec<PodChild>,
    world: World,
    api: ApiServer,
    kubeconfig: PathBuf,
    _runtime: Runtime,
}

fn mk_layout() -> Layout {
    let pods = [("c1", "n1"), ("c2", "n2"), ("w1", "n3"), ("w2", "n4"), ("s1", "n3"), ("s2", "n4")];
    Layout {
        nodes: NODES.iter().map(|name| NodeSpec { name: (*name).into(), zone: "zone-a".into() }).collect(),
        pods: pods
            .iter()
            .map(|(name, node)| PodSpec { name: (*name).into(), node: (*node).into(), uid: format!("uid-{name}") })
            .collect(),
        executable: Some(PathBuf::from(env!("CARGO_BIN_EXE_splitsecond-lab"))),
        ..Layout::default()
    }
}

/// A program of the release build.
fn program(name: &str) -> PathBuf {
    let debug = Path::new(env!("CARGO_BIN_EXE_splitsecond-lab")).parent().unwrap();
    let path = debug.with_file_name("release").join(name);
    assert!(path.is_file(), "there is no {}: cargo build --release -p probe-agent -p controller", path.display());
    path.canonicalize().unwrap()
}

impl Cluster {
    fn start() -> Self {
        assert_eq!(lab::world::lacks(), Vec::<String>::new());
        let world = World::create(&mk_layout()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let api = ApiServer::new();
        let kubeconfig = serve(&runtime, &api, &world);
        describe(&api, &world);
        let [primary, secondary] =
            [["w1", "w2"], ["s1", "s2"]].map(|pods| pods.map(|pod| mk_server(&world, pod)).to_vec());
        let clients = ["c1", "c2"].map(|pod| mk_client(&world, pod, &kubeconfig)).to_vec();
        let mut cluster = Self {
            agents: Vec::new(),
            controller: None,
            _clients: clients,
            primary,
            _secondary: secondary,
            world,
            api,
            kubeconfig,
            _runtime: runtime,
        };
        cluster.start_controller();
        NODES.into_iter().for_each(|node| cluster.start_agent(node));
        until(&|| format!("everybody is well: {:#}", cluster.state().unwrap_or_default()), || cluster.is_well());
        // Traffic for long enough that every agent has reported successes of its own.
        pause(Duration::from_millis(1_500));
        cluster
    }

    fn start_controller(&mut self) {
        let address = self.world.control().address();
        let mut args = vec![
            "--mode=enforce".to_owned(),
            format!("--kubeconfig={}", self.kubeconfig.display()),
            format!("--ingest-addr={}", SocketAddr::new(address, 9443)),
            "--insecure-ingest-from=198.51.100.0/24".to_owned(),
            format!("--admin-addr={}", SocketAddr::new(address, 8080)),
        ];
        args.extend(SETTINGS.map(str::to_owned));
        let launch =
            Launch { program: program("splitsecond-controller"), args, env: Vec::new(), log: "controller".to_owned() };
        self.controller = Some(self.world.control().spawn(&launch).unwrap());
    }

    fn start_agent(&mut self, node: &str) {
        let args = vec![
            format!("--node={node}"),
            format!("--kubeconfig={}", self.kubeconfig.display()),
            "--insecure-controller".to_owned(),
        ];
        let log = format!("agent-{node}");
        let launch = Launch { program: program("splitsecond-agent"), args, env: Vec::new(), log };
        self.agents.push((node.to_owned(), self.world.node(node).unwrap().spawn(&launch).unwrap()));
    }

    /// What /state says; `None` while nobody answers.
    fn state(&self) -> Option<Value> {
        let address = SocketAddr::new(self.world.control().address(), 8080);
        let ask = || -> std::io::Result<String> {
            let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.write_all(b"GET /state HTTP/1.1\r\nhost: controller\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.world.control().netns().within(ask).unwrap().ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    fn is_well(&self) -> bool {
        let Some(state) = self.state() else { return false };
        let fresh = |agent: &Value| agent["freshness"] == "fresh";
        let healthy = |split: &Value| {
            let backends = split["backends"].as_array().unwrap();
            !backends.is_empty() && backends.iter().all(|backend| backend["health"] == "healthy")
        };
        let (agents, splits) = (state["agents"].as_array().unwrap(), state["splits"].as_array().unwrap());
        state["ready"] == true
            && agents.len() == NODES.len()
            && agents.iter().all(fresh)
            && splits.len() == 1
            && splits.iter().all(healthy)
    }

    fn weights(&self) -> [u64; 2] {
        weights_of(&self.api.get(Resource::TrafficSplits, "demo", "emoji").unwrap())
    }

    /// Breaks the primary and lets things take their course until `moment`.
    fn until(&mut self, moment: Moment) {
        let mut fault = Refused(self.primary.clone());
        fault.inject().unwrap();
        if moment == Moment::FirstFailure {
            until(&|| "a failure is reported".into(), || self.state().is_some_and(|state| has_reported(&state)));
            return;
        }
        until(&|| "the failover".into(), || self.weights() == FAILED_OVER);
        if moment == Moment::Written {
            return;
        }
        fault.heal().unwrap();
        match moment {
            Moment::Dwell => pause(Duration::from_secs(1)),
            _ => {
                until(&|| "the ramp".into(), || self.weights() == STEPS[0]);
            }
        }
    }

    fn kill_and_start(&mut self, who: Who) {
        let controller = matches!(who, Who::Controller | Who::Both | Who::Everything);
        let agents = match who {
            Who::Controller => 0,
            Who::OneAgent | Who::Both => 1,
            Who::EveryAgent | Who::Everything => self.agents.len(),
        };
        if controller {
            self.controller.take().unwrap().kill().unwrap();
        }
        let killed: Vec<(String, NodeChild)> = self.agents.drain(..agents).collect();
        for (_, agent) in &killed {
            agent.kill().unwrap();
        }
        if controller {
            self.start_controller();
        }
        for (node, _) in killed {
            self.start_agent(&node);
        }
    }

    /// Everything that the controllers wrote to splits, in order.
    fn writes(&self) -> Vec<Request> {
        let is_write = |one: &Request| one.resource == Some(Resource::TrafficSplits) && one.left.is_some();
        self.api.requests().into_iter().filter(is_write).collect()
    }
}

/// In the control namespace, where controllers and agents find it.
fn serve(runtime: &Runtime, api: &ApiServer, world: &World) -> PathBuf {
    let address = SocketAddr::new(world.control().address(), 6443);
    let listener = world.control().netns().within(|| TcpListener::bind(address)).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = api.clone();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        server.serve(listener).await.unwrap();
    });
    let kubeconfig = world.run_dir().join("kubeconfig");
    std::fs::write(&kubeconfig, ApiServer::kubeconfig(&format!("http://{address}"))).unwrap();
    kubeconfig
}

fn describe(api: &ApiServer, world: &World) {
    let place = |node: &lab::world::Node| (node.name().to_owned(), node.zone().to_owned(), node.address());
    let nodes: Vec<_> = world.nodes().map(place).collect();
    let mut objects = cluster_objects(world.control().address(), &nodes, |_| true);
    objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "demo"}}));
    for (service, address, pods) in [("web", "198.19.0.1", ["w1", "w2"]), ("web-west", "198.19.0.2", ["s1", "s2"])] {
        objects.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": service, "namespace": "demo"},
            "spec": {"clusterIP": address, "clusterIPs": [address],
                     "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}));
        let endpoint = |name: &str| {
            let pod = world.pod(name).unwrap();
            json!({"addresses": [pod.address().to_string()], "conditions": {"ready": true}, "nodeName": pod.node(),
                   "targetRef": {"kind": "Pod", "name": name, "namespace": "demo", "uid": pod.uid()}})
        };
        objects.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{service}-1"), "namespace": "demo",
                         "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
            "endpoints": pods.map(endpoint)}));
    }
    objects.push(json!({
        "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit",
        "metadata": {"name": "emoji", "namespace": "demo",
                     "labels": {"failover.linkerd.io/controlled-by": "linkerd-failover"}},
        "spec": {"service": "web", "backends": [
            {"service": "web", "weight": 1}, {"service": "web-west", "weight": 0}]},
    }));
    for object in objects {
        api.create(object).unwrap();
    }
}

fn mk_server(world: &World, pod: &str) -> PodChild {
    let program = PodProgram::Server(ServerSpec::new(PORT, pod.as_bytes()[0]));
    let server = world.pod(pod).unwrap().spawn(&program, &Records::new()).unwrap();
    server.wait_ready(PATIENCE).unwrap();
    server
}

fn mk_client(world: &World, pod: &str, kubeconfig: &Path) -> PodChild {
    let target =
        Target::Mesh { kubeconfig: kubeconfig.to_owned(), namespace: "demo".into(), splits: vec!["emoji".into()] };
    let spec = ClientSpec { target, rate: 250.0, seed: u64::from(pod.as_bytes()[1]), timeout_ms: DEFAULT_TIMEOUT_MS };
    let client = world.pod(pod).unwrap().spawn(&PodProgram::Client(spec), &Records::new()).unwrap();
    client.wait_ready(PATIENCE).unwrap();
    client
}

fn has_reported(state: &Value) -> bool {
    state["transitions"].as_array().unwrap().iter().any(|one| one["kind"] == "reported")
}

fn weights_of(split: &Value) -> [u64; 2] {
    [0, 1].map(|index| split["spec"]["backends"][index]["weight"].as_u64().unwrap())
}

#[expect(clippy::disallowed_methods, reason = "the test waits for other processes")]
fn pause(length: Duration) {
    std::thread::sleep(length);
}

/// Waits for something to become so; how long it took.
fn until(what: &dyn Fn() -> String, mut is_so: impl FnMut() -> bool) -> Duration {
    let began_ns = now_ns();
    loop {
        let waited = Duration::from_nanos(now_ns() - began_ns);
        if is_so() {
            return waited;
        }
        assert!(waited < PATIENCE, "waited too long until {}", what());
        pause(LOOK);
    }
}

fn check(who: Who, moment: Moment) {
    let name = format!("{who:?} at {moment:?}");
    let mut cluster = Cluster::start();
    cluster.until(moment);
    cluster.kill_and_start(who);
    let right: &[[u64; 2]] = match moment {
        Moment::FirstFailure | Moment::Written | Moment::Dwell => &[FAILED_OVER],
        Moment::Ramp => &[STEPS[0], STEPS[1], STEADY],
    };
    let took = until(
        &|| format!("{name}: the weights are right: {:#}", cluster.state().unwrap_or_default()["splits"]),
        || right.contains(&cluster.weights()),
    );
    println!("{name}: right after {} ms", took.as_millis());
    assert!(took <= RIGHT_WITHIN, "{name}: right only after {took:?}");
    if matches!(moment, Moment::FirstFailure | Moment::Written) {
        // Nothing moves back into what is dead.
        pause(Duration::from_millis(1_000));
        assert_eq!(cluster.weights(), FAILED_OVER, "{name}");
        Refused(cluster.primary.clone()).heal().unwrap();
    }
    until(&|| format!("{name}: everything is back"), || cluster.weights() == STEADY);
    // The server's audit is written after its answer.
    pause(Duration::from_millis(300));
    let history: Vec<_> = cluster.writes().iter().map(|write| weights_of(write.left.as_ref().unwrap())).collect();
    assert_eq!(history, [FAILED_OVER, STEPS[0], STEPS[1], STEADY], "{name}: a wrong write");
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_controller_is_killed_at_the_first_failure() {
    check(Who::Controller, Moment::FirstFailure);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_controller_is_killed_in_the_dwell() {
    check(Who::Controller, Moment::Dwell);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn one_agent_is_killed_at_the_first_failure() {
    check(Who::OneAgent, Moment::FirstFailure);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn every_agent_is_killed_at_the_first_failure() {
    check(Who::EveryAgent, Moment::FirstFailure);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_controller_and_an_agent_are_killed_at_the_first_failure() {
    check(Who::Both, Moment::FirstFailure);
}

/// Before the first write nothing but the controller and the agents knows that the primary ever answered. When all of them
/// go at once, a primary that died and one that never lived look the same, and nothing moves on connections.
#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn where_everybody_forgot_that_it_ever_answered_only_readiness_moves() {
    let mut cluster = Cluster::start();
    cluster.until(Moment::FirstFailure);
    cluster.kill_and_start(Who::Everything);
    let guard = || cluster.state().map(|state| state["splits"][0]["guard"].clone()).unwrap_or_default();
    until(&|| format!("it is held: {}", guard()), || guard() == "never-healthy");
    pause(Duration::from_secs(2));
    assert_eq!((cluster.weights(), cluster.writes().len()), (STEADY, 0));
    let events = cluster.api.list(Resource::Events, Some("demo"));
    // Another guard may have held it for a moment before.
    let says_so = |event: &Value| {
        event["reason"] == "Held" && event["message"].as_str().unwrap().ends_with("nobody has seen it healthy yet")
    };
    assert!(events.iter().any(says_so), "{events:#?}");
    let unready = |slice: &mut Value| {
        for endpoint in slice["endpoints"].as_array_mut().unwrap() {
            endpoint["conditions"]["ready"] = json!(false);
        }
    };
    cluster.api.update_with(Resource::EndpointSlices, "demo", "web-1", unready).unwrap();
    let took = until(&|| "readiness moves it".into(), || cluster.weights() == FAILED_OVER);
    assert!(took <= RIGHT_WITHIN, "{took:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn everything_is_killed_right_after_the_write() {
    check(Who::Everything, Moment::Written);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn everything_is_killed_in_the_ramp() {
    check(Who::Everything, Moment::Ramp);
}
