//! Kubernetes Events about splits: published beside the writes, never in their way.
//!
//! In: [`Announcement`]s. Out: `events.k8s.io/v1` objects, each tried for up to a minute. Deliberately lossy: an Event that
//! cannot be published is counted and logged, and a full queue drops the newest. Reason, action, type and note of a failover
//! are those of linkerd-failover.

use std::time::Duration;

use controller_core::Time;
use controller_core::facts::ObjectId;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::StatusCode;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::mpsc;

use super::counters::Counters;
use crate::cluster::{Chain, SplitObject, SplitVersion, revision};

/// Announcements that wait for a place: one for each of 1,000 splits that move at once.
pub(crate) const QUEUE: usize = 1_024;

/// Publications under way at the same time. Few: they share the API server with the writes.
const IN_FLIGHT: usize = 8;

/// How long an Event is tried.
const TRIED_FOR: Duration = Duration::from_secs(60);

/// How long one try may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Pause after the first failed try; doubles up to [`PAUSE_LAST`].
const PAUSE_FIRST: Duration = Duration::from_millis(250);

/// See [`PAUSE_FIRST`].
const PAUSE_LAST: Duration = Duration::from_secs(8);

/// `reportingController`.
const CONTROLLER: &str = "splitsecond.dev/controller";

/// Kubernetes' limit for `note` (events.k8s.io/v1).
const NOTE_BYTES: usize = 1_024;

/// Kubernetes' limit for `reportingInstance`.
const INSTANCE_BYTES: usize = 128;

/// One Event to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announcement {
    /// The split that it is about.
    pub(crate) split: ObjectId,
    /// The same, as a reference.
    pub(crate) object: SplitObject,
    /// `reason` and `action`.
    pub(crate) reason: &'static str,
    /// `note`.
    pub(crate) note: String,
    /// `eventTime`: when it happened, not when it was published.
    pub(crate) at: Timestamp,
}

/// What publishes Events.
pub(crate) struct Publisher {
    /// Not the writes' client.
    pub(crate) client: Client,
    /// The version that references name.
    pub(crate) version: tokio::sync::watch::Receiver<Option<SplitVersion>>,
    /// `reportingInstance`: this replica.
    pub(crate) instance: String,
    /// How publications ended.
    pub(crate) counters: Counters,
    /// The controller's clock.
    pub(crate) now: fn() -> Time,
}

/// How a publication ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Published,
    /// The server would refuse it again.
    Refused,
    /// A minute was not enough.
    GivenUp,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Refused => "refused",
            Self::GivenUp => "given-up",
        }
    }
}

/// Queues an announcement, or drops and counts it.
pub(crate) fn announce(queue: &mpsc::Sender<Announcement>, counters: &Counters, announcement: Announcement) {
    if let Err(refused) = queue.try_send(announcement) {
        let announcement = refused.into_inner();
        counters.event("dropped");
        tracing::warn!(
            namespace = announcement.split.namespace,
            split = announcement.split.name,
            reason = announcement.reason,
            "Event was dropped because too many wait"
        );
    }
}

/// Publishes until `queue` ends and the last one is out, or given up.
pub(crate) async fn run(publisher: Publisher, mut queue: mpsc::Receiver<Announcement>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = running.next() => {}
            announcement = queue.recv(), if running.len() < IN_FLIGHT => match announcement {
                Some(announcement) => running.push(publisher.publish(announcement)),
                None => break,
            },
        }
    }
    while let Some(()) = running.next().await {}
}

impl Publisher {
    async fn publish(&self, announcement: Announcement) {
        let event = self.event(&announcement);
        let api: Api<Event> = Api::namespaced(self.client.clone(), &announcement.split.namespace);
        let started = (self.now)();
        let mut pause = PAUSE_FIRST;
        let (outcome, error) = loop {
            let error = match tokio::time::timeout(REQUEST_DEADLINE, api.create(&PostParams::default(), &event)).await {
                // What the server took and then showed in a way that we cannot read is published all the same.
                Ok(Ok(_) | Err(kube::Error::SerdeError(_))) => break (Outcome::Published, None),
                Ok(Err(error)) if is_final(&error) => break (Outcome::Refused, Some(Chain(&error).to_string())),
                Ok(Err(error)) => Chain(&error).to_string(),
                Err(_) => format!("no answer within {REQUEST_DEADLINE:?}"),
            };
            if (self.now)().since(started) + pause > TRIED_FOR {
                break (Outcome::GivenUp, Some(error));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LAST);
        };
        self.counters.event(outcome.as_str());
        if let Some(error) = error {
            let Announcement { split, reason, .. } = &announcement;
            tracing::warn!(namespace = split.namespace, split = split.name, reason, error, "Event was not published");
        }
    }

    fn event(&self, announcement: &Announcement) -> Event {
        let Announcement { split, object, reason, note, at } = announcement;
        Event {
            metadata: ObjectMeta {
                generate_name: Some("splitsecond-".to_owned()),
                namespace: Some(split.namespace.clone()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(*at)),
            reason: Some((*reason).to_owned()),
            action: Some((*reason).to_owned()),
            type_: Some(event_type(reason).to_owned()),
            note: Some(cut(note, NOTE_BYTES).to_owned()),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(cut(&self.instance, INSTANCE_BYTES).to_owned()),
            regarding: Some(ObjectReference {
                api_version: self.version.borrow().map(SplitVersion::api_version),
                kind: Some("TrafficSplit".to_owned()),
                namespace: Some(split.namespace.clone()),
                name: Some(split.name.clone()),
                uid: Some(object.uid.clone()),
                resource_version: Some(revision::raw(&object.resource_version)),
                ..ObjectReference::default()
            }),
            ..Event::default()
        }
    }
}

/// A failover is what the system is for; what holds it back is for somebody to look at.
fn event_type(reason: &str) -> &'static str {
    if reason == FAILOVER { "Normal" } else { "Warning" }
}

/// The reason of Events about writes, kept from linkerd-failover.
pub(crate) const FAILOVER: &str = "Failover";

/// The reason of Events about objects that cannot be carried out as they stand.
pub(crate) const INVALID_POLICY: &str = "InvalidPolicy";

/// Whether the server would say the same again. A name that is taken (409) is generated anew.
fn is_final(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    StatusCode::from_u16(status.code).is_ok_and(|status| {
        status.is_client_error()
            && !matches!(status, StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    })
}

/// At most so many bytes of `text`, whole characters.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}
