//! Which Events are news. Pure.
//!
//! In: the notes that are to be published on a split, and when. Out: whether to. A guard that comes and goes ten times a
//! second is one Event a minute: log, metrics and /state tell every change. Deliberately blind to Events about writes: each of
//! those happened.

use std::collections::BTreeMap;
use std::time::Duration;

use controller_core::Time;
use controller_core::facts::ObjectId;

/// From one Event to the next with the same note on the same split.
const QUIET: Duration = Duration::from_secs(60);

/// Notes that are remembered per split: there are about as many guards, and an object that is edited back and forth has two
/// faults.
const NOTES: usize = 32;

/// See the file's header.
#[derive(Debug, Default)]
pub(super) struct Notices {
    told: BTreeMap<ObjectId, BTreeMap<String, Time>>,
}

impl Notices {
    /// Whether `note` is to be published now.
    pub(super) fn admits(&mut self, split: &ObjectId, note: &str, now: Time) -> bool {
        let told = self.told.entry(split.clone()).or_default();
        if told.get(note).is_some_and(|at| now.since(*at) < QUIET) {
            return false;
        }
        if told.len() >= NOTES
            && let Some(oldest) = told.iter().min_by_key(|(_, at)| **at).map(|(note, _)| note.clone())
        {
            told.remove(&oldest);
        }
        told.insert(note.to_owned(), now);
        true
    }

    /// The split is gone.
    pub(super) fn on_gone(&mut self, split: &ObjectId) {
        self.told.remove(split);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(1_000_000_000) + Duration::from_secs(seconds)
    }

    #[test]
    fn two_guards_that_alternate_are_two_events_a_minute() {
        let mut notices = Notices::default();
        let split = ObjectId::new("demo", "emoji");
        let mut published = 0;
        for second in 0..120 {
            let note = if second % 2 == 0 { "no other backend" } else { "too few agents" };
            published += u32::from(notices.admits(&split, note, at(second)));
        }
        assert_eq!(published, 4);
    }

    #[test]
    fn splits_are_told_apart_and_forgotten() {
        let mut notices = Notices::default();
        let (one, other) = (ObjectId::new("demo", "one"), ObjectId::new("demo", "other"));
        assert!(notices.admits(&one, "x", at(0)) && notices.admits(&other, "x", at(0)));
        notices.on_gone(&one);
        assert!(notices.admits(&one, "x", at(1)), "a new split of the same name");
        assert!(!notices.admits(&other, "x", at(1)));
    }

    #[test]
    fn notes_without_end_take_no_memory_without_end() {
        let mut notices = Notices::default();
        let split = ObjectId::new("demo", "emoji");
        for number in 0..1_000 {
            assert!(notices.admits(&split, &number.to_string(), at(number)));
        }
        assert_eq!(notices.told[&split].len(), NOTES);
    }
}
