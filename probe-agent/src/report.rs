//! Rows in, numbered frames for one stream out, gaps admitted. Pure.
//!
//! In: the rows of each read, results of checks, history for the beginning of a stream, and what was lost below. Out:
//! encoded frames, in order, whenever one is due. Nothing here knows a connection: one [`Reporter`] serves one stream,
//! and [`Reporter::begin`] makes it forget the stream before.
//!
//! Rows without failures are merged per destination until they are sent, since only their sums matter; rows with
//! failures are kept as they are and make a report due at once.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use probe_common::wire::{
    AgentFrame, CheckResult, CheckResults, Destination, EncodeError, Frame as _, Hello, MESHED_LIMIT, Meshed,
    REPORT_ROWS_LIMIT, Report, Row, Total, Totals,
};

/// Rows that wait for a stream that takes none, at most. A read of every destination of the largest node fits (4,096);
/// at 200 bytes each the queue is below 1 MiB per stream.
pub const ROWS_LIMIT: usize = 4096;

/// Results of checks that wait, at most: 4 s of the node's budget.
pub const RESULTS_LIMIT: usize = 1000;

/// Everything that is on its way to one controller.
#[derive(Debug, Default)]
pub struct Reporter {
    hello: Option<Hello>,
    meshed: Option<Vec<IpAddr>>,
    results: VecDeque<CheckResult>,
    totals: Option<VecDeque<Total>>,
    rows: VecDeque<Row>,
    /// Number of the first of `rows` since the stream began.
    first_row: u64,
    /// The number of the row that takes in further rows of a destination, self-hops apart.
    mergeable: BTreeMap<(Destination, bool), u64>,
    seq: u64,
    now_ns: u64,
    blind: Option<String>,
    lateness_us: u32,
    dropped_rows: u64,
    lost_events: u64,
    is_live: bool,
    is_urgent: bool,
    is_flushed: bool,
}

/// What the frames so far amount to, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Rows that were counted and not sent.
    pub rows: u64,
    /// Results of checks that were not sent.
    pub results: u64,
}

impl Reporter {
    /// A new stream begins: what was meant for the one before is forgotten, it belongs to the totals now.
    pub fn begin(&mut self, hello: Hello) {
        let blind = hello.blind.clone();
        let now_ns = hello.now_ns;
        *self = Self { hello: Some(hello), blind, now_ns, ..Self::default() };
    }

    /// Where each destination stood, after the controller said that it had sent every split. Rows are told from here
    /// on: what was read before is part of these totals.
    pub fn push_totals(&mut self, totals: impl IntoIterator<Item = Total>, now_ns: u64) {
        self.totals.get_or_insert_default().extend(totals);
        self.now_ns = now_ns;
        self.is_live = true;
    }

    /// Which endpoints on this node are meshed, in place of what was said before. Goes out before history that waits, so
    /// that nobody judges by it what is a proxy's.
    pub fn push_meshed(&mut self, endpoints: &[IpAddr], now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        self.meshed = Some(endpoints.iter().take(MESHED_LIMIT).copied().collect());
    }

    /// Takes the rows of a read and says how many older ones had to go.
    pub fn push_rows(&mut self, rows: &[Row], now_ns: u64) -> Dropped {
        self.now_ns = self.now_ns.max(now_ns);
        if !self.is_live {
            return Dropped::default();
        }
        let mut dropped = Dropped::default();
        for row in rows.iter().filter(|row| !row.is_empty()) {
            self.push_row(row);
            if self.rows.len() > ROWS_LIMIT {
                self.drop_oldest();
                dropped.rows += 1;
            }
        }
        self.dropped_rows += dropped.rows;
        dropped
    }

    /// Takes the result of a check and says whether an older one had to go.
    pub fn push_result(&mut self, result: CheckResult, now_ns: u64) -> Dropped {
        self.now_ns = self.now_ns.max(now_ns);
        self.results.push_back(result);
        let dropped = self.results.len().saturating_sub(RESULTS_LIMIT);
        self.results.drain(..dropped);
        Dropped { results: dropped as u64, ..Dropped::default() }
    }

    /// Notes what the next report has to admit: how late the loop woke, and events that the kernel lost.
    pub fn admit(&mut self, lateness_us: u32, lost_events: u64) {
        self.lateness_us = self.lateness_us.max(lateness_us);
        self.lost_events += lost_events;
    }

    /// Says from now on that this node cannot count, or that it can. A report of a blind node has no rows, so those that
    /// wait become a gap.
    pub fn set_blind(&mut self, blind: Option<&str>) {
        self.blind = blind.map(str::to_owned);
        if self.blind.is_some() {
            self.dropped_rows += self.rows.len() as u64;
            self.first_row += self.rows.len() as u64;
            self.rows.clear();
            self.mergeable.clear();
        }
    }

    /// Whether rows are told: not before the totals of this stream.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.is_live
    }

    /// Why this node cannot count, if so.
    #[must_use]
    pub fn blind(&self) -> Option<&str> {
        self.blind.as_deref()
    }

    /// Makes a report due, if only as a sign of life.
    pub fn flush(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        self.is_flushed = true;
    }

    /// Whether [`next_frame`](Self::next_frame) has one.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.hello.is_some()
            || self.meshed.is_some()
            || !self.results.is_empty()
            || self.totals.is_some()
            || self.is_urgent
            || self.is_flushed
            || self.rows.len() >= REPORT_ROWS_LIMIT
    }

    /// The next frame, encoded.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        if let Some(hello) = self.hello.take() {
            return AgentFrame::Hello(hello).encode().ok();
        }
        if let Some(endpoints) = self.meshed.take() {
            return AgentFrame::Meshed(Meshed { now_ns: self.now_ns, endpoints }).encode().ok();
        }
        if !self.results.is_empty() {
            return self.next_results();
        }
        if self.totals.is_some() {
            return self.next_totals();
        }
        self.is_due().then(|| self.next_report()).flatten()
    }

    fn push_row(&mut self, row: &Row) {
        let has_failures = row.failed() > 0 || row.reset > 0;
        if has_failures {
            self.mergeable.remove(&place(row));
            self.is_urgent = true;
        } else if let Some(earlier) = self.mergeable_row(row) {
            merge(earlier, row);
            return;
        } else {
            self.mergeable.insert(place(row), self.first_row + self.rows.len() as u64);
        }
        self.rows.push_back(row.clone());
    }

    fn mergeable_row(&mut self, row: &Row) -> Option<&mut Row> {
        let position = self.mergeable.get(&place(row))?.checked_sub(self.first_row)?;
        self.rows.get_mut(usize::try_from(position).ok()?)
    }

    fn drop_oldest(&mut self) {
        if let Some(row) = self.rows.pop_front() {
            if self.mergeable.get(&place(&row)) == Some(&self.first_row) {
                self.mergeable.remove(&place(&row));
            }
            self.first_row += 1;
        }
    }

    fn next_results(&mut self) -> Option<Vec<u8>> {
        let now_ns = self.now_ns;
        encode_most(&mut self.results, |results| AgentFrame::CheckResults(CheckResults { now_ns, results }))
    }

    fn next_totals(&mut self) -> Option<Vec<u8>> {
        let now_ns = self.now_ns;
        let totals = self.totals.as_mut()?;
        let all = totals.len();
        let frame = encode_most(totals, |rows| {
            let complete = rows.len() == all;
            AgentFrame::Totals(Totals { now_ns, complete, rows })
        });
        if totals.is_empty() {
            self.totals = None;
        }
        frame
    }

    fn next_report(&mut self) -> Option<Vec<u8>> {
        let report = Report {
            seq: self.seq + 1,
            now_ns: self.now_ns,
            blind: self.blind.clone(),
            lateness_us: self.lateness_us,
            dropped_rows: self.dropped_rows,
            lost_events: self.lost_events,
            rows: Vec::new(),
        };
        let before = self.rows.len();
        let frame = encode_most(&mut self.rows, |rows| AgentFrame::Report(Report { rows, ..report.clone() }))?;
        self.first_row += (before - self.rows.len()) as u64;
        let first_row = self.first_row;
        self.mergeable.retain(|_, number| *number >= first_row);
        self.seq += 1;
        (self.lateness_us, self.dropped_rows, self.lost_events) = (0, 0, 0);
        if self.rows.is_empty() {
            (self.is_urgent, self.is_flushed) = (false, false);
        }
        Some(frame)
    }
}

/// Encodes as many items from the front as a frame takes, and removes them.
fn encode_most<T: Clone>(items: &mut VecDeque<T>, frame: impl Fn(Vec<T>) -> AgentFrame) -> Option<Vec<u8>> {
    let mut take = items.len().min(REPORT_ROWS_LIMIT);
    loop {
        match frame(items.iter().take(take).cloned().collect()).encode() {
            Ok(bytes) => {
                items.drain(..take);
                return Some(bytes);
            }
            Err(EncodeError::TooLarge { .. }) if take > 1 => take /= 2,
            Err(error) => {
                // Even one item is over the limit: not reachable with the types of the wire, so nothing is kept of it.
                debug_assert!(false, "an item cannot be encoded: {error}");
                items.drain(..take);
                return None;
            }
        }
    }
}

/// What a row is of.
const fn place(row: &Row) -> (Destination, bool) {
    (row.to, row.self_hop)
}

/// Adds a later row without failures to an earlier one.
fn merge(earlier: &mut Row, later: &Row) {
    if later.established > 0 {
        earlier.established_ns = None;
    } else if earlier.established > 0 {
        earlier.established_ns.get_or_insert(earlier.to_ns);
    }
    earlier.to_ns = later.to_ns;
    earlier.attempts += later.attempts;
    earlier.established += later.established;
    earlier.recovered += later.recovered;
    earlier.cancelled += later.cancelled;
    earlier.answered += later.answered;
}

#[cfg(test)]
mod tests {
    use probe_common::wire::{CheckOutcome, Decoded, Decoder};

    use super::*;

    fn to(last: u8) -> Destination {
        Destination::from(([198, 18, 0, last], 80))
    }

    fn mk_row(last: u8, to_ns: u64, established: u64, refused: u64) -> Row {
        let attempts = established + refused;
        Row { attempts, established, refused, ..Row::empty(to(last), to_ns - 1, to_ns) }
    }

    fn mk_live() -> Reporter {
        let mut reporter = Reporter::default();
        let hello = Hello { node: "n1".into(), incarnation: 1, version: String::new(), now_ns: 1, blind: None };
        reporter.begin(hello);
        reporter.push_totals([], 1);
        assert_eq!(frames(&mut reporter).len(), 2, "hello and totals");
        reporter
    }

    fn frames(reporter: &mut Reporter) -> Vec<AgentFrame> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        while let Some(bytes) = reporter.next_frame() {
            decoder.push(&bytes);
        }
        while let Some(decoded) = decoder.next_frame().expect("decodes") {
            let Decoded::Frame(frame) = decoded else { panic!("unknown frame") };
            frames.push(frame);
        }
        frames
    }

    fn reports(reporter: &mut Reporter) -> Vec<Report> {
        let report = |frame| match frame {
            AgentFrame::Report(report) => report,
            other => panic!("not a report: {other:?}"),
        };
        frames(reporter).into_iter().map(report).collect()
    }

    #[test]
    fn a_stream_begins_with_hello_then_totals_then_reports_from_one() {
        let mut reporter = Reporter::default();
        let hello = Hello { node: "n1".into(), incarnation: 1, version: String::new(), now_ns: 5, blind: None };
        reporter.begin(hello.clone());
        reporter.push_rows(&[mk_row(1, 10, 0, 1)], 10);
        reporter.flush(11);
        let before = frames(&mut reporter);
        assert_eq!(before[0], AgentFrame::Hello(hello.clone()));
        let AgentFrame::Report(report) = &before[1] else { panic!("{before:?}") };
        assert_eq!((report.seq, report.rows.len()), (1, 0), "a sign of life, but no rows before the totals");
        let total =
            Total { to: to(1), attempts: 1, established: 0, last_success_age_ns: None, last_check_age_ns: None };
        reporter.push_totals([total.clone()], 20);
        reporter.push_rows(&[mk_row(1, 30, 0, 1)], 30);
        let after = frames(&mut reporter);
        assert_eq!(after[0], AgentFrame::Totals(Totals { now_ns: 30, complete: true, rows: vec![total] }));
        let AgentFrame::Report(report) = &after[1] else { panic!("{after:?}") };
        assert_eq!((report.seq, report.now_ns, report.rows.len()), (2, 30, 1));
        reporter.begin(hello);
        reporter.flush(40);
        let again = frames(&mut reporter);
        assert!(matches!(&again[1], AgentFrame::Report(report) if report.seq == 1), "{again:?}");
    }

    #[test]
    fn a_merged_row_says_when_an_attempt_was_last_established() {
        let check = |established: [u64; 4], expected| {
            let mut reporter = mk_live();
            for (period, established) in (1..).zip(established) {
                let row = Row { attempts: 1, ..mk_row(1, period * 10, established, 0) };
                reporter.push_rows(&[row], period * 10);
            }
            reporter.flush(50);
            assert_eq!(reports(&mut reporter)[0].rows[0].established_ns, expected, "{established:?}");
        };
        check([1, 0, 0, 0], Some(10));
        check([1, 0, 2, 0], Some(30));
        check([0, 0, 0, 2], None);
        check([0, 0, 0, 0], None);
    }

    #[test]
    fn rows_without_failures_wait_and_are_merged() {
        let mut reporter = mk_live();
        for to_ns in 10..20 {
            reporter.push_rows(&[mk_row(1, to_ns, 3, 0), mk_row(2, to_ns, 1, 0)], to_ns);
        }
        assert!(!reporter.is_due());
        assert_eq!(reporter.next_frame(), None);
        reporter.flush(20);
        let reports = reports(&mut reporter);
        let merged = |last, established| Row { from_ns: 9, ..mk_row(last, 19, established, 0) };
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].rows, [merged(1, 30), merged(2, 10)]);
    }

    #[test]
    fn rows_with_failures_are_due_at_once_and_stay_apart_and_in_order() {
        let mut reporter = mk_live();
        let rows =
            [mk_row(1, 10, 3, 0), mk_row(1, 11, 0, 1), mk_row(1, 12, 0, 1), mk_row(1, 13, 2, 0), mk_row(1, 14, 2, 0)];
        for row in &rows {
            reporter.push_rows(std::slice::from_ref(row), row.to_ns);
        }
        assert!(reporter.is_due());
        let reports = reports(&mut reporter);
        let last = Row { from_ns: 12, ..mk_row(1, 14, 4, 0) };
        assert_eq!(reports[0].rows, [rows[0].clone(), rows[1].clone(), rows[2].clone(), last]);
    }

    #[test]
    fn self_hops_are_not_merged_with_what_others_saw() {
        let mut reporter = mk_live();
        let self_hop = |to_ns| Row { self_hop: true, ..mk_row(1, to_ns, 1, 0) };
        for to_ns in [10, 11] {
            reporter.push_rows(&[mk_row(1, to_ns, 3, 0), self_hop(to_ns)], to_ns);
        }
        reporter.flush(12);
        let rows = reports(&mut reporter).remove(0).rows;
        let expected = [
            Row { from_ns: 9, ..mk_row(1, 11, 6, 0) },
            Row { from_ns: 9, established: 2, attempts: 2, ..self_hop(11) },
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn meshed_endpoints_are_told_before_history_and_the_last_word_counts() {
        let mut reporter = Reporter::default();
        let hello = Hello { node: "n1".into(), incarnation: 1, version: String::new(), now_ns: 5, blind: None };
        reporter.begin(hello.clone());
        reporter.push_meshed(&[], 6);
        reporter.push_meshed(&[to(1).ip()], 7);
        reporter.push_totals([], 8);
        let expected = [
            AgentFrame::Hello(hello),
            AgentFrame::Meshed(Meshed { now_ns: 8, endpoints: vec![to(1).ip()] }),
            AgentFrame::Totals(Totals { now_ns: 8, complete: true, rows: vec![] }),
        ];
        assert_eq!(frames(&mut reporter), expected);
        assert!(!reporter.is_due());
        let many: Vec<IpAddr> = (0..2000u32).map(|n| IpAddr::from((n + 0x2001_0db8).to_be_bytes())).collect();
        reporter.push_meshed(&many, 9);
        let told = frames(&mut reporter);
        assert!(matches!(&told[..], [AgentFrame::Meshed(meshed)] if meshed.endpoints == many[..MESHED_LIMIT]));
    }

    #[test]
    fn a_row_that_was_sent_takes_in_no_more() {
        let mut reporter = mk_live();
        reporter.push_rows(&[mk_row(1, 10, 3, 0)], 10);
        reporter.flush(10);
        assert_eq!(reports(&mut reporter)[0].rows.len(), 1);
        reporter.push_rows(&[mk_row(1, 11, 2, 0)], 11);
        reporter.flush(11);
        assert_eq!(reports(&mut reporter)[0].rows, [mk_row(1, 11, 2, 0)]);
    }

    #[test]
    fn what_does_not_fit_goes_into_further_reports() {
        let mut reporter = mk_live();
        let rows: Vec<Row> = (0..500).map(|n| Row { to: ([198, 18, 1, 1], n).into(), ..mk_row(1, 10, 0, 1) }).collect();
        reporter.push_rows(&rows, 10);
        let reports = reports(&mut reporter);
        assert_eq!(reports.iter().map(|report| report.seq).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(reports.iter().flat_map(|report| report.rows.clone()).collect::<Vec<_>>(), rows);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_says_so() {
        let mut reporter = mk_live();
        reporter.admit(70, 2);
        reporter.admit(50, 1);
        let rows: Vec<Row> = (1..=ROWS_LIMIT as u64 + 3).map(|to_ns| mk_row(1, to_ns, 0, 1)).collect();
        assert_eq!(reporter.push_rows(&rows, 10), Dropped { rows: 3, results: 0 });
        let reports = reports(&mut reporter);
        assert_eq!(reports[0].rows[0].to_ns, 4);
        assert_eq!((reports[0].dropped_rows, reports[0].lost_events, reports[0].lateness_us), (3, 3, 70));
        assert_eq!((reports[1].dropped_rows, reports[1].lost_events, reports[1].lateness_us), (0, 0, 0));
    }

    #[test]
    fn merging_goes_on_after_rows_were_dropped() {
        let mut reporter = mk_live();
        reporter.push_rows(&[mk_row(1, 10, 1, 0), mk_row(2, 10, 1, 0)], 10);
        let failures: Vec<Row> = (0..ROWS_LIMIT as u64 - 1).map(|_| mk_row(3, 11, 0, 1)).collect();
        assert_eq!(reporter.push_rows(&failures, 11).rows, 1);
        reporter.push_rows(&[mk_row(2, 12, 1, 0)], 12);
        let rows: Vec<Row> = reports(&mut reporter).into_iter().flat_map(|report| report.rows).collect();
        assert_eq!(rows.len(), ROWS_LIMIT);
        assert_eq!(rows[0], Row { from_ns: 9, ..mk_row(2, 12, 2, 0) });
    }

    #[test]
    fn a_blind_node_says_why() {
        let mut reporter = mk_live();
        reporter.push_rows(&[mk_row(1, 8, 1, 0)], 8);
        reporter.set_blind(Some("no BTF"));
        reporter.flush(9);
        let reports = reports(&mut reporter);
        assert_eq!(reports[0].blind.as_deref(), Some("no BTF"));
        assert_eq!((reports[0].rows.len(), reports[0].dropped_rows), (0, 1));
    }

    #[test]
    fn results_of_checks_are_due_at_once_and_bounded() {
        let mut reporter = mk_live();
        for id in 0..RESULTS_LIMIT as u64 + 5 {
            let result = CheckResult { id, to: to(1), started_ns: 1, ended_ns: 2, outcome: CheckOutcome::Passed };
            let dropped = reporter.push_result(result, 3).results;
            assert_eq!(dropped, u64::from(id >= RESULTS_LIMIT as u64));
        }
        let mut ids = Vec::new();
        for frame in frames(&mut reporter) {
            let AgentFrame::CheckResults(results) = frame else { panic!("{frame:?}") };
            ids.extend(results.results.into_iter().map(|result| result.id));
        }
        assert_eq!(ids, (5..RESULTS_LIMIT as u64 + 5).collect::<Vec<_>>());
    }
}
