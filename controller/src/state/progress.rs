//! How far the start has come, and which watch is in trouble. Shared between tasks.
//!
//! In: marks of the watches and of the ingest listener. Out: ready or why not, for /ready; one line per watch, for /state.
//! Once complete it stays complete: an API server that is away leaves the last facts standing, and taking the controller out
//! of its Service then would take its agents' streams away too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Watch {
    /// The splits that match the selector.
    TrafficSplits,
    /// All Services.
    Services,
    /// All EndpointSlices.
    EndpointSlices,
}

impl Watch {
    const ALL: [Self; 3] = [Self::TrafficSplits, Self::Services, Self::EndpointSlices];

    /// Its name in logs and /state.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::TrafficSplits => "trafficsplits",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
        }
    }
}

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    listed: BTreeSet<Watch>,
    troubles: BTreeMap<Watch, String>,
    ingest_bound: bool,
    draining: bool,
}

impl Progress {
    /// A watch has delivered a complete list. True for exactly one call: the one that completes the last first list.
    pub(crate) fn on_listed(&self, watch: Watch) -> bool {
        let mut inner = self.lock();
        let first = inner.listed.insert(watch);
        first && inner.listed.len() == Watch::ALL.len()
    }

    /// A watch was answered: whatever was wrong is over.
    pub(crate) fn on_answer(&self, watch: Watch) {
        self.lock().troubles.remove(&watch);
    }

    /// A watch failed and is tried again.
    pub(crate) fn on_trouble(&self, watch: Watch, error: String) {
        self.lock().troubles.insert(watch, error);
    }

    /// Agents can connect.
    pub(crate) fn on_ingest_bound(&self) {
        self.lock().ingest_bound = true;
    }

    /// The controller is shutting down.
    pub(crate) fn on_shutdown(&self) {
        self.lock().draining = true;
    }

    /// Whether the controller does its work.
    ///
    /// # Errors
    ///
    /// Why not, in one line.
    pub(crate) fn ready(&self) -> Result<(), String> {
        let inner = self.lock();
        if inner.draining {
            return Err("shutting down".to_owned());
        }
        if !inner.ingest_bound {
            return Err("the address for agents is not bound yet".to_owned());
        }
        let missing = Watch::ALL.into_iter().filter(|watch| !inner.listed.contains(watch));
        let reasons: Vec<_> = missing
            .map(|watch| {
                let trouble = inner.troubles.get(&watch).map_or("first list is not complete yet", String::as_str);
                format!("{}: {trouble}", watch.as_str())
            })
            .collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
    }

    /// One entry per watch: `synced`, `listing`, or what is wrong.
    pub(crate) fn watches(&self) -> BTreeMap<&'static str, String> {
        let inner = self.lock();
        let state = |watch: Watch| match (inner.troubles.get(&watch), inner.listed.contains(&watch)) {
            (Some(trouble), _) => trouble.clone(),
            (None, true) => "synced".to_owned(),
            (None, false) => "listing".to_owned(),
        };
        Watch::ALL.into_iter().map(|watch| (watch.as_str(), state(watch))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every method leaves the fields whole, so a panic elsewhere under the lock changes nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_first_list_completes() {
        let progress = Progress::default();
        assert!(!progress.on_listed(Watch::Services));
        assert!(!progress.on_listed(Watch::Services));
        assert!(!progress.on_listed(Watch::TrafficSplits));
        assert!(progress.on_listed(Watch::EndpointSlices));
        assert!(!progress.on_listed(Watch::EndpointSlices), "a later list completes nothing again");
        assert!(!progress.on_listed(Watch::TrafficSplits));
    }

    #[test]
    fn it_says_why_it_is_not_ready() {
        let progress = Progress::default();
        assert_eq!(progress.ready(), Err("the address for agents is not bound yet".to_owned()));
        progress.on_ingest_bound();
        progress.on_listed(Watch::Services);
        progress.on_trouble(Watch::TrafficSplits, "the CRD is not served".to_owned());
        assert_eq!(
            progress.ready(),
            Err("trafficsplits: the CRD is not served; endpointslices: first list is not complete yet".to_owned())
        );
        progress.on_listed(Watch::TrafficSplits);
        progress.on_listed(Watch::EndpointSlices);
        assert_eq!(progress.ready(), Ok(()));
        assert_eq!(progress.watches()["trafficsplits"], "the CRD is not served", "ready, and still told");
        progress.on_answer(Watch::TrafficSplits);
        assert_eq!(progress.watches()["trafficsplits"], "synced");
        progress.on_shutdown();
        assert_eq!(progress.ready(), Err("shutting down".to_owned()));
    }
}
