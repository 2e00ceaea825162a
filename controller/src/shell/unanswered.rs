//! Writes whose answers were lost: whether they were taken, the watch tells. Pure.
//!
//! In: writes that may have been taken, and splits as they are seen. Out: the Event of a write that shows in its object, once.
//! What we wrote is known by our annotation, which holds the millisecond of the decision, word for word: no other replica's
//! says the same. A write that removed the annotation is known by its weights and the missing annotation; two replicas whose
//! answers were both lost may then both say that traffic is back. Deliberately no claim about state: that the core adopts
//! from the same observation by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use controller_core::Time;
use controller_core::facts::{ObjectId, SplitFacts};
use controller_core::output::Write;
use controller_core::weights::Weight;

use crate::cluster::SplitObject;

/// How long a lost write is looked for: as long as an Event is tried. An outage that lasts longer than this ends with a
/// list, and what it shows is news to nobody.
const LOOKED_FOR: Duration = Duration::from_secs(60);

/// Lost writes per split. The core asks for a next one at the earliest when the one before was given up.
const PER_SPLIT: usize = 8;

/// A write that may have been taken.
#[derive(Debug)]
struct Lost {
    write: Write,
    record: Option<String>,
    at: Time,
}

/// See the file's header.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    splits: BTreeMap<ObjectId, Vec<Lost>>,
    /// How each split was seen last: the watch is often faster than the time after which an answer counts as lost.
    seen: BTreeMap<ObjectId, Seen>,
}

/// A split as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    object: SplitObject,
    weights: Vec<(String, Weight)>,
}

impl Unanswered {
    /// A write may have been taken; `record` is our annotation as it was sent. Only one that has an Event is looked for.
    /// The note of the Event that is now due, if one is, and how the object was seen.
    pub(super) fn on_lost(
        &mut self,
        write: &Write,
        record: Option<String>,
        now: Time,
    ) -> Option<(String, SplitObject)> {
        write.event.as_ref()?;
        let lost = self.splits.entry(write.split.clone()).or_default();
        if lost.len() == PER_SPLIT {
            lost.remove(0);
        }
        lost.push(Lost { write: write.clone(), record, at: now });
        self.look(&write.split, now)
    }

    /// A later write was taken: its guard says that none of the earlier ones was taken after what it was decided on.
    pub(super) fn on_applied(&mut self, split: &ObjectId) {
        self.splits.remove(split);
    }

    /// The split is gone.
    pub(super) fn on_gone(&mut self, split: &ObjectId) {
        self.splits.remove(split);
        self.seen.remove(split);
    }

    /// A split is as `facts` and `object` say. As [`Unanswered::on_lost`].
    pub(super) fn on_seen(
        &mut self,
        split: &ObjectId,
        facts: &SplitFacts,
        object: SplitObject,
        now: Time,
    ) -> Option<(String, SplitObject)> {
        let weights = facts.backends.iter().map(|backend| (backend.service.clone(), backend.weight)).collect();
        self.seen.insert(split.clone(), Seen { object, weights });
        self.look(split, now)
    }

    fn look(&mut self, split: &ObjectId, now: Time) -> Option<(String, SplitObject)> {
        let lost = self.splits.get_mut(split)?;
        let seen = self.seen.get(split)?;
        lost.retain(|lost| now.since(lost.at) <= LOOKED_FOR && lost.write.uid == seen.object.uid);
        let shows = lost.iter().position(|lost| lost.shows(seen));
        let note = shows.map(|index| lost.remove(index)).and_then(|lost| lost.write.event);
        if lost.is_empty() {
            self.splits.remove(split);
        }
        Some((note?, seen.object.clone()))
    }
}

impl Lost {
    fn shows(&self, seen: &Seen) -> bool {
        // The guarded version itself is what was there before.
        seen.object.resource_version != self.write.resource_version
            && seen.object.record == self.record
            && seen.weights == self.write.weights
    }
}

#[cfg(test)]
mod tests {
    use controller_core::facts::{BackendFacts, MoveCause};
    use controller_core::output::{Direction, WriteId};

    use super::*;
    use crate::record::Place;

    const NOTE: &str = "trafficsplit/emoji failing over to fallbacks";

    fn split() -> ObjectId {
        ObjectId::new("demo", "emoji")
    }

    fn mk_write() -> Write {
        Write {
            id: WriteId(1),
            split: split(),
            uid: "u-1".into(),
            resource_version: "17".into(),
            weights: vec![("web".into(), Weight::ZERO), ("web-west".into(), Weight::ONE)],
            record: None,
            direction: Direction::Failover,
            cause: MoveCause::Readiness,
            decided: Time(0),
            expires: Time(1),
            event: Some(NOTE.to_owned()),
        }
    }

    fn mk_seen(version: &str, weights: [Weight; 2], record: Option<&str>) -> (SplitFacts, SplitObject) {
        let backend = |service: &str, weight| BackendFacts { service: service.into(), weight };
        let facts = SplitFacts {
            uid: "u-1".into(),
            resource_version: version.into(),
            generation: 1,
            service: "web".into(),
            backends: vec![backend("web", weights[0]), backend("web-west", weights[1])],
            primary: None,
            port: None,
            single_node: false,
            check_all_ports: false,
            record: None,
        };
        let record = record.map(ToOwned::to_owned);
        let object = SplitObject { uid: "u-1".into(), resource_version: version.into(), place: Place::NoEntry, record };
        (facts, object)
    }

    const MOVED: [Weight; 2] = [Weight::ZERO, Weight::ONE];
    const STEADY: [Weight; 2] = [Weight::ONE, Weight::ZERO];

    #[track_caller]
    fn check(record: Option<&str>, seen: (SplitFacts, SplitObject), after_s: u64, expected: Option<&str>) {
        let mut unanswered = Unanswered::default();
        assert_eq!(unanswered.on_lost(&mk_write(), record.map(ToOwned::to_owned), Time(0)), None);
        let now = Time(0) + Duration::from_secs(after_s);
        let (facts, object) = seen;
        let told = unanswered.on_seen(&split(), &facts, object.clone(), now);
        assert_eq!(told.as_ref().map(|(note, _)| note.as_str()), expected);
        assert_eq!(unanswered.on_seen(&split(), &facts, object.clone(), now), None, "once");
        // The watch may also have been faster than the loss.
        let mut unanswered = Unanswered::default();
        unanswered.on_seen(&split(), &facts, object, now);
        let told = unanswered.on_lost(&mk_write(), record.map(ToOwned::to_owned), now);
        assert_eq!(told.is_some(), expected.is_some() || after_s > 60 && facts.backends[0].weight.is_zero());
    }

    #[test]
    fn a_write_that_shows_is_told_once() {
        check(Some("ours"), mk_seen("18", MOVED, Some("ours")), 1, Some(NOTE));
        check(None, mk_seen("18", MOVED, None), 1, Some(NOTE));
    }

    #[test]
    fn what_another_replica_or_a_person_wrote_is_not_ours_to_tell() {
        check(Some("ours"), mk_seen("18", MOVED, Some("theirs")), 1, None);
        check(Some("ours"), mk_seen("18", MOVED, None), 1, None);
        check(Some("ours"), mk_seen("18", STEADY, Some("ours")), 1, None);
        check(None, mk_seen("17", MOVED, None), 1, None);
    }

    #[test]
    fn after_a_minute_it_is_news_to_nobody() {
        check(Some("ours"), mk_seen("18", MOVED, Some("ours")), 61, None);
    }

    #[test]
    fn a_later_write_that_was_taken_ends_the_doubt() {
        let mut unanswered = Unanswered::default();
        unanswered.on_lost(&mk_write(), Some("ours".into()), Time(0));
        unanswered.on_applied(&split());
        let (facts, object) = mk_seen("18", MOVED, Some("ours"));
        assert_eq!(unanswered.on_seen(&split(), &facts, object, Time(1)), None);
    }

    #[test]
    fn an_object_of_another_uid_is_another_object() {
        let mut unanswered = Unanswered::default();
        unanswered.on_lost(&mk_write(), Some("ours".into()), Time(0));
        let (facts, object) = mk_seen("18", MOVED, Some("ours"));
        let object = SplitObject { uid: "u-2".into(), ..object };
        assert_eq!(unanswered.on_seen(&split(), &facts, object, Time(1)), None);
        assert!(unanswered.splits.is_empty());
    }
}
