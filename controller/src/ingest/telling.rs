//! How often the same fault of the same peer is told. Pure.
//!
//! In: whose fault, of which kind, and when. Out: whether to log it, and how many were not logged since the last. A port
//! scanner, or an agent of a version that does not fit, comes back several times a second; every fault is counted, and the
//! log gets one line per peer and kind in ten seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use controller_core::Time;

/// From one line to the next about the same.
const QUIET: Duration = Duration::from_secs(10);

/// Peers and kinds that are remembered. A scanner with more addresses than this gets more lines than one with fewer.
const KNOWN: usize = 1_024;

/// Who, and what.
type Key = (String, &'static str);

/// See the file's header.
#[derive(Debug, Default)]
pub(super) struct Telling {
    told: BTreeMap<Key, (Time, u64)>,
}

impl Telling {
    /// `None` when it is not to be told; else how many of the same were not.
    pub(super) fn admits(&mut self, who: &str, kind: &'static str, now: Time) -> Option<u64> {
        let key = (who.to_owned(), kind);
        match self.told.get_mut(&key) {
            Some((at, hushed)) if now.since(*at) < QUIET => {
                *hushed += 1;
                None
            }
            Some(known) => {
                let (_, hushed) = std::mem::replace(known, (now, 0));
                Some(hushed)
            }
            None => {
                self.make_room();
                self.told.insert(key, (now, 0));
                Some(0)
            }
        }
    }

    fn make_room(&mut self) {
        if self.told.len() < KNOWN {
            return;
        }
        if let Some(oldest) = self.told.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone()) {
            self.told.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(1_000_000_000) + Duration::from_millis(ms)
    }

    #[test]
    fn one_line_in_ten_seconds_says_how_many_there_were() {
        let mut telling = Telling::default();
        let told: Vec<_> =
            (0..201).filter_map(|turn| telling.admits("198.18.0.1", "version", at(turn * 100))).collect();
        assert_eq!(told, [0, 99, 99]);
    }

    #[test]
    fn another_peer_or_another_kind_is_news() {
        let mut telling = Telling::default();
        for (who, kind) in [("198.18.0.1", "version"), ("198.18.0.1", "address"), ("198.18.0.2", "version")] {
            assert_eq!(telling.admits(who, kind, at(0)), Some(0));
        }
    }

    #[test]
    fn peers_without_end_take_no_memory_without_end() {
        let mut telling = Telling::default();
        for number in 0..3_000 {
            assert_eq!(telling.admits(&number.to_string(), "address", at(number)), Some(0));
        }
        assert_eq!(telling.told.len(), KNOWN);
    }
}
