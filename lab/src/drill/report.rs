//! What people and programs read at the end. In: runs and their verdicts. Out: the JSON of schema 1, the table, and the
//! line that is printed after each run. Not here: files and terminals. Pure.

use serde::Serialize;

use crate::drill::args::{ControlPlane, Follow, Profile, Shape};
use crate::drill::measure::{Percentiles, Run};
use crate::drill::policy::Policy;
use crate::drill::scenario::{Expect, Scenario};
use crate::drill::verdict::Verdict;

/// From this many runs on, p99 is another value than the maximum.
const P99_FROM_RUNS: usize = 100;

/// A whole invocation.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// 1.
    pub schema: u32,
    /// Which API server.
    pub control_plane: ControlPlane,
    /// The controller's profile.
    pub profile: Profile,
    /// How many clients and endpoints.
    pub shape: Shape,
    /// Who follows the weights.
    pub follow: Follow,
    /// Connections per second of all clients together.
    pub rate: u32,
    /// Whether the nodes had agents.
    pub agents: bool,
    /// The controller's settings, where a scenario does not name others.
    pub policy: Policy,
    /// In the order in which they ran.
    pub scenarios: Vec<ScenarioReport>,
}

/// A scenario's runs.
#[derive(Clone, Debug, Serialize)]
pub struct ScenarioReport {
    /// As on the command line.
    pub name: &'static str,
    /// What had to follow.
    pub expect: Expect,
    /// Whether it did.
    pub verdict: Verdict,
    /// The limit under these conditions, where the table has one.
    pub figure: Option<FigureReport>,
    /// One per run that ended.
    pub runs: Vec<Run>,
    /// Over the runs that were written.
    pub written_ms: Percentiles,
    /// Over the runs that shifted.
    pub shifted_ms: Percentiles,
    /// Over the runs that had a control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_ms: Option<Percentiles>,
    /// Its own settings of the controller, where they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Why the verdict is no pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// A limit and whether it was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FigureReport {
    /// Of p99 (below 100 runs: of the maximum) of `written`.
    pub limit_ms: u32,
    /// Every run was written, and within the limit.
    pub ok: bool,
}

impl Report {
    /// 0 when every verdict is pass, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        u8::from(self.scenarios.iter().any(|scenario| scenario.verdict == Verdict::Fail))
    }
}

impl ScenarioReport {
    /// Of the runs that ended, how many were planned, the reasons against them and the limit that holds here.
    #[must_use]
    pub fn new(
        scenario: &'static Scenario,
        planned: u32,
        runs: Vec<Run>,
        reasons: Vec<String>,
        limit_ms: Option<u32>,
    ) -> Self {
        let written_ms = Percentiles::of(runs.iter().map(|run| run.written_ms));
        let written = runs.iter().filter(|run| run.written_ms.is_some()).count();
        let all_written = u32::try_from(written).is_ok_and(|written| written == planned);
        let figure = limit_ms.map(|limit_ms| FigureReport {
            limit_ms,
            ok: all_written && written_ms.p99.is_some_and(|ms| ms <= f64::from(limit_ms)),
        });
        Self {
            name: scenario.name,
            expect: scenario.expect,
            verdict: if reasons.is_empty() { Verdict::Pass } else { Verdict::Fail },
            figure,
            written_ms,
            shifted_ms: Percentiles::of(runs.iter().map(|run| run.shifted_ms)),
            control_ms: scenario.control.map(|_| Percentiles::of(runs.iter().map(|run| run.control_ms))),
            runs,
            policy: None,
            reasons,
        }
    }
}

/// One line about one run.
#[must_use]
pub fn run_line(run: &Run, reasons: &[String]) -> String {
    let mut line = String::new();
    let mut part = |text: String| {
        if !line.is_empty() {
            line.push_str(", ");
        }
        line.push_str(&text);
    };
    if let Some(ms) = run.written_ms {
        part(format!("written after {ms:.1} ms"));
    }
    if let Some(ms) = run.shifted_ms {
        part(format!("shifted after {ms:.1} ms"));
    }
    if let Some(ms) = run.control_ms {
        part(format!("stayed, control after {ms:.1} ms"));
    }
    if let Some(last) = run.failback.as_ref().and_then(|back| back.steps.last()) {
        part(format!("back after {:.1} s", last.at_ms / 1_000.0));
    }
    part(format!("{} of {} requests failed", grouped(run.requests.failed), grouped(run.requests.sent)));
    for reason in reasons {
        part(format!("FAIL: {reason}"));
    }
    line
}

const HEADERS: [&str; 9] =
    ["scenario", "verdict", "moved", "first failure", "written p50", "p99", "limit", "shifted p50", "failed requests"];

/// The table of all scenarios, and below it what went wrong.
#[must_use]
pub fn table(report: &Report) -> String {
    let mut headers = HEADERS.map(str::to_owned);
    if report.scenarios.iter().all(|scenario| scenario.runs.len() < P99_FROM_RUNS) {
        headers[5] = "max".to_owned();
    }
    let mut rows: Vec<[String; 9]> = vec![headers];
    rows.extend(report.scenarios.iter().map(row));
    let widths: [usize; 9] = std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::from(" ");
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Words to the left, numbers to the right.
            line.push_str(&if column < 2 { format!(" {cell:width$} ") } else { format!(" {cell:>width$} ") });
        }
        text.push_str(line.trim_end());
        text.push('\n');
        if number == 0 {
            let rule = "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1));
            text.push_str(&format!("  {rule}\n"));
        }
    }
    for scenario in &report.scenarios {
        for reason in &scenario.reasons {
            text.push_str(&format!("  {}: {reason}\n", scenario.name));
        }
    }
    text
}

fn row(scenario: &ScenarioReport) -> [String; 9] {
    let times = |count: usize| format!("{count} of {}", scenario.runs.len());
    let moved = match scenario.expect {
        Expect::Failover => times(scenario.runs.iter().filter(|run| run.failovers > 0).count()),
        Expect::Failback => times(scenario.runs.iter().filter(|run| run.failbacks > 0).count()),
        // Of a scenario that must stay, the moves that it should not have made.
        Expect::None => times(scenario.runs.iter().filter(|run| run.failovers > 0).count()),
    };
    let first = Percentiles::of(scenario.runs.iter().map(|run| run.first_failure_ms));
    let limit = scenario.figure.map_or_else(String::new, |figure| {
        format!("<= {} {}", figure.limit_ms, if figure.ok { "ok" } else { "MISSED" })
    });
    let (failed, sent) = scenario
        .runs
        .iter()
        .fold((0, 0), |(failed, sent), run| (failed + run.requests.failed, sent + run.requests.sent));
    [
        scenario.name.to_owned(),
        match scenario.verdict {
            Verdict::Pass => "pass".to_owned(),
            Verdict::Fail => "FAIL".to_owned(),
        },
        moved,
        ms(first.p50),
        ms(scenario.written_ms.p50),
        ms(scenario.written_ms.p99),
        limit,
        ms(scenario.shifted_ms.p50),
        format!("{} of {}", grouped(failed), grouped(sent)),
    ]
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"))
}

/// With a comma every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
