//! The watches against an API server's side of HTTP: pages, events, errors, objects that cannot be read.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use probe_agent::cluster::{self, News};
use probe_agent::resolve::{Kind, ObjectName};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::controller::{Controller, Mood};
use crate::running::Running;

const SERVICES: &str = "/api/v1/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Two collections, and the watches on them.
#[derive(Default)]
struct Store {
    lists: BTreeMap<&'static str, Vec<Value>>,
    watches: Vec<(String, mpsc::Sender<String>)>,
    /// Every request, as path and query.
    asked: Vec<String>,
}

pub(crate) struct Api {
    address: SocketAddr,
    store: Arc<Mutex<Store>>,
    pub(crate) kubeconfig: PathBuf,
    _tasks: JoinSet<()>,
}

impl Api {
    pub(crate) async fn start(name: &str, services: Vec<Value>, slices: Vec<Value>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let lists = BTreeMap::from([(SERVICES, services), (SLICES, slices)]);
        let store = Arc::new(Mutex::new(Store { lists, ..Store::default() }));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&store)));
        let kubeconfig = std::env::temp_dir().join(format!("ssagent-{name}-{}.json", std::process::id()));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(&kubeconfig, config.to_string()).expect("writes");
        Self { address, store, kubeconfig, _tasks: tasks }
    }

    /// Sends an event to every watch of the collection, once there is one.
    pub(crate) async fn event(&self, collection: &str, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        for _ in 0..500 {
            let watches: Vec<_> = {
                let mut store = self.store.lock().expect("not poisoned");
                store.watches.retain(|(_, watch)| !watch.is_closed());
                store.watches.iter().filter(|(path, _)| path == collection).map(|(_, watch)| watch.clone()).collect()
            };
            if !watches.is_empty() {
                for watch in watches {
                    watch.send(line.clone()).await.expect("is read");
                }
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nobody watches {collection}");
    }

    fn asked(&self) -> Vec<String> {
        self.store.lock().expect("not poisoned").asked.clone()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.kubeconfig));
    }
}

async fn serve(listener: TcpListener, store: Arc<Mutex<Store>>) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.expect("accepts");
        let store = Arc::clone(&store);
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer(&request, &mut store.lock().expect("not poisoned"));
            async move { Ok::<_, io::Error>(answer) }
        });
        connections.spawn(async move {
            // A client that goes away in the middle is none of the test's business.
            drop(http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await);
        });
    }
}

fn answer(request: &Request<Incoming>, store: &mut Store) -> Answer {
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
    store.asked.push(format!("{path}?{query}"));
    if query.contains("watch=true") {
        let (sender, events) = mpsc::channel::<String>(16);
        store.watches.push((path, sender));
        let lines = stream::unfold(events, |mut events| async {
            let line = events.recv().await?;
            Some((Ok(Frame::data(Bytes::from(line))), events))
        });
        return Response::new(BoxBody::new(StreamBody::new(Box::pin(lines) as ByteStream)));
    }
    let all = store.lists.get(path.as_str()).map(Vec::as_slice).unwrap_or_default();
    // One object a page, so that a list of two has two; a large one is cut as it asks.
    let page = if all.len() > 10 { 500 } else { 1 };
    let from = query
        .split('&')
        .find_map(|part| part.strip_prefix("continue=page"))
        .map_or(0, |page| page.parse().expect("ours"));
    let rest = if from + page < all.len() { format!("page{}", from + page) } else { String::new() };
    let items: Vec<_> = all.iter().skip(from).take(page).collect();
    let kind = if path == SERVICES { ("v1", "ServiceList") } else { ("discovery.k8s.io/v1", "EndpointSliceList") };
    let metadata = json!({"resourceVersion": "10", "continue": rest});
    let list = json!({"apiVersion": kind.0, "kind": kind.1, "metadata": metadata, "items": items});
    Response::new(Full::new(Bytes::from(list.to_string())).boxed())
}

type ByteStream = std::pin::Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync>>;

pub(crate) fn mk_service(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name, "resourceVersion": "5"},
        "spec": {"clusterIP": address, "ports": [{"port": 80}]},
    })
}

fn mk_slice(namespace: &str, service: &str, address: &str, port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": namespace, "name": format!("{service}-x"), "resourceVersion": "6",
            "labels": {"kubernetes.io/service-name": service},
        },
        "endpoints": [{"addresses": [address]}], "ports": [{"name": "ingest", "port": port}],
    })
}

struct Watching {
    news: mpsc::Receiver<News>,
    _tasks: JoinSet<()>,
}

impl Watching {
    fn start(kubeconfig: PathBuf) -> Self {
        let (sender, news) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        tasks.spawn(cluster::run(Some(kubeconfig), "n1".to_owned(), sender, 1));
        Self { news, _tasks: tasks }
    }

    async fn next(&mut self) -> News {
        tokio::time::timeout(Duration::from_secs(10), self.news.recv()).await.expect("news in 10 s").expect("runs")
    }

    /// News of one kind up to the end of its list.
    async fn list(&mut self, kind: Kind) -> Vec<News> {
        let mut listed = Vec::new();
        loop {
            match self.next().await {
                News::ListComplete(of) if of == kind => return listed,
                news @ (News::Object(of, ..) | News::Undecodable(of, ..) | News::Gone(of, _)) if of == kind => {
                    listed.push(news);
                }
                _ => {}
            }
        }
    }
}

fn named(name: &str) -> ObjectName {
    ObjectName { namespace: "shop".into(), name: name.into() }
}

#[tokio::test]
async fn a_list_comes_in_pages_and_one_bad_object_costs_itself_only() {
    let bad = json!({
        "metadata": {"namespace": "shop", "name": "bad"}, "spec": {"ports": "none"},
    });
    let services = vec![mk_service("a", "203.0.113.1"), bad, mk_service("b", "203.0.113.2")];
    let api = Api::start("pages", services, vec![]).await;
    let mut watching = Watching::start(api.kubeconfig.clone());
    let listed = watching.list(Kind::Service).await;
    assert!(matches!(&listed[0], News::Object(_, name, _) if *name == named("a")), "{listed:?}");
    assert!(matches!(&listed[1], News::Undecodable(_, name, _) if *name == named("bad")), "{listed:?}");
    assert!(matches!(&listed[2], News::Object(_, name, _) if *name == named("b")), "{listed:?}");
    let pages: Vec<_> = api.asked().into_iter().filter(|asked| asked.contains("limit=500")).collect();
    assert!(pages.iter().filter(|asked| asked.starts_with(SERVICES)).count() >= 3, "{pages:?}");
}

#[tokio::test]
async fn changes_arrive_and_an_expired_watch_lists_again() {
    let api = Api::start("watch", vec![mk_service("a", "203.0.113.1")], vec![]).await;
    let mut watching = Watching::start(api.kubeconfig.clone());
    watching.list(Kind::Service).await;
    api.event(SERVICES, "ADDED", &mk_service("b", "203.0.113.2")).await;
    api.event(SERVICES, "DELETED", &mk_service("a", "203.0.113.1")).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let news = watching.next().await;
        if matches!(&news, News::Object(Kind::Service, ..) | News::Gone(Kind::Service, _)) {
            seen.push(news);
        }
    }
    assert!(matches!(&seen[0], News::Object(_, name, _) if *name == named("b")), "{seen:?}");
    assert_eq!(seen[1], News::Gone(Kind::Service, named("a")));
    let expired =
        json!({"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"});
    api.event(SERVICES, "ERROR", &expired).await;
    assert_eq!(watching.list(Kind::Service).await.len(), 1, "the list again");
}

#[tokio::test]
async fn an_api_server_that_is_away_is_tried_again_until_it_is_there() {
    let api = Api::start("away", vec![mk_service("a", "203.0.113.1")], vec![]).await;
    let missing = api.kubeconfig.with_extension("missing");
    let mut watching = Watching::start(missing);
    assert!(matches!(watching.next().await, News::Unconfigured(_)));
    let mut refused = Api::start("refused", vec![], vec![]).await;
    refused._tasks.abort_all();
    while refused._tasks.join_next().await.is_some() {}
    let mut watching = Watching::start(refused.kubeconfig.clone());
    let mut failed = 0;
    while failed < 3 {
        failed += u32::from(matches!(watching.next().await, News::Failed(..)));
    }
    let listener = TcpListener::bind(refused.address).await.expect("binds again");
    refused._tasks.spawn(serve(listener, Arc::clone(&refused.store)));
    watching.list(Kind::Service).await;
}

#[tokio::test]
async fn the_agent_finds_its_controllers_in_an_endpoint_slice() {
    let mut controller = Controller::start(Mood::Attentive).await;
    let port = controller.address.port();
    let api = Api::start("find", vec![], vec![]).await;
    let agent = Running::start(&[
        "--cgroup-root=/nowhere".to_owned(),
        format!("--kubeconfig={}", api.kubeconfig.display()),
        "--controller-port=ingest".to_owned(),
    ]);
    let slice = mk_slice("splitsecond", "splitsecond-controller", "127.0.0.1", port);
    api.event(SLICES, "ADDED", &slice).await;
    controller.hello().await;
    let beyond = mk_slice("splitsecond", "splitsecond-controller", "198.51.100.1", port);
    api.event(SLICES, "MODIFIED", &beyond).await;
    for _ in 0..300 {
        let state = agent.state().await;
        if state["controllers"][0]["state"].as_str().is_some_and(|state| state.starts_with("refused: ")) {
            assert_eq!(state["controllers"].as_array().expect("an array").len(), 1, "{state}");
            assert_eq!(agent.figure("watch_complete{kind=\"EndpointSlice\"}").await, 1);
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}", agent.state().await);
}
