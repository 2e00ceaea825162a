//! Whether a frame can be true. Pure.
//!
//! In: a frame that could be read. Out: nothing, or the one field that cannot be as it says. An agent is believed within its
//! own node's view, and what it counts there the core weighs; here only the impossible is kept out, so that a broken agent
//! is known as one by its log line. Limits are far from anything that a node can do, so that no odd kernel is called broken.

use probe_common::wire::{AgentFrame, CheckResult, MESHED_LIMIT, REPORT_ROWS_LIMIT, Report, Row, Total};

/// More attempts than a node begins in an hour at a million a second, which none does.
const COUNT_LIMIT: u64 = 3_600_000_000;

/// How far a time may lie ahead of the frame's own: agents read counters and clock one after the other, in milliseconds.
const AHEAD_NS: u64 = 10_000_000_000;

/// Which field cannot be, and why.
///
/// # Errors
///
/// One sentence, field first.
pub(super) fn check(frame: &AgentFrame) -> Result<(), String> {
    match frame {
        AgentFrame::Report(report) => check_report(report),
        AgentFrame::CheckResults(results) => {
            let now_ns = results.now_ns;
            each("results", &results.results, |result| check_result(result, now_ns))
        }
        AgentFrame::Totals(totals) => {
            let now_ns = totals.now_ns;
            each("rows", &totals.rows, |total| check_total(total, now_ns))
        }
        AgentFrame::Meshed(meshed) if meshed.endpoints.len() > MESHED_LIMIT => {
            Err(format!("endpoints has {} entries, the limit is {MESHED_LIMIT}", meshed.endpoints.len()))
        }
        AgentFrame::Meshed(_) | AgentFrame::Hello(_) => Ok(()),
    }
}

fn check_report(report: &Report) -> Result<(), String> {
    if report.rows.len() > REPORT_ROWS_LIMIT {
        return Err(format!("rows has {} entries, the limit is {REPORT_ROWS_LIMIT}", report.rows.len()));
    }
    each("rows", &report.rows, |row| check_row(row, report.now_ns))
}

fn each<T>(list: &str, items: &[T], check: impl Fn(&T) -> Result<(), String>) -> Result<(), String> {
    for (index, item) in items.iter().enumerate() {
        check(item).map_err(|fault| format!("{list}[{index}].{fault}"))?;
    }
    Ok(())
}

fn check_row(row: &Row, now_ns: u64) -> Result<(), String> {
    let counts = [
        ("attempts", row.attempts),
        ("established", row.established),
        ("refused", row.refused),
        ("unreachable", row.unreachable),
        ("late", row.late),
        ("recovered", row.recovered),
        ("cancelled", row.cancelled),
        ("answered", row.answered),
        ("reset", row.reset),
    ];
    for (field, count) in counts {
        if count > COUNT_LIMIT {
            return Err(format!("{field} {count} of {} is more than a node can count", row.to));
        }
    }
    in_order(("from_ns", row.from_ns), ("to_ns", row.to_ns))?;
    not_ahead("to_ns", row.to_ns, now_ns)?;
    if let Some(first) = row.first {
        in_order(("first.started_ns", first.started_ns), ("first.failed_ns", first.failed_ns))?;
        not_ahead("first.failed_ns", first.failed_ns, now_ns)?;
    }
    Ok(())
}

fn check_result(result: &CheckResult, now_ns: u64) -> Result<(), String> {
    in_order(("started_ns", result.started_ns), ("ended_ns", result.ended_ns))?;
    not_ahead("ended_ns", result.ended_ns, now_ns)
}

fn check_total(total: &Total, now_ns: u64) -> Result<(), String> {
    let ages = [("last_success_age_ns", total.last_success_age_ns), ("last_check_age_ns", total.last_check_age_ns)];
    for (field, age) in ages {
        if let Some(age) = age.filter(|age| *age > now_ns.saturating_add(AHEAD_NS)) {
            return Err(format!("{field} {age} is before the node's own start"));
        }
    }
    Ok(())
}

fn in_order((early, begins): (&str, u64), (late, ends): (&str, u64)) -> Result<(), String> {
    if begins <= ends { Ok(()) } else { Err(format!("{late} {ends} is before {early} {begins}")) }
}

fn not_ahead(field: &str, time_ns: u64, now_ns: u64) -> Result<(), String> {
    if time_ns <= now_ns.saturating_add(AHEAD_NS) {
        Ok(())
    } else {
        Err(format!("{field} {time_ns} is after the frame's own now_ns {now_ns}"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use probe_common::wire::{CheckOutcome, CheckResults, First, Meshed, Totals};

    use super::*;

    const NOW_NS: u64 = 60_000_000_000;

    fn mk_row() -> Row {
        let row = Row::empty("198.18.1.1:80".parse().expect("a destination"), NOW_NS - 20, NOW_NS - 10);
        Row { attempts: 7, refused: 7, first: Some(First { started_ns: NOW_NS - 15, failed_ns: NOW_NS - 12 }), ..row }
    }

    #[track_caller]
    fn row(row: Row, expected: Result<(), &str>) {
        let report = Report { seq: 1, now_ns: NOW_NS, rows: vec![mk_row(), row], ..Report::default() };
        assert_eq!(check(&AgentFrame::Report(report)), expected.map_err(ToOwned::to_owned));
    }

    #[test]
    fn what_an_agent_sends_every_day_passes() {
        row(mk_row(), Ok(()));
        row(Row { from_ns: 0, ..mk_row() }, Ok(()));
        // The clock was read before the counters.
        row(Row { to_ns: NOW_NS + 5_000_000, ..mk_row() }, Ok(()));
    }

    #[test]
    fn what_cannot_be_names_its_field() {
        row(
            Row { attempts: u64::MAX, ..mk_row() },
            Err("rows[1].attempts 18446744073709551615 of 198.18.1.1:80 is more than a node can count"),
        );
        row(Row { from_ns: NOW_NS, to_ns: 5, ..mk_row() }, Err("rows[1].to_ns 5 is before from_ns 60000000000"));
        row(
            Row { to_ns: u64::MAX, ..mk_row() },
            Err("rows[1].to_ns 18446744073709551615 is after the frame's own now_ns 60000000000"),
        );
        row(
            Row { first: Some(First { started_ns: 9, failed_ns: 8 }), ..mk_row() },
            Err("rows[1].first.failed_ns 8 is before first.started_ns 9"),
        );
    }

    #[test]
    fn lists_are_bounded_beyond_the_bytes_of_a_frame() {
        let report = Report { rows: vec![mk_row(); REPORT_ROWS_LIMIT + 1], now_ns: NOW_NS, ..Report::default() };
        assert_eq!(check(&AgentFrame::Report(report)), Err("rows has 201 entries, the limit is 200".to_owned()));
        let address: IpAddr = "198.18.1.1".parse().expect("an address");
        let meshed = Meshed { now_ns: 1, endpoints: vec![address; MESHED_LIMIT + 1] };
        assert_eq!(check(&AgentFrame::Meshed(meshed)), Err("endpoints has 1025 entries, the limit is 1024".to_owned()));
    }

    #[test]
    fn times_of_checks_and_totals_are_looked_at_too() {
        let to = "198.18.1.1:80".parse().expect("a destination");
        let result = CheckResult { id: 1, to, started_ns: 9, ended_ns: 3, outcome: CheckOutcome::Passed };
        let results = CheckResults { now_ns: NOW_NS, results: vec![result] };
        assert_eq!(
            check(&AgentFrame::CheckResults(results)),
            Err("results[0].ended_ns 3 is before started_ns 9".to_owned())
        );
        let total =
            Total { to, attempts: 1, established: 1, last_success_age_ns: Some(u64::MAX), last_check_age_ns: None };
        let totals = Totals { now_ns: NOW_NS, complete: true, rows: vec![total] };
        assert_eq!(
            check(&AgentFrame::Totals(totals)),
            Err("rows[0].last_success_age_ns 18446744073709551615 is before the node's own start".to_owned())
        );
    }
}
