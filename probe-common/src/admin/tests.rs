//! The admin server over real loopback connections, and its exposition against `promtool` where that is installed.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

struct Shown {
    reason: Mutex<Option<String>>,
    registry: Registry,
}

impl Surface for Shown {
    fn ready(&self) -> Result<(), String> {
        self.reason.lock().expect("not poisoned").clone().map_or(Ok(()), Err)
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({"node": "n1", "counts": [1, 2]})
    }

    fn encode_metrics(&self, into: &mut String) -> fmt::Result {
        prometheus_client::encoding::text::encode(into, &self.registry)
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByCause {
    cause: String,
}

fn mk_registry() -> Registry {
    let mut registry = Registry::with_prefix("splitsecond_test");
    let failures = Family::<ByCause, Counter>::default();
    failures.get_or_create(&ByCause { cause: "re\"fused\\ # {".to_owned() }).inc_by(3);
    registry.register("failures", "Connections that failed", failures);
    registry.register("streams", "Streams that live", Gauge::<i64>::default());
    let latency = Histogram::new([0.001, 0.01]);
    latency.observe(0.002);
    registry.register_with_unit("latency", "Time taken", Unit::Seconds, latency);
    registry.register("build", "Version", Info::new([("version", "0.1.0")]));
    registry
}

async fn mk_server() -> (Arc<Shown>, std::net::SocketAddr, JoinSet<io::Result<()>>) {
    let shown = Arc::new(Shown { reason: Mutex::new(None), registry: mk_registry() });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("has an address");
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, Arc::clone(&shown) as Arc<dyn Surface>));
    (shown, address, tasks)
}

async fn ask(address: std::net::SocketAddr, head: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let request = format!("{head}\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn each_path_answers_what_it_should() {
    let (shown, address, _tasks) = mk_server().await;
    let check = async |request: &str, status: &str, expected: &str| {
        let (head, body) = ask(address, request).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
        assert_eq!(body, expected, "{request}");
    };
    check("GET /live HTTP/1.1", "200", "alive\n").await;
    check("GET /ready HTTP/1.1", "200", "ready\n").await;
    check("GET /state HTTP/1.1", "200", "{\"counts\":[1,2],\"node\":\"n1\"}").await;
    check("HEAD /live HTTP/1.1", "200", "").await;
    check("GET /else HTTP/1.1", "404", "not found: /live /ready /metrics /state\n").await;
    check("POST /live HTTP/1.1", "405", "only GET and HEAD\n").await;
    *shown.reason.lock().expect("not poisoned") = Some("blind: no BTF".to_owned());
    check("GET /ready HTTP/1.1", "503", "blind: no BTF\n").await;
    check("GET /live HTTP/1.1", "200", "alive\n").await;
}

#[tokio::test]
async fn metrics_are_text_format_unless_openmetrics_is_asked_for() {
    let (_, address, _tasks) = mk_server().await;
    for accept in ["*/*", "text/plain", "application/openmetrics-text;q=0,*/*"] {
        let (head, body) = ask(address, &format!("GET /metrics HTTP/1.1\r\naccept: {accept}")).await;
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("# TYPE splitsecond_test_failures_total counter\n"), "{body}");
        assert!(!body.contains("EOF"), "{body}");
    }
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let (head, body) = ask(address, &format!("GET /metrics HTTP/1.1\r\naccept: {accept}")).await;
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn a_connection_beyond_the_limit_waits_for_a_slot() {
    let (_, address, _tasks) = mk_server().await;
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_LIMIT {
        idle.push(TcpStream::connect(address).await.expect("connects"));
    }
    let asked = ask(address, "GET /live HTTP/1.1");
    tokio::pin!(asked);
    let early = tokio::time::timeout(Duration::from_millis(200), asked.as_mut()).await;
    assert!(early.is_err(), "answered although every slot is taken");
    idle.pop();
    let (head, _) = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("answered once a slot is there");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[test]
fn promtool_accepts_the_text_format() {
    let mut openmetrics = String::new();
    prometheus_client::encoding::text::encode(&mut openmetrics, &mk_registry()).expect("encodes");
    let child =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "promtool is part of the tests under CI: {error}");
            eprintln!("left out: promtool cannot be started: {error}");
            return;
        }
    };
    let text = exposition::text_format(&openmetrics);
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("writes");
    let output = child.wait_with_output().expect("ends");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}\n{text}");
    assert_eq!(complaints, "", "{text}");
}
