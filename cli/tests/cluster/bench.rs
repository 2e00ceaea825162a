//! The cluster around a program: an embedded API server, and the program's process with its log.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use lab::apiserver::{ApiServer, Resource};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::programs::{self, PATIENCE, until};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An API server over HTTP, and a kubeconfig that leads to it.
pub(crate) struct Bench {
    pub(crate) server: ApiServer,
    pub(crate) address: SocketAddr,
    pub(crate) kubeconfig: PathBuf,
    _tasks: JoinSet<()>,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = ApiServer::new();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let kubeconfig = std::env::temp_dir().join(format!("splitsecond-cli-{}-{number}.yaml", std::process::id()));
        std::fs::write(&kubeconfig, ApiServer::kubeconfig(&format!("http://{address}"))).unwrap();
        let mut tasks = JoinSet::new();
        let serving = server.clone();
        tasks.spawn(async move { serving.serve(listener).await.unwrap() });
        Self { server, address, kubeconfig, _tasks: tasks }
    }

    pub(crate) fn namespace(&self, name: &str) {
        self.server.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).unwrap();
    }

    /// The endpoints of a Service, ready or not: one on each of as many nodes.
    pub(crate) fn endpoints(
        &self,
        (namespace, service): (&str, &str),
        net: &str,
        count: u32,
        port: &Value,
        ready: bool,
    ) {
        let endpoint = |number: u32| {
            json!({"addresses": [format!("{net}.{number}")], "conditions": {"ready": ready},
                   "nodeName": format!("b{number}"), "targetRef": {"kind": "Pod", "name": format!("{service}-{number}"),
                   "namespace": namespace, "uid": format!("{service}-{number}")}})
        };
        let endpoints: Vec<_> = (1..=count).map(endpoint).collect();
        self.server
            .put(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                   "metadata": {"name": format!("{service}-1"), "namespace": namespace,
                                "labels": {"kubernetes.io/service-name": service}},
                   "ports": [port], "endpoints": endpoints}))
            .unwrap();
    }

    /// The weights of a split, as its object writes them.
    pub(crate) fn weights(&self, namespace: &str, name: &str) -> Vec<String> {
        let split = self.server.get(Resource::TrafficSplits, namespace, name).unwrap();
        split["spec"]["backends"].as_array().unwrap().iter().map(|backend| backend["weight"].to_string()).collect()
    }

    pub(crate) async fn until_weights(&self, (namespace, name): (&str, &str), weights: &[&str], log: &Log) {
        let reached = || self.weights(namespace, name) == weights;
        until(reached, || format!("{:?} and not {weights:?}\n{}", self.weights(namespace, name), log.text())).await;
    }

    pub(crate) async fn until_event(&self, namespace: &str, reason: &str) {
        let events = || self.server.list(Resource::Events, Some(namespace));
        let there = || events().iter().any(|event| event["reason"] == reason);
        until(there, || format!("no {reason} among {:#?}", events())).await;
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        std::fs::remove_file(&self.kubeconfig).ok();
    }
}

/// What a program has logged.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }

    /// The address that it listens on for an option.
    fn address(&self, option: &str) -> Option<SocketAddr> {
        let lines = self.0.lock().unwrap();
        let entries = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut told = entries.filter(|entry| entry["option"] == option);
        told.find_map(|entry| entry["address"].as_str()?.parse().ok())
    }
}

/// A controller's or an agent's process. It dies with this.
pub(crate) struct Running {
    pub(crate) log: Log,
    child: Child,
    _tasks: JoinSet<()>,
}

impl Running {
    /// Starts a program with these arguments; its cluster is the bench's, and it logs JSON.
    pub(crate) fn start(program: &Path, arguments: &[String], environment: &[(&str, &str)], bench: &Bench) -> Self {
        let mut command = programs::command(program, arguments);
        command.env("SPLITSECOND_KUBECONFIG", &bench.kubeconfig).env("SPLITSECOND_LOG_FORMAT", "json");
        command.envs(environment.iter().copied());
        let mut child = command.spawn().unwrap();
        let mut tasks = JoinSet::new();
        let log = Log::default();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = log.clone();
        tasks.spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.0.lock().unwrap().push(line);
            }
        });
        Self { log, child, _tasks: tasks }
    }

    /// Whether it has not ended.
    pub(crate) fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

/// A controller with its addresses.
pub(crate) struct Controller {
    pub(crate) admin: SocketAddr,
    pub(crate) ingest: SocketAddr,
    pub(crate) running: Running,
}

impl Controller {
    /// Starts it on ports of its own.
    pub(crate) async fn start(bench: &Bench, arguments: &[String]) -> Self {
        let own = [("SPLITSECOND_ADMIN_ADDR", "127.0.0.1:0"), ("SPLITSECOND_INGEST_ADDR", "127.0.0.1:0")];
        let running = Running::start(&programs::path("splitsecond-controller"), arguments, &own, bench);
        let addresses = || Some((running.log.address("--admin-addr")?, running.log.address("--ingest-addr")?));
        until(|| addresses().is_some(), || running.log.text()).await;
        let (admin, ingest) = addresses().unwrap();
        Self { admin, ingest, running }
    }

    pub(crate) async fn state(&self) -> Value {
        use tokio::io::AsyncWriteExt;
        let mut socket = tokio::net::TcpStream::connect(self.admin).await.unwrap();
        socket.write_all(b"GET /state HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Waits until /state is as wanted.
    pub(crate) async fn until(&self, wanted: impl Fn(&Value) -> bool) {
        let waiting = async {
            while !wanted(&self.state().await) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        if timeout(PATIENCE, waiting).await.is_err() {
            panic!("not reached: {:#}\n{}", self.state().await, self.running.log.text());
        }
    }
}
