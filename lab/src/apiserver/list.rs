//! Lists: a selection and its options come in, one page of objects with the revision that it shows goes out. Pure.
//!
//! All pages of one list show the same revision: the continue token carries it, and later pages undo what has been
//! written since. A client that watches from a list's revision therefore misses nothing and sees nothing twice.

use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};

use super::query::Query;
use super::resources::Resource;
use super::select::Selection;
use super::status::Status;
use super::store::{Key, Store};

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) objects: Vec<Arc<Value>>,
    revision: u64,
    /// Where the next page starts, and how many objects are left when that is known.
    rest: Option<(String, Option<usize>)>,
}

impl Page {
    /// The `metadata` of the list.
    pub(crate) fn metadata(&self) -> Value {
        let mut metadata = json!({ "resourceVersion": self.revision.to_string() });
        if let Some((token, remaining)) = &self.rest {
            metadata["continue"] = token.as_str().into();
            if let Some(remaining) = remaining {
                metadata["remainingItemCount"] = (*remaining).into();
            }
        }
        metadata
    }
}

/// Reads one page.
pub(crate) fn page(store: &Store, resource: Resource, selection: &Selection, query: &Query) -> Result<Page, Status> {
    let (revision, after) = start(store, query)?;
    // A list of any version comes from the watch cache of a real server, which knows no pages.
    let limit = if query.resource_version == Some(0) { None } else { query.limit };
    let past;
    let mut found: Box<dyn Iterator<Item = (&Key, &Arc<Value>)>> = if revision == store.revision() {
        Box::new(store.objects(resource).filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after)))
    } else {
        past = store.snapshot(resource, revision).ok_or_else(|| Status::list_too_old(after.is_some()))?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        Box::new(past.range((from, Bound::Unbounded)))
    };
    let mut objects = Vec::new();
    let mut last = None;
    for (key, object) in found.by_ref().filter(|(_, object)| selection.matches(object)) {
        if limit.is_some_and(|limit| objects.len() == limit) {
            let remaining = (!selection.is_filtered()).then(|| 1 + found.filter(|(_, o)| selection.matches(o)).count());
            let rest = last.map(|last| (token(revision, last), remaining));
            return Ok(Page { objects, revision, rest });
        }
        objects.push(Arc::clone(object));
        last = Some(key);
    }
    Ok(Page { objects, revision, rest: None })
}

/// The revision that the list shows, and the key after which it starts.
fn start(store: &Store, query: &Query) -> Result<(u64, Option<Key>), Status> {
    if !query.continue_token.is_empty() {
        let (revision, after) =
            read_token(&query.continue_token).ok_or_else(|| Status::bad_request("continue key is not valid"))?;
        return Ok((revision.min(store.revision()), Some(after)));
    }
    match query.resource_version {
        Some(asked) if asked > store.revision() => Err(Status::version_too_large(asked, store.revision())),
        Some(asked) if query.exact_version => Ok((asked, None)),
        _ => Ok((store.revision(), None)),
    }
}

/// Neither namespaces nor names may contain a slash.
fn token(revision: u64, last: &Key) -> String {
    format!("{revision}/{}/{}", last.namespace, last.name)
}

fn read_token(token: &str) -> Option<(u64, Key)> {
    let (revision, place) = token.split_once('/')?;
    let (namespace, name) = place.split_once('/')?;
    Some((revision.parse().ok()?, Key::new(namespace, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_store(names: &[&str]) -> Store {
        let mut store = Store::new(64);
        for name in names {
            store.put(Resource::ConfigMaps, json!({ "metadata": { "namespace": "ns", "name": name } }));
        }
        store
    }

    fn names(page: &Page) -> Vec<&str> {
        page.objects.iter().map(|object| object["metadata"]["name"].as_str().unwrap()).collect()
    }

    fn read(store: &Store, query: &Query) -> Page {
        page(store, Resource::ConfigMaps, &Selection::default(), query).unwrap()
    }

    #[test]
    fn pages_show_one_revision_whatever_is_written_between_them() {
        let mut store = mk_store(&["a", "b", "c", "d"]);
        let mut query = Query { limit: Some(2), ..Query::default() };
        let first = read(&store, &query);
        assert_eq!(names(&first), ["a", "b"]);
        assert_eq!(first.metadata()["remainingItemCount"], 2);

        store.put(Resource::ConfigMaps, json!({ "metadata": { "namespace": "ns", "name": "bb" } }));
        store.remove(Resource::ConfigMaps, &Key::new("ns", "c"));
        query.continue_token = first.metadata()["continue"].as_str().unwrap().to_owned();
        let second = read(&store, &query);
        assert_eq!(names(&second), ["c", "d"]);
        assert_eq!(second.metadata(), json!({ "resourceVersion": first.metadata()["resourceVersion"] }));
        assert_eq!(names(&read(&store, &Query::default())), ["a", "b", "bb", "d"]);
    }

    #[test]
    fn a_list_that_ends_exactly_at_its_limit_has_no_next_page() {
        let store = mk_store(&["a", "b"]);
        let page = read(&store, &Query { limit: Some(2), ..Query::default() });
        assert_eq!(names(&page), ["a", "b"]);
        assert!(page.metadata().get("continue").is_none());
    }

    #[test]
    fn a_version_that_does_not_exist_yet_is_not_answered_with_an_older_one() {
        let store = mk_store(&["a"]);
        let query = Query { resource_version: Some(store.revision() + 1), ..Query::default() };
        let status = page(&store, Resource::ConfigMaps, &Selection::default(), &query).unwrap_err();
        assert_eq!((status.code(), status.reason()), (504, "Timeout"));
    }
}
