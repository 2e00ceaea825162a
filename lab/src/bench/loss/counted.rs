//! What an agent counted, from the text of its /metrics. In: expositions. Out: sums of the counters of connections to
//! destinations of splits, and of the losses that the agent admits. Pure.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use anyhow::{Context, Result};

/// The prefix of every name.
const PREFIX: &str = "splitsecond_agent_";

/// Kinds of loss, as the agent's metrics call them.
pub const KINDS: [&str; 5] = ["ring-full", "no-storage", "end-without-start", "stale", "repaired"];

/// Sums over all agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Transitions to SYN_SENT.
    pub attempts: i64,
    /// Attempts whose end was counted in time.
    pub in_time: Ends,
    /// Attempts whose end was counted after they had become late.
    pub late: Ends,
    /// Attempts that became late, ended or not.
    pub became_late: i64,
    /// Attempts under way that are not late.
    pub young: i64,
    /// Attempts whose destination ceased to be counted.
    pub abandoned: i64,
    /// Flows that brought an answer.
    pub answered: i64,
    /// Flows that were reset before it.
    pub reset: i64,
    /// What the probe gave up or could not attribute, by kind.
    pub losses: BTreeMap<&'static str, i64>,
    /// Events that the kernel kept from the probe.
    pub recursion_misses: i64,
}

/// How attempts ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Handshake complete.
    pub established: i64,
    /// By RST.
    pub refused: i64,
    /// By ICMP.
    pub unreachable: i64,
    /// The kernel gave up.
    pub no_answer: i64,
    /// The client gave up.
    pub cancelled: i64,
}

impl Counted {
    /// Of one agent.
    ///
    /// # Errors
    ///
    /// A figure is missing.
    pub fn parse(text: &str) -> Result<Self> {
        let late_end = |end| figure(text, "connect_late_ends_total", &[("end", end)]);
        let late = Ends {
            established: late_end("established")?,
            refused: late_end("refused")?,
            unreachable: late_end("unreachable")?,
            no_answer: late_end("no-answer")?,
            cancelled: late_end("cancelled")?,
        };
        let hot = ("tier", "hot");
        let failed = |cause| figure(text, "connect_failures_total", &[hot, ("cause", cause)]);
        let in_time = Ends {
            established: figure(text, "connect_established_total", &[hot])?,
            refused: failed("refused")?,
            unreachable: failed("unreachable")?,
            // The kernel's own patience is minutes, lateness a fraction of a second: all of `no-answer` became late.
            no_answer: 0,
            cancelled: figure(text, "connects_cancelled_total", &[hot])?,
        };
        let loss = |kind: &'static str| Ok((kind, figure(text, "losses_total", &[("kind", kind)])?));
        Ok(Self {
            attempts: figure(text, "connect_attempts_total", &[hot])?,
            in_time,
            late,
            became_late: failed("no-answer")?,
            young: figure(text, "connects_outstanding", &[])?,
            abandoned: figure(text, "connects_abandoned_total", &[])?,
            answered: figure(text, "flows_answered_total", &[])?,
            reset: figure(text, "flows_reset_total", &[hot])?,
            losses: KINDS.into_iter().map(loss).collect::<Result<_>>()?,
            recursion_misses: figure(text, "recursion_misses_total", &[])?,
        })
    }

    /// Ends at any age.
    #[must_use]
    pub fn ends(&self) -> Ends {
        let mut ends = self.in_time;
        ends += self.late;
        ends
    }

    /// Attempts without an end, of any age.
    #[must_use]
    pub fn outstanding(&self) -> i64 {
        self.young + self.became_late - self.late.sum()
    }

    /// A kind of loss, one of [`KINDS`].
    #[must_use]
    pub fn loss(&self, kind: &str) -> i64 {
        self.losses.get(kind).copied().unwrap_or(0)
    }
}

impl Ends {
    /// All of them.
    #[must_use]
    pub fn sum(&self) -> i64 {
        self.established + self.refused + self.unreachable + self.no_answer + self.cancelled
    }
}

impl AddAssign for Ends {
    fn add_assign(&mut self, other: Self) {
        self.established += other.established;
        self.refused += other.refused;
        self.unreachable += other.unreachable;
        self.no_answer += other.no_answer;
        self.cancelled += other.cancelled;
    }
}

impl AddAssign for Counted {
    fn add_assign(&mut self, other: Self) {
        self.attempts += other.attempts;
        self.in_time += other.in_time;
        self.late += other.late;
        self.became_late += other.became_late;
        self.young += other.young;
        self.abandoned += other.abandoned;
        self.answered += other.answered;
        self.reset += other.reset;
        for (kind, count) in other.losses {
            *self.losses.entry(kind).or_default() += count;
        }
        self.recursion_misses += other.recursion_misses;
    }
}

/// The value of the one series of that name that has these labels.
fn figure(text: &str, name: &str, labels: &[(&str, &str)]) -> Result<i64> {
    let found = text.lines().find_map(|line| {
        let (series, value) = line.strip_prefix(PREFIX)?.strip_prefix(name)?.rsplit_once(' ')?;
        let has = |(label, wanted): &(&str, &str)| series.contains(&format!("{label}=\"{wanted}\""));
        let same_name = series.is_empty() || series.starts_with('{');
        (same_name && labels.iter().all(has)).then_some(value)
    });
    let value = found.with_context(|| format!("an agent does not tell {PREFIX}{name} {labels:?}"))?;
    value.parse().with_context(|| format!("an agent tells {PREFIX}{name} as {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP splitsecond_agent_connect_attempts_total Attempts
# TYPE splitsecond_agent_connect_attempts_total counter
splitsecond_agent_connect_attempts_total{tier="cold"} 900
splitsecond_agent_connect_attempts_total{tier="hot"} 100
splitsecond_agent_connect_established_total{tier="hot"} 70
splitsecond_agent_connect_failures_total{tier="hot",cause="refused"} 8
splitsecond_agent_connect_failures_total{tier="hot",cause="unreachable"} 2
splitsecond_agent_connect_failures_total{tier="hot",cause="no-answer"} 15
splitsecond_agent_connects_cancelled_total{tier="hot"} 1
splitsecond_agent_connects_outstanding 4
splitsecond_agent_connect_late_ends_total{end="established"} 5
splitsecond_agent_connect_late_ends_total{end="refused"} 1
splitsecond_agent_connect_late_ends_total{end="unreachable"} 0
splitsecond_agent_connect_late_ends_total{end="no-answer"} 0
splitsecond_agent_connect_late_ends_total{end="cancelled"} 6
splitsecond_agent_connects_abandoned_total 0
splitsecond_agent_flows_answered_total 72
splitsecond_agent_flows_reset_total{tier="hot"} 3
splitsecond_agent_losses_total{kind="ring-full"} 0
splitsecond_agent_losses_total{kind="no-storage"} 0
splitsecond_agent_losses_total{kind="end-without-start"} 7
splitsecond_agent_losses_total{kind="stale"} 0
splitsecond_agent_losses_total{kind="repaired"} 0
splitsecond_agent_recursion_misses_total 9
"#;

    #[test]
    fn ends_are_summed_over_all_ages_and_what_has_none_is_outstanding() {
        let counted = Counted::parse(TEXT).expect("complete");
        let ends = Ends { established: 75, refused: 9, unreachable: 2, no_answer: 0, cancelled: 7 };
        assert_eq!((counted.attempts, counted.ends()), (100, ends));
        assert_eq!(counted.outstanding(), 4 + 15 - 12);
        assert_eq!(counted.attempts, counted.ends().sum() + counted.outstanding());
        assert_eq!((counted.loss("end-without-start"), counted.recursion_misses), (7, 9));
    }

    #[test]
    fn agents_add_up() {
        let one = Counted::parse(TEXT).expect("complete");
        let mut both = one.clone();
        both += one;
        assert_eq!((both.attempts, both.outstanding(), both.loss("end-without-start")), (200, 14, 14));
    }

    #[test]
    fn a_missing_figure_is_an_error_and_no_zero() {
        let without = TEXT.replace("splitsecond_agent_connects_outstanding 4\n", "");
        let error = Counted::parse(&without).expect_err("incomplete");
        assert!(error.to_string().contains("connects_outstanding"), "{error}");
    }
}
