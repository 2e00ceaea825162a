//! Faults with a course of their own: one that ends by itself, one that comes and goes, one that follows another. In:
//! other faults and lengths. Out: times. What they do is those other faults' business.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::super::clock::{now_ns, pause};
use super::{Fault, Span};

/// How long a wait may go on before somebody looks whether it is still wanted.
const WAIT_STEP: Duration = Duration::from_millis(20);

/// A fault that ends by itself after a while. Injecting it takes as long as it lasts.
pub struct Brief<'a> {
    fault: Box<dyn Fault + 'a>,
    length: Duration,
    meanwhile: Box<dyn FnMut() -> Result<()> + Send + 'a>,
}

/// A fault that comes and goes in equal phases until its time is over, and is mended then.
pub struct Flapping {
    /// Taken while a thread has it.
    fault: Option<Box<dyn Fault>>,
    phase: Duration,
    length: Duration,
    running: Option<Course>,
}

/// One fault, and another one after a while. Injecting it takes as long as that; both are mended together.
pub struct Then<'a> {
    first: Box<dyn Fault + 'a>,
    after: Duration,
    second: Box<dyn Fault + 'a>,
}

struct Course {
    stop: Arc<AtomicBool>,
    breaks: Arc<AtomicU64>,
    began_ns: u64,
    thread: JoinHandle<(Box<dyn Fault>, Result<()>)>,
}

impl<'a> Brief<'a> {
    /// `meanwhile` runs once in the middle of each fault, and must be quicker than the fault.
    #[must_use]
    pub fn new(
        fault: Box<dyn Fault + 'a>,
        length: Duration,
        meanwhile: impl FnMut() -> Result<()> + Send + 'a,
    ) -> Brief<'a> {
        Brief { fault, length, meanwhile: Box::new(meanwhile) }
    }
}

impl Fault for Brief<'_> {
    fn arm(&mut self) -> Result<()> {
        self.fault.arm()
    }

    fn inject(&mut self) -> Result<Span> {
        let broken = self.fault.inject()?;
        let looked = (self.meanwhile)();
        pause(left_until(broken.last_ns, self.length));
        let healed = self.fault.heal()?;
        looked?;
        Ok(Span { first_ns: broken.first_ns, last_ns: healed.last_ns })
    }

    fn heal(&mut self) -> Result<Span> {
        let now = now_ns();
        Ok(Span { first_ns: now, last_ns: now })
    }
}

impl Flapping {
    /// Broken for `phase`, fine for `phase`, and so on for `length`, which should be an even number of phases.
    #[must_use]
    pub fn new(fault: Box<dyn Fault>, phase: Duration, length: Duration) -> Flapping {
        Flapping { fault: Some(fault), phase, length, running: None }
    }

    /// How often it broke.
    #[must_use]
    pub fn breaks(&self) -> u64 {
        self.running.as_ref().map_or(0, |course| course.breaks.load(Ordering::Relaxed))
    }

    fn end(&mut self) -> Result<()> {
        let Some(course) = self.running.take() else { return Ok(()) };
        course.stop.store(true, Ordering::Relaxed);
        let (fault, flapped) = course.thread.join().map_err(|_| anyhow!("the flapping thread panicked"))?;
        self.fault = Some(fault);
        flapped?;
        // Whoever ends it early gets fewer; a machine too slow for the phases must not pass for a flapping backend.
        let lasted = Duration::from_nanos(now_ns().saturating_sub(course.began_ns)).min(self.length);
        let planned = lasted.as_nanos() / (2 * self.phase).as_nanos().max(1);
        let breaks = course.breaks.load(Ordering::Relaxed);
        ensure!(u128::from(breaks) >= planned * 9 / 10, "it broke {breaks} times of {planned} in {lasted:?}");
        Ok(())
    }
}

impl Fault for Flapping {
    fn arm(&mut self) -> Result<()> {
        self.fault.as_mut().context("it flaps already")?.arm()
    }

    /// The span is that of the first phase's begin.
    fn inject(&mut self) -> Result<Span> {
        self.end()?;
        let mut fault = self.fault.take().context("a flapping fault lost its fault")?;
        let broken = match fault.inject() {
            Ok(broken) => broken,
            Err(error) => {
                self.fault = Some(fault);
                return Err(error);
            }
        };
        let (stop, breaks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1)));
        let (asked, counted) = (stop.clone(), breaks.clone());
        let (phase, length) = (self.phase, self.length);
        let thread = std::thread::Builder::new()
            .name("flapping".into())
            .spawn(move || {
                let flapped = flap(fault.as_mut(), broken.first_ns, phase, length, &asked, &counted);
                (fault, flapped)
            })
            .context("cannot start the flapping thread")?;
        self.running = Some(Course { stop, breaks, began_ns: broken.first_ns, thread });
        Ok(broken)
    }

    fn heal(&mut self) -> Result<Span> {
        let first_ns = now_ns();
        self.end()?;
        Ok(Span { first_ns, last_ns: now_ns() })
    }
}

impl Drop for Flapping {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(error = format!("{error:#}"), "A fault could not flap");
        }
    }
}

/// From a first break on: by the clock, so that a late phase does not make all others late. Ends mended.
fn flap(
    fault: &mut dyn Fault,
    began_ns: u64,
    phase: Duration,
    length: Duration,
    stop: &AtomicBool,
    breaks: &AtomicU64,
) -> Result<()> {
    let mut at = phase;
    loop {
        wait_until(began_ns, at, stop);
        fault.heal()?;
        at += phase;
        wait_until(began_ns, at, stop);
        if stop.load(Ordering::Relaxed) || at >= length {
            return Ok(());
        }
        fault.inject()?;
        breaks.fetch_add(1, Ordering::Relaxed);
        at += phase;
    }
}

/// In short waits, so that it can be stopped.
fn wait_until(began_ns: u64, at: Duration, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let left = left_until(began_ns, at);
        if left.is_zero() {
            return;
        }
        pause(left.min(WAIT_STEP));
    }
}

fn left_until(began_ns: u64, at: Duration) -> Duration {
    at.saturating_sub(Duration::from_nanos(now_ns().saturating_sub(began_ns)))
}

impl<'a> Then<'a> {
    /// `second` begins `after` the first began.
    #[must_use]
    pub fn new(first: Box<dyn Fault + 'a>, after: Duration, second: Box<dyn Fault + 'a>) -> Then<'a> {
        Then { first, after, second }
    }
}

impl Fault for Then<'_> {
    fn arm(&mut self) -> Result<()> {
        self.first.arm()?;
        self.second.arm()
    }

    fn inject(&mut self) -> Result<Span> {
        let first = self.first.inject()?;
        pause(left_until(first.first_ns, self.after));
        let second = self.second.inject()?;
        Ok(Span { first_ns: first.first_ns, last_ns: second.last_ns })
    }

    fn heal(&mut self) -> Result<Span> {
        let second = self.second.heal()?;
        let first = self.first.heal()?;
        Ok(Span { first_ns: second.first_ns, last_ns: first.last_ns })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Writes down when it was broken and mended.
    #[derive(Clone, Default)]
    struct Diary(Arc<Mutex<Vec<(bool, u64)>>>);

    impl Diary {
        fn note(&self, broken: bool) -> Result<Span> {
            let now = now_ns();
            self.0.lock().expect("nobody panics").push((broken, now));
            Ok(Span { first_ns: now, last_ns: now })
        }

        fn states(&self) -> Vec<bool> {
            self.0.lock().expect("nobody panics").iter().map(|(broken, _)| *broken).collect()
        }

        fn lengths_ms(&self) -> Vec<u64> {
            let notes = self.0.lock().expect("nobody panics");
            notes.windows(2).map(|pair| (pair[1].1 - pair[0].1) / 1_000_000).collect()
        }
    }

    impl Fault for Diary {
        fn inject(&mut self) -> Result<Span> {
            self.note(true)
        }

        fn heal(&mut self) -> Result<Span> {
            self.note(false)
        }
    }

    #[test]
    fn a_brief_fault_ends_by_itself_and_is_looked_at_meanwhile() {
        let diary = Diary::default();
        let (mut looked, seen) = (false, diary.clone());
        let mut brief = Brief::new(Box::new(diary.clone()), Duration::from_millis(20), || {
            looked = seen.states() == [true];
            Ok(())
        });
        let span = brief.inject().expect("it breaks");
        brief.heal().expect("it is mended already");
        drop(brief);
        assert!(looked);
        assert_eq!(diary.states(), [true, false]);
        assert!(diary.lengths_ms()[0] >= 20 && span.last_ns - span.first_ns >= 20_000_000);
    }

    #[test]
    fn a_flapping_fault_breaks_once_per_two_phases_and_ends_mended() {
        let diary = Diary::default();
        let phase = Duration::from_millis(20);
        let mut flapping = Flapping::new(Box::new(diary.clone()), phase, 6 * phase);
        flapping.inject().expect("it breaks");
        pause(9 * phase);
        assert_eq!(flapping.breaks(), 3);
        flapping.heal().expect("it flapped as planned");
        assert_eq!(diary.states(), [true, false, true, false, true, false]);
    }

    #[test]
    fn a_flapping_fault_that_is_healed_early_ends_mended() {
        let diary = Diary::default();
        let phase = Duration::from_millis(20);
        let mut flapping = Flapping::new(Box::new(diary.clone()), phase, Duration::from_secs(60));
        flapping.inject().expect("it breaks");
        flapping.heal().expect("it has hardly begun");
        assert_eq!(diary.states(), [true, false]);
        flapping.inject().expect("it breaks again");
        drop(flapping);
        assert_eq!(diary.states(), [true, false, true, false]);
    }

    #[test]
    fn what_follows_follows_after_its_time_and_is_mended_first() {
        let (one, two) = (Diary::default(), Diary::default());
        let mut then = Then::new(Box::new(one.clone()), Duration::from_millis(20), Box::new(two.clone()));
        let span = then.inject().expect("it breaks");
        assert!(span.last_ns - span.first_ns >= 20_000_000);
        then.heal().expect("it is mended");
        assert_eq!((one.states(), two.states()), (vec![true, false], vec![true, false]));
        let ends = |diary: &Diary| diary.0.lock().expect("nobody panics")[1].1;
        assert!(ends(&two) <= ends(&one));
    }
}
