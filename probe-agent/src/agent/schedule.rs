//! When the loop has to do what. Pure.
//!
//! In: the time, and what wakes early: the ring's record of a failure, an attempt about to become late. Out: the next
//! deadline, and what is due at it.

/// The counters are read this often when nothing special is on: half of the shortest bucket that core judges by is not
/// needed, all of it is enough, since failures wake by themselves.
pub(super) const PASS_NS: u64 = 20_000_000;

/// Reads are at least this far apart: rows with failures at most every 5 ms (detection: 250 messages a second).
pub(super) const PASS_APART_NS: u64 = 5_000_000;

/// Reports without failures, and signs of life.
pub(super) const FLUSH_NS: u64 = 100_000_000;

/// What found no room in the probe is tried again.
pub(super) const RETRY_NS: u64 = 1_000_000_000;

/// The kernel's sightings of meshes' proxies are read: it renews them as often (`abi::PROXY_RENEWED_NS`).
pub(super) const MESH_NS: u64 = 1_000_000_000;

/// `/state` is published.
pub(super) const SHOW_NS: u64 = 500_000_000;

/// What is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Read the counters that were touched.
    pub(super) pass: bool,
    /// Try again what found no room.
    pub(super) retry: bool,
    /// Let reports go out.
    pub(super) flush: bool,
    /// Publish.
    pub(super) show: bool,
    /// Read which endpoints are meshed.
    pub(super) mesh: bool,
}

/// The loop's deadlines.
#[derive(Debug)]
pub(super) struct Schedule {
    passed_ns: u64,
    late_ns: Option<u64>,
    is_woken: bool,
    retried_ns: u64,
    flushed_ns: u64,
    shown_ns: u64,
    mesh_read_ns: u64,
}

impl Schedule {
    /// Everything was done just now.
    #[must_use]
    pub(super) const fn new(now_ns: u64) -> Self {
        Self {
            passed_ns: now_ns,
            late_ns: None,
            is_woken: false,
            retried_ns: now_ns,
            flushed_ns: now_ns,
            shown_ns: now_ns,
            mesh_read_ns: now_ns,
        }
    }

    /// A failure was recorded: read as soon as reads may be.
    pub(super) const fn wake(&mut self) {
        self.is_woken = true;
    }

    /// When something is due next.
    #[must_use]
    pub(super) fn deadline_ns(&self) -> u64 {
        let published_ns = (self.flushed_ns + FLUSH_NS).min(self.shown_ns + SHOW_NS);
        self.pass_ns().min(published_ns).min(self.mesh_read_ns + MESH_NS)
    }

    /// What is due, which counts as done then.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Due {
        let mut due = Due { pass: self.pass_ns() <= now_ns, ..Due::default() };
        if due.pass {
            due.retry = elapsed(&mut self.retried_ns, RETRY_NS, now_ns);
            (self.passed_ns, self.is_woken) = (now_ns, false);
        }
        due.flush = elapsed(&mut self.flushed_ns, FLUSH_NS, now_ns);
        due.show = elapsed(&mut self.shown_ns, SHOW_NS, now_ns);
        due.mesh = elapsed(&mut self.mesh_read_ns, MESH_NS, now_ns);
        due
    }

    /// The counters were read; the next attempt becomes late then.
    pub(super) const fn on_pass(&mut self, late_ns: Option<u64>) {
        self.late_ns = late_ns;
    }

    fn pass_ns(&self) -> u64 {
        let earliest_ns = self.passed_ns + PASS_APART_NS;
        if self.is_woken {
            return earliest_ns;
        }
        let regular_ns = self.passed_ns + PASS_NS;
        self.late_ns.map_or(regular_ns, |late_ns| late_ns.min(regular_ns)).max(earliest_ns)
    }
}

/// Whether the interval is over; the next begins now, so that a stalled loop does not catch up in a burst.
const fn elapsed(since_ns: &mut u64, interval_ns: u64, now_ns: u64) -> bool {
    let is_over = now_ns >= *since_ns + interval_ns;
    if is_over {
        *since_ns = now_ns;
    }
    is_over
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_quiet_loop_reads_every_twenty_milliseconds_and_flushes_every_hundred() {
        let mut schedule = Schedule::new(0);
        let (mut passes, mut flushes, mut retries, mut mesh_reads) = (0, 0, 0, 0);
        loop {
            let now_ns = schedule.deadline_ns();
            if now_ns > 2_000 * MS {
                break;
            }
            let due = schedule.take_due(now_ns);
            assert_ne!(due, Due::default(), "woken for nothing at {now_ns}");
            passes += u32::from(due.pass);
            flushes += u32::from(due.flush);
            retries += u32::from(due.retry);
            mesh_reads += u32::from(due.mesh);
            schedule.on_pass(None);
        }
        assert_eq!((passes, flushes, retries, mesh_reads), (100, 20, 2, 2));
    }

    #[test]
    fn a_failure_is_read_at_once_and_then_every_five_milliseconds() {
        let mut schedule = Schedule::new(0);
        schedule.take_due(20 * MS);
        schedule.wake();
        assert!(schedule.deadline_ns() <= 30 * MS, "long enough after the read before");
        assert!(schedule.take_due(30 * MS).pass);
        schedule.wake();
        assert_eq!(schedule.deadline_ns(), 35 * MS);
        assert!(!schedule.take_due(34 * MS).pass);
        assert!(schedule.take_due(35 * MS).pass);
        assert_eq!(schedule.deadline_ns(), 55 * MS);
    }

    #[test]
    fn an_attempt_that_becomes_late_is_read_then() {
        let mut schedule = Schedule::new(0);
        schedule.on_pass(Some(13 * MS));
        assert_eq!(schedule.deadline_ns(), 13 * MS);
        schedule.on_pass(Some(2 * MS));
        assert_eq!(schedule.deadline_ns(), 5 * MS);
        schedule.on_pass(Some(90 * MS));
        assert_eq!(schedule.deadline_ns(), 20 * MS);
    }
}
