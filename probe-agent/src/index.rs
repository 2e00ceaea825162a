//! Which destination is counted at which index, and when an index may be used again. Pure.
//!
//! In: wishes for an index of a tier, and the time. Out: an index with a generation that no socket has met yet. An
//! index that was given back rests, because a socket that still waits for its handshake counts there. The table writes
//! no map; the shell does, and tells the table when.

use std::collections::VecDeque;

use probe_common::abi::INDEX_REST_NS;

/// How closely a destination is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Per CPU and by age: destinations of splits.
    Hot,
    /// A few shared counters: every other destination.
    Cold,
}

impl Tier {
    /// Both, hot first.
    pub const ALL: [Self; 2] = [Self::Hot, Self::Cold];

    /// Its name in metrics and in `/state`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Cold => "cold",
        }
    }
}

/// An index, and which of its owners is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// As the kernel numbers them: the hot ones first, the cold ones from the hot capacity on.
    pub index: u32,
    /// From 1, one more with every owner of the index.
    pub generation: u32,
}

/// All indices of one load of the probe.
#[derive(Debug)]
pub struct IndexTable {
    hot: Stretch,
    cold: Stretch,
}

/// The indices of one tier.
#[derive(Debug)]
struct Stretch {
    first: u32,
    /// Generation of each index's last owner; 0 where there was none.
    generations: Vec<u32>,
    /// Below this offset every index had an owner.
    touched: u32,
    /// Given back, in that order: when each has rested, and which.
    resting: VecDeque<(u64, u32)>,
    in_use: u32,
}

impl IndexTable {
    /// A table for a probe that was loaded with these capacities.
    #[must_use]
    pub fn new(hot_capacity: u32, cold_capacity: u32) -> Self {
        Self { hot: Stretch::new(0, hot_capacity), cold: Stretch::new(hot_capacity, cold_capacity) }
    }

    /// An index that nobody uses, or `None` while all are used or resting.
    pub fn assign(&mut self, tier: Tier, now_ns: u64) -> Option<Place> {
        self.stretch(tier).assign(now_ns)
    }

    /// Takes an index back. `now_ns` is a time at which the kernel no longer led any new socket there.
    pub fn release(&mut self, tier: Tier, place: Place, now_ns: u64) {
        let stretch = self.stretch(tier);
        stretch.resting.push_back((now_ns + INDEX_REST_NS, place.index));
        stretch.in_use -= 1;
    }

    /// How many indices have an owner.
    #[must_use]
    pub const fn in_use(&self, tier: Tier) -> u32 {
        match tier {
            Tier::Hot => self.hot.in_use,
            Tier::Cold => self.cold.in_use,
        }
    }

    /// How many indices may have one.
    #[must_use]
    pub const fn capacity(&self, tier: Tier) -> usize {
        match tier {
            Tier::Hot => self.hot.generations.len(),
            Tier::Cold => self.cold.generations.len(),
        }
    }

    /// How many indices have or had an owner: the first so many of the tier.
    #[must_use]
    pub const fn ever_used(&self, tier: Tier) -> u32 {
        match tier {
            Tier::Hot => self.hot.touched,
            Tier::Cold => self.cold.touched,
        }
    }

    /// The tier's first index.
    #[must_use]
    pub const fn first_of(&self, tier: Tier) -> u32 {
        match tier {
            Tier::Hot => self.hot.first,
            Tier::Cold => self.cold.first,
        }
    }

    /// Which tier an index belongs to.
    #[must_use]
    pub const fn tier_of(&self, index: u32) -> Tier {
        if index < self.cold.first { Tier::Hot } else { Tier::Cold }
    }

    const fn stretch(&mut self, tier: Tier) -> &mut Stretch {
        match tier {
            Tier::Hot => &mut self.hot,
            Tier::Cold => &mut self.cold,
        }
    }
}

impl Stretch {
    fn new(first: u32, capacity: u32) -> Self {
        Self { first, generations: vec![0; capacity as usize], touched: 0, resting: VecDeque::new(), in_use: 0 }
    }

    fn assign(&mut self, now_ns: u64) -> Option<Place> {
        let index = match self.resting.front() {
            // A rested index first: what was never touched stays out of the process's and the kernel's caches.
            Some(&(rested_ns, index)) if rested_ns <= now_ns => {
                self.resting.pop_front();
                index
            }
            _ if (self.touched as usize) < self.generations.len() => {
                self.touched += 1;
                self.first + self.touched - 1
            }
            _ => return None,
        };
        let generation = &mut self.generations[(index - self.first) as usize];
        // 0 is what an index without an owner has in the kernel; a wrap takes 2^32 owners at one per 180 s.
        *generation = generation.wrapping_add(1).max(1);
        self.in_use += 1;
        Some(Place { index, generation: *generation })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cold_indices_begin_where_hot_ones_end() {
        let mut table = IndexTable::new(2, 2);
        let mut assign = |tier| table.assign(tier, 0).map(|place| (place.index, place.generation));
        assert_eq!(assign(Tier::Cold), Some((2, 1)));
        assert_eq!(assign(Tier::Hot), Some((0, 1)));
        assert_eq!(assign(Tier::Hot), Some((1, 1)));
        assert_eq!(assign(Tier::Hot), None);
        assert_eq!(assign(Tier::Cold), Some((3, 1)));
        assert_eq!((table.tier_of(1), table.tier_of(2)), (Tier::Hot, Tier::Cold));
    }

    #[test]
    fn an_index_rests_before_its_next_owner() {
        let mut table = IndexTable::new(1, 0);
        let first = table.assign(Tier::Hot, 10).expect("free");
        table.release(Tier::Hot, first, 20);
        assert_eq!(table.assign(Tier::Hot, 20 + INDEX_REST_NS - 1), None);
        let second = table.assign(Tier::Hot, 20 + INDEX_REST_NS).expect("rested");
        assert_eq!((second.index, second.generation), (first.index, first.generation + 1));
    }

    proptest! {
        #[test]
        fn no_two_owners_ever_share_an_index_or_a_generation(
            steps in prop::collection::vec((any::<bool>(), 0u64..60_000_000_000, 0usize..8), 1..200),
        ) {
            let mut table = IndexTable::new(4, 0);
            let mut now_ns = 0;
            let mut owners = Vec::new();
            let mut released = BTreeMap::new();
            let mut ever = BTreeSet::new();
            for (give_back, pause_ns, which) in steps {
                now_ns += pause_ns;
                if give_back && !owners.is_empty() {
                    let place: Place = owners.swap_remove(which % owners.len());
                    table.release(Tier::Hot, place, now_ns);
                    released.insert(place.index, now_ns);
                } else if let Some(place) = table.assign(Tier::Hot, now_ns) {
                    prop_assert!(owners.iter().all(|owner| owner.index != place.index));
                    prop_assert!(ever.insert(place), "{place:?} was given out before");
                    prop_assert!(place.generation > 0);
                    if let Some(&since_ns) = released.get(&place.index) {
                        prop_assert!(now_ns - since_ns >= INDEX_REST_NS);
                    }
                    owners.push(place);
                } else {
                    prop_assert!(owners.len() + released.len() >= 4);
                }
                prop_assert_eq!(table.in_use(Tier::Hot) as usize, owners.len());
            }
        }
    }
}
