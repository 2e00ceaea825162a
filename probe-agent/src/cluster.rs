//! Services and EndpointSlices of the cluster, as plain values. IO.
//!
//! In: two watches of the API server, lists in pages of 500. Out: [`News`], in the order of each watch. It never asks
//! for Pods or Secrets, keeps no copy of any object, and skips one that it cannot decode: that object alone is unknown,
//! and counted. Errors are never the end: the agent counts on with what it knows, and the watch is tried again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::backoff::Pauses;
use crate::resolve::{Addresses, Kind, ObjectName};

mod project;
mod slim;

use slim::{SlimService, SlimSlice};

/// How long a connection to the API server may take. The client's own default is 30 s, in which an address that leads
/// nowhere would keep a changed EndpointSlice from the node.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// How long a watch may say nothing before it is taken for dead: API servers send bookmarks about every minute.
const READ_TIMEOUT: Duration = Duration::from_secs(150);

/// How long a request may take to be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Objects per page of a list: the client's default too, said here because the node's memory depends on it.
const PAGE_SIZE: u32 = 500;

/// Pause before a configuration that could not be read is read again: a mounted token or a kubeconfig may come late.
const CONFIG_PAUSE: Duration = Duration::from_secs(5);

/// What became known of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A list begins; every object of that kind follows, then [`News::ListComplete`].
    ListBegin(Kind),
    /// An object is there, or changed.
    Object(Kind, ObjectName, Addresses),
    /// An object is gone, or no longer names a destination.
    Gone(Kind, ObjectName),
    /// The list is complete.
    ListComplete(Kind),
    /// An object could not be decoded and counts as unchanged.
    Undecodable(Kind, ObjectName, String),
    /// A watch failed and is tried again.
    Failed(Kind, String),
    /// There is no way to the API server yet: no or bad configuration.
    Unconfigured(String),
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The named kubeconfig cannot be used.
    #[error("cannot use kubeconfig {path}")]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// Neither KUBECONFIG nor a Pod's service account leads to an API server.
    #[error("no kubeconfig and no service account leads to an API server")]
    Infer(#[source] Box<kube::config::InferConfigError>),
    /// The configuration's credentials or certificates cannot be used.
    #[error("cannot make a client for the API server")]
    Client(#[source] Box<kube::Error>),
}

/// Watches until the receiver is gone. `kubeconfig` wins over KUBECONFIG, which wins over the Pod's service account;
/// `node` is the one whose endpoints count as local.
pub async fn run(kubeconfig: Option<PathBuf>, node: String, news: mpsc::Sender<News>, seed: u64) {
    let client = loop {
        match client(kubeconfig.as_deref()).await {
            Ok(client) => break client,
            Err(error) => {
                if news.send(News::Unconfigured(chain(&error))).await.is_err() {
                    return;
                }
                tokio::time::sleep(CONFIG_PAUSE).await;
            }
        }
    };
    let services = watch::<SlimService>(&client, Kind::Service, project::service, seed);
    let of_slice = move |slice| project::endpoint_slice(slice, &node);
    let slices = watch::<SlimSlice>(&client, Kind::EndpointSlice, of_slice, seed ^ 1);
    let mut both = stream::select(services.boxed(), slices.boxed());
    while let Some(item) = both.next().await {
        if news.send(item).await.is_err() {
            return;
        }
    }
}

async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let mut config = match kubeconfig {
        None => Config::infer().await.map_err(|error| ClientError::Infer(Box::new(error)))?,
        Some(path) => {
            let failed = |source| ClientError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)?
        }
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    Client::try_from(config).map_err(|error| ClientError::Client(Box::new(error)))
}

fn watch<K>(
    client: &Client,
    kind: Kind,
    project: impl Fn(K) -> Option<Addresses> + Send + 'static,
    seed: u64,
) -> impl Stream<Item = News> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let api = Api::<DeserializeGuard<K>>::all(client.clone());
    let config = watcher::Config::default().page_size(PAGE_SIZE);
    watcher::watcher(api, config).backoff(Pauses::new(seed)).map(move |event| match event {
        Ok(Event::Init) => News::ListBegin(kind),
        Ok(Event::InitDone) => News::ListComplete(kind),
        Ok(Event::InitApply(object) | Event::Apply(object)) => object_news(kind, object, &project),
        Ok(Event::Delete(object)) => News::Gone(kind, name_of(&object)),
        Err(error) => News::Failed(kind, chain(&error)),
    })
}

fn object_news<K>(kind: Kind, object: DeserializeGuard<K>, project: &impl Fn(K) -> Option<Addresses>) -> News
where
    K: Resource<DynamicType = ()>,
{
    let name = name_of(&object);
    match object.0 {
        Err(invalid) => News::Undecodable(kind, name, invalid.error),
        Ok(object) => match project(object) {
            Some(addresses) => News::Object(kind, name, addresses),
            None => News::Gone(kind, name),
        },
    }
}

fn name_of<K: Resource>(object: &K) -> ObjectName {
    let metadata = object.meta();
    ObjectName {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

/// An error with everything that caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some errors repeat their source in their own text.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}
