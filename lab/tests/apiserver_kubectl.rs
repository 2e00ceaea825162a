//! The embedded API server seen through the real kubectl: what a person does while a drill is kept. No root.
//!
//! Without kubectl on PATH there is nothing to test; under CI=true that is a failure.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions that its steps share")]

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use lab::apiserver::ApiServer;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;

/// Longer than any kubectl command takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server, and a kubectl that talks to it and keeps its files to itself.
struct Lab {
    server: ApiServer,
    home: PathBuf,
    _serving: JoinSet<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Left-over files of a failed removal are harmless, and a panic here would hide the test's own.
        drop(std::fs::remove_dir_all(&self.home));
    }
}

impl Lab {
    /// `None` when this machine has no kubectl.
    async fn new() -> Option<Self> {
        if !has_kubectl().await {
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let home = std::env::temp_dir().join(format!("splitsecond-kubectl-{}", address.port()));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("config"), ApiServer::kubeconfig(&format!("http://{address}"))).unwrap();
        let server = ApiServer::new();
        let mut serving = JoinSet::new();
        let served = server.clone();
        serving.spawn(async move { served.serve(listener).await.unwrap() });
        for object in mk_emojivoto() {
            server.create(object).unwrap();
        }
        Some(Self { server, home, _serving: serving })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(arguments)
            .env("KUBECONFIG", self.home.join("config"))
            .env("HOME", &self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let output = tokio::time::timeout(PATIENCE, self.command(arguments).output()).await;
        output.unwrap_or_else(|_| panic!("kubectl {arguments:?} does not end")).unwrap()
    }

    /// What the command prints, which has to succeed.
    async fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {errors}");
        assert!(errors.is_empty() || errors.starts_with("No resources found"), "kubectl {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the command complains about, which has to fail.
    async fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "kubectl {arguments:?} was not refused");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Creates an object from its text.
    async fn create(&self, object: &Value) -> String {
        let mut child = self.command(&["create", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).await.unwrap();
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[expect(clippy::disallowed_methods, reason = "CI says by its environment that nothing may be left out")]
async fn has_kubectl() -> bool {
    match Command::new("kubectl").args(["version", "--client"]).output().await {
        Ok(output) => output.status.success(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI has to have kubectl");
            eprintln!("left out: no kubectl on PATH");
            false
        }
        Err(error) => panic!("kubectl cannot be run: {error}"),
    }
}

fn mk_emojivoto() -> Vec<Value> {
    let place = |name: &str| json!({ "name": name, "namespace": "emojivoto" });
    vec![
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "emojivoto" } }),
        json!({
            "apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit", "metadata": place("emoji-svc"),
            "spec": {
                "service": "emoji-svc",
                "backends": [{ "service": "emoji-svc", "weight": 1 }, { "service": "emoji-svc-west", "weight": 0 }],
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": place("emoji-svc"),
            "spec": { "clusterIP": "198.19.0.10", "ports": [{ "name": "grpc", "port": 80, "targetPort": 8080 }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "emoji-svc-1", "namespace": "emojivoto", "labels": { "kubernetes.io/service-name": "emoji-svc" },
            },
            "addressType": "IPv4", "ports": [{ "name": "grpc", "port": 8080 }],
            "endpoints": [{ "addresses": ["198.51.100.1"], "conditions": { "ready": true } }],
        }),
    ]
}

fn mk_event(uid: &Value) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": { "generateName": "linkerd-failover-", "namespace": "emojivoto" },
        "eventTime": "2026-01-02T03:04:05.678901Z", "action": "Failover", "reason": "Failover", "type": "Normal",
        "note": "trafficsplit/emoji-svc failing over to fallbacks",
        "reportingController": "splitsecond", "reportingInstance": "splitsecond-controller-0",
        "regarding": {
            "apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit", "namespace": "emojivoto",
            "name": "emoji-svc", "uid": uid,
        },
    })
}

/// The lines of a table, each as its words.
fn words(table: &str) -> Vec<Vec<&str>> {
    table.lines().filter(|line| !line.is_empty()).map(|line| line.split_whitespace().collect()).collect()
}

#[tokio::test]
async fn get_shows_the_tables_that_a_cluster_shows() {
    let Some(lab) = Lab::new().await else { return };
    let splits = lab.kubectl(&["get", "ts", "-A"]).await;
    assert_eq!(
        words(&splits),
        [
            vec!["NAMESPACE", "NAME", "SERVICE", "WEIGHTS"],
            vec!["emojivoto", "emoji-svc", "emoji-svc", "emoji-svc=1,emoji-svc-west=0"],
        ]
    );
    let services = lab.kubectl(&["get", "svc", "-A"]).await;
    let rows = words(&services);
    assert_eq!(rows[0], ["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
    assert_eq!(rows[1][..6], ["emojivoto", "emoji-svc", "ClusterIP", "198.19.0.10", "<none>", "80/TCP"]);
    let slices = lab.kubectl(&["get", "endpointslices", "-A"]).await;
    let rows = words(&slices);
    assert_eq!(rows[0], ["NAMESPACE", "NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"]);
    assert_eq!(rows[1][..5], ["emojivoto", "emoji-svc-1", "IPv4", "8080", "198.51.100.1"]);
    let all = lab.kubectl(&["get", "ts,svc,endpointslices,nodes,leases,ns", "-A"]).await;
    assert!(all.contains("trafficsplit.split.smi-spec.io/emoji-svc") && all.contains("namespace/emojivoto"), "{all}");
    let resources = lab.kubectl(&["api-resources"]).await;
    let found = words(&resources).into_iter().find(|row| row[0] == "trafficsplits").unwrap();
    assert_eq!(found, ["trafficsplits", "ts", "split.smi-spec.io/v1alpha2", "true", "TrafficSplit"]);
}

#[tokio::test]
async fn patches_are_applied_or_refused_with_the_reason() {
    let Some(lab) = Lab::new().await else { return };
    let patch = |format: &'static str, body: &'static str| {
        ["-n", "emojivoto", "patch", "ts", "emoji-svc", "--type", format, "-p", body]
    };
    let merge = r#"{"spec":{"backends":[{"service":"emoji-svc","weight":0},{"service":"emoji-svc-west","weight":1}]}}"#;
    lab.kubectl(&patch("merge", merge)).await;
    lab.kubectl(&patch("json", r#"[{"op":"replace","path":"/spec/backends/0/weight","value":3}]"#)).await;
    let yaml = lab.kubectl(&["-n", "emojivoto", "get", "ts", "emoji-svc", "-o", "yaml"]).await;
    assert!(yaml.starts_with("apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\n"), "{yaml}");
    assert!(yaml.contains("weight: 3") && yaml.contains("generation: 3"), "{yaml}");

    let failed = lab.refused(&patch("json", r#"[{"op":"test","path":"/spec/backends/0/weight","value":9}]"#)).await;
    assert_eq!(failed.trim(), "The request is invalid: the server rejected our request due to an error in our request");
    let failed = lab.refused(&patch("merge", r#"{"spec":{"backends":[{"service":"emoji-svc"}]}}"#)).await;
    let wanted = "The TrafficSplit \"emoji-svc\" is invalid: spec.backends[0].weight: Required value";
    assert_eq!(failed.trim(), wanted);
}

#[tokio::test]
async fn objects_are_created_described_replaced_and_deleted() {
    let Some(lab) = Lab::new().await else { return };
    let split = lab.server.get(lab::apiserver::Resource::TrafficSplits, "emojivoto", "emoji-svc").unwrap();
    let created = lab.create(&mk_event(&split["metadata"]["uid"])).await;
    assert!(created.starts_with("event.events.k8s.io/linkerd-failover-"), "{created}");
    let events = lab.kubectl(&["get", "events", "-A"]).await;
    let rows = words(&events);
    assert_eq!(rows[0], ["NAMESPACE", "LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
    assert_eq!(rows[1][2..5], ["Normal", "Failover", "trafficsplit/emoji-svc"]);
    let described = lab.kubectl(&["-n", "emojivoto", "describe", "ts", "emoji-svc"]).await;
    assert!(described.contains("trafficsplit/emoji-svc failing over to fallbacks"), "{described}");
    let described = lab.kubectl(&["-n", "emojivoto", "describe", "svc", "emoji-svc"]).await;
    assert!(described.contains("198.51.100.1:8080"), "{described}");

    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "other" } });
    assert_eq!(lab.create(&namespace).await.trim(), "namespace/other created");
    lab.kubectl(&["label", "ns", "other", "linkerd.io/extension=failover"]).await;
    let labelled = lab.kubectl(&["get", "ns", "-l", "linkerd.io/extension=failover", "-o", "name"]).await;
    assert_eq!(labelled.trim(), "namespace/other");
    lab.kubectl(&["delete", "ns", "other"]).await;
    lab.kubectl(&["-n", "emojivoto", "delete", "ts", "emoji-svc"]).await;
    let missing = lab.refused(&["-n", "emojivoto", "get", "ts", "emoji-svc"]).await;
    let wanted = "Error from server (NotFound): trafficsplits.split.smi-spec.io \"emoji-svc\" not found";
    assert_eq!(missing.trim(), wanted);
}

#[tokio::test]
async fn get_watch_prints_every_change_as_it_happens() {
    let Some(lab) = Lab::new().await else { return };
    let mut child = lab.command(&["-n", "emojivoto", "get", "ts", "-w"]).spawn().unwrap();
    let mut lines = lines_of(&mut child);
    assert!(next(&mut lines).await.starts_with("NAME"));
    assert!(next(&mut lines).await.ends_with("emoji-svc=1,emoji-svc-west=0"));
    for (primary, secondary) in [(0, 1), (500, 500), (1, 0)] {
        lab.server
            .update_with(lab::apiserver::Resource::TrafficSplits, "emojivoto", "emoji-svc", |split| {
                split["spec"]["backends"][0]["weight"] = primary.into();
                split["spec"]["backends"][1]["weight"] = secondary.into();
            })
            .unwrap();
        let line = next(&mut lines).await;
        assert!(line.ends_with(&format!("emoji-svc={primary},emoji-svc-west={secondary}")), "{line}");
    }
    child.kill().await.unwrap();
}

fn lines_of(child: &mut Child) -> Lines<BufReader<ChildStdout>> {
    BufReader::new(child.stdout.take().unwrap()).lines()
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("kubectl should have printed a line");
    line.unwrap().expect("kubectl should still run").trim_end().to_owned()
}
