//! The annotation `splitsecond.dev/state`: what a split remembers of us while no controller runs. Pure.
//!
//! In: a [`Record`] and the wall clock, or the annotation's text and the wall clock. Out: the other one. Between replicas
//! and restarts only the wall clock is common, so the annotation holds times and the core holds spans; this file converts.
//! Deliberately no judgement: a clock that stepped makes spans wrong by that step, never negative.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use controller_core::facts::{MoveCause, Record, RecordedState};
use controller_core::weights::Weight;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// The annotation's key.
pub(crate) const ANNOTATION: &str = "splitsecond.dev/state";

/// Changes only when the meaning of a field changes; new fields do not change it.
const VERSION: u32 = 1;

/// What an object has of annotations. A JSON patch has to know: adding to a map that is not there is an error, and adding
/// the map where it is would wipe everyone else's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// None at all.
    #[default]
    NoMap,
    /// Some, ours not among them.
    NoEntry,
    /// Ours too.
    Entry,
}

impl Place {
    /// In an object's `metadata.annotations`.
    pub(crate) fn of<V>(annotations: Option<&BTreeMap<String, V>>) -> Self {
        match annotations {
            Some(annotations) if annotations.contains_key(ANNOTATION) => Self::Entry,
            Some(annotations) if !annotations.is_empty() => Self::NoEntry,
            Some(_) | None => Self::NoMap,
        }
    }
}

/// Why an annotation cannot be read. Whoever changed it has to change it back, or remove it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// Not the JSON that we write.
    Json(#[source] serde_json::Error),
    /// Written by a release whose records mean something else.
    Version(u32),
    /// A weight of `steady` is none.
    Weight { backend: String, error: controller_core::weights::WeightError },
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(error) => write!(f, "{error}"),
            Self::Version(version) => write!(f, "it has version {version}, this build reads {VERSION}"),
            Self::Weight { backend, error } => write!(f, "the weight of {backend} {error}"),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Text {
    version: u32,
    state: State,
    cause: Cause,
    epoch: u64,
    failovers: u32,
    /// When the state was entered.
    since: Timestamp,
    /// Before then there is no way back.
    not_before: Timestamp,
    /// As the object's own weights are written: `1`, `900m`.
    #[serde(default)]
    steady: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Steady,
    Failed,
    Probation,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Cause {
    Readiness,
    Connections,
}

/// The annotation's text for a record that is written at `wall`.
///
/// # Errors
///
/// Only when a span leads beyond the year 9999, which no setting does.
pub(crate) fn format(record: &Record, wall: Timestamp) -> Result<String, serde_json::Error> {
    let text = Text {
        version: VERSION,
        state: match record.state {
            RecordedState::Steady => State::Steady,
            RecordedState::Failed => State::Failed,
            RecordedState::Probation => State::Probation,
        },
        cause: match record.cause {
            MoveCause::Readiness => Cause::Readiness,
            MoveCause::Connections => Cause::Connections,
        },
        epoch: record.epoch,
        failovers: record.failovers,
        since: wall.saturating_sub(millis(record.age)).map_or(Timestamp::MIN, to_millis),
        not_before: wall.saturating_add(millis(record.dwell_left)).map_or(Timestamp::MAX, to_millis),
        steady: record.steady.iter().map(|(backend, weight)| (backend.clone(), weight.to_string())).collect(),
    };
    serde_json::to_string(&text)
}

/// The record in an annotation that is observed at `wall`.
///
/// # Errors
///
/// [`RecordError`].
pub(crate) fn parse(text: &str, wall: Timestamp) -> Result<Record, RecordError> {
    // The version is read first and alone: another one may have other fields.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_str(text).map_err(RecordError::Json)?;
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    let text: Text = serde_json::from_str(text).map_err(RecordError::Json)?;
    let mut steady = BTreeMap::new();
    for (backend, weight) in text.steady {
        match Weight::parse(&weight) {
            Ok(weight) => steady.insert(backend, weight),
            Err(error) => return Err(RecordError::Weight { backend, error }),
        };
    }
    Ok(Record {
        state: match text.state {
            State::Steady => RecordedState::Steady,
            State::Failed => RecordedState::Failed,
            State::Probation => RecordedState::Probation,
        },
        epoch: text.epoch,
        cause: match text.cause {
            Cause::Readiness => MoveCause::Readiness,
            Cause::Connections => MoveCause::Connections,
        },
        failovers: text.failovers,
        dwell_left: span(wall, text.not_before),
        age: span(text.since, wall),
        steady,
    })
}

/// From `earlier` to `later`; zero when they are the other way round.
fn span(earlier: Timestamp, later: Timestamp) -> Duration {
    later.duration_since(earlier).try_into().unwrap_or(Duration::ZERO)
}

/// Milliseconds are enough for people and keep the annotation short.
fn millis(span: Duration) -> SignedDuration {
    SignedDuration::from_millis(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))
}

fn to_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    fn mk_record(state: RecordedState, cause: MoveCause) -> Record {
        Record {
            state,
            epoch: 7,
            cause,
            failovers: 2,
            dwell_left: Duration::from_millis(60_000),
            age: Duration::from_millis(1_500),
            steady: BTreeMap::from([
                ("emoji-svc".to_owned(), Weight::ONE),
                ("emoji-svc-west".to_owned(), Weight::parse("900m").expect("a weight")),
            ]),
        }
    }

    #[test]
    fn a_record_survives_the_annotation_and_the_time_between() {
        let written = at("2026-11-22T10:00:00Z");
        for state in [RecordedState::Steady, RecordedState::Failed, RecordedState::Probation] {
            for cause in [MoveCause::Readiness, MoveCause::Connections] {
                let record = mk_record(state, cause);
                let text = format(&record, written).expect("writes");
                assert_eq!(parse(&text, written).expect("reads"), record);
                let later = parse(&text, at("2026-11-22T10:00:20.250Z")).expect("reads");
                assert_eq!(later.age, Duration::from_millis(21_750));
                assert_eq!(later.dwell_left, Duration::from_millis(39_750));
            }
        }
    }

    #[test]
    fn the_annotation_is_readable_by_people() {
        let text = format(&mk_record(RecordedState::Failed, MoveCause::Connections), at("2026-11-22T10:00:00.123456Z"));
        assert_eq!(
            text.expect("writes"),
            "{\"version\":1,\"state\":\"failed\",\"cause\":\"connections\",\"epoch\":7,\"failovers\":2,\
             \"since\":\"2026-11-22T09:59:58.623Z\",\"notBefore\":\"2026-11-22T10:01:00.123Z\",\
             \"steady\":{\"emoji-svc\":\"1\",\"emoji-svc-west\":\"900m\"}}"
        );
    }

    #[test]
    fn a_clock_that_stepped_back_makes_no_negative_span() {
        let text = format(&mk_record(RecordedState::Failed, MoveCause::Connections), at("2026-11-22T10:00:00Z"));
        let text = text.expect("writes");
        assert_eq!(parse(&text, at("2026-11-22T09:00:00Z")).expect("reads").age, Duration::ZERO);
        assert_eq!(parse(&text, at("2026-11-23T10:00:00Z")).expect("reads").dwell_left, Duration::ZERO);
    }

    #[test]
    fn spans_beyond_the_calendar_saturate() {
        let record = Record {
            dwell_left: Duration::MAX,
            age: Duration::MAX,
            ..mk_record(RecordedState::Failed, MoveCause::Readiness)
        };
        let now = at("2026-11-22T10:00:00Z");
        let read = parse(&format(&record, now).expect("writes"), now).expect("reads");
        assert!(read.dwell_left > Duration::from_secs(3_600 * 24 * 365 * 1_000));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let check = |text: &str, expected: &str| {
            let error = parse(text, at("2026-11-22T10:00:00Z")).expect_err("unreadable").to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        check("", "EOF while parsing");
        check("failed", "expected");
        check("{}", "missing field `version`");
        check("{\"version\":2,\"phase\":\"x\"}", "it has version 2, this build reads 1");
        let good = format(&mk_record(RecordedState::Failed, MoveCause::Readiness), at("2026-11-22T10:00:00Z"))
            .expect("writes");
        check(&good.replace("\"failed\"", "\"lost\""), "unknown variant `lost`");
        check(&good.replace("900m", "abc"), "the weight of emoji-svc-west is not a number");
        check(&good.replace("2026-11-22T09", "soon"), "");
    }
}
