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
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::de::DeserializeOwned;

use super::{Cluster, Observation};
use crate::clock;
use crate::state::progress::Watch;

/// First pause after an error.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);

/// Longest pause: an API server that is back is noticed within half a second. kube's own default goes up to 30 s.
const BACKOFF_LAST: Duration = Duration::from_millis(500);

/// How long the server may hold a watch, in seconds. Resuming one costs one request, so it is short against the usual
/// 290 s: the client notices a connection that died in silence a little later than this.
const WATCH_SECONDS: u32 = 30;

/// A watch that the server ends sooner than this is trouble, not the end of its time.
const SHORT_WATCH: Duration = Duration::from_secs(1);

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
#[derive(Debug, thiserror::Error)]
enum WatchError {
    /// The list, or a page of it.
    #[error("list failed: {0}")]
    List(String),
    /// The list has no version to watch from.
    #[error("the list has no resourceVersion")]
    NoVersion,
    /// The request for a watch.
    #[error("watch was refused: {0}")]
    Begin(String),
    /// A watch that ran.
    #[error("watch broke off: {0}")]
    Broken(String),
    /// The server ended it at once.
    #[error("the server ended the watch at once")]
    Short,
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
    let mut following = Following { api, selector, cache, name, cluster, backoff };
    let mut version = None;
    loop {
        let error = match following.step(&mut version).await {
            Ok(()) => continue,
            Err(WatchError::NobodyListens) => return Ended::NobodyListens,
            Err(WatchError::Behind) => {
                tracing::debug!(watch = name.as_str(), "Watch is too far behind and lists anew");
                version = None;
                following.backoff.pause().await;
                continue;
            }
            Err(error) => error,
        };
        tracing::warn!(watch = name.as_str(), %error, "Watch failed and is tried again");
        cluster.progress.on_trouble(name, error.to_string());
        following.backoff.pause().await;
        if matches!(error, WatchError::NotServed) {
            return Ended::NotServed;
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

    async fn list(&mut self) -> Result<String, WatchError> {
        let mut listed = BTreeSet::new();
        let mut params = ListParams { label_selector: self.selector.map(ToOwned::to_owned), ..ListParams::default() };
        params.limit = Some(PAGE);
        let version = loop {
            let page = self.api.list(&params).await.map_err(|error| request_error(&error, WatchError::List))?;
            self.cluster.progress.on_answer(self.name);
            self.backoff.reset();
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
            self.api.watch(&params, version).await.map_err(|error| request_error(&error, WatchError::Begin))?;
        let mut events = std::pin::pin!(events);
        self.cluster.progress.on_answer(self.name);
        let began = clock::monotonic();
        let mut quiet = true;
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
            quiet = false;
            self.backoff.reset();
            if version.is_empty() {
                return Err(WatchError::Behind);
            }
            self.send(observations).await?;
        }
        if quiet && is_short(began, clock::monotonic()) { Err(WatchError::Short) } else { Ok(()) }
    }

    async fn send(&self, observations: Vec<Observation>) -> Result<(), WatchError> {
        for observation in observations {
            self.cluster.observations.send(observation).await.map_err(|_| WatchError::NobodyListens)?;
        }
        Ok(())
    }
}

fn is_short(began: Time, ended: Time) -> bool {
    ended.since(began) < SHORT_WATCH
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

/// Doubling pauses, each shortened at random by up to half, so that watches and replicas do not come back in step.
pub(super) struct Backoff {
    next: Duration,
    random: SmallRng,
}

impl Backoff {
    pub(super) fn new(seed: u64) -> Self {
        Self { next: BACKOFF_FIRST, random: SmallRng::seed_from_u64(seed) }
    }

    /// The server answered.
    pub(super) fn reset(&mut self) {
        self.next = BACKOFF_FIRST;
    }

    /// How long to wait now.
    pub(super) fn step(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(BACKOFF_LAST);
        whole.mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// Waits that long.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.step()).await;
    }
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
    fn pauses_grow_to_half_a_second_and_start_anew_after_an_answer() {
        for seed in 0..100 {
            let mut backoff = Backoff::new(seed);
            for whole_ms in [50, 100, 200, 400, 500, 500] {
                let step = backoff.step();
                let whole = Duration::from_millis(whole_ms);
                assert!(step <= whole && step >= whole / 2, "seed {seed}: {step:?} of {whole:?}");
            }
            backoff.reset();
            assert!(backoff.step() <= BACKOFF_FIRST);
        }
    }
}
