//! A client's own view of the cluster, as a mesh's proxy has one. In: watches on TrafficSplits and on the EndpointSlices
//! of their namespace. Out: routes, renewed with each event. Errors are waited out: the last routes stay.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;

use super::route::{Leaf, Routes, weight_milli};
use super::wire::FIRST_BYTE_ANNOTATION;

/// Pause after a watch broke: short, because a drill measures what follows an API server's return.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The label by which a slice names its Service (discovery.k8s.io/v1).
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Keeps `routes` current; None until both caches are complete. Ends only when nobody listens.
///
/// # Errors
/// The kubeconfig is unreadable.
pub(crate) async fn follow(
    kubeconfig: &Path,
    namespace: &str,
    wanted: &[String],
    routes: watch::Sender<Option<Routes>>,
) -> Result<()> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).context("cannot read the kubeconfig")?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let client =
        kube::Client::try_from(config.context("the kubeconfig is incomplete")?).context("cannot make a client")?;
    let splits: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &traffic_splits());
    let slices: Api<EndpointSlice> = Api::namespaced(client, namespace);
    let all = watcher::Config::default();
    let only_ours = match wanted {
        [split] => all.fields(&format!("metadata.name={split}")),
        _ => all,
    };
    let mut splits = pin!(watcher::watcher(splits, only_ours));
    let mut slices = pin!(watcher::watcher(slices, watcher::Config::default()));
    let mut view = View { wanted: wanted.to_vec(), ..View::default() };
    while !routes.is_closed() {
        let heard = tokio::select! {
            event = splits.next() => event.map(|event| event.map(|event| view.on_split(event))),
            event = slices.next() => event.map(|event| event.map(|event| view.on_slice(event))),
            () = routes.closed() => return Ok(()),
        };
        match heard.context("a watch ended")? {
            Ok(()) => {
                let current = view.routes();
                routes.send_if_modified(|known| std::mem::replace(known, current.clone()) != current);
            }
            Err(error) => {
                eprintln!("a watch broke: {error}");
                sleep(RETRY_PAUSE).await;
            }
        }
    }
    Ok(())
}

fn traffic_splits() -> ApiResource {
    ApiResource {
        group: "split.smi-spec.io".into(),
        version: "v1alpha1".into(),
        api_version: "split.smi-spec.io/v1alpha1".into(),
        kind: "TrafficSplit".into(),
        plural: "trafficsplits".into(),
    }
}

/// What both watches said so far.
#[derive(Default)]
struct View {
    wanted: Vec<String>,
    splits: BTreeMap<String, Vec<(String, u64)>>,
    slices: BTreeMap<String, Slice>,
    /// Filled between the start of a new list and its end, then it replaces `slices`.
    listing: Option<BTreeMap<String, Slice>>,
    slices_complete: bool,
}

#[derive(Clone, Default)]
struct Slice {
    service: String,
    endpoints: Vec<SocketAddr>,
    first_byte: u8,
}

impl View {
    fn on_split(&mut self, event: Event<DynamicObject>) {
        match event {
            Event::Apply(split) | Event::InitApply(split) => {
                let name = split.metadata.name.unwrap_or_default();
                if self.wanted.contains(&name) {
                    self.splits.insert(name, backends(&split.data));
                }
            }
            Event::Delete(split) => {
                self.splits.remove(&split.metadata.name.unwrap_or_default());
            }
            Event::Init | Event::InitDone => {}
        }
    }

    fn on_slice(&mut self, event: Event<EndpointSlice>) {
        match event {
            Event::Init => self.listing = Some(BTreeMap::new()),
            Event::InitApply(slice) => {
                let (name, slice) = read_slice(slice);
                self.listing.get_or_insert_default().insert(name, slice);
            }
            Event::InitDone => {
                self.slices = self.listing.take().unwrap_or_default();
                self.slices_complete = true;
            }
            Event::Apply(slice) => {
                let (name, slice) = read_slice(slice);
                self.slices.insert(name, slice);
            }
            Event::Delete(slice) => {
                self.slices.remove(&slice.metadata.name.unwrap_or_default());
            }
        }
    }

    /// None until all splits and all slices are known.
    fn routes(&self) -> Option<Routes> {
        if !self.slices_complete {
            return None;
        }
        let leaf = |(name, weight_milli): &(String, u64)| {
            let of_leaf = || self.slices.values().filter(|slice| slice.service == *name);
            Leaf {
                name: name.clone(),
                weight_milli: *weight_milli,
                endpoints: of_leaf().flat_map(|slice| slice.endpoints.iter().copied()).collect(),
                first_byte: of_leaf().map(|slice| slice.first_byte).max().unwrap_or_default(),
            }
        };
        let split = |name| Some(self.splits.get(name)?.iter().map(leaf).collect());
        Some(Routes { splits: self.wanted.iter().map(split).collect::<Option<_>>()? })
    }
}

/// Name and weight of each backend; one whose weight is no weight gets no traffic.
fn backends(split: &Value) -> Vec<(String, u64)> {
    let backends = split.pointer("/spec/backends").and_then(Value::as_array);
    let one = |backend: &Value| {
        let name = backend.get("service")?.as_str()?.to_owned();
        let weight = backend.get("weight").and_then(weight_milli).unwrap_or(0);
        Some((name, weight))
    };
    backends.into_iter().flatten().filter_map(one).collect()
}

fn read_slice(slice: EndpointSlice) -> (String, Slice) {
    let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)).cloned();
    let first_byte = slice.metadata.annotations.as_ref().and_then(|all| all.get(FIRST_BYTE_ANNOTATION)?.parse().ok());
    let port = slice.ports.as_ref().and_then(|ports| ports.first()?.port).and_then(|port| u16::try_from(port).ok());
    // Kubernetes reads an absent condition as ready.
    let ready = slice
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
    let addresses = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok());
    let endpoints = match port {
        Some(port) => addresses.map(|address| SocketAddr::new(address, port)).collect(),
        None => Vec::new(),
    };
    let slice_name = slice.metadata.name.unwrap_or_default();
    (slice_name, Slice { service: service.unwrap_or_default(), endpoints, first_byte: first_byte.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_slice(name: &str, service: &str, ready: bool) -> EndpointSlice {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "labels": {SERVICE_NAME: service}, "annotations": {FIRST_BYTE_ANNOTATION: "3"}},
            "endpoints": [
                {"addresses": ["198.18.1.2"], "conditions": {"ready": ready}},
                {"addresses": ["198.18.1.3"]},
            ],
            "ports": [{"port": 8080}],
        }))
        .unwrap()
    }

    fn mk_split(weight: &Value) -> DynamicObject {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit", "metadata": {"name": "emoji"},
            "spec": {"service": "emoji", "backends": [{"service": "east", "weight": weight}]},
        }))
        .unwrap()
    }

    fn mk_view() -> View {
        View { wanted: vec!["emoji".into()], ..View::default() }
    }

    #[test]
    fn there_are_no_routes_before_both_caches_are_complete() {
        let mut view = mk_view();
        view.on_slice(Event::Init);
        view.on_slice(Event::InitApply(mk_slice("east-1", "east", true)));
        view.on_split(Event::Apply(mk_split(&Value::from(1))));
        assert_eq!(view.routes(), None);
        view.on_slice(Event::InitDone);
        assert_eq!(view.routes().unwrap().splits[0][0].endpoints.len(), 2);
    }

    #[test]
    fn only_ready_endpoints_are_dialled() {
        let mut view = mk_view();
        view.on_slice(Event::InitDone);
        view.on_split(Event::Apply(mk_split(&Value::from("900m"))));
        view.on_slice(Event::Apply(mk_slice("east-1", "east", false)));
        let leaf = view.routes().unwrap().splits[0].remove(0);
        assert_eq!(leaf.endpoints, ["198.18.1.3:8080".parse().unwrap()]);
        assert_eq!((leaf.weight_milli, leaf.first_byte), (900, 3));
    }

    #[test]
    fn a_new_list_forgets_what_is_gone() {
        let mut view = mk_view();
        view.on_split(Event::Apply(mk_split(&Value::from(1))));
        view.on_slice(Event::InitDone);
        view.on_slice(Event::Apply(mk_slice("east-1", "east", true)));
        view.on_slice(Event::Init);
        assert_eq!(
            view.routes().unwrap().splits[0][0].endpoints.len(),
            2,
            "the old view holds until the new list is complete"
        );
        view.on_slice(Event::InitDone);
        assert_eq!(view.routes().unwrap().splits[0][0].endpoints, []);
    }
}
