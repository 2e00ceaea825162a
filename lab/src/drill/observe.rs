//! The drill's own watch of a run's splits, on a connection of its own. In: an API server. Out: every state of each split
//! with the moment of its delivery, which is the `written` of a report.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, WatchEvent, WatchParams};
use serde_json::Value;
use tokio::task::AbortHandle;

use crate::drill::background::Background;
use crate::drill::observation::Seen;
use crate::world::clock::now_ns;

/// How long the first look may take.
const FIRST_LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Seconds after which the server ends a watch and the next one begins; Kubernetes takes less than 300.
const WATCH_SECONDS: u32 = 290;

/// Every state of each split, by name, oldest first.
type States = Arc<Mutex<BTreeMap<String, Vec<Seen>>>>;

/// A watch that goes on until this is dropped.
#[derive(Debug)]
pub struct Observer {
    states: States,
    task: AbortHandle,
}

impl Observer {
    /// Looks once, then watches from there.
    ///
    /// # Errors
    ///
    /// The splits cannot be read.
    pub fn start(background: &Background, url: &str, namespace: &str) -> Result<Self> {
        let api = background.block_on(async { splits(url, namespace) })?;
        let first = background.block_on(async {
            let look = tokio::time::timeout(FIRST_LOOK_LIMIT, api.list(&ListParams::default())).await;
            look.context("the API server does not answer the drill")?.context("the drill cannot read its splits")
        })?;
        let at_ns = now_ns();
        let version = first.metadata.resource_version.context("the list of splits has no version")?;
        let mut states = BTreeMap::new();
        for split in &first.items {
            let name = split.metadata.name.clone().context("a split without a name")?;
            states.insert(name, vec![Seen { at_ns, weights: weights(split)? }]);
        }
        let states = Arc::new(Mutex::new(states));
        let task = background.spawn("drill's watch of the splits", watch(api, version, states.clone()));
        Ok(Self { states, task })
    }

    /// Everything about one split so far, oldest first; the first is the look before the watch.
    #[must_use]
    pub fn seen(&self, split: &str) -> Vec<Seen> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.get(split).cloned().unwrap_or_default()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn splits(url: &str, namespace: &str) -> Result<Api<DynamicObject>> {
    let url = url.parse().with_context(|| format!("{url} is no URL"))?;
    let client = kube::Client::try_from(kube::Config::new(url)).context("cannot make the drill's API client")?;
    let kind = GroupVersionKind::gvk("split.smi-spec.io", "v1alpha1", "TrafficSplit");
    let resource = ApiResource::from_gvk_with_plural(&kind, "trafficsplits");
    Ok(Api::namespaced_with(client, namespace, &resource))
}

/// Watches for as long as it is let.
async fn watch(api: Api<DynamicObject>, mut version: String, states: States) -> Result<()> {
    let params = WatchParams::default().timeout(WATCH_SECONDS);
    loop {
        let mut events = api.watch(&params, &version).await.context("cannot watch")?.boxed();
        while let Some(event) = events.try_next().await.context("the watch broke")? {
            let at_ns = now_ns();
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    match weights(&object) {
                        Ok(weights) => {
                            let name = object.metadata.name.clone().unwrap_or_default();
                            let mut states = states.lock().unwrap_or_else(PoisonError::into_inner);
                            states.entry(name).or_default().push(Seen { at_ns, weights });
                        }
                        // Only people with a kept cluster write such things; what cannot be read moved no traffic.
                        Err(error) => tracing::warn!(%error, "Cannot read the split"),
                    }
                    version = object.metadata.resource_version.unwrap_or(version);
                }
                WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                // Whoever plays with a kept cluster may delete the split and make it anew.
                WatchEvent::Deleted(object) => version = object.metadata.resource_version.unwrap_or(version),
                WatchEvent::Error(status) => bail!("the API server ended it: {}", status.message),
            }
        }
    }
}

/// Backends and weights in the object's order.
fn weights(object: &DynamicObject) -> Result<Vec<(String, Value)>> {
    let backends =
        object.data.pointer("/spec/backends").and_then(Value::as_array).context("a split without backends")?;
    let pair = |backend: &Value| {
        let service = backend.get("service").and_then(Value::as_str).context("a backend without service")?;
        let weight = backend.get("weight").context("a backend without weight")?;
        Ok((service.to_owned(), weight.clone()))
    };
    backends.iter().map(pair).collect()
}
