//! The splits that are ours, as the API server last named them. Pure.
//!
//! In: observations and the answers to our own writes. Out: references for Events, and where our annotation goes at exactly
//! the version that guards a write. A few versions are kept per split, because an observation that is behind our own write
//! may come after it. Deliberately no weights and no state: those are the core's.

use std::collections::{BTreeMap, VecDeque};

use controller_core::facts::ObjectId;

use crate::cluster::SplitObject;
use crate::record::Place;

/// Versions that are remembered of one split: ours and foreign ones that cross it. The core writes one at a time.
const VERSIONS: usize = 8;

/// See the file's header.
#[derive(Debug, Default)]
pub(super) struct Objects {
    splits: BTreeMap<ObjectId, VecDeque<SplitObject>>,
}

impl Objects {
    /// A split was observed, or our write was answered with it.
    pub(super) fn on_object(&mut self, id: ObjectId, object: SplitObject) {
        let versions = self.splits.entry(id).or_default();
        versions.retain(|known| known.resource_version != object.resource_version);
        if versions.len() == VERSIONS {
            versions.pop_front();
        }
        versions.push_back(object);
    }

    /// A split is gone, or no longer ours.
    pub(super) fn on_gone(&mut self, id: &ObjectId) {
        self.splits.remove(id);
    }

    /// Every split of ours.
    pub(super) fn ids(&self) -> impl Iterator<Item = &ObjectId> {
        self.splits.keys()
    }

    /// How a split was last named.
    pub(super) fn latest(&self, id: &ObjectId) -> Option<&SplitObject> {
        self.splits.get(id)?.back()
    }

    /// What a split had of annotations at a version, if that version was seen.
    pub(super) fn place(&self, id: &ObjectId, resource_version: &str) -> Option<Place> {
        let versions = self.splits.get(id)?;
        versions.iter().find(|known| known.resource_version == resource_version).map(|known| known.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_object(version: u32, place: Place) -> SplitObject {
        SplitObject { uid: "u".into(), resource_version: version.to_string(), place, record: None }
    }

    #[test]
    fn an_observation_behind_our_write_does_not_hide_its_place() {
        let id = ObjectId::new("demo", "emoji");
        let mut objects = Objects::default();
        objects.on_object(id.clone(), mk_object(5, Place::NoMap));
        objects.on_object(id.clone(), mk_object(6, Place::Entry));
        objects.on_object(id.clone(), mk_object(5, Place::NoMap));
        assert_eq!(objects.place(&id, "6"), Some(Place::Entry));
        assert_eq!(objects.place(&id, "5"), Some(Place::NoMap));
        assert_eq!(objects.place(&id, "7"), None);
    }

    #[test]
    fn only_so_many_versions_are_kept_and_none_of_what_is_gone() {
        let id = ObjectId::new("demo", "emoji");
        let mut objects = Objects::default();
        for version in 0..100 {
            objects.on_object(id.clone(), mk_object(version, Place::NoEntry));
        }
        assert_eq!(objects.splits[&id].len(), VERSIONS);
        assert_eq!(objects.latest(&id), Some(&mk_object(99, Place::NoEntry)));
        objects.on_gone(&id);
        assert_eq!(objects.latest(&id), None);
        assert_eq!(objects.ids().count(), 0);
    }
}
