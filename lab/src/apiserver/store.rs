//! The state of the embedded API server: objects, one global revision, and a bounded history per kind. Decided writes
//! come in, and objects, snapshots and changes go out.
//!
//! Pure: no clock, no task, no lock. It does not judge an object (see `registry`) and does not wake watchers (see
//! `watch`): a watcher is a cursor into the history, so that a slow one costs nothing and is told 410 once its place
//! was dropped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use super::object::{meta, set_meta};
use super::resources::Resource;
use super::status::Status;

/// Changes per kind that a watcher may lag behind before it has to list again. Enough for two minutes of a drill's
/// busiest kind, a hundred EndpointSlice writes per second.
pub(crate) const HISTORY_LIMIT: usize = 16_384;

/// Changes that one read of the history returns, so that no single answer holds the lock or the memory of a whole
/// history.
const CHANGES_PER_READ: usize = 512;

/// Place of an object inside its kind: namespace (empty for cluster-scoped kinds) and name. Lists are in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn of(object: &Value) -> Self {
        Self::new(meta(object, "namespace"), meta(object, "name"))
    }
}

/// One write: the object before and after it. A creation has no `before`, a deletion no `after`.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) before: Option<Arc<Value>>,
    pub(crate) after: Option<Arc<Value>>,
}

impl Change {
    fn key(&self) -> Key {
        let object = self.after.as_ref().or(self.before.as_ref()).expect("a change has at least one side");
        Key::of(object)
    }
}

#[derive(Debug, Default)]
struct Shelf {
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Change>,
    /// Revision of the newest change that the history has dropped; 0 while it is complete.
    dropped: u64,
    /// Revision of the newest change.
    latest: u64,
}

/// All objects of all kinds.
#[derive(Debug)]
pub(crate) struct Store {
    revision: u64,
    shelves: BTreeMap<Resource, Shelf>,
    history_limit: usize,
}

impl Store {
    pub(crate) fn new(history_limit: usize) -> Self {
        // Revision 0 means "any version" on the wire, so that an empty store already is at 1.
        let shelves = Resource::ALL.into_iter().map(|resource| (resource, Shelf::default())).collect();
        Self { revision: 1, shelves, history_limit }
    }

    /// Revision of the newest write of any kind.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Revision of the newest write of this kind.
    pub(crate) fn latest(&self, resource: Resource) -> u64 {
        self.shelf(resource).latest
    }

    pub(crate) fn get(&self, resource: Resource, key: &Key) -> Option<&Arc<Value>> {
        self.shelf(resource).objects.get(key)
    }

    /// Stores an object under the next revision and returns it with that revision in it.
    pub(crate) fn put(&mut self, resource: Resource, mut object: Value) -> Arc<Value> {
        let revision = self.revision + 1;
        set_meta(&mut object, "resourceVersion", revision.to_string());
        let object = Arc::new(object);
        let before = self.shelf_mut(resource).objects.insert(Key::of(&object), Arc::clone(&object));
        self.record(resource, Change { revision, before, after: Some(Arc::clone(&object)) });
        object
    }

    /// Removes an object and returns its last state.
    pub(crate) fn remove(&mut self, resource: Resource, key: &Key) -> Option<Arc<Value>> {
        let before = self.shelf_mut(resource).objects.remove(key)?;
        let revision = self.revision + 1;
        self.record(resource, Change { revision, before: Some(Arc::clone(&before)), after: None });
        Some(before)
    }

    /// All objects of a kind as they are now, in key order.
    pub(crate) fn objects(&self, resource: Resource) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.shelf(resource).objects.iter()
    }

    /// All objects of a kind as they were at `revision`, in key order; `None` when the history no longer reaches that
    /// far.
    pub(crate) fn snapshot(&self, resource: Resource, revision: u64) -> Option<BTreeMap<Key, Arc<Value>>> {
        let shelf = self.shelf(resource);
        if revision < shelf.dropped {
            return None;
        }
        let mut objects = shelf.objects.clone();
        for change in shelf.history.iter().rev().take_while(|change| change.revision > revision) {
            match &change.before {
                Some(before) => objects.insert(change.key(), Arc::clone(before)),
                None => objects.remove(&change.key()),
            };
        }
        Some(objects)
    }

    /// The next changes of a kind after `revision`, oldest first, and the revision up to which they are complete. 410
    /// when some of them were dropped.
    pub(crate) fn changes_after(&self, resource: Resource, revision: u64) -> Result<(Vec<Change>, u64), Status> {
        let shelf = self.shelf(resource);
        if revision < shelf.dropped {
            return Err(Status::version_too_old(revision, shelf.dropped));
        }
        let first = shelf.history.partition_point(|change| change.revision <= revision);
        let changes: Vec<Change> = shelf.history.iter().skip(first).take(CHANGES_PER_READ).cloned().collect();
        let complete_to = match changes.last() {
            Some(last) if last.revision < shelf.latest => last.revision,
            // A watcher may ask from the future, as a client does that talked to a server with a longer life.
            _ => self.revision.max(revision),
        };
        Ok((changes, complete_to))
    }

    /// Forgets every change, as a server does that compacted its history: whoever watched before this has to list anew.
    pub(crate) fn compact(&mut self) {
        self.revision += 1;
        self.begin_history();
    }

    /// Gives every object a new version, from `first` on and in no relation to the old ones, as after a restore of the
    /// server's storage. Every earlier change is forgotten.
    pub(crate) fn renumber(&mut self, first: u64) {
        let mut next = first.max(1);
        // Backwards, so that not even the order of the versions is the old one.
        for shelf in self.shelves.values_mut().rev() {
            for object in shelf.objects.values_mut().rev() {
                next += 1;
                let mut renumbered = Value::clone(object);
                set_meta(&mut renumbered, "resourceVersion", next.to_string());
                *object = Arc::new(renumbered);
            }
        }
        self.revision = next;
        self.begin_history();
    }

    fn begin_history(&mut self) {
        for shelf in self.shelves.values_mut() {
            shelf.history.clear();
            shelf.dropped = self.revision;
            shelf.latest = self.revision;
        }
    }

    fn record(&mut self, resource: Resource, change: Change) {
        self.revision = change.revision;
        let limit = self.history_limit;
        let shelf = self.shelf_mut(resource);
        shelf.latest = change.revision;
        shelf.history.push_back(change);
        if shelf.history.len() > limit
            && let Some(oldest) = shelf.history.pop_front()
        {
            shelf.dropped = oldest.revision;
        }
    }

    fn shelf(&self, resource: Resource) -> &Shelf {
        self.shelves.get(&resource).expect("every resource has its shelf from the start")
    }

    fn shelf_mut(&mut self, resource: Resource) -> &mut Shelf {
        self.shelves.get_mut(&resource).expect("every resource has its shelf from the start")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_map(name: &str, content: &str) -> Value {
        json!({ "metadata": { "namespace": "ns", "name": name }, "data": { "k": content } })
    }

    #[test]
    fn a_snapshot_undoes_every_later_change() {
        let mut store = Store::new(16);
        store.put(Resource::ConfigMaps, mk_map("kept", "old"));
        store.put(Resource::ConfigMaps, mk_map("removed", "old"));
        let then = store.revision();
        store.put(Resource::ConfigMaps, mk_map("kept", "new"));
        store.remove(Resource::ConfigMaps, &Key::new("ns", "removed"));
        store.put(Resource::ConfigMaps, mk_map("added", "new"));

        let past = store.snapshot(Resource::ConfigMaps, then).unwrap();
        let names: Vec<&str> = past.keys().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["kept", "removed"]);
        assert_eq!(past[&Key::new("ns", "kept")]["data"]["k"], "old");
        let present = store.snapshot(Resource::ConfigMaps, store.revision()).unwrap();
        assert_eq!(present.keys().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["added", "kept"]);
    }

    #[test]
    fn history_is_bounded_and_says_so_when_a_reader_is_too_late() {
        let mut store = Store::new(4);
        let start = store.revision();
        for turn in 0..5 {
            store.put(Resource::ConfigMaps, mk_map("m", &turn.to_string()));
        }
        let status = store.changes_after(Resource::ConfigMaps, start).unwrap_err();
        assert_eq!((status.code(), status.reason()), (410, "Expired"));
        assert!(store.snapshot(Resource::ConfigMaps, start).is_none());
        let (changes, complete_to) = store.changes_after(Resource::ConfigMaps, start + 1).unwrap();
        assert_eq!((changes.len(), complete_to), (4, store.revision()));
    }

    #[test]
    fn a_compacted_store_keeps_its_objects_and_no_past() {
        let mut store = Store::new(16);
        store.put(Resource::ConfigMaps, mk_map("m", "kept"));
        let before = store.revision();
        store.compact();
        assert_eq!(store.changes_after(Resource::ConfigMaps, before).unwrap_err().code(), 410);
        assert!(store.snapshot(Resource::ConfigMaps, before).is_none());
        let (changes, complete_to) = store.changes_after(Resource::ConfigMaps, store.revision()).unwrap();
        assert_eq!((changes.len(), complete_to), (0, store.revision()));
        assert_eq!(store.objects(Resource::ConfigMaps).count(), 1);
    }

    #[test]
    fn a_renumbered_store_may_count_from_below_what_was() {
        let mut store = Store::new(16);
        for turn in 0..50 {
            store.put(Resource::ConfigMaps, mk_map(if turn % 2 == 0 { "a" } else { "b" }, "kept"));
        }
        let before = store.revision();
        store.renumber(7);
        assert!(store.revision() < before);
        let versions: Vec<_> = store
            .objects(Resource::ConfigMaps)
            .map(|(key, object)| (key.name.clone(), meta(object, "resourceVersion")))
            .collect();
        assert_eq!(versions, [("a".to_owned(), "9"), ("b".to_owned(), "8")], "not even in the old order");
        assert_eq!(store.changes_after(Resource::ConfigMaps, store.revision() - 1).unwrap_err().code(), 410);
        assert!(store.changes_after(Resource::ConfigMaps, before).unwrap().0.is_empty(), "from the future: waits");
    }

    #[test]
    fn churn_of_one_kind_does_not_age_another() {
        let mut store = Store::new(4);
        let start = store.revision();
        for turn in 0..50 {
            store.put(Resource::Leases, mk_map("l", &turn.to_string()));
        }
        let (changes, complete_to) = store.changes_after(Resource::TrafficSplits, start).unwrap();
        assert!(changes.is_empty());
        assert_eq!(complete_to, store.revision());
    }

    #[test]
    fn a_long_history_is_read_in_pieces_without_a_gap() {
        let mut store = Store::new(4096);
        let mut cursor = store.revision();
        for turn in 0..1500 {
            store.put(Resource::ConfigMaps, mk_map("m", &turn.to_string()));
        }
        let mut seen = Vec::new();
        while cursor < store.revision() {
            let (changes, complete_to) = store.changes_after(Resource::ConfigMaps, cursor).unwrap();
            seen.extend(changes.iter().map(|change| change.revision));
            cursor = complete_to;
        }
        assert_eq!(seen, (2..=1501).collect::<Vec<u64>>());
    }
}
