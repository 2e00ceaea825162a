//! The tally against a model of the kernel side that obeys `probe_common::abi`: random attempts over CPUs, reads that
//! are torn between CPUs and between a value's counters and its slots, and the truth beside it.

use probe_common::abi::CellStep;
use proptest::prelude::*;

use super::*;

const CPUS: usize = 3;
const LATE_SLOTS: u32 = 4;
/// Some lap into the 32-bit slot number, so that folding and epochs are at work.
const EPOCH_NS: u64 = (7 * SLOTS as u64 + 120) << SLOT_SHIFT;

fn to() -> SocketAddr {
    "198.18.0.1:80".parse().expect("an address")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Established,
    Cancelled,
    Failed(FailureCause),
    Never,
}

#[derive(Clone, Debug)]
struct Attempt {
    start_ns: u64,
    length_ns: u64,
    cpus: (usize, usize),
    end: End,
    client: u32,
}

/// What the kernel writes at once: an end is two steps, out of the slot first.
#[derive(Clone, Debug)]
enum Step {
    Begin(Attempt),
    TakeOut(Attempt),
    PutIn(Attempt),
}

struct Kernel {
    round: u64,
    hot: [Hot; CPUS],
    steps: std::vec::IntoIter<(u64, Step)>,
    next: Option<(u64, Step)>,
}

impl Kernel {
    fn new(attempts: &[Attempt]) -> Self {
        let mut steps = Vec::new();
        for attempt in attempts {
            let end_ns = attempt.start_ns + attempt.length_ns;
            steps.push((attempt.start_ns, Step::Begin(attempt.clone())));
            if attempt.end != End::Never {
                steps.push((end_ns + 100, Step::TakeOut(attempt.clone())));
                steps.push((end_ns + 300, Step::PutIn(attempt.clone())));
            }
        }
        steps.sort_by_key(|(time_ns, _)| *time_ns);
        let mut steps = steps.into_iter();
        let next = steps.next();
        Self { round: 1, hot: [Hot::ZERO; CPUS], steps, next }
    }

    fn run_until(&mut self, time_ns: u64) {
        while let Some((_, step)) = self.next.take_if(|(step_ns, _)| *step_ns <= time_ns) {
            match step {
                Step::Begin(attempt) => self.begin(&attempt),
                Step::TakeOut(attempt) => {
                    let now = abi::slot_of(attempt.start_ns + attempt.length_ns);
                    self.change(attempt.cpus.1, abi::slot_of(attempt.start_ns), now, -1);
                }
                Step::PutIn(attempt) => self.put_in(&attempt),
            }
            self.next = self.steps.next();
        }
    }

    fn begin(&mut self, attempt: &Attempt) {
        let slot = abi::slot_of(attempt.start_ns);
        let hot = &mut self.hot[attempt.cpus.0];
        hot.attempts += 1;
        let position = slot as usize % SLOTS;
        if hot.slots[position] == 0 || abi::cell_epoch(hot.slots[position]) != abi::epoch_of(slot) {
            hot.slot_clients[position] = 0;
        }
        hot.slot_clients[position] |= 1 << (attempt.client % 64 / 2);
        self.change(attempt.cpus.0, slot, slot, 1);
    }

    /// Adds to the age slot `slot` as seen at slot `now`.
    fn change(&mut self, cpu: usize, slot: u32, now: u32, by: i32) {
        let hot = &mut self.hot[cpu];
        let cell = &mut hot.slots[slot as usize % SLOTS];
        match abi::cell_step(*cell, slot, now, hot.last_slot) {
            CellStep::Add => *cell = abi::cell(abi::epoch_of(slot), abi::cell_count(*cell) + by),
            CellStep::Restart => {
                hot.older += i64::from(abi::cell_count(*cell));
                *cell = abi::cell(abi::epoch_of(slot), by);
            }
            CellStep::Older => hot.older += i64::from(by),
        }
        hot.last_slot = now;
    }

    fn put_in(&mut self, attempt: &Attempt) {
        let end_ns = attempt.start_ns + attempt.length_ns;
        let late = abi::is_late(abi::slot_of(attempt.start_ns), abi::slot_of(end_ns), LATE_SLOTS);
        let hot = &mut self.hot[attempt.cpus.1];
        match (attempt.end, late) {
            (End::Established, false) => hot.established += 1,
            (End::Established, true) => hot.established_late += 1,
            (End::Cancelled, false) => hot.cancelled += 1,
            (End::Cancelled, true) => hot.cancelled_late += 1,
            (End::Failed(cause), true) => hot.failed_late[cause.index()] += 1,
            (End::Failed(cause), false) => {
                hot.failed[cause.index()] += 1;
                let window = &mut hot.failing[(self.round % 2) as usize];
                if window.round != self.round {
                    *window =
                        FailureWindow { round: self.round, oldest_start_ns: u64::MAX, ..FailureWindow::default() };
                    window.first_failed_ns = end_ns;
                }
                window.clients |= 1 << (attempt.client % 64);
                window.oldest_start_ns = window.oldest_start_ns.min(attempt.start_ns);
            }
            (End::Never, _) => unreachable!("has no end"),
        }
    }

    /// A read that begins at `before_ns` and takes 20 us, CPU after CPU, counters before slots.
    fn read(&mut self, before_ns: u64) -> (u64, u64, [Hot; CPUS]) {
        self.run_until(before_ns);
        let round = self.round;
        self.round += 1;
        let mut copy = [Hot::ZERO; CPUS];
        for (cpu, copy) in copy.iter_mut().enumerate() {
            self.run_until(before_ns + 1_000 + cpu as u64 * 5_000);
            *copy = self.hot[cpu];
            self.run_until(before_ns + 3_000 + cpu as u64 * 5_000);
            copy.slots = self.hot[cpu].slots;
            copy.slot_clients = self.hot[cpu].slot_clients;
        }
        (round, before_ns + 20_000, copy)
    }
}

#[derive(Default, Debug, PartialEq, Eq)]
struct Told {
    attempts: u64,
    established: u64,
    refused: u64,
    unreachable: u64,
    late: u64,
    recovered: u64,
    cancelled: u64,
}

impl Told {
    fn add(&mut self, row: &Row) {
        self.attempts += row.attempts;
        self.established += row.established;
        self.refused += row.refused;
        self.unreachable += row.unreachable;
        self.late += row.late;
        self.recovered += row.recovered;
        self.cancelled += row.cancelled;
    }

    /// What the tally has to have told by `now_ns`, long after the last attempt began.
    fn truth(attempts: &[Attempt]) -> Self {
        let mut told = Self::default();
        for attempt in attempts {
            told.attempts += 1;
            let end_ns = attempt.start_ns + attempt.length_ns;
            let late = attempt.end == End::Never
                || abi::is_late(abi::slot_of(attempt.start_ns), abi::slot_of(end_ns), LATE_SLOTS);
            told.late += u64::from(late);
            match (attempt.end, late) {
                (End::Established, false) => told.established += 1,
                (End::Established, true) => told.recovered += 1,
                (End::Cancelled, false) => told.cancelled += 1,
                (End::Failed(FailureCause::Refused), false) => told.refused += 1,
                (End::Failed(FailureCause::Unreachable), false) => told.unreachable += 1,
                (End::Failed(FailureCause::NoAnswer), false) => told.late += 1,
                _ => {}
            }
        }
        told
    }
}

fn attempts() -> impl Strategy<Value = Vec<Attempt>> {
    let end = prop_oneof![
        4 => Just(End::Established),
        1 => Just(End::Cancelled),
        2 => Just(End::Failed(FailureCause::Refused)),
        1 => Just(End::Failed(FailureCause::Unreachable)),
        1 => Just(End::Failed(FailureCause::NoAnswer)),
        1 => Just(End::Never),
    ];
    let length = prop_oneof![
        3 => 50_000u64..2_000_000,
        2 => 20_000_000u64..40_000_000,
        1 => 40_000_000u64..3_000_000_000,
    ];
    let attempt = (0u64..1_500_000_000, length, 0..CPUS, 0..CPUS, end, 0u32..200).prop_map(
        |(at_ns, length_ns, begun_on, ended_on, end, client)| Attempt {
            start_ns: EPOCH_NS + at_ns,
            length_ns,
            cpus: (begun_on, ended_on),
            end,
            client,
        },
    );
    prop::collection::vec(attempt, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_attempt_is_told_exactly_once(attempts in attempts(), pauses in prop::collection::vec(1u64..30, 20..60)) {
        let mut kernel = Kernel::new(&attempts);
        let mut tally = Tally::new(to(), LATE_SLOTS, EPOCH_NS);
        let mut told = Told::default();
        let mut now_ns = EPOCH_NS;
        let mut pauses = pauses.into_iter().cycle();
        let mut previous_ns = now_ns;
        while now_ns < EPOCH_NS + 6_000_000_000 {
            now_ns += pauses.next().expect("endless") * 1_000_003;
            let (round, after_ns, per_cpu) = kernel.read(now_ns);
            let change = tally.read(&Snapshot { before_ns: now_ns, after_ns, round, per_cpu: &per_cpu }, 0);
            let row = &change.row;
            prop_assert_eq!((row.from_ns, row.to_ns), (previous_ns, now_ns));
            prop_assert_eq!(row.failed() + row.reset > 0, row.clients > 0);
            prop_assert!(u64::from(row.clients) <= row.failed() + row.reset);
            previous_ns = now_ns;
            told.add(row);
        }
        prop_assert_eq!(&told, &Told::truth(&attempts));
        let counts = tally.counts();
        let ends: u64 = counts.failed.iter().sum();
        prop_assert_eq!(counts.attempts, counts.established + counts.cancelled + ends + counts.late);
        prop_assert_eq!(counts.young, 0);
    }

    #[test]
    fn a_late_attempt_is_told_by_a_read_at_the_announced_time(
        at_ns in 0u64..2_000_000_000, cpu in 0..CPUS, client in 0u32..64,
    ) {
        let start_ns = EPOCH_NS + at_ns;
        let attempt = Attempt { start_ns, length_ns: 0, cpus: (cpu, 0), end: End::Never, client };
        let mut kernel = Kernel::new(&[attempt]);
        let mut tally = Tally::new(to(), LATE_SLOTS, EPOCH_NS);
        let mut read = |now_ns| {
            let (round, after_ns, per_cpu) = kernel.read(now_ns);
            tally.read(&Snapshot { before_ns: now_ns, after_ns, round, per_cpu: &per_cpu }, 0)
        };
        let seen = read(start_ns + 1_000);
        let late_ns = seen.next_late_ns.expect("one is outstanding");
        prop_assert!(late_ns >= start_ns + 25_000_000 && late_ns < start_ns + 35_000_000);
        let early = read(late_ns - 1);
        prop_assert_eq!((early.row.late, early.next_late_ns), (0, Some(late_ns)));
        let late = read(late_ns);
        prop_assert_eq!((late.row.late, late.row.clients, late.next_late_ns), (1, 1, None));
        let first = late.row.first.expect("a failure has times");
        prop_assert!(first.started_ns <= start_ns && start_ns - first.started_ns < 1 << SLOT_SHIFT);
        prop_assert_eq!(first.failed_ns + LATE_MARGIN_NS, late_ns);
        prop_assert!(read(late_ns + 2_000_000_000).row.is_empty(), "told once");
    }
}

fn read_of<'a>(round: u64, ms: u64, per_cpu: &'a [Hot]) -> Snapshot<'a> {
    let before_ns = EPOCH_NS + ms * 1_000_000;
    Snapshot { before_ns, after_ns: before_ns + 5_000, round, per_cpu }
}

#[test]
fn a_retry_loop_of_one_client_counts_as_one_client() {
    let mut hot = Hot::ZERO;
    hot.attempts = 50;
    hot.failed[FailureCause::Refused.index()] = 50;
    hot.failing[1] = FailureWindow { round: 3, clients: 1 << 40, oldest_start_ns: 7, first_failed_ns: 9 };
    let mut tally = Tally::new(to(), LATE_SLOTS, EPOCH_NS);
    let row = tally.read(&read_of(3, 5, &[Hot::ZERO, hot]), 0).row;
    assert_eq!((row.refused, row.clients), (50, 1));
    assert_eq!(row.first, Some(First { started_ns: 7, failed_ns: 9 }));
}

#[test]
fn clients_of_all_cpus_are_united() {
    let mut per_cpu = [Hot::ZERO; 2];
    for (cpu, hot) in per_cpu.iter_mut().enumerate() {
        hot.attempts = 3;
        hot.failed[FailureCause::Refused.index()] = 3;
        let clients = 1 << 5 | 1 << (10 + cpu);
        hot.failing[0] =
            FailureWindow { round: 4, clients, oldest_start_ns: 100 - cpu as u64, first_failed_ns: 200 + cpu as u64 };
    }
    let mut tally = Tally::new(to(), LATE_SLOTS, EPOCH_NS);
    let row = tally.read(&read_of(4, 5, &per_cpu), 0).row;
    assert_eq!((row.refused, row.clients), (6, 3));
    assert_eq!(row.first, Some(First { started_ns: 99, failed_ns: 200 }));
}

#[test]
fn a_client_that_is_refused_and_late_is_one_client() {
    let attempt = |at_ns, end| Attempt { start_ns: EPOCH_NS + at_ns, length_ns: 60_000, cpus: (0, 1), end, client: 37 };
    let refused = End::Failed(FailureCause::Refused);
    let mut kernel = Kernel::new(&[attempt(0, End::Never), attempt(49_000_000, refused)]);
    let mut tally = Tally::new(to(), LATE_SLOTS, EPOCH_NS);
    let (round, after_ns, per_cpu) = kernel.read(EPOCH_NS + 50_000_000);
    let snapshot = Snapshot { before_ns: EPOCH_NS + 50_000_000, after_ns, round, per_cpu: &per_cpu };
    let row = tally.read(&snapshot, 0).row;
    assert_eq!((row.refused, row.late, row.clients), (1, 1, 1));
}

#[test]
fn a_window_of_an_old_round_says_nothing_of_new_failures() {
    let mut hot = Hot::ZERO;
    hot.failed[FailureCause::Refused.index()] = 1;
    hot.failing[1] = FailureWindow { round: 3, clients: 0xff, oldest_start_ns: 7, first_failed_ns: 9 };
    let mut tally = Tally::new(to(), LATE_SLOTS, EPOCH_NS);
    let row = tally.read(&read_of(9, 5, &[hot]), 0).row;
    assert_eq!((row.clients, row.first), (1, None));
}

#[test]
fn a_failure_written_after_its_round_was_read_is_told_at_the_next_read() {
    let mut hot = Hot::ZERO;
    let mut tally = Tally::new(to(), LATE_SLOTS, EPOCH_NS);
    assert!(tally.read(&read_of(3, 5, &[hot]), 0).row.is_empty());
    hot.failed[FailureCause::Refused.index()] = 1;
    hot.failing[1] = FailureWindow { round: 3, clients: 2, oldest_start_ns: 7, first_failed_ns: 9 };
    let row = tally.read(&read_of(4, 10, &[hot]), 0).row;
    assert_eq!((row.refused, row.clients, row.first), (1, 1, Some(First { started_ns: 7, failed_ns: 9 })));
}

#[test]
fn a_period_begins_where_the_destination_was_last_known_to_be_quiet() {
    let mut hot = Hot::ZERO;
    let mut tally = Tally::new(to(), LATE_SLOTS, EPOCH_NS);
    hot.attempts = 1;
    hot.established = 1;
    let quiet_until_ns = EPOCH_NS + 980_000_000;
    let row = tally.read(&read_of(3, 1_000, &[hot]), quiet_until_ns).row;
    assert_eq!((row.from_ns, row.to_ns), (quiet_until_ns, EPOCH_NS + 1_000_000_000));
    assert_eq!(tally.last_established_ns(), Some(row.to_ns));
}

#[test]
fn flows_are_answered_or_reset() {
    let mut hot = Hot::ZERO;
    let mut tally = Tally::new(to(), LATE_SLOTS, EPOCH_NS);
    hot.flows_answered = 4;
    hot.failed[FailureCause::Reset.index()] = 2;
    let row = tally.read(&read_of(3, 5, &[hot]), 0).row;
    assert_eq!((row.answered, row.reset, row.failed(), row.clients), (4, 2, 0, 1));
}
