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
    /// On so many nodes of east; absent where they are the shape's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
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
    pub fn new(scenario: &Scenario, planned: u32, runs: Vec<Run>, reasons: Vec<String>, limit_ms: Option<u32>) -> Self {
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
    if run.failovers > 1 {
        part(format!("left {} times", run.failovers));
    }
    if let Some(guard) = run.held_by.as_deref() {
        part(format!("held by {guard}"));
    }
    if run.failovers == 0 {
        part(run.control_ms.map_or_else(|| "stayed".to_owned(), |ms| format!("stayed, control after {ms:.1} ms")));
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

/// The table of all scenarios, and below it what went wrong.
#[must_use]
pub fn table(report: &Report) -> String {
    let few = report.scenarios.iter().all(|scenario| scenario.runs.len() < P99_FROM_RUNS);
    let controls = report.scenarios.iter().any(|scenario| scenario.control_ms.is_some());
    let mut rows = vec![headers(few, controls)];
    rows.extend(report.scenarios.iter().map(|scenario| row(scenario, controls)));
    let width_of = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width_of).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        text.push_str(&aligned(row, &widths));
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

/// Words to the left, numbers to the right.
fn aligned(row: &[String], widths: &[usize]) -> String {
    let mut line = String::from(" ");
    for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
        line.push_str(&if column < 2 { format!(" {cell:width$} ") } else { format!(" {cell:>width$} ") });
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

fn headers(few: bool, controls: bool) -> Vec<String> {
    let p99 = if few { "max" } else { "p99" };
    let mut headers = vec!["scenario", "verdict", "moved", "first failure", "written p50", p99, "limit", "shifted p50"];
    if controls {
        headers.push("control p50");
    }
    headers.push("failed requests");
    headers.into_iter().map(str::to_owned).collect()
}

fn row(scenario: &ScenarioReport, controls: bool) -> Vec<String> {
    let has_moved = |run: &&Run| match scenario.expect {
        Expect::Failback => run.failbacks > 0,
        // Of a scenario that must stay, these are the moves that it should not have made.
        Expect::Failover | Expect::None | Expect::Bound | Expect::Report => run.failovers > 0,
    };
    let moved = scenario.runs.iter().filter(has_moved).count();
    let first = Percentiles::of(scenario.runs.iter().map(|run| run.first_failure_ms));
    let limit = scenario.figure.map_or_else(String::new, |figure| {
        format!("<= {} {}", figure.limit_ms, if figure.ok { "ok" } else { "MISSED" })
    });
    let (failed, sent) = scenario
        .runs
        .iter()
        .fold((0, 0), |(failed, sent), run| (failed + run.requests.failed, sent + run.requests.sent));
    let verdict = match scenario.verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "FAIL",
    };
    let mut row = vec![
        scenario.name.to_owned(),
        verdict.to_owned(),
        format!("{moved} of {}", scenario.runs.len()),
        ms(first.p50),
        ms(scenario.written_ms.p50),
        ms(scenario.written_ms.p99),
        limit,
        ms(scenario.shifted_ms.p50),
    ];
    if controls {
        row.push(scenario.control_ms.map_or_else(String::new, |control| ms(control.p50)));
    }
    row.push(format!("{} of {}", grouped(failed), grouped(sent)));
    row
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
