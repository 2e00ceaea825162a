//! The actuator for TrafficSplit.
//!
//! In: one guarded write. Out: how it ended. A failover that has no answer after 150 ms is sent once more on the second
//! lane: the guard lets at most one of the two apply. Deliberately no reading back: the watch tells what became of a write
//! whose answer is missing.

use std::time::Duration;

use bytes::Bytes;
use controller_core::input::WriteOutcome;
use controller_core::output::{Direction, Write};
use futures::FutureExt;
use futures::future::{Either, select};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::lane::LaneError;
use super::{Job, Writer, patch};
use crate::clock;
use crate::cluster::{SplitVersion, revision};
use crate::record::{self, Place};

/// How long one request may take. A healthy API server takes 5 to 20 ms; longer than this the evidence is stale, and the
/// core decides again.
const REQUEST_DEADLINE: Duration = Duration::from_millis(500);

/// After so long without an answer a failover is sent a second time: well above a healthy server's slowest answers.
const HEDGE_AFTER: Duration = Duration::from_millis(150);

/// Who is named in `metadata.managedFields`.
const FIELD_MANAGER: &str = "splitsecond";

/// What a server answers when a `test` of a JSON patch fails; it does not say which.
const TEST_FAILED: &str = "the server rejected our request due to an error in our request";

/// How a write ended, and what the object now has of annotations, where that is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) outcome: WriteOutcome,
    pub(super) place: Option<Place>,
    /// Our annotation as it was sent.
    pub(super) record: Option<String>,
    /// Whether it may have been taken although nothing says so.
    pub(super) in_doubt: bool,
}

impl From<WriteOutcome> for Answer {
    fn from(outcome: WriteOutcome) -> Self {
        Self { outcome, place: None, record: None, in_doubt: false }
    }
}

/// Carries out one write.
pub(super) async fn write(writer: &Writer, job: &Job) -> Answer {
    let write = &job.write;
    if (writer.now)() >= write.expires {
        return WriteOutcome::Expired.into();
    }
    let Some(version) = *writer.version.borrow() else {
        return WriteOutcome::Failed("the TrafficSplit CRD is not served".to_owned()).into();
    };
    let record = match write.record.as_ref().map(|record| record::format(record, clock::wall())).transpose() {
        Ok(record) => record,
        Err(error) => return WriteOutcome::Refused(error.to_string()).into(),
    };
    let request = match request(job, version, record.as_deref()) {
        Ok(request) => request,
        Err(error) => return WriteOutcome::Refused(error).into(),
    };
    let (reply, other_in_doubt) = match write.direction {
        Direction::Failover => send_hedged(writer, write, &request).await,
        Direction::Spread | Direction::Ramp | Direction::Failback => (send(writer, 0, &request).await, false),
    };
    let in_doubt = other_in_doubt || is_in_doubt(&reply);
    let answer = match reply {
        Ok((status, body)) => read(status, &body, write, writer),
        Err(error) => WriteOutcome::Failed(error.to_string()).into(),
    };
    let is_applied = matches!(answer.outcome, WriteOutcome::Applied { .. });
    Answer { record, in_doubt: in_doubt && !is_applied, ..answer }
}

/// Whether a server may have done what was asked although the reply does not say so: there is none, the server itself
/// gave up waiting for its storage, or it said yes in a way that cannot be read.
fn is_in_doubt(reply: &Reply) -> bool {
    match reply {
        Ok((status, _)) => status.is_server_error() || status.is_success(),
        Err(LaneError::Transport(_) | LaneError::Deadline(_)) => true,
        Err(LaneError::Build(_)) => false,
    }
}

type Reply = Result<(StatusCode, Bytes), LaneError>;

async fn send(writer: &Writer, lane: usize, request: &Request<Bytes>) -> Reply {
    writer.lanes[lane].send(request.clone(), REQUEST_DEADLINE).await
}

/// The first answer that tells what became of the write, and whether the other request is in doubt. A second request that
/// is refused may only have lost against the first: then the first one's answer is waited for.
async fn send_hedged(writer: &Writer, write: &Write, request: &Request<Bytes>) -> (Reply, bool) {
    let first = send(writer, 0, request).boxed();
    let first = match select(first, tokio::time::sleep(HEDGE_AFTER).boxed()).await {
        Either::Left((reply, _)) => return (reply, false),
        Either::Right(((), first)) => first,
    };
    if (writer.now)() >= write.expires {
        return (first.await, false);
    }
    writer.counters.hedged();
    match select(first, send(writer, 1, request).boxed()).await {
        Either::Left((reply, other)) | Either::Right((reply, other)) => {
            if reply.as_ref().is_ok_and(|(status, _)| status.is_success()) {
                return (reply, false);
            }
            let late = other.await;
            let tells = late.as_ref().is_ok_and(|(status, _)| status.is_success()) || reply.is_err();
            let (reply, other) = if tells { (late, reply) } else { (reply, late) };
            let in_doubt = is_in_doubt(&other);
            (reply, in_doubt)
        }
    }
}

fn request(job: &Job, version: SplitVersion, record: Option<&str>) -> Result<Request<Bytes>, String> {
    let write = &job.write;
    let operations = patch::operations(write, version, job.place, record);
    let path = version.path(&write.split.namespace, &write.split.name);
    Request::builder()
        .method(Method::PATCH)
        .uri(format!("{path}?fieldManager={FIELD_MANAGER}"))
        .header(CONTENT_TYPE, "application/json-patch+json")
        .header(ACCEPT, "application/json")
        .body(Bytes::from(operations.to_string()))
        .map_err(|error| error.to_string())
}

fn read(status: StatusCode, body: &[u8], write: &Write, writer: &Writer) -> Answer {
    if status.is_success() {
        return match serde_json::from_slice::<Written>(body) {
            Ok(Written { metadata }) => Answer {
                place: Some(Place::of(metadata.annotations.as_ref())),
                ..WriteOutcome::Applied {
                    acknowledged: (writer.now)(),
                    // The guard held, so the server still counts as it did when the guard was read.
                    resource_version: revision::in_era_of(&write.resource_version, &metadata.resource_version),
                }
                .into()
            },
            Err(error) => WriteOutcome::Failed(format!("the answer cannot be read: {error}")).into(),
        };
    }
    refusal(status, body).into()
}

#[derive(Deserialize)]
struct Written {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// What an answer other than success says of the write.
fn refusal(status: StatusCode, body: &[u8]) -> WriteOutcome {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = answer.get("message").and_then(Value::as_str).unwrap_or("no reason given");
    let text = format!("{}: {message}", status.as_u16());
    match status {
        StatusCode::CONFLICT => WriteOutcome::Conflict,
        StatusCode::UNPROCESSABLE_ENTITY if message == TEST_FAILED => WriteOutcome::Conflict,
        StatusCode::NOT_FOUND => WriteOutcome::Gone,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => WriteOutcome::Failed(text),
        _ if status.is_client_error() => WriteOutcome::Refused(text),
        _ => WriteOutcome::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(status: u16, body: Value, expected: WriteOutcome) {
        let status = StatusCode::from_u16(status).expect("a status");
        assert_eq!(refusal(status, body.to_string().as_bytes()), expected);
    }

    fn said(message: &str) -> Value {
        json!({"kind": "Status", "message": message})
    }

    #[test]
    fn answers_are_told_apart_by_who_can_do_something() {
        check(409, said("the object has been modified"), WriteOutcome::Conflict);
        check(422, said(TEST_FAILED), WriteOutcome::Conflict);
        check(404, said("not found"), WriteOutcome::Gone);
        check(403, said("no right"), WriteOutcome::Refused("403: no right".into()));
        check(401, said("who?"), WriteOutcome::Refused("401: who?".into()));
        check(400, said("bad"), WriteOutcome::Refused("400: bad".into()));
        check(
            422,
            said("ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"),
            WriteOutcome::Refused("422: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no".into()),
        );
        check(
            422,
            said("TrafficSplit.split.smi-spec.io \"x\" is invalid: spec.backends"),
            WriteOutcome::Refused("422: TrafficSplit.split.smi-spec.io \"x\" is invalid: spec.backends".into()),
        );
        check(429, said("slow down"), WriteOutcome::Failed("429: slow down".into()));
        check(408, said("late"), WriteOutcome::Failed("408: late".into()));
        check(500, said("etcd"), WriteOutcome::Failed("500: etcd".into()));
        check(503, said("starting"), WriteOutcome::Failed("503: starting".into()));
        check(302, json!(null), WriteOutcome::Failed("302: no reason given".into()));
        check(502, json!("<html>"), WriteOutcome::Failed("502: no reason given".into()));
    }
}
