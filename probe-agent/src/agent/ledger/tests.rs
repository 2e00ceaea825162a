//! The ledger against counters in memory: what is placed where, what is read when, and what is told of it.

use std::cell::{Cell, RefCell};

use probe_common::abi::{FailureWindow, INDEX_REST_NS};

use super::*;

const HOT_CAPACITY: u32 = 4;
const HOT: Wanted = Wanted::Hot { late_slots: 4 };

thread_local! {
    static NOW_NS: Cell<u64> = const { Cell::new(1_000_000_000_000) };
}

fn now_ns() -> u64 {
    NOW_NS.get()
}

fn advance(by_ns: u64) {
    NOW_NS.set(NOW_NS.get() + by_ns);
}

#[derive(Default)]
struct Memory {
    round: u64,
    destinations: BTreeMap<DestinationKey, DestinationValue>,
    hot: BTreeMap<u32, Hot>,
    cold: BTreeMap<u32, Cold>,
    stamps: BTreeMap<u32, u32>,
    read: RefCell<Vec<u32>>,
    is_broken: bool,
}

impl Memory {
    fn gate(&self) -> Result<(), MapError> {
        if self.is_broken { Err(MapError::Missing { map: abi::maps::HOT }) } else { Ok(()) }
    }
}

impl Counters for Memory {
    fn next_round(&mut self) -> Result<u64, MapError> {
        self.gate()?;
        self.round += 1;
        Ok(self.round - 1)
    }

    fn stamps(&self) -> Result<Box<Stamps>, MapError> {
        let mut stamps = Box::new(Stamps { rounds: [0; abi::HOT_LIMIT as usize] });
        for (&index, &round) in &self.stamps {
            stamps.rounds[index as usize] = round;
        }
        Ok(stamps)
    }

    fn hot(&self, index: u32) -> Result<Vec<Hot>, MapError> {
        self.gate()?;
        self.read.borrow_mut().push(index);
        Ok(vec![self.hot[&index]])
    }

    fn cold(&self, index: u32) -> Result<Cold, MapError> {
        Ok(self.cold[&index])
    }

    fn assign(&mut self, key: &DestinationKey, value: &DestinationValue) -> Result<(), MapError> {
        self.gate()?;
        if value.index < HOT_CAPACITY {
            self.hot.insert(value.index, Hot::ZERO);
        } else {
            self.cold.insert(value.index, Cold::default());
        }
        self.destinations.insert(*key, *value);
        Ok(())
    }

    fn release(&mut self, key: &DestinationKey) -> Result<(), MapError> {
        self.gate()?;
        self.destinations.remove(key);
        Ok(())
    }
}

fn to(last: u8) -> SocketAddr {
    SocketAddr::from(([198, 18, 0, last], 80))
}

/// The wishes of ordinary destinations.
fn mk_wishes(wishes: &[(SocketAddr, Wanted)]) -> Vec<(Counted, Wanted)> {
    wishes.iter().map(|&(to, wanted)| (to.into(), wanted)).collect()
}

fn mk_ledger() -> Ledger<Memory> {
    Ledger::new(Memory { round: 10, ..Memory::default() }, HOT_CAPACITY, 4, now_ns)
}

impl Ledger<Memory> {
    fn index_of(&self, last: u8) -> Option<u32> {
        self.counters.destinations.get(&key_of(to(last))).map(|value| value.index)
    }

    /// As the kernel does: counts, then stamps.
    fn count(&mut self, last: u8, change: impl FnOnce(&mut Hot)) {
        let index = self.index_of(last).expect("placed");
        change(self.counters.hot.get_mut(&index).expect("hot"));
        self.counters.stamps.insert(index, self.counters.round as u32);
    }

    fn rows(&mut self, sweep: usize) -> Vec<Row> {
        advance(5_000_000);
        let pass = self.pass(sweep);
        assert!(pass.error.is_none(), "{:?}", pass.error);
        pass.rows
    }
}

fn established(hot: &mut Hot) {
    hot.attempts += 1;
    hot.established += 1;
}

#[test]
fn only_what_was_touched_is_read() {
    let mut ledger = mk_ledger();
    assert_eq!(
        ledger.apply(mk_wishes(&[(to(1), HOT), (to(2), HOT), (to(3), Wanted::Cold)])).expect("writes"),
        [to(1), to(2)]
    );
    for _ in 0..3 {
        ledger.rows(0);
    }
    ledger.counters.read.borrow_mut().clear();
    ledger.count(2, established);
    let rows = ledger.rows(0);
    assert_eq!(rows.iter().map(|row| (row.to, row.established)).collect::<Vec<_>>(), [(to(2), 1)]);
    assert_eq!(rows[0].to_ns - rows[0].from_ns, 5_000_000, "quiet until the read before");
    assert_eq!(*ledger.counters.read.borrow(), [1]);
    assert_eq!(ledger.rows(0), [], "read once more, nothing to tell");
    assert_eq!(ledger.rows(0), []);
    assert_eq!(*ledger.counters.read.borrow(), [1, 1]);
    ledger.rows(1);
    ledger.rows(1);
    ledger.rows(1);
    assert_eq!(*ledger.counters.read.borrow(), [1, 1, 0, 1], "in turn, with a pause at the end");
    ledger.rows(5);
    assert_eq!(*ledger.counters.read.borrow(), [1, 1, 0, 1, 0, 1]);
}

#[test]
fn a_stamp_that_came_late_is_found_at_the_next_read() {
    let mut ledger = mk_ledger();
    ledger.apply(mk_wishes(&[(to(1), HOT)])).expect("writes");
    for _ in 0..3 {
        ledger.rows(0);
    }
    // The program took the round before user space raised it, and wrote after user space had read.
    ledger.count(1, established);
    let stale = ledger.counters.round as u32 - 1;
    ledger.counters.stamps.insert(0, stale);
    assert_eq!(ledger.rows(0).len(), 1);
}

#[test]
fn an_outstanding_attempt_is_read_again_when_it_becomes_late() {
    let mut ledger = mk_ledger();
    ledger.apply(mk_wishes(&[(to(1), HOT)])).expect("writes");
    let slot = abi::slot_of(now_ns());
    ledger.count(1, |hot| {
        hot.attempts += 1;
        hot.last_slot = slot;
        hot.slots[slot as usize % abi::SLOTS] = abi::cell(abi::epoch_of(slot), 1);
    });
    let pass = ledger.pass(0);
    let late_ns = pass.next_late_ns.expect("one is outstanding");
    assert!(late_ns > now_ns() + 25_000_000);
    NOW_NS.set(late_ns - 1);
    ledger.pass(0);
    assert_eq!(ledger.pass(0).rows, []);
    NOW_NS.set(late_ns);
    let pass = ledger.pass(0);
    assert_eq!((pass.rows[0].late, pass.next_late_ns), (1, None));
    assert_eq!(pass.failing[0].cause, FailureCause::NoAnswer);
    let sums = ledger.sums();
    assert_eq!((sums.hot.attempts, sums.hot.late, sums.hot.young), (1, 1, 0));
}

#[test]
fn a_destination_moves_between_tiers_and_its_counts_stay() {
    let mut ledger = mk_ledger();
    ledger.apply(mk_wishes(&[(to(1), Wanted::Cold)])).expect("writes");
    assert_eq!(ledger.index_of(1), Some(HOT_CAPACITY));
    ledger.counters.cold.get_mut(&HOT_CAPACITY).expect("placed").attempts = 5;
    assert_eq!(ledger.apply(mk_wishes(&[(to(1), HOT)])).expect("writes"), [to(1)]);
    assert_eq!(ledger.index_of(1), Some(0));
    assert_eq!(ledger.apply(mk_wishes(&[(to(1), HOT)])).expect("writes"), []);
    ledger.count(1, established);
    ledger.rows(0);
    ledger.count(1, established);
    ledger.apply(mk_wishes(&[(to(1), Wanted::Cold)])).expect("writes");
    assert_eq!(ledger.index_of(1), Some(HOT_CAPACITY + 1), "the old index rests");
    assert_eq!(ledger.rows(0), [], "no evidence any more");
    ledger.read_cold(10).expect("reads");
    let sums = ledger.sums();
    assert_eq!((sums.hot.established, sums.cold.attempts), (2, 5));
    assert_eq!((ledger.in_use(Tier::Hot), ledger.in_use(Tier::Cold)), (0, 1));
}

#[test]
fn what_finds_no_room_waits_and_is_counted_coarsely() {
    let mut ledger = mk_ledger();
    let wishes = (1..=5).map(|last| (to(last).into(), HOT)).collect();
    assert_eq!(ledger.apply(wishes).expect("writes").len(), 4);
    assert_eq!((ledger.map_full(Tier::Hot), ledger.waiting()), (1, 1));
    assert_eq!(ledger.index_of(5), Some(HOT_CAPACITY));
    ledger.apply(mk_wishes(&[(to(1), Wanted::Nothing)])).expect("writes");
    assert_eq!(ledger.retry().expect("writes"), [], "the index still rests");
    advance(INDEX_REST_NS);
    assert_eq!(ledger.retry().expect("writes"), [to(5)]);
    assert_eq!((ledger.index_of(5), ledger.waiting()), (Some(0), 0));
    assert_eq!(ledger.counters.destinations[&key_of(to(5))].generation, 2);
}

#[test]
fn attempts_without_an_end_are_abandoned_with_their_index() {
    let mut ledger = mk_ledger();
    ledger.apply(mk_wishes(&[(to(1), HOT)])).expect("writes");
    let slot = abi::slot_of(now_ns());
    ledger.count(1, |hot| {
        established(hot);
        hot.attempts += 1;
        hot.last_slot = slot;
        hot.slots[slot as usize % abi::SLOTS] = abi::cell(abi::epoch_of(slot), 1);
    });
    ledger.pass(0);
    ledger.apply(mk_wishes(&[(to(1), Wanted::Nothing)])).expect("writes");
    advance(INDEX_REST_NS);
    ledger.apply(mk_wishes(&[(to(2), HOT)])).expect("writes");
    let sums = ledger.sums();
    assert_eq!((sums.hot.attempts, sums.hot.established, sums.hot.young, sums.abandoned), (2, 1, 0, 1));
}

fn mk_failing(first: First, read_ns: u64) -> Failing {
    Failing { to: to(1), self_hop: false, cause: FailureCause::Unreachable, first, read_ns }
}

#[test]
fn self_hops_have_their_own_index_and_are_told_apart() {
    let mut ledger = mk_ledger();
    let self_hop = Counted { to: to(1), self_hop: true };
    let gained = ledger.apply(vec![(to(1).into(), HOT), (self_hop, HOT)]).expect("writes");
    assert_eq!(gained, [to(1)], "self-hops have no history");
    let index = ledger.counters.destinations[&key_of(self_hop)].index;
    assert_ne!(Some(index), ledger.index_of(1));
    ledger.count(1, established);
    ledger.counters.hot.get_mut(&index).expect("hot").attempts = 1;
    ledger.counters.hot.get_mut(&index).expect("hot").failed[FailureCause::Refused.index()] = 1;
    ledger.counters.stamps.insert(index, ledger.counters.round as u32);
    advance(5_000_000);
    let pass = ledger.pass(0);
    let rows: Vec<_> = pass.rows.iter().map(|row| (row.to, row.self_hop, row.established, row.refused)).collect();
    assert_eq!(rows, [(to(1), false, 1, 0), (to(1), true, 0, 1)]);
    assert_eq!(pass.failing.iter().map(|failing| failing.self_hop).collect::<Vec<_>>(), [true]);
    assert_eq!(ledger.totals(None).iter().map(|total| (total.to, total.attempts)).collect::<Vec<_>>(), [(to(1), 1)]);
    let sums = ledger.sums();
    assert_eq!((sums.hot.attempts, sums.self_hops.attempts), (1, 1));
    ledger.apply(vec![(self_hop, Wanted::Nothing)]).expect("writes");
    assert_eq!(ledger.hot_views().iter().map(|view| view.self_hop).collect::<Vec<_>>(), [false]);
    assert_eq!(ledger.sums(), sums, "what was counted stays");
}

#[test]
fn self_hops_that_find_no_room_wait_and_are_not_counted_coarsely() {
    let mut ledger = mk_ledger();
    ledger.apply((1..=4).map(|last| (to(last).into(), HOT)).collect()).expect("writes");
    let self_hop = Counted { to: to(1), self_hop: true };
    ledger.apply(vec![(self_hop, HOT)]).expect("writes");
    assert_eq!((ledger.waiting(), ledger.in_use(Tier::Cold)), (1, 0));
}

#[test]
fn a_failure_after_quiet_is_news_with_the_times_of_the_ring() {
    let mut ledger = mk_ledger();
    ledger.apply(mk_wishes(&[(to(1), HOT)])).expect("writes");
    ledger.rows(0);
    let fail = |ledger: &mut Ledger<Memory>, failed_ns| {
        ledger.count(1, |hot| {
            hot.attempts += 1;
            hot.failed[FailureCause::Unreachable.index()] += 1;
        });
        let round = ledger.counters.round;
        let window = FailureWindow { round, clients: 1, oldest_start_ns: failed_ns - 50, first_failed_ns: failed_ns };
        ledger.count(1, |hot| hot.failing[(round % 2) as usize] = window);
        advance(1_000_000);
        ledger.pass(0).failing
    };
    let failed_ns = now_ns();
    let cause = FailureCause::Unreachable as u32;
    let record = FirstFailure { failed_ns, started_ns: failed_ns - 70, index: 0, generation: 1, cause, padding: 0 };
    ledger.note_failures(&[record, FirstFailure { generation: 2, failed_ns: failed_ns - 1, ..record }]);
    let first = First { started_ns: failed_ns - 70, failed_ns };
    let read_ns = failed_ns + 1_000_000;
    assert_eq!(fail(&mut ledger, failed_ns), [mk_failing(first, read_ns)]);
    assert_eq!(fail(&mut ledger, now_ns()), [], "goes on failing");
    advance(NEWS_AFTER_NS);
    let failed_ns = now_ns();
    let again = fail(&mut ledger, failed_ns);
    assert_eq!(again[0].first, First { started_ns: failed_ns - 50, failed_ns });
}

#[test]
fn totals_tell_history_and_the_last_success() {
    let mut ledger = mk_ledger();
    ledger.apply(mk_wishes(&[(to(1), HOT), (to(2), HOT), (to(3), Wanted::Cold)])).expect("writes");
    ledger.count(1, established);
    ledger.rows(0);
    advance(70);
    ledger.note_check_passed(to(2), now_ns());
    advance(30);
    let total = |last, count, age_ns| Total {
        to: to(last),
        attempts: count,
        established: count,
        last_success_age_ns: Some(age_ns),
        last_check_age_ns: (last == 2).then_some(age_ns),
    };
    assert_eq!(ledger.totals(None), [total(1, 1, 100), total(2, 0, 30)]);
    assert_eq!(ledger.totals(Some(&[to(2), to(3)])), [total(2, 0, 30)]);
}

#[test]
fn a_probe_that_cannot_be_written_keeps_the_wishes() {
    let mut ledger = mk_ledger();
    ledger.counters.is_broken = true;
    assert!(ledger.apply(mk_wishes(&[(to(1), HOT), (to(2), Wanted::Cold)])).is_err());
    assert_eq!(ledger.waiting(), 2);
    assert!(ledger.pass(0).error.is_some());
    ledger.counters.is_broken = false;
    assert_eq!(ledger.retry().expect("writes"), [to(1)]);
    assert_eq!((ledger.in_use(Tier::Hot), ledger.in_use(Tier::Cold)), (1, 1));
}
