//! One watch: list, follow, resume, retry.
//!
//! In: the server's lists and watch events. Out: what a [`Cache`] makes of them, in order, and the first complete list as a
//! mark in [`Progress`](crate::state::progress::Progress). It deliberately never gives up and never empties a cache because
//! of an error. kube's own watcher is not used because it does not tell that a watch is running again before the first
//! object changes: on a quiet day /state would call a healthy watch broken.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use controller_core::facts::ObjectId;
use controller_core::{Input, Time};
use futures::StreamExt;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::retry::{Backoff, Troubles};
use super::{Cluster, Observation};
use crate::clock;
use crate::state::progress::Watch;

/// How long the server may hold a watch, in seconds. Resuming one costs one request, so it is short against the usual
/// 290 s: the client notices a connection that died in silence a little later than this.
const WATCH_SECONDS: u32 = 30;

/// A watch that ends this much before its time was ended for another reason than its time.
const WATCH_TOLERANCE: Duration = Duration::from_secs(2);

/// Objects per page of a list, as in client-go.
const PAGE: u32 = 500;

/// The server's history no longer reaches back to where a watch wanted to begin: list anew.
const GONE: u16 = 410;

/// What a watch keeps of its objects, and what it makes of a change.
pub(super) trait Cache {
    /// The API's type.
    type Object;

    /// The object's name.
    fn id(object: &Self::Object) -> Option<ObjectId>;

    /// An object is as it says.
    fn on_object(&mut self, object: &Self::Object) -> Vec<Observation>;

    /// An object is gone.
    fn on_gone(&mut self, object: &Self::Object) -> Vec<Observation>;

    /// A full list has ended; what it lacks is gone.
    fn on_listed(&mut self, listed: &BTreeSet<ObjectId>) -> Vec<Observation>;

    /// The server counts its versions anew: those to come are later than those that were, whatever their numbers say.
    fn on_renumbered(&mut self) {}
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The server does not know the resource.
    NotServed,
    /// The shell went.
    NobodyListens,
}

/// Why a watch has to pause or begin anew.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum WatchError {
    /// The list, or a page of it.
    #[error("list failed: {0}")]
    List(String),
    /// The list has no version to watch from.
    #[error("the list has no resourceVersion")]
    NoVersion,
    /// The request for a watch, by a server that is there.
    #[error("watch was refused: {0}")]
    Refused(String),
    /// The request for a watch, by nobody. Listed anew.
    #[error("watch was not answered: {0}")]
    Unanswered(String),
    /// A watch that ran. Listed anew.
    #[error("watch broke off: {0}")]
    Broken(String),
    /// The server ended it well before its time, as one does that shuts down. Listed anew.
    #[error("the server ended the watch before its time")]
    Early,
    /// The server has forgotten the version that it should begin at. Listed anew.
    #[error("the watch is too far behind")]
    Behind,
    /// The server does not know the resource.
    #[error("the resource is not served")]
    NotServed,
    /// The shell went.
    #[error("nobody listens")]
    NobodyListens,
}

/// Watches until the resource is no longer served or nobody listens.
pub(super) async fn run<C: Cache>(
    api: Api<C::Object>,
    selector: Option<&str>,
    cache: &mut C,
    name: Watch,
    cluster: &Cluster,
) -> Ended
where
    C::Object: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let backoff = Backoff::new(clock::monotonic().0);
    let troubles = Troubles::default();
    let mut following = Following { api, selector, cache, name, cluster, backoff, troubles, newest: None };
    let mut version = None;
    loop {
        let error = match following.step(&mut version).await {
            Ok(()) => continue,
            Err(WatchError::NobodyListens) => return Ended::NobodyListens,
            Err(error) => error,
        };
        if !error.keeps_place() {
            version = None;
        }
        if error == WatchError::Behind {
            tracing::info!(watch = name.as_str(), "Watch is too far behind and lists anew");
        } else {
            following.trouble(&error);
        }
        following.backoff.pause().await;
        if error == WatchError::NotServed {
            return Ended::NotServed;
        }
    }
}

impl WatchError {
    /// Whether the next watch may go on from where this one was. Only where the same server said so: one that went away
    /// may come back with an older state or with other numbers, and a watch from a number that it has not reached yet is
    /// silent until it has. A list costs one request, and tells what is true now.
    const fn keeps_place(&self) -> bool {
        match self {
            Self::Refused(_) | Self::NobodyListens => true,
            Self::List(_)
            | Self::NoVersion
            | Self::Unanswered(_)
            | Self::Broken(_)
            | Self::Early
            | Self::Behind
            | Self::NotServed => false,
        }
    }
}

struct Following<'a, C: Cache> {
    api: Api<C::Object>,
    selector: Option<&'a str>,
    cache: &'a mut C,
    name: Watch,
    cluster: &'a Cluster,
    backoff: Backoff,
    troubles: Troubles,
    /// The highest version that the server named.
    newest: Option<u64>,
}

impl<C: Cache> Following<'_, C>
where
    C::Object: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// A whole list where there is no version to go on from, else one watch to its end.
    async fn step(&mut self, version: &mut Option<String>) -> Result<(), WatchError> {
        match version {
            None => *version = Some(self.list().await?),
            Some(version) => self.follow(version).await?,
        }
        Ok(())
    }

    fn trouble(&mut self, error: &WatchError) {
        let text = error.to_string();
        if self.troubles.is_news(&text) {
            tracing::warn!(watch = self.name.as_str(), error = text, "Watch failed and is tried until it runs");
        }
        self.cluster.progress.on_trouble(self.name, text);
    }

    /// The server answered.
    fn answered(&mut self) {
        self.cluster.progress.on_answer(self.name);
        if self.troubles.end() {
            tracing::info!(watch = self.name.as_str(), "Watch runs again");
        }
    }

    /// The server named `version` as the state of things.
    fn on_version(&mut self, version: &str) {
        let Ok(version) = version.parse::<u64>() else { return };
        self.newest = self.newest.max(Some(version));
    }

    /// The same, of a list: it is never older than what was seen before, unless the server counts anew.
    fn on_list_version(&mut self, version: Option<&str>) {
        let Some(Ok(version)) = version.map(str::parse::<u64>) else { return };
        if self.newest.is_some_and(|newest| version < newest) {
            tracing::warn!(
                watch = self.name.as_str(),
                from = self.newest,
                to = version,
                "API server counts its versions anew"
            );
            self.cache.on_renumbered();
            self.newest = None;
        }
        self.newest = self.newest.max(Some(version));
    }

    async fn list(&mut self) -> Result<String, WatchError> {
        let mut listed = BTreeSet::new();
        let mut params = ListParams { label_selector: self.selector.map(ToOwned::to_owned), ..ListParams::default() };
        params.limit = Some(PAGE);
        let version = loop {
            let page = self.api.list(&params).await.map_err(|error| request_error(&error, WatchError::List))?;
            self.answered();
            self.backoff.reset();
            self.on_list_version(page.metadata.resource_version.as_deref());
            for object in &page.items {
                listed.extend(C::id(object));
                let observations = self.cache.on_object(object);
                self.send(observations).await?;
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break page.metadata.resource_version.filter(|version| !version.is_empty()),
            }
        };
        let version = version.ok_or(WatchError::NoVersion)?;
        let observations = self.cache.on_listed(&listed);
        self.send(observations).await?;
        // Marked after the list's facts are on the channel: whoever marks last has everyone's facts ahead of the mark.
        if self.cluster.progress.on_listed(self.name) {
            self.send(vec![Input::CachesComplete.into()]).await?;
        }
        Ok(version)
    }

    async fn follow(&mut self, version: &mut String) -> Result<(), WatchError> {
        let mut params = WatchParams::default().timeout(WATCH_SECONDS);
        params.label_selector = self.selector.map(ToOwned::to_owned);
        let events =
            self.api.watch(&params, version).await.map_err(|error| request_error(&error, watch_error(&error)))?;
        let mut events = std::pin::pin!(events);
        self.answered();
        let began = clock::monotonic();
        while let Some(event) = events.next().await {
            let observations = match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    *version = object.resource_version().unwrap_or_default();
                    self.cache.on_object(&object)
                }
                Ok(WatchEvent::Deleted(object)) => {
                    *version = object.resource_version().unwrap_or_default();
                    self.cache.on_gone(&object)
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    *version = bookmark.metadata.resource_version;
                    Vec::new()
                }
                Ok(WatchEvent::Error(status)) if status.code == GONE => return Err(WatchError::Behind),
                Ok(WatchEvent::Error(status)) => return Err(WatchError::Broken(status.message.clone())),
                Err(error) => return Err(WatchError::Broken(Chain(&error).to_string())),
            };
            // An answer alone does not make the next pause short: a server may take watches and end them at once.
            self.backoff.reset();
            if version.is_empty() {
                return Err(WatchError::Behind);
            }
            self.on_version(version);
            self.send(observations).await?;
        }
        if is_early(began, clock::monotonic()) { Err(WatchError::Early) } else { Ok(()) }
    }

    async fn send(&self, observations: Vec<Observation>) -> Result<(), WatchError> {
        for observation in observations {
            self.cluster.observations.send(observation).await.map_err(|_| WatchError::NobodyListens)?;
        }
        Ok(())
    }
}

fn is_early(began: Time, ended: Time) -> bool {
    ended.since(began) + WATCH_TOLERANCE < Duration::from_secs(u64::from(WATCH_SECONDS))
}

/// Whether a server is there that refused a watch.
fn watch_error(error: &kube::Error) -> fn(String) -> WatchError {
    if matches!(error, kube::Error::Api(_)) { WatchError::Refused } else { WatchError::Unanswered }
}

/// An answer to a request tells more than its text: the resource is not there, or not back to that version.
fn request_error(error: &kube::Error, otherwise: fn(String) -> WatchError) -> WatchError {
    match error {
        kube::Error::Api(status) if status.code == 404 => WatchError::NotServed,
        kube::Error::Api(status) if status.code == GONE => WatchError::Behind,
        error => otherwise(Chain(error).to_string()),
    }
}

/// Takes from `known` what is not in `listed`, and returns it.
pub(super) fn forget(known: &mut BTreeSet<ObjectId>, listed: &BTreeSet<ObjectId>) -> Vec<ObjectId> {
    let gone: Vec<_> = known.difference(listed).cloned().collect();
    known.retain(|id| listed.contains(id));
    gone
}

/// An error with what caused it, on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            // kube's messages repeat their source's.
            let text = error.to_string();
            if !last.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_goes_on_from_where_it_was_only_with_a_server_that_stayed() {
        assert!(WatchError::Refused("429".into()).keeps_place());
        for error in [
            WatchError::Unanswered("refused".into()),
            WatchError::Broken("reset".into()),
            WatchError::Early,
            WatchError::Behind,
            WatchError::NotServed,
        ] {
            assert!(!error.keeps_place(), "{error}");
        }
    }

    #[test]
    fn a_watch_that_ends_at_its_time_is_no_trouble() {
        let began = Time(1_000_000_000);
        assert!(!is_early(began, began + Duration::from_secs(30)));
        assert!(!is_early(began, began + Duration::from_secs(29)));
        assert!(is_early(began, began + Duration::from_secs(5)));
    }
}
