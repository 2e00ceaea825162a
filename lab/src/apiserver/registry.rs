//! The rules of writing: a request to create, replace, patch or delete comes in with its time, the object as it is
//! now stored or a refusal goes out.
//!
//! Pure: the time is an argument and randomness is a seed. Here are names, uids, generations, conflicts, finalizers
//! and namespaces, the same for every kind; what a kind's content has to be is `admit`'s subject. Every write is one
//! step: nothing else happens between its check and its effect.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::admit::{self, service};
use super::convert;
use super::object::{carry, carry_meta, items, meta, metadata_mut, set_meta, text};
use super::patch::PatchFormat;
use super::resources::{Resource, Served};
use super::status::{FieldError, Status};
use super::store::{Key, Store};

/// Namespaces that every cluster has and nobody can delete.
const INITIAL_NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Letters and length of what `generateName` appends: no vowels, so that no words come out.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// `generateName` plus its suffix has to stay a DNS label.
const GENERATE_NAME_LIMIT: usize = 63 - SUFFIX_LENGTH;

/// Fields of `metadata` that only the server sets.
const SYSTEM_FIELDS: [&str; 5] =
    ["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"];

/// The object that a request is about, in the version that the client speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) resource: Resource,
    pub(crate) served: Served,
    /// Empty for cluster-scoped kinds.
    pub(crate) namespace: &'a str,
    /// Empty where the object brings its own, as in a creation.
    pub(crate) name: &'a str,
}

impl Target<'_> {
    fn key(&self) -> Key {
        Key::new(self.namespace, self.name)
    }

    fn to_served(self, stored: &Value) -> Value {
        convert::to_served(self.resource, self.served, stored.clone())
    }
}

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The object without its status, where status has a path of its own.
    Main,
    /// Status alone.
    Status,
    /// Everything: the lab plays kubelet and controllers too and writes both at once.
    Whole,
}

/// When a write happens, and whether it is only tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) now: Timestamp,
    pub(crate) dry_run: bool,
}

/// What a deletion demands of the object that it finds. Empty texts demand nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Preconditions {
    pub(crate) uid: String,
    pub(crate) resource_version: String,
}

/// The store with the rules around it.
#[derive(Debug)]
pub(crate) struct Registry {
    store: Store,
    /// ClusterIPs of all Services, so that a creation need not look at all of them.
    addresses: BTreeSet<IpAddr>,
    random: SmallRng,
}

impl Registry {
    /// A registry that holds nothing but the namespaces that every cluster has.
    pub(crate) fn new(seed: u64, history_limit: usize, now: Timestamp) -> Self {
        let mut registry = Self {
            store: Store::new(history_limit),
            addresses: BTreeSet::new(),
            random: SmallRng::seed_from_u64(seed),
        };
        let resource = Resource::Namespaces;
        for name in INITIAL_NAMESPACES {
            let target = Target { resource, served: resource.stored(), namespace: "", name: "" };
            registry
                .create(target, json!({ "metadata": { "name": name } }), Part::Main, Attempt { now, dry_run: false })
                .expect("the initial namespaces are valid and new");
        }
        registry
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// For what no request can do: the server's own restart.
    pub(crate) fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// The object in the version that the client speaks.
    pub(crate) fn get(&self, target: Target<'_>) -> Result<Value, Status> {
        Ok(target.to_served(self.find(target)?))
    }

    fn find(&self, target: Target<'_>) -> Result<&Arc<Value>, Status> {
        self.store.get(target.resource, &target.key()).ok_or_else(|| Status::not_found(target.resource, target.name))
    }

    /// Creates an object under its own name or under one generated from `generateName`.
    pub(crate) fn create(
        &mut self,
        target: Target<'_>,
        object: Value,
        part: Part,
        attempt: Attempt,
    ) -> Result<Value, Status> {
        let mut object = admit::decode(target.resource, target.served, object)?;
        if !meta(&object, "resourceVersion").is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        place(target, &mut object)?;
        self.stamp(target.resource, &mut object, part, attempt.now);
        admit::default(target.resource, &mut object);
        self.allocate_address(target.resource, &mut object)?;
        admit::validate(target.resource, target.served, &object, None)?;
        self.check_room(target.resource, &object)?;
        Ok(self.commit(target, object, attempt))
    }

    /// Stores an object as it is, whatever the rules say of its content.
    pub(crate) fn plant(&mut self, target: Target<'_>, mut object: Value, attempt: Attempt) -> Result<Value, Status> {
        place(target, &mut object)?;
        self.stamp(target.resource, &mut object, Part::Whole, attempt.now);
        self.check_room(target.resource, &object)?;
        Ok(self.commit(target, object, attempt))
    }

    /// Sets what the server owns on a new object.
    fn stamp(&mut self, resource: Resource, object: &mut Value, part: Part, now: Timestamp) {
        let generate_name = meta(object, "generateName").to_owned();
        if meta(object, "name").is_empty() && !generate_name.is_empty() {
            let base: String = generate_name.chars().take(GENERATE_NAME_LIMIT).collect();
            let name = format!("{base}{}", self.suffix());
            set_meta(object, "name", name);
        }
        for field in SYSTEM_FIELDS.into_iter().chain(["managedFields", "selfLink"]) {
            metadata_mut(object).remove(field);
        }
        set_meta(object, "uid", self.uid());
        set_meta(object, "creationTimestamp", time(now));
        if resource.row().has_generation {
            set_meta(object, "generation", 1);
        }
        if resource.row().has_status
            && part == Part::Main
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
    }

    fn suffix(&mut self) -> String {
        let letter = |_| char::from(SUFFIX_LETTERS[self.random.random_range(0..SUFFIX_LETTERS.len())]);
        (0..SUFFIX_LENGTH).map(letter).collect()
    }

    /// A random uid in the form of RFC 9562, version 4.
    fn uid(&mut self) -> String {
        let bits: u128 = self.random.random();
        let hex = format!("{:032x}", bits & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62);
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    fn allocate_address(&self, resource: Resource, object: &mut Value) -> Result<(), Status> {
        if resource != Resource::Services {
            return Ok(());
        }
        let name = meta(object, "name").to_owned();
        let refusal = if service::wants_address(object) {
            service::allocate(object, &self.addresses).err()
        } else {
            service::addresses(object).find(|address| self.addresses.contains(address)).map(|address| {
                let detail = "failed to allocate IP: provided IP is already allocated";
                FieldError::invalid("spec.clusterIPs", &address.to_string(), detail)
            })
        };
        refusal.map_or(Ok(()), |error| Err(Status::invalid(resource, &name, vec![error])))
    }

    /// The namespace has to exist and the name to be free.
    fn check_room(&self, resource: Resource, object: &Value) -> Result<(), Status> {
        let key = Key::of(object);
        let home = Key::new("", &key.namespace);
        if resource.row().namespaced && self.store.get(Resource::Namespaces, &home).is_none() {
            return Err(Status::not_found(Resource::Namespaces, &key.namespace));
        }
        match self.store.get(resource, &key) {
            Some(_) => Err(Status::already_exists(resource, &key.name)),
            None => Ok(()),
        }
    }

    /// Replaces an object, or a part of it. A resourceVersion in the new object has to be the stored one. A write
    /// that changes nothing is no write: it keeps its revision and wakes no watcher.
    pub(crate) fn replace(
        &mut self,
        target: Target<'_>,
        object: Value,
        part: Part,
        attempt: Attempt,
    ) -> Result<Value, Status> {
        let before = target.to_served(self.find(target)?);
        let mut object = admit::decode(target.resource, target.served, object)?;
        place(target, &mut object)?;
        check_identity(target, &before, &object)?;
        inherit(target.resource, &before, &mut object, part);
        if part != Part::Status {
            admit::default(target.resource, &mut object);
        }
        admit::validate(target.resource, target.served, &object, Some(&before))?;
        if object == before {
            return Ok(before);
        }
        if target.resource.row().has_generation
            && content(target.resource, &object) != content(target.resource, &before)
        {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            set_meta(&mut object, "generation", generation);
        }
        if !meta(&object, "deletionTimestamp").is_empty() && items(&object, "/metadata/finalizers").is_empty() {
            self.erase(target.resource, &target.key(), attempt);
            return Ok(object);
        }
        Ok(self.commit(target, object, attempt))
    }

    /// Patches an object, or a part of it. A resourceVersion that the patch sets has to be the stored one.
    pub(crate) fn patch(
        &mut self,
        target: Target<'_>,
        format: PatchFormat,
        body: &[u8],
        part: Part,
        attempt: Attempt,
    ) -> Result<Value, Status> {
        let before = target.to_served(self.find(target)?);
        let mut patched = format.apply(before.clone(), body)?;
        if !patched.get("metadata").is_none_or(Value::is_object) {
            return Err(Status::bad_request("metadata in the patched object is not an object"));
        }
        // Without a resourceVersion a patch applies to whatever is stored, also for kinds whose PUT demands one.
        if meta(&patched, "resourceVersion").is_empty() {
            carry_meta(&before, &mut patched, "resourceVersion");
        }
        self.replace(target, patched, part, attempt)
    }

    /// Deletes an object; a namespace takes everything in it along, in the same step. Returns the object's last
    /// state. An object with finalizers stays, marked, until they are gone.
    pub(crate) fn delete(
        &mut self,
        target: Target<'_>,
        preconditions: &Preconditions,
        attempt: Attempt,
    ) -> Result<Value, Status> {
        let before = target.to_served(self.find(target)?);
        check_preconditions(target, &before, preconditions)?;
        if target.resource == Resource::Namespaces {
            if INITIAL_NAMESPACES.contains(&target.name) {
                return Err(Status::forbidden(target.resource, target.name, "this namespace may not be deleted"));
            }
            self.empty_namespace(target.name, attempt);
        } else if !items(&before, "/metadata/finalizers").is_empty() {
            return Ok(self.mark_deleted(target, before, attempt));
        }
        self.erase(target.resource, &target.key(), attempt);
        Ok(before)
    }

    fn mark_deleted(&mut self, target: Target<'_>, mut object: Value, attempt: Attempt) -> Value {
        if !meta(&object, "deletionTimestamp").is_empty() {
            return object;
        }
        set_meta(&mut object, "deletionTimestamp", time(attempt.now));
        set_meta(&mut object, "deletionGracePeriodSeconds", 0);
        self.commit(target, object, attempt)
    }

    /// A namespace that is deleted takes also objects with finalizers: no lab may leave anything behind.
    fn empty_namespace(&mut self, namespace: &str, attempt: Attempt) {
        for resource in Resource::ALL.into_iter().filter(|resource| resource.row().namespaced) {
            let inside = |(key, _): (&Key, _)| (key.namespace == namespace).then(|| key.clone());
            let keys: Vec<Key> = self.store.objects(resource).filter_map(inside).collect();
            for key in keys {
                self.erase(resource, &key, attempt);
            }
        }
    }

    fn erase(&mut self, resource: Resource, key: &Key, attempt: Attempt) {
        if !attempt.dry_run
            && let Some(last) = self.store.remove(resource, key)
            && resource == Resource::Services
        {
            self.forget_addresses(&last);
        }
    }

    fn commit(&mut self, target: Target<'_>, object: Value, attempt: Attempt) -> Value {
        if attempt.dry_run {
            return object;
        }
        if target.resource == Resource::Services {
            if let Some(before) = self.store.get(target.resource, &Key::of(&object)).map(Arc::clone) {
                self.forget_addresses(&before);
            }
            self.addresses.extend(service::addresses(&object));
        }
        let stored = self.store.put(target.resource, convert::to_stored(target.resource, target.served, object));
        target.to_served(&stored)
    }

    fn forget_addresses(&mut self, service: &Value) {
        for address in service::addresses(service) {
            self.addresses.remove(&address);
        }
    }
}

/// Gives the object the namespace and name of the path, or refuses it when it says otherwise.
fn place(target: Target<'_>, object: &mut Value) -> Result<(), Status> {
    if !target.resource.row().namespaced {
        metadata_mut(object).remove("namespace");
    } else if meta(object, "namespace").is_empty() {
        set_meta(object, "namespace", target.namespace);
    } else if meta(object, "namespace") != target.namespace {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(message));
    }
    let name = meta(object, "name");
    if !target.name.is_empty() && name.is_empty() {
        set_meta(object, "name", target.name);
    } else if !target.name.is_empty() && name != target.name {
        let message = format!("the name of the object ({name}) does not match the name on the URL ({})", target.name);
        return Err(Status::bad_request(message));
    }
    Ok(())
}

/// Optimistic concurrency: the writer has to have seen the stored object.
fn check_identity(target: Target<'_>, before: &Value, object: &Value) -> Result<(), Status> {
    let (resource, name) = (target.resource, target.name);
    let uid = meta(object, "uid");
    if !uid.is_empty() && uid != meta(before, "uid") {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta(before, "uid"));
        return Err(Status::conflict(resource, name, &why));
    }
    let version = meta(object, "resourceVersion");
    if version.is_empty() && !resource.row().unconditional_put {
        let error = FieldError::invalid("metadata.resourceVersion", "0", "must be specified for an update");
        return Err(Status::invalid(resource, name, vec![error]));
    }
    if !version.is_empty() && version != meta(before, "resourceVersion") {
        return Err(Status::modified(resource, name));
    }
    Ok(())
}

/// Keeps what this write may not change.
fn inherit(resource: Resource, before: &Value, object: &mut Value, part: Part) {
    if part == Part::Status {
        let mut kept = before.clone();
        carry(object, &mut kept, "status");
        *object = kept;
        return;
    }
    for field in SYSTEM_FIELDS.into_iter().chain(["resourceVersion"]) {
        carry_meta(before, object, field);
    }
    for field in ["managedFields", "selfLink"] {
        metadata_mut(object).remove(field);
    }
    if part == Part::Main && resource.row().has_status {
        carry(before, object, "status");
    }
    // A real server keeps a Service's address when an update leaves it out.
    if resource == Resource::Services && text(object, "/spec/clusterIP").is_empty() && object["spec"].is_object() {
        carry(&before["spec"], &mut object["spec"], "clusterIP");
        carry(&before["spec"], &mut object["spec"], "clusterIPs");
    }
}

/// What `metadata.generation` counts the versions of.
fn content(resource: Resource, object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("metadata");
        if resource.row().has_status {
            fields.remove("status");
        }
    }
    object
}

fn check_preconditions(target: Target<'_>, found: &Value, wanted: &Preconditions) -> Result<(), Status> {
    let checks = [("UID", "uid", &wanted.uid), ("ResourceVersion", "resourceVersion", &wanted.resource_version)];
    for (label, field, wanted) in checks {
        let found = meta(found, field);
        if !wanted.is_empty() && wanted != found {
            let why =
                format!("Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {found}");
            return Err(Status::conflict(target.resource, target.name, &why));
        }
    }
    Ok(())
}

fn time(now: Timestamp) -> Value {
    serde_json::to_value(Time(now)).expect("a timestamp of this era has a text form")
}

#[cfg(test)]
mod tests;
