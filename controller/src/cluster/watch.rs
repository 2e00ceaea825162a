//! One watch: list, follow, resume, retry.
//!
//! In: the events of kube's watcher. Out: what a [`Cache`] makes of them, in order, and the first complete list as a mark in
//! [`Progress`]. It deliberately never gives up and never empties a cache because of an error.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use controller_core::Input;
use controller_core::facts::ObjectId;
use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
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

/// Watches until the resource is no longer served or nobody listens.
pub(super) async fn run<C: Cache>(
    api: Api<C::Object>,
    config: watcher::Config,
    cache: &mut C,
    name: Watch,
    cluster: &Cluster,
) -> Ended
where
    C::Object: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(watcher(api, config));
    let mut listed = BTreeSet::new();
    let mut backoff = Backoff::new(clock::monotonic().0);
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(watch = name.as_str(), error = %Chain(&error), "Watch failed and is tried again");
                cluster.progress.on_trouble(name, Chain(&error).to_string());
                backoff.pause().await;
                if is_not_served(&error) {
                    return Ended::NotServed;
                }
                continue;
            }
        };
        // Init is said before the server has answered anything: it proves no connection.
        if !matches!(event, Event::Init) {
            backoff.reset();
            cluster.progress.on_answer(name);
        }
        let complete = matches!(event, Event::InitDone);
        for observation in fold(cache, &mut listed, event) {
            if cluster.observations.send(observation).await.is_err() {
                return Ended::NobodyListens;
            }
        }
        // Marked after the list's facts are on the channel: whoever marks last has everyone's facts ahead of the mark.
        if complete
            && cluster.progress.on_listed(name)
            && cluster.observations.send(Input::CachesComplete.into()).await.is_err()
        {
            return Ended::NobodyListens;
        }
    }
    Ended::NobodyListens
}

/// One event of the watcher, as observations.
fn fold<C: Cache>(cache: &mut C, listed: &mut BTreeSet<ObjectId>, event: Event<C::Object>) -> Vec<Observation> {
    match event {
        Event::Init => {
            listed.clear();
            Vec::new()
        }
        Event::InitApply(object) => {
            listed.extend(C::id(&object));
            cache.on_object(&object)
        }
        Event::InitDone => cache.on_listed(&std::mem::take(listed)),
        Event::Apply(object) => cache.on_object(&object),
        Event::Delete(object) => cache.on_gone(&object),
    }
}

/// Takes from `known` what is not in `listed`, and returns it.
pub(super) fn forget(known: &mut BTreeSet<ObjectId>, listed: &BTreeSet<ObjectId>) -> Vec<ObjectId> {
    let gone: Vec<_> = known.difference(listed).cloned().collect();
    known.retain(|id| listed.contains(id));
    gone
}

fn is_not_served(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
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
