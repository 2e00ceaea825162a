//! The embedded API server over real loopback connections, seen through kube-rs: what the project's parts rely on,
//! one test each. No root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions that its steps share")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    WatchEvent, WatchParams,
};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config, ResourceExt};
use lab::apiserver::{ApiServer, Resource, Restart, Status};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Longer than anything here takes, so that a test that hangs says where.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server on a port of its own, for as long as the test runs.
struct Lab {
    server: ApiServer,
    url: String,
    _serving: JoinSet<()>,
}

impl Lab {
    async fn start(server: ApiServer) -> Self {
        Self::on(server, TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn on(server: ApiServer, listener: TcpListener) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        let served = server.clone();
        serving.spawn(async move { served.serve(listener).await.unwrap() });
        server.create(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "emojivoto" } })).unwrap();
        Self { server, url, _serving: serving }
    }

    async fn new() -> Self {
        Self::start(ApiServer::new()).await
    }

    fn client(&self) -> Client {
        Client::try_from(Config::new(self.url.parse().unwrap())).unwrap()
    }

    fn splits(&self, version: &str) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("split.smi-spec.io", version, "TrafficSplit");
        Api::namespaced_with(self.client(), "emojivoto", &ApiResource::from_gvk(&kind))
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client(), "emojivoto")
    }
}

fn mk_split(name: &str, weights: [i64; 2]) -> Value {
    json!({
        "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit",
        "metadata": {
            "name": name, "namespace": "emojivoto", "labels": { "failover.linkerd.io/controlled-by": "linkerd-failover" },
        },
        "spec": {
            "service": name,
            "backends": [{ "service": name, "weight": weights[0] }, { "service": format!("{name}-west"), "weight": weights[1] }],
        },
    })
}

fn mk_map(name: &str, content: &str) -> ConfigMap {
    let mut map =
        ConfigMap { data: Some(BTreeMap::from([("k".to_owned(), content.to_owned())])), ..ConfigMap::default() };
    map.metadata.name = Some(name.to_owned());
    map
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(outcome: Result<T, kube::Error>) -> (u16, String) {
    match outcome.unwrap_err() {
        kube::Error::Api(status) => (status.code, status.reason.clone()),
        other => panic!("not an answer of the API: {other}"),
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

#[tokio::test]
async fn a_reflector_lists_in_pages_and_then_follows_every_change() {
    let lab = Lab::new().await;
    for index in 0..1203 {
        lab.server.create(json!(mk_listed(index))).unwrap();
    }
    let config = watcher::Config::default().page_size(500);
    let mut changes = std::pin::pin!(watcher(lab.maps(), config));
    let mut seen = 0;
    loop {
        match within("the list", changes.next()).await.unwrap().unwrap() {
            watcher::Event::Init => {}
            watcher::Event::InitApply(_) => seen += 1,
            watcher::Event::InitDone => break,
            other => panic!("before the list was done: {other:?}"),
        }
    }
    assert_eq!(seen, 1203);

    lab.server.update_with(Resource::ConfigMaps, "emojivoto", "m0007", |map| map["data"]["k"] = "new".into()).unwrap();
    lab.server.delete(Resource::ConfigMaps, "emojivoto", "m0008").unwrap();
    let applied = within("the change", changes.next()).await.unwrap().unwrap();
    assert!(matches!(&applied, watcher::Event::Apply(map) if map.name_any() == "m0007"), "{applied:?}");
    let deleted = within("the deletion", changes.next()).await.unwrap().unwrap();
    assert!(matches!(&deleted, watcher::Event::Delete(map) if map.name_any() == "m0008"), "{deleted:?}");
}

fn mk_listed(index: usize) -> Value {
    let mut map = json!(mk_map(&format!("m{index:04}"), "old"));
    map["metadata"]["namespace"] = "emojivoto".into();
    map
}

#[tokio::test]
async fn a_watcher_that_lost_its_place_gets_410_and_lists_again() {
    let lab = Lab::start(ApiServer::with_history(8)).await;
    let old = lab.server.revision();
    let maps = lab.maps();
    for turn in 0..20 {
        lab.server.put(json!(mk_listed(turn % 2))).unwrap();
        lab.server
            .update_with(Resource::ConfigMaps, "emojivoto", &format!("m{:04}", turn % 2), |map| {
                map["data"]["k"] = turn.into();
                map["data"]["k"] = turn.to_string().into();
            })
            .unwrap();
    }
    let mut stream = maps.watch(&WatchParams::default(), &old.to_string()).await.unwrap().boxed();
    let first = within("the answer", stream.next()).await.unwrap().unwrap();
    let WatchEvent::Error(status) = first else { panic!("not refused: {first:?}") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    assert!(within("the end", stream.next()).await.is_none(), "the watch ends after its error");

    let objects: Vec<ConfigMap> = within(
        "a watcher's own recovery",
        watcher(maps, watcher::Config::default()).default_backoff().applied_objects().take(2).try_collect(),
    )
    .await
    .unwrap();
    assert_eq!(objects.len(), 2);
}

#[tokio::test]
async fn a_list_at_a_continue_token_that_is_too_old_is_answered_410() {
    let lab = Lab::start(ApiServer::with_history(4)).await;
    for index in 0..10 {
        lab.server.create(mk_listed(index)).unwrap();
    }
    let page = lab.maps().list(&ListParams::default().limit(3)).await.unwrap();
    assert_eq!(page.metadata.remaining_item_count, Some(7));
    let token = page.metadata.continue_.unwrap();
    for index in 10..20 {
        lab.server.create(mk_listed(index)).unwrap();
    }
    let next = lab.maps().list(&ListParams::default().limit(3).continue_token(&token)).await;
    assert_eq!(refusal(next), (410, "Expired".to_owned()));
}

#[tokio::test]
async fn the_patch_of_linkerd_failover_moves_the_weights_and_nothing_else() {
    let lab = Lab::new().await;
    lab.server.create(mk_split("web", [1, 0])).unwrap();
    // As linkerd-failover 0.1.3 sends it, with its stray top-level name.
    let patch = json!({
        "apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit", "name": "web",
        "spec": { "backends": [{ "service": "web", "weight": 0 }, { "service": "web-west", "weight": 1 }] },
    });
    let params = PatchParams { field_manager: Some("failover.linkerd.io".to_owned()), ..PatchParams::default() };
    let patched = lab.splits("v1alpha2").patch("web", &params, &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(patched.types.as_ref().unwrap().api_version, "split.smi-spec.io/v1alpha2");
    assert_eq!(patched.data.get("name"), None, "the schema has no such field");
    assert_eq!(patched.metadata.generation, Some(2));

    let read = lab.splits("v1alpha1").get("web").await.unwrap();
    assert_eq!(read.types.as_ref().unwrap().api_version, "split.smi-spec.io/v1alpha1");
    assert_eq!(read.data["spec"]["backends"][1]["weight"], 1);
    assert_eq!(read.data["spec"]["service"], "web");
    let again = lab.splits("v1alpha2").patch("web", &params, &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(again.metadata.resource_version, patched.metadata.resource_version, "nothing changed");
}

#[tokio::test]
async fn a_guarded_json_patch_applies_only_to_the_version_that_it_names() {
    let lab = Lab::new().await;
    let splits = lab.splits("v1alpha2");
    let created = lab.server.create(mk_split("web", [1, 0])).unwrap();
    let seen = created["metadata"]["resourceVersion"].as_str().unwrap();
    let guarded = |version: &str| -> Patch<Value> {
        Patch::Json(
            serde_json::from_value(json!([
                { "op": "test", "path": "/metadata/resourceVersion", "value": version },
                { "op": "replace", "path": "/spec/backends/0/weight", "value": 0 },
                { "op": "replace", "path": "/spec/backends/1/weight", "value": 1 },
            ]))
            .unwrap(),
        )
    };
    splits.patch("web", &PatchParams::default(), &guarded(seen)).await.unwrap();
    let outcome = splits.patch("web", &PatchParams::default(), &guarded(seen)).await;
    assert_eq!(refusal(outcome), (422, "Invalid".to_owned()));

    let merge = Patch::Merge(json!({ "metadata": { "resourceVersion": seen }, "spec": { "service": "other" } }));
    let outcome = splits.patch("web", &PatchParams::default(), &merge).await;
    assert_eq!(refusal(outcome), (409, "Conflict".to_owned()));
}

#[tokio::test]
async fn formats_that_need_the_real_server_are_refused() {
    let lab = Lab::new().await;
    lab.server.create(mk_split("web", [1, 0])).unwrap();
    let apply = Patch::Apply(mk_split("web", [0, 1]));
    let outcome = lab.splits("v1alpha1").patch("web", &PatchParams::apply("splitsecond"), &apply).await;
    assert_eq!(refusal(outcome).0, 415);
    let outcome = lab.splits("v1alpha1").patch("web", &PatchParams::default(), &Patch::Strategic(json!({}))).await;
    assert_eq!(refusal(outcome).0, 415);
}

#[tokio::test]
async fn two_replicas_cannot_both_take_a_lease() {
    let lab = Lab::new().await;
    let leases: Api<Lease> = Api::namespaced(lab.client(), "emojivoto");
    let lease: Lease = serde_json::from_value(json!({
        "metadata": { "name": "splitsecond" }, "spec": { "holderIdentity": "", "leaseDurationSeconds": 5 },
    }))
    .unwrap();
    leases.create(&PostParams::default(), &lease).await.unwrap();
    let outcome = leases.create(&PostParams::default(), &lease).await;
    assert_eq!(refusal(outcome), (409, "AlreadyExists".to_owned()));

    let seen = leases.get("splitsecond").await.unwrap();
    let take = |holder: &str| {
        let mut taken = seen.clone();
        taken.spec.as_mut().unwrap().holder_identity = Some(holder.to_owned());
        taken
    };
    let first = leases.replace("splitsecond", &PostParams::default(), &take("a")).await;
    let second = leases.replace("splitsecond", &PostParams::default(), &take("b")).await;
    assert_eq!(first.unwrap().spec.unwrap().holder_identity.as_deref(), Some("a"));
    assert_eq!(refusal(second), (409, "Conflict".to_owned()));
}

#[tokio::test]
async fn one_event_is_read_through_both_groups() {
    let lab = Lab::new().await;
    let split = lab.server.create(mk_split("web", [1, 0])).unwrap();
    let event: Event = serde_json::from_value(json!({
        "metadata": { "generateName": "linkerd-failover-" }, "eventTime": "2026-01-02T03:04:05.678901Z",
        "action": "Failover", "reason": "Failover", "type": "Normal",
        "note": "trafficsplit/web failing over to fallbacks",
        "reportingController": "linkerd-failover", "reportingInstance": "linkerd-failover",
        "regarding": {
            "apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit", "namespace": "emojivoto", "name": "web",
            "uid": split["metadata"]["uid"],
        },
    }))
    .unwrap();
    let events: Api<Event> = Api::namespaced(lab.client(), "emojivoto");
    let created = events.create(&PostParams::default(), &event).await.unwrap();
    assert!(created.name_any().starts_with("linkerd-failover-"));
    assert_eq!(created.event_time, event.event_time);

    let core: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(lab.client(), "emojivoto");
    let about_web = ListParams::default().fields("involvedObject.kind=TrafficSplit,involvedObject.name=web");
    let found = core.list(&about_web).await.unwrap().items;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].message, event.note);
    let in_the_newer_words = ListParams::default().fields("regarding.name=web,reportingController=linkerd-failover");
    assert_eq!(events.list(&in_the_newer_words).await.unwrap().items.len(), 1);
    let about_other = ListParams::default().fields("involvedObject.name=other");
    assert!(core.list(&about_other).await.unwrap().items.is_empty());

    let mut invalid = event;
    invalid.reporting_instance = None;
    assert_eq!(refusal(events.create(&PostParams::default(), &invalid).await), (422, "Invalid".to_owned()));
}

#[tokio::test]
async fn selectors_restrict_lists_and_watches() {
    let lab = Lab::new().await;
    lab.server.create(mk_split("web", [1, 0])).unwrap();
    let mut other = mk_split("other", [1, 0]);
    other["metadata"]["labels"] = json!({});
    lab.server.create(other).unwrap();
    let selector = "failover.linkerd.io/controlled-by=linkerd-failover";
    let splits = lab.splits("v1alpha2");
    let listed = splits.list(&ListParams::default().labels(selector)).await.unwrap();
    assert_eq!(listed.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["web"]);

    let from = listed.metadata.resource_version.unwrap();
    let mut stream = splits.watch(&WatchParams::default().labels(selector), &from).await.unwrap().boxed();
    let label = |name: &str, value: Value| {
        lab.server
            .update_with(Resource::TrafficSplits, "emojivoto", name, |split| {
                split["metadata"]["labels"]["failover.linkerd.io/controlled-by"] = value.clone();
            })
            .unwrap();
    };
    label("other", "linkerd-failover".into());
    let event = within("an object that enters", stream.next()).await.unwrap().unwrap();
    assert!(matches!(&event, WatchEvent::Added(split) if split.name_any() == "other"), "{event:?}");
    label("web", "somebody-else".into());
    let event = within("an object that leaves", stream.next()).await.unwrap().unwrap();
    assert!(matches!(&event, WatchEvent::Deleted(split) if split.name_any() == "web"), "{event:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_told_410_and_no_queue_grows_for_it() {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    let lab = Lab::start(ApiServer::with_history(8)).await;
    let mut stream = tokio::net::TcpStream::connect(lab.url.trim_start_matches("http://")).await.unwrap();
    let path = format!("/api/v1/configmaps?watch=true&resourceVersion={}", lab.server.revision());
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: lab\r\n\r\n").as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    assert_eq!(within("the answer", lines.next_line()).await.unwrap().unwrap(), "HTTP/1.1 200 OK");

    // Twenty times what the sockets of a loopback connection hold, one object at a time.
    let content = "x".repeat(1_000_000);
    for turn in 0..200 {
        let mut map = json!(mk_map("m", &format!("{turn}{content}")));
        map["metadata"]["namespace"] = "emojivoto".into();
        lab.server.put(map).unwrap();
        tokio::task::yield_now().await;
    }
    let mut last = String::new();
    while let Some(line) = within("the rest of the watch", lines.next_line()).await.unwrap() {
        if line.starts_with('{') {
            last = line;
        } else if line == "0" {
            break;
        }
    }
    let event: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((event["type"].as_str(), event["object"]["code"].as_i64()), (Some("ERROR"), Some(410)), "{event}");
}

#[tokio::test]
async fn a_watch_ends_in_time_and_with_a_bookmark() {
    let lab = Lab::new().await;
    lab.server.create(mk_listed(1)).unwrap();
    let from = lab.server.revision();
    // Only another kind changes: the bookmark carries this watch past it.
    lab.server.create(mk_split("web", [1, 0])).unwrap();
    let params = WatchParams::default().timeout(1);
    let stream = lab.maps().watch(&params, &from.to_string()).await.unwrap();
    let events: Vec<WatchEvent<ConfigMap>> = within("the end of the watch", stream.try_collect()).await.unwrap();
    let [WatchEvent::Bookmark(bookmark)] = &events[..] else { panic!("not one bookmark: {events:?}") };
    assert_eq!(bookmark.metadata.resource_version, lab.server.revision().to_string());
}

#[tokio::test]
async fn streaming_lists_are_refused_as_an_older_server_refuses_them() {
    let lab = Lab::new().await;
    let mut stream = std::pin::pin!(watcher(lab.maps(), watcher::Config::default().streaming_lists()));
    let error = within("the refusal", stream.next()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("sendInitialEvents"), "{error}");
}

#[tokio::test]
async fn metadata_alone_can_be_listed_and_watched() {
    let lab = Lab::new().await;
    lab.server.create(mk_split("web", [1, 0])).unwrap();
    let listed = lab.splits("v1alpha2").list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(listed.items[0].metadata.name.as_deref(), Some("web"));

    lab.server.create(mk_listed(1)).unwrap();
    let maps: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(lab.client(), "emojivoto");
    let objects = watcher(maps, watcher::Config::default()).applied_objects().take(1).try_collect();
    let first: Vec<PartialObjectMeta<ConfigMap>> = within("the first object", objects).await.unwrap();
    assert_eq!(first[0].metadata.name.as_deref(), Some("m0001"));
}

#[tokio::test]
async fn every_kind_that_the_product_reads_can_be_listed_across_namespaces() {
    let lab = Lab::new().await;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "web-1", "namespace": "emojivoto", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4", "ports": [{ "port": 8080 }],
        "endpoints": [{ "addresses": ["198.51.100.1"], "conditions": { "ready": true }, "nodeName": "east-1" }],
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "emojivoto" },
        "spec": { "clusterIP": "198.19.0.1", "ports": [{ "port": 80, "targetPort": 8080 }] },
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": "web", "namespace": "emojivoto" },
        "subsets": [{ "addresses": [{ "ip": "198.51.100.1" }], "ports": [{ "port": 8080 }] }],
    });
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "east-1" } });
    for object in [slice, service, endpoints, node] {
        lab.server.create(object).unwrap();
    }
    let client = lab.client();
    let params = ListParams::default();
    let slices = Api::<EndpointSlice>::all(client.clone()).list(&params).await.unwrap().items;
    assert_eq!(slices[0].metadata.generation, Some(1));
    let services = Api::<Service>::all(client.clone()).list(&params).await.unwrap().items;
    assert_eq!(services[0].spec.as_ref().unwrap().type_.as_deref(), Some("ClusterIP"));
    assert_eq!(Api::<Endpoints>::all(client.clone()).list(&params).await.unwrap().items.len(), 1);
    assert_eq!(Api::<Node>::all(client.clone()).list(&params).await.unwrap().items.len(), 1);
    assert_eq!(Api::<Namespace>::all(client).list(&params).await.unwrap().items.len(), 5);
}

#[tokio::test]
async fn a_namespace_takes_its_objects_along_and_watches_see_them_go() {
    let lab = Lab::new().await;
    lab.server.create(mk_split("web", [1, 0])).unwrap();
    let from = lab.server.revision().to_string();
    let splits = lab.splits("v1alpha2");
    let mut stream = splits.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    Api::<Namespace>::all(lab.client()).delete("emojivoto", &DeleteParams::default()).await.unwrap();
    let event = within("the deletion", stream.next()).await.unwrap().unwrap();
    let WatchEvent::Deleted(split) = event else { panic!("not a deletion: {event:?}") };
    assert!(split.metadata.resource_version.unwrap().parse::<u64>().unwrap() > from.parse().unwrap());
    assert_eq!(refusal(splits.get("web").await), (404, "NotFound".to_owned()));
    let outcome =
        splits.create(&PostParams::default(), &serde_json::from_value(mk_split("web", [1, 0])).unwrap()).await;
    assert_eq!(refusal(outcome).0, 400, "the body says v1alpha1 and the path v1alpha2");
    let outcome = lab
        .splits("v1alpha1")
        .create(&PostParams::default(), &serde_json::from_value(mk_split("web", [1, 0])).unwrap())
        .await;
    assert_eq!(refusal(outcome), (404, "NotFound".to_owned()));
}

#[tokio::test]
async fn deletions_honour_preconditions_selectors_and_dry_runs() {
    let lab = Lab::new().await;
    lab.server.create(mk_listed(1)).unwrap();
    lab.server.create(mk_listed(2)).unwrap();
    let maps = lab.maps();
    let stale = DeleteParams {
        preconditions: Some(kube::api::Preconditions { uid: Some("other".to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    assert_eq!(refusal(maps.delete("m0001", &stale).await), (409, "Conflict".to_owned()));
    maps.delete("m0001", &DeleteParams::default().dry_run()).await.unwrap();
    assert!(maps.get_opt("m0001").await.unwrap().is_some());
    let only_second = ListParams::default().fields("metadata.name=m0002");
    maps.delete_collection(&DeleteParams::default(), &only_second).await.unwrap();
    assert!(maps.get_opt("m0002").await.unwrap().is_none());
    assert!(maps.get_opt("m0001").await.unwrap().is_some());
}

#[tokio::test]
async fn an_outage_breaks_connections_refuses_new_ones_and_loses_nothing() {
    // The kernel forgets a port that it chose itself when the socket stops listening, and keeps one that was asked for.
    let chosen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = chosen.local_addr().unwrap().port();
    drop(chosen);
    for listener in [TcpListener::bind(("127.0.0.1", port)).await, TcpListener::bind("127.0.0.1:0").await] {
        check_outages(Lab::on(ApiServer::new(), listener.unwrap())).await;
    }
}

async fn check_outages(lab: Lab) {
    lab.server.create(mk_listed(1)).unwrap();
    let maps = lab.maps();
    let from = lab.server.revision().to_string();
    let mut stream = maps.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    for _ in 0..3 {
        within("the outage", lab.server.stop()).await;
        assert!(maps.get("m0001").await.is_err());
        let address = lab.url.trim_start_matches("http://");
        let refused = tokio::net::TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        within("the server's return", lab.server.start()).await;
        assert_eq!(maps.get("m0001").await.unwrap().name_any(), "m0001");
    }
    let last = within("the end of the broken watch", stream.next()).await;
    assert!(!matches!(last, Some(Ok(_))), "nothing was written: {last:?}");
}

#[tokio::test]
async fn added_latency_delays_requests_until_it_is_taken_away() {
    let lab = Lab::new().await;
    lab.server.create(mk_listed(1)).unwrap();
    let maps = lab.maps();
    lab.server.set_latency(10 * PATIENCE);
    assert!(tokio::time::timeout(Duration::from_millis(200), maps.get("m0001")).await.is_err());
    lab.server.set_latency(Duration::ZERO);
    assert!(within("an answer without latency", maps.get("m0001")).await.is_ok());
}

#[tokio::test]
async fn scripted_refusals_hit_writes_and_then_stop() {
    let lab = Lab::new().await;
    lab.server.refuse_writes(2, &Status::scripted(500, "InternalError", "scripted"));
    let maps = lab.maps();
    for _ in 0..2 {
        assert!(maps.list(&ListParams::default()).await.is_ok(), "reads are not refused");
        assert_eq!(refusal(maps.create(&PostParams::default(), &mk_map("m", "a")).await).0, 500);
    }
    maps.create(&PostParams::default(), &mk_map("m", "a")).await.unwrap();
}

#[tokio::test]
async fn http2_without_tls_is_spoken_too() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::TokioExecutor;

    let lab = Lab::new().await;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<Empty<bytes::Bytes>>();
    let response = client.get(format!("{}/api/v1/namespaces/emojivoto", lab.url).parse().unwrap()).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let namespace: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(namespace["status"]["phase"], "Active");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_may_keep_all_forget_the_past_or_count_anew() {
    let lab = Lab::new().await;
    for name in ["a", "b", "c"] {
        lab.server.create(serde_json::to_value(mk_listed_map(name)).unwrap()).unwrap();
    }
    let version = lab.maps().list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let watch_from = async |version: String| {
        let params = WatchParams::default().timeout(1);
        let maps = lab.maps();
        let events = maps.watch(&params, &version).await.unwrap();
        let mut events = within("the watch", events.try_collect::<Vec<_>>()).await.unwrap();
        // A watch that runs to its end closes with one.
        events.retain(|event| !matches!(event, WatchEvent::Bookmark(_)));
        events
    };
    within("a whole restart", lab.server.restart(Restart::Whole)).await;
    assert!(watch_from(version.clone()).await.is_empty(), "goes on where it was");
    within("a compacted restart", lab.server.restart(Restart::Compacted)).await;
    let events = watch_from(version.clone()).await;
    assert!(matches!(&events[..], [WatchEvent::Error(status)] if status.code == 410), "{events:?}");
    within("a renumbered restart", lab.server.restart(Restart::Renumbered(1_000))).await;
    let list = lab.maps().list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 3, "objects stay");
    assert!(list.metadata.resource_version.unwrap().parse::<u64>().unwrap() > 1_000);
    let events = watch_from(version).await;
    assert!(matches!(&events[..], [WatchEvent::Error(status)] if status.code == 410), "{events:?}");
}

fn mk_listed_map(name: &str) -> Value {
    let mut map = serde_json::to_value(mk_map(name, "kept")).unwrap();
    (map["apiVersion"], map["kind"]) = (json!("v1"), json!("ConfigMap"));
    map["metadata"]["namespace"] = json!("emojivoto");
    map
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_can_be_missing_and_come_back() {
    let lab = Lab::new().await;
    lab.server.create(mk_split("web", [1, 0])).unwrap();
    lab.server.withhold(Resource::TrafficSplits);
    assert_eq!(refusal(lab.splits("v1alpha1").list(&ListParams::default()).await).0, 404);
    let found = lab.client().list_api_group_resources("split.smi-spec.io/v1alpha1").await;
    assert_eq!(refusal(found).0, 404);
    lab.server.serve_again(Resource::TrafficSplits);
    assert_eq!(lab.splits("v1alpha1").list(&ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_over_the_wire_is_kept_with_what_it_left() {
    let lab = Lab::new().await;
    lab.server.create(mk_split("web", [1, 0])).unwrap();
    let splits = lab.splits("v1alpha2");
    splits.list(&ListParams::default()).await.unwrap();
    let patch = json!({ "metadata": { "labels": { "a": "b" } } });
    splits.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    refusal(splits.get("none").await);
    let asked = lab.server.requests();
    let seen: Vec<_> = asked.iter().map(|one| (one.verb, one.name.as_str(), one.code)).collect();
    assert_eq!(seen, [("list", "", 200), ("patch", "web", 200), ("get", "none", 404)], "no direct call of the lab");
    assert_eq!(asked[1].left.as_ref().unwrap()["metadata"]["labels"]["a"], "b");
    assert_eq!(
        (asked[1].api_version.as_str(), asked[1].namespace.as_str()),
        ("split.smi-spec.io/v1alpha2", "emojivoto")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_may_be_taken_and_never_answered() {
    let lab = Lab::new().await;
    lab.server.leave_unanswered(1);
    let maps = lab.maps();
    let (params, map) = (PostParams::default(), mk_map("m", "kept"));
    let unanswered = tokio::time::timeout(Duration::from_millis(200), maps.create(&params, &map));
    assert!(unanswered.await.is_err(), "no answer comes");
    assert_eq!(lab.maps().get("m").await.unwrap().data.unwrap()["k"], "kept");
    lab.maps().create(&PostParams::default(), &mk_map("n", "kept")).await.unwrap();
}
