//! The cluster around the controller: an embedded API server with one split, and the controller's process.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use lab::apiserver::{ApiServer, Resource};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than anything here takes, so that a test that hangs says where.
const PATIENCE: Duration = Duration::from_secs(20);

/// Splits' names with their weights, in the order in which a watch showed them.
type Seen = Arc<Mutex<Vec<(String, [u64; 2])>>>;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An API server with the Services `web` (three endpoints) and `web-west` (two), and the split `emoji` over them.
pub(crate) struct Bench {
    pub(crate) server: ApiServer,
    pub(crate) kubeconfig: PathBuf,
    seen: Seen,
    _tasks: JoinSet<()>,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::on(ApiServer::new()).await
    }

    /// The same, on a server that remembers only so many changes of each kind.
    pub(crate) async fn with_history(changes: usize) -> Self {
        Self::on(ApiServer::with_history(changes)).await
    }

    async fn on(server: ApiServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let kubeconfig = std::env::temp_dir().join(format!("splitsecond-whole-{}-{number}.yaml", std::process::id()));
        std::fs::write(&kubeconfig, ApiServer::kubeconfig(&url)).unwrap();
        let seen = Seen::default();
        let mut tasks = JoinSet::new();
        let serving = server.clone();
        tasks.spawn(async move { serving.serve(listener).await.unwrap() });
        for namespace in ["demo", "splitsecond"] {
            server.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})).unwrap();
        }
        let bench = Self { server, kubeconfig, seen: Arc::clone(&seen), _tasks: tasks };
        for service in ["web", "web-west"] {
            bench.add_service(service, 80);
        }
        bench.create_split("emoji", json!(1));
        let mut bench = bench;
        bench._tasks.spawn(record(url, seen));
        bench
    }

    /// One of the Services that [`place`] knows, with ready endpoints.
    pub(crate) fn add_service(&self, service: &str, port: u16) {
        let address = format!("198.18.0.{}", place(service).0);
        self.server
            .create(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": service, "namespace": "demo"},
                   "spec": {"clusterIP": address, "clusterIPs": [address],
                            "ports": [{"name": "http", "port": port, "protocol": "TCP"}]}}))
            .unwrap();
        self.set_ready(service, true);
    }

    pub(crate) fn create_split(&self, name: &str, weight: Value) {
        let split = json!({
            "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit",
            "metadata": {"name": name, "namespace": "demo", "annotations": {"theirs": "kept"},
                         "labels": {"failover.linkerd.io/controlled-by": "linkerd-failover"}},
            "spec": {"service": "web", "backends": [
                {"service": "web", "weight": weight}, {"service": "web-west", "weight": 0}]},
        });
        self.server.create(split).unwrap();
    }

    /// All endpoints of a Service ready or not.
    pub(crate) fn set_ready(&self, service: &str, ready: bool) {
        let (net, count) = place(service);
        let endpoint = |number: u32| {
            json!({"addresses": [format!("198.18.{net}.{number}")], "conditions": {"ready": ready},
                   "nodeName": format!("b{number}"), "targetRef": {"kind": "Pod", "name": format!("{service}-{number}"),
                   "namespace": "demo", "uid": format!("{service}-{number}")}})
        };
        let endpoints: Vec<_> = (1..=count).map(endpoint).collect();
        self.server
            .put(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                   "metadata": {"name": format!("{service}-1"), "namespace": "demo",
                                "labels": {"kubernetes.io/service-name": service}},
                   "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}))
            .unwrap();
    }

    pub(crate) fn split(&self, name: &str) -> Value {
        self.server.get(Resource::TrafficSplits, "demo", name).unwrap()
    }

    pub(crate) async fn until_weights(&self, name: &str, weights: [u64; 2]) {
        let reached = || weights_of(&self.split(name)) == weights;
        until(reached, || format!("{name} has {:?} and not {weights:?}", weights_of(&self.split(name)))).await;
    }

    /// Waits until the weights of a split over time were these, as its watchers see them, each once.
    pub(crate) async fn until_history(&self, name: &str, expected: &[[u64; 2]]) {
        until(|| self.history(name) == expected, || format!("{:?} and not {expected:?}", self.history(name))).await;
    }

    fn history(&self, name: &str) -> Vec<[u64; 2]> {
        let seen = self.seen.lock().unwrap();
        let mut history: Vec<_> = seen.iter().filter(|(of, _)| of == name).map(|(_, weights)| *weights).collect();
        history.dedup();
        history
    }

    /// As they are stored, in core/v1: `message` is the note, `involvedObject` what it regards.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.server.list(Resource::Events, Some("demo"))
    }

    pub(crate) async fn until_event(&self, note: &str) {
        self.until_event_about("emoji", "Failover", note).await;
    }

    pub(crate) async fn until_event_about(&self, split: &str, reason: &str, note: &str) {
        let uid = self.split(split)["metadata"]["uid"].clone();
        let is_it = |event: &Value| {
            event["involvedObject"]["uid"] == uid
                && event["reason"] == reason
                && event["message"].as_str().is_some_and(|text| text.contains(note))
        };
        until(|| self.events().iter().any(is_it), || format!("no {note:?} among {:#?}", self.events())).await;
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        std::fs::remove_file(&self.kubeconfig).ok();
    }
}

/// The third number of the addresses of a Service's endpoints, and how many it has.
fn place(service: &str) -> (u8, u32) {
    match service {
        "web" => (1, 3),
        "web-west" => (2, 2),
        "cart" => (3, 2),
        "cart-west" => (4, 2),
        other => panic!("no place for {other}"),
    }
}

/// Writes down every state that a watch shows, from the first list on.
async fn record(url: String, seen: Seen) {
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("split.smi-spec.io", "v1alpha1", "TrafficSplit"));
    let api: Api<DynamicObject> = Api::all_with(client, &kind);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                let weights = weights_of(&object.data);
                seen.lock().unwrap().push((object.metadata.name.unwrap(), weights));
            }
            Ok(_) => {}
            // Without a pause an outage would be a loop that never yields.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// The first two weights, 0 for what is no whole number.
pub(crate) fn weights_of(split: &Value) -> [u64; 2] {
    [0, 1].map(|index| split["spec"]["backends"][index]["weight"].as_u64().unwrap_or(0))
}

pub(crate) async fn until(reached: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(PATIENCE, waiting).await.is_err() {
        panic!("{}", otherwise());
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_splitsecond-controller"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs the binary to its end: exit code and stderr.
pub(crate) async fn run(arguments: &[&str]) -> (i32, String) {
    let output = timeout(PATIENCE, command(arguments).output()).await.unwrap().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// The controller's process.
pub(crate) struct Controller {
    child: Child,
    admin: std::net::SocketAddr,
    /// Where agents connect.
    pub(crate) ingest: std::net::SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Controller {
    /// Starts it on ports of its own, which its log tells.
    pub(crate) async fn start(bench: &Bench, settings: &[&str]) -> Self {
        Self::start_at(bench, std::net::SocketAddr::from(([127, 0, 0, 1], 0)), settings).await
    }

    /// The same, where agents already know to find it.
    pub(crate) async fn start_at(bench: &Bench, ingest: std::net::SocketAddr, settings: &[&str]) -> Self {
        let kubeconfig = format!("--kubeconfig={}", bench.kubeconfig.display());
        let ingest = format!("--ingest-addr={ingest}");
        let own = ["--admin-addr=127.0.0.1:0", &ingest, "--log-format=json", &kubeconfig];
        let mut child = command(&[&own, settings].concat()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut addresses = [None, None];
        while addresses.contains(&None) {
            let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().expect("it lives");
            let entry: Value = serde_json::from_str(&line).unwrap();
            for (address, option) in addresses.iter_mut().zip(["--admin-addr", "--ingest-addr"]) {
                if entry["option"] == option {
                    *address = entry["address"].as_str().map(|text| text.parse().unwrap());
                }
            }
            log.lock().unwrap().push(line);
        }
        let mut tasks = JoinSet::new();
        let kept = Arc::clone(&log);
        tasks.spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().push(line);
            }
        });
        let [admin, ingest] = addresses.map(Option::unwrap);
        Self { child, admin, ingest, log, _tasks: tasks }
    }

    /// One request to the admin server: status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: controller\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub(crate) async fn state(&self) -> Value {
        serde_json::from_str(&self.get("/state").await.1).unwrap()
    }

    pub(crate) async fn until_ready(&mut self) {
        self.until(|state| state["ready"] == true).await;
    }

    /// How many lines it has logged.
    pub(crate) fn logged(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    /// The lines that it logged after the first `seen`.
    pub(crate) fn lines_after(&self, seen: usize) -> Vec<Value> {
        self.log.lock().unwrap()[seen..].iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until /state is as wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Value) -> bool) {
        let waiting = async {
            while !wanted(&self.state().await) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(PATIENCE, waiting).await.is_err() {
            let log = self.log.lock().unwrap().join("\n");
            panic!("not reached: {:#}\n{log}", self.state().await);
        }
    }

    /// SIGTERM; the exit code.
    pub(crate) async fn stop(mut self) -> i32 {
        self.signal(Signal::TERM);
        self.ended().await.expect("not by a signal")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id().expect("it runs")).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Its exit code, when it ends; none where a signal ended it.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap().code()
    }
}
