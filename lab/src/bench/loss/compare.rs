//! Truth against count. In: both. Out: a table, and whether the difference is what the agents admit. Pure.
//!
//! # Which loss explains which difference
//!
//! - An attempt whose start the probe missed is not counted. Its end finds no memory of a start, so that the agent tells
//!   it as `end-without-start`: truth minus counted has to be exactly that number. What made the probe miss it is told
//!   besides, as a recursion miss or as `no-storage`.
//! - An attempt whose end the probe missed is counted and stays outstanding for ever: the agents show it as late without
//!   an end. Where the socket shows later how it ended, the end is made good (`repaired`) and nothing is lost.
//! - A flow's end that the probe missed is a recursion miss.

use std::fmt::Write as _;

use super::counted::Counted;
use super::truth::Truth;

/// What may go uncounted of all attempts.
pub const LIMIT: f64 = 1e-5;

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// What is compared.
    pub what: &'static str,
    /// As clients or servers know it.
    pub truth: i64,
    /// As the agents' metrics tell it.
    pub counted: i64,
}

impl Line {
    /// What went uncounted; negative where more was counted than happened.
    #[must_use]
    pub fn difference(&self) -> i64 {
        self.truth - self.counted
    }
}

/// The whole comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// All attempts.
    pub attempts: Line,
    /// The attempts by their ends: each is in exactly one.
    pub ends: [Line; 5],
    /// Established connections as the servers know them.
    pub accepts: Line,
    /// Answers and resets of established connections.
    pub flows: [Line; 2],
    /// Attempts that the agents call begun and not ended, though all have ended.
    pub left: i64,
    /// Everything that agents admit.
    pub counted: Counted,
    /// Connections that were no attempts.
    pub never_tried: i64,
}

impl Comparison {
    /// Of a finished load.
    #[must_use]
    pub fn new(truth: &Truth, counted: &Counted) -> Self {
        let line = |what, truth, counted| Line { what, truth, counted };
        let ends = counted.ends();
        Self {
            attempts: line("attempts", truth.attempts(), counted.attempts),
            ends: [
                line("established (clients)", truth.established(), ends.established),
                line("refused", truth.refused, ends.refused),
                line("unreachable", truth.unreachable, ends.unreachable),
                line("timed out by the kernel", truth.timed_out, ends.no_answer),
                line("given up, or no port", truth.given_up + truth.no_port, ends.cancelled),
            ],
            accepts: line("established (servers)", truth.established_by_servers(), ends.established),
            flows: [
                line("flows answered", truth.answered, counted.answered),
                line("flows reset", truth.reset, counted.reset),
            ],
            left: counted.outstanding(),
            counted: counted.clone(),
            never_tried: truth.never_tried,
        }
    }

    /// Attempts that agents admit not to have counted.
    #[must_use]
    pub fn admitted(&self) -> i64 {
        self.counted.loss("end-without-start")
    }

    /// Of all attempts: those that were not counted, and those whose end was not.
    #[must_use]
    pub fn uncounted_ratio(&self) -> f64 {
        let lost = self.attempts.difference().abs() + self.left.abs();
        #[expect(clippy::cast_precision_loss, reason = "at most a million")]
        let ratio = lost as f64 / self.attempts.truth.max(1) as f64;
        ratio
    }

    /// Everything that speaks against the agents, one sentence each.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut unless = |holds: bool, reason: String| {
            if !holds {
                reasons.push(reason);
            }
        };
        let missing = self.attempts.difference();
        let admitted = self.admitted();
        unless(
            missing == admitted,
            format!("{missing} attempts went uncounted, and the agents admit {admitted} (end-without-start)"),
        );
        let causes = self.counted.recursion_misses + self.counted.loss("no-storage");
        unless(missing <= causes, format!("{missing} attempts went uncounted, and the agents name {causes} causes"));
        unless(
            self.counted.attempts == self.counted.ends().sum() + self.left,
            "the agents' own figures do not add up to the attempts".to_owned(),
        );
        let strays = self.counted.loss("stale") + self.counted.abandoned + self.counted.young;
        unless(strays == 0, format!("{strays} attempts are stale, abandoned or still young"));
        let explained = admitted + self.left;
        for line in self.ends.iter().chain([&self.accepts]) {
            unless((0..=explained).contains(&line.difference()), unexplained(line, explained));
        }
        let missed = self.counted.recursion_misses;
        for line in &self.flows {
            unless((0..=missed).contains(&line.difference()), unexplained(line, missed));
        }
        let ratio = self.uncounted_ratio();
        unless(ratio <= LIMIT, format!("{ratio:.1e} of the attempts is more than {LIMIT:.0e}"));
        reasons
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = format!("{:<26}{:>10}{:>10}{:>12}\n", "", "truth", "counted", "difference");
        let mut row = |line: &Line| {
            let Line { what, truth, counted } = line;
            writeln!(table, "{what:<26}{truth:>10}{counted:>10}{:>12}", line.difference())
                .expect("writing to a String cannot fail");
        };
        row(&self.attempts);
        self.ends.iter().for_each(&mut row);
        row(&self.accepts);
        self.flows.iter().for_each(&mut row);
        let late = &self.counted.late;
        let losses: Vec<String> = self.counted.losses.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        write!(
            table,
            "\nof these late: established {}, refused {}, unreachable {}, given up {}\n\
             never tried (no endpoint, no descriptor): {}\n\
             agents admit: {}, recursion misses {}, outstanding {}\n\
             uncounted: {:.1e} of the attempts (limit {LIMIT:.0e})",
            late.established,
            late.refused,
            late.unreachable,
            late.cancelled,
            self.never_tried,
            losses.join(", "),
            self.counted.recursion_misses,
            self.left,
            self.uncounted_ratio(),
        )
        .expect("writing to a String cannot fail");
        table
    }
}

fn unexplained(line: &Line, explained: i64) -> String {
    let Line { what, truth, counted } = line;
    format!("{what}: {truth} in truth, {counted} counted, and no more than {explained} explained by losses")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::counted::Ends;
    use super::*;

    fn mk_truth() -> Truth {
        let established = Truth { answered: 80_000, reset: 300, silent: 20, accepted: 80_020, ..Truth::default() };
        Truth { refused: 15_000, unreachable: 700, given_up: 3_000, ..established }
    }

    fn mk_counted() -> Counted {
        let late = Ends { established: 900, refused: 40, unreachable: 0, no_answer: 0, cancelled: 3_000 };
        Counted {
            attempts: 99_020,
            in_time: Ends { established: 79_420, refused: 14_960, unreachable: 700, no_answer: 0, cancelled: 0 },
            late,
            became_late: late.sum(),
            answered: 80_000,
            reset: 300,
            ..Counted::default()
        }
    }

    fn mk_losses(kinds: &[(&'static str, i64)]) -> BTreeMap<&'static str, i64> {
        kinds.iter().copied().collect()
    }

    #[test]
    fn a_count_that_is_the_truth_has_nothing_against_it() {
        let comparison = Comparison::new(&mk_truth(), &mk_counted());
        assert_eq!(comparison.reasons(), Vec::<String>::new());
        assert_eq!((comparison.attempts.difference(), comparison.left), (0, 0));
        assert!(comparison.table().contains("attempts                       99020     99020           0"));
    }

    #[test]
    fn an_uncounted_attempt_that_nobody_admits_is_a_lie() {
        let mut counted = mk_counted();
        counted.attempts -= 1;
        counted.in_time.refused -= 1;
        let reasons = Comparison::new(&mk_truth(), &counted).reasons();
        assert!(reasons[0].contains("1 attempts went uncounted, and the agents admit 0"), "{reasons:?}");
    }

    #[test]
    fn an_uncounted_attempt_that_is_admitted_with_its_cause_is_within_the_limit_only_among_enough() {
        let mut truth = mk_truth();
        let mut counted = mk_counted();
        counted.attempts -= 1;
        counted.in_time.refused -= 1;
        counted.losses = mk_losses(&[("end-without-start", 1)]);
        counted.recursion_misses = 1;
        let few = Comparison::new(&truth, &counted).reasons();
        assert_eq!(few.len(), 1, "{few:?}");
        assert!(few[0].contains("of the attempts is more than"), "{few:?}");
        truth.refused += 1_000;
        counted.attempts += 1_000;
        counted.in_time.refused += 1_000;
        assert_eq!(Comparison::new(&truth, &counted).reasons(), Vec::<String>::new());
        counted.recursion_misses = 0;
        assert!(Comparison::new(&truth, &counted).reasons()[0].contains("name 0 causes"));
    }

    #[test]
    fn more_counted_than_happened_is_as_wrong_as_less() {
        let mut counted = mk_counted();
        counted.attempts += 1;
        counted.in_time.established += 1;
        let reasons = Comparison::new(&mk_truth(), &counted).reasons();
        assert!(reasons[0].starts_with("-1 attempts went uncounted"), "{reasons:?}");
    }

    #[test]
    fn one_counted_as_another_is_told_even_where_the_sums_agree() {
        let mut counted = mk_counted();
        counted.in_time.refused -= 1;
        counted.in_time.unreachable += 1;
        let reasons = Comparison::new(&mk_truth(), &counted).reasons();
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons[0].starts_with("refused: 15000 in truth, 14999 counted"), "{reasons:?}");
    }

    #[test]
    fn an_attempt_without_an_end_counts_as_lost() {
        let mut counted = mk_counted();
        counted.late.cancelled -= 2;
        let comparison = Comparison::new(&mk_truth(), &counted);
        assert_eq!(comparison.left, 2);
        assert!(comparison.uncounted_ratio() > LIMIT);
        assert_eq!(comparison.reasons().len(), 1, "{:?}", comparison.reasons());
    }

    #[test]
    fn servers_that_saw_something_else_than_the_clients_are_told() {
        let truth = Truth { accepted: 80_019, ..mk_truth() };
        let reasons = Comparison::new(&truth, &mk_counted()).reasons();
        assert!(reasons[0].starts_with("established (servers): 80319 in truth, 80320 counted"), "{reasons:?}");
    }
}
