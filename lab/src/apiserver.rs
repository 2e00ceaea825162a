//! The embedded Kubernetes API server. HTTP requests of kubectl and kube-rs, and direct calls of the lab, come in;
//! objects, watch events and refusals in the shapes of Kubernetes go out.
//!
//! It makes the drill and the tests run anywhere in seconds and proves nothing about a real cluster: the same suite
//! runs against the real kube-apiserver. It does what the project's parts use (discovery, list, watch, create, merge
//! and JSON patch, status, delete, Events, leases, Tables) and refuses the rest: no server-side apply, no strategic
//! merge, no admission webhooks, no permissions. Events never expire.
//!
//! From the inside out: `store` (objects, revision, history), `registry` (rules of writing) with `admit` (rules of
//! kinds), `list` and `watch` (reading), `form` and `table` (what an answer looks like), `http` and `serve` (the
//! wire).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch::{Receiver, Sender};

mod admit;
mod audit;
mod convert;
mod discovery;
mod form;
mod http;
mod list;
mod object;
mod patch;
mod query;
mod registry;
mod resources;
mod route;
mod select;
mod serve;
mod status;
mod store;
mod table;
mod watch;

pub use audit::Request;
pub use resources::{Resource, Row, Served};
pub use status::Status;

use audit::Audit;
use object::{meta, text};
use registry::{Attempt, Part, Preconditions, Registry, Target};

/// How often `update_with` tries again when somebody else wrote in between. The lab's own writers are few.
const UPDATE_ATTEMPTS: usize = 100;

/// A handle on one API server. Clones are handles on the same one.
#[derive(Clone, Debug)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Mutex<Registry>,
    /// Per kind the revision of its newest write: what wakes watches.
    signals: BTreeMap<Resource, Sender<u64>>,
    faults: Sender<Faults>,
    listeners: Sender<Listeners>,
    /// Refusals that a test scripted for the next writes.
    refusals: Mutex<VecDeque<Status>>,
    /// How many of the next writes get no answer.
    unanswered: Mutex<usize>,
    /// Kinds that are not served at present.
    withheld: Mutex<BTreeSet<Resource>>,
    audit: Mutex<Audit>,
}

/// How a server comes back from [`ApiServer::restart`]. Its objects stay in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// With everything that it knew: whoever watched goes on where it was.
    Whole,
    /// Without the history of changes: whoever wants to go on from an old version is answered 410.
    Compacted,
    /// With new versions for all objects, counted from here: what they were before says nothing of what they are now.
    /// Below the old ones, as after a restore of older storage, a watch from an old version waits for the counting to
    /// come so far, and says nothing until then; real servers do so too.
    Renumbered(u64),
}

/// What is wrong with the server at the moment, on request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) serving: bool,
    latency: Duration,
}

/// Calls of `serve` that are running, and how many of them listen.
#[derive(Clone, Copy, Debug, Default)]
struct Listeners {
    running: usize,
    listening: usize,
}

/// Counts one listener for as long as it lives.
pub(crate) struct Counted<'a> {
    listeners: &'a Sender<Listeners>,
    field: fn(&mut Listeners) -> &mut usize,
}

impl<'a> Counted<'a> {
    fn new(listeners: &'a Sender<Listeners>, field: fn(&mut Listeners) -> &mut usize) -> Self {
        listeners.send_modify(|listeners| *field(listeners) += 1);
        Self { listeners, field }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let field = self.field;
        self.listeners.send_modify(|listeners| *field(listeners) -= 1);
    }
}

impl Default for ApiServer {
    fn default() -> Self {
        Self::new()
    }
}

impl ApiServer {
    /// A server that holds the initial namespaces and nothing else.
    #[must_use]
    pub fn new() -> Self {
        Self::with_history(store::HISTORY_LIMIT)
    }

    /// A server that keeps only the last `changes` changes of each kind for watches, so that a test reaches 410 soon.
    #[must_use]
    pub fn with_history(changes: usize) -> Self {
        let now = Self::now();
        // Names and uids only have to differ from those of other servers, so that the time is seed enough.
        let seed = u64::try_from(now.as_nanosecond()).unwrap_or_default();
        let registry = Registry::new(seed, changes, now);
        let signals =
            Resource::ALL.into_iter().map(|resource| (resource, Sender::new(registry.store().latest(resource))));
        let inner = Inner {
            signals: signals.collect(),
            registry: Mutex::new(registry),
            faults: Sender::new(Faults { serving: true, latency: Duration::ZERO }),
            listeners: Sender::new(Listeners::default()),
            refusals: Mutex::new(VecDeque::new()),
            unanswered: Mutex::new(0),
            withheld: Mutex::new(BTreeSet::new()),
            audit: Mutex::new(Audit::default()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Serves HTTP/1.1 and HTTP/2 (without TLS) on a listener until the returned future is dropped, which breaks its
    /// connections. May be called for several listeners, in any network namespace.
    ///
    /// # Errors
    /// When the listener cannot be used, or cannot listen again after an outage.
    pub async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        serve::run(self, listener).await
    }

    /// The text of a kubeconfig for a server at this URL, for example `http://198.51.100.1:8080`.
    #[must_use]
    pub fn kubeconfig(url: &str) -> String {
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: lab\n  cluster:\n    server: {url}\n\
             users:\n\
             - name: lab\n  user: {{}}\n\
             contexts:\n\
             - name: lab\n  context:\n    cluster: lab\n    user: lab\n    namespace: default\n\
             current-context: lab\n"
        )
    }

    /// Creates an object, status included. Its kind is read from `apiVersion` and `kind`, its namespace from
    /// `metadata`.
    ///
    /// # Errors
    /// As the wire answers: 404 for an unknown kind or namespace, 409 when the name is taken, 422 when it is invalid.
    pub fn create(&self, object: Value) -> Result<Value, Status> {
        let (resource, served) = kind_of(&object)?;
        let namespace = meta(&object, "namespace").to_owned();
        let target = Target { resource, served, namespace: &namespace, name: "" };
        self.write(false, |registry, attempt| registry.create(target, object, Part::Whole, attempt))
    }

    /// Creates an object without looking at its content: one that an older schema let through, or that somebody put into
    /// the storage itself. Every reader has to live with such an object.
    ///
    /// # Errors
    /// 404 for an unknown kind or namespace, 409 when the name is taken.
    pub fn plant(&self, object: Value) -> Result<Value, Status> {
        let (resource, served) = kind_of(&object)?;
        let namespace = meta(&object, "namespace").to_owned();
        let target = Target { resource, served, namespace: &namespace, name: "" };
        self.write(false, |registry, attempt| registry.plant(target, object, attempt))
    }

    /// Creates an object or replaces the one of its name, status included.
    ///
    /// # Errors
    /// As `create`, without 409; as `update_with` when the object carries a resourceVersion.
    pub fn put(&self, mut object: Value) -> Result<Value, Status> {
        let (resource, served) = kind_of(&object)?;
        let (namespace, name) = (meta(&object, "namespace").to_owned(), meta(&object, "name").to_owned());
        let target = Target { resource, served, namespace: &namespace, name: &name };
        self.write(false, |registry, attempt| match registry.get(target) {
            Ok(found) => {
                if meta(&object, "resourceVersion").is_empty() {
                    object::carry_meta(&found, &mut object, "resourceVersion");
                }
                registry.replace(target, object, Part::Whole, attempt)
            }
            Err(_) => registry.create(Target { name: "", ..target }, object, Part::Whole, attempt),
        })
    }

    /// Changes an object, status included, as one step: when somebody else writes in between, `change` is called
    /// again with the newer object. Objects are in the stored version (TrafficSplits v1alpha1). The namespace is
    /// empty for cluster-scoped kinds.
    ///
    /// # Errors
    /// 404 when there is no such object, 422 when the changed one is invalid.
    pub fn update_with(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        mut change: impl FnMut(&mut Value),
    ) -> Result<Value, Status> {
        let target = Target { resource, served: resource.stored(), namespace, name };
        let mut outcome = Err(Status::modified(resource, name));
        for _ in 0..UPDATE_ATTEMPTS {
            let mut object = self.registry().get(target)?;
            change(&mut object);
            outcome = self.write(false, |registry, attempt| registry.replace(target, object, Part::Whole, attempt));
            if !matches!(&outcome, Err(status) if status.reason() == "Conflict") {
                break;
            }
        }
        outcome
    }

    /// The object, in the stored version.
    ///
    /// # Errors
    /// 404 when there is no such object.
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Result<Value, Status> {
        self.registry().get(Target { resource, served: resource.stored(), namespace, name })
    }

    /// All objects of a kind, or those of one namespace, in the stored version and in order of namespace and name.
    #[must_use]
    pub fn list(&self, resource: Resource, namespace: Option<&str>) -> Vec<Value> {
        let registry = self.registry();
        let inside = |key: &store::Key| namespace.is_none_or(|namespace| key.namespace == namespace);
        registry
            .store()
            .objects(resource)
            .filter(|(key, _)| inside(key))
            .map(|(_, object)| Value::clone(object))
            .collect()
    }

    /// Deletes an object; a namespace with everything in it. Returns its last state.
    ///
    /// # Errors
    /// 404 when there is no such object, 403 for the initial namespaces.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<Value, Status> {
        let target = Target { resource, served: resource.stored(), namespace, name };
        self.write(false, |registry, attempt| registry.delete(target, &Preconditions::default(), attempt))
    }

    /// Revision of the newest write: the resourceVersion that a list would show now.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.registry().store().revision()
    }

    /// Begins an outage: breaks every connection and refuses new ones. Objects stay. Returns when no listener serves
    /// any more.
    pub async fn stop(&self) {
        self.inner.faults.send_modify(|faults| faults.serving = false);
        self.await_listeners(|listeners| listeners.listening == 0).await;
    }

    /// Ends an outage. Returns when every listener accepts connections again.
    pub async fn start(&self) {
        self.inner.faults.send_modify(|faults| faults.serving = true);
        self.await_listeners(|listeners| listeners.listening == listeners.running).await;
    }

    /// Dies and comes back: every connection breaks, and between the two nothing is answered. Returns when every listener
    /// accepts connections again.
    pub async fn restart(&self, how: Restart) {
        self.stop().await;
        self.write(false, |registry, _| match how {
            Restart::Whole => {}
            Restart::Compacted => registry.store_mut().compact(),
            Restart::Renumbered(first) => registry.store_mut().renumber(first),
        });
        self.start().await;
    }

    /// Serves a kind no more, as a cluster does whose CustomResourceDefinition is missing; its objects stay. Watches that
    /// run go on: a real server ends them, which [`ApiServer::restart`] does too.
    ///
    /// # Panics
    /// Never in practice: no code panics while it holds the set.
    pub fn withhold(&self, resource: Resource) {
        self.withheld().insert(resource);
    }

    /// Serves a kind again.
    ///
    /// # Panics
    /// As [`ApiServer::withhold`].
    pub fn serve_again(&self, resource: Resource) {
        self.withheld().remove(&resource);
    }

    pub(crate) fn served(&self) -> Vec<Resource> {
        let withheld = self.withheld();
        Resource::ALL.into_iter().filter(|resource| !withheld.contains(resource)).collect()
    }

    pub(crate) fn is_withheld(&self, resource: Resource) -> bool {
        self.withheld().contains(&resource)
    }

    fn withheld(&self) -> MutexGuard<'_, BTreeSet<Resource>> {
        self.inner.withheld.lock().expect("no code panics while it holds the set")
    }

    /// Everything that was asked over the wire, oldest first; the last 65,536 requests.
    ///
    /// # Panics
    /// Never in practice: no code panics while it holds the list.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.inner.audit.lock().expect("no code panics while it holds the list").requests()
    }

    pub(crate) fn keep(&self, request: Request) {
        self.inner.audit.lock().expect("no code panics while it holds the list").keep(request);
    }

    /// Carries out the next `count` requests over the wire that are not reads, and answers them with nothing but silence.
    ///
    /// # Panics
    /// Never in practice: no code panics while it holds the number.
    pub fn leave_unanswered(&self, count: usize) {
        *self.inner.unanswered.lock().expect("no code panics while it holds the number") += count;
    }

    /// Takes one from what [`ApiServer::leave_unanswered`] left.
    pub(crate) fn takes_silence(&self) -> bool {
        let mut left = self.inner.unanswered.lock().expect("no code panics while it holds the number");
        let takes = *left > 0;
        *left = left.saturating_sub(1);
        takes
    }

    async fn await_listeners(&self, reached: impl FnMut(&Listeners) -> bool) {
        let waited = self.inner.listeners.subscribe().wait_for(reached).await.map(drop);
        waited.expect("the sender lives as long as this handle");
    }

    /// Adds this time to every request from now on. Watches that are already running are not slowed down.
    pub fn set_latency(&self, latency: Duration) {
        self.inner.faults.send_modify(|faults| faults.latency = latency);
    }

    /// Answers the next `count` requests that are not reads with this status. Direct calls of the lab are not refused.
    ///
    /// # Panics
    /// Never in practice: no code panics while it holds the list.
    pub fn refuse_writes(&self, count: usize, status: &Status) {
        let mut refusals = self.inner.refusals.lock().expect("no code panics while it holds the list");
        refusals.extend(std::iter::repeat_n(status, count).cloned());
    }

    pub(crate) fn scripted_refusal(&self) -> Result<(), Status> {
        let refusal = self.inner.refusals.lock().expect("no code panics while it holds the list").pop_front();
        refusal.map_or(Ok(()), Err)
    }

    pub(crate) fn latency(&self) -> Duration {
        self.inner.faults.borrow().latency
    }

    pub(crate) fn faults(&self) -> Receiver<Faults> {
        self.inner.faults.subscribe()
    }

    pub(crate) fn count_loop(&self) -> Counted<'_> {
        Counted::new(&self.inner.listeners, |listeners| &mut listeners.running)
    }

    pub(crate) fn count_listening(&self) -> Counted<'_> {
        Counted::new(&self.inner.listeners, |listeners| &mut listeners.listening)
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.inner.registry.lock().expect("no code panics while it holds the registry")
    }

    /// A receiver that sees every later write of this kind.
    pub(crate) fn signal(&self, resource: Resource) -> Receiver<u64> {
        self.inner.signals.get(&resource).expect("every resource has its signal from the start").subscribe()
    }

    /// Writes as one step and wakes the watches of every kind that was written.
    pub(crate) fn write<T>(&self, dry_run: bool, step: impl FnOnce(&mut Registry, Attempt) -> T) -> T {
        let mut registry = self.registry();
        let outcome = step(&mut registry, Attempt { now: Self::now(), dry_run });
        // Still under the lock, so that revisions are signalled in their order.
        for (resource, signal) in &self.inner.signals {
            let latest = registry.store().latest(*resource);
            signal.send_if_modified(|seen| std::mem::replace(seen, latest) != latest);
        }
        outcome
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the edge where the server's wall clock is read, for creation times and ages"
    )]
    pub(crate) fn now() -> Timestamp {
        Timestamp::try_from(SystemTime::now()).expect("the clock is within the years that a timestamp can hold")
    }
}

fn kind_of(object: &Value) -> Result<(Resource, Served), Status> {
    let (api_version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    Resource::of_kind(api_version, kind)
        .ok_or_else(|| Status::bad_request(format!("no kind {kind:?} in version {api_version:?} is served here")))
}
