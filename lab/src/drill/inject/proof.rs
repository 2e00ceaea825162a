//! Whether a fault is there. In: where to look. Out: yes or no, from places that no agent watches, so that looking does
//! not count as traffic. What clients saw by themselves is in their records.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::reset;
use crate::load::outcome::Outcome;
use crate::world::clock::{now_ns, pause};
use crate::world::netns::Netns;
use crate::world::{PodChild, dial_from};

/// How long the drill itself waits for an answer.
pub(super) const DIAL_LIMIT: Duration = Duration::from_millis(300);

/// Dials in which a fault by chance has to be met: where it hits one connection of ten, one look of a billion misses it.
pub(super) const TRIES_BY_CHANCE: usize = 200;

/// How long a process may take to stop, or to end.
const STOP_LIMIT_NS: u64 = 500_000_000;

/// Between two looks at it.
const STOP_GAP: Duration = Duration::from_millis(1);

/// Outcomes of an endpoint whose proxy takes connections and finds no application behind it.
pub(super) const UNANSWERED: &[Outcome] = &[Outcome::NoAnswer, Outcome::Ended, Outcome::Errno(104)];

/// Outcomes of an endpoint to which no packet comes; the router's own word comes once it has looked for it in vain.
pub(super) const CUT_OFF: &[Outcome] = &[Outcome::NoHandshake, Outcome::Errno(113)];

/// Where the drill looks.
#[derive(Debug)]
pub(super) enum Proof {
    /// Nowhere: something else has said it, such as the API server's acknowledgement.
    Acknowledged,
    /// Nowhere: only the clients can tell.
    Clients,
    /// Every one of these addresses, and each dial must end in one of these ways.
    Dials {
        /// From here.
        from: Netns,
        /// One dial each.
        to: Vec<SocketAddr>,
        /// Any of these.
        ends: &'static [Outcome],
    },
    /// These addresses in turn, until one dial ends in one of these ways.
    OneOfMany {
        /// From here.
        from: Netns,
        /// Again and again.
        to: Vec<SocketAddr>,
        /// Any of these.
        ends: &'static [Outcome],
        /// So many dials at most.
        tries: usize,
    },
    /// The state of these processes: stopped.
    Stopped(Vec<PodChild>),
    /// What was seen while the fault was made.
    Noted(Arc<AtomicBool>),
    /// The conversations of these clients: all reset.
    Reset(reset::Seen),
}

impl Proof {
    /// Whether the fault is there.
    ///
    /// # Errors
    ///
    /// The place to look from is gone.
    pub(super) fn is_met(&self) -> Result<bool> {
        match self {
            Self::Acknowledged => Ok(true),
            Self::Clients => Ok(false),
            Self::Dials { from, to, ends } => soon_all_end(from, to, ends),
            Self::OneOfMany { from, to, ends, tries } => {
                for address in to.iter().cycle().take(*tries) {
                    if ends.contains(&dial_from(from, *address, DIAL_LIMIT)?) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Stopped(programs) => all_stop(programs),
            Self::Noted(seen) => Ok(seen.load(Ordering::Relaxed)),
            Self::Reset(seen) => seen.all_reset(),
        }
    }
}

/// A killed process still listens until it has ended: what is not there at once may be there a moment later.
fn soon_all_end(from: &Netns, to: &[SocketAddr], ends: &[Outcome]) -> Result<bool> {
    let deadline_ns = now_ns() + STOP_LIMIT_NS;
    loop {
        if all_end(from, to, ends)? {
            return Ok(true);
        }
        if now_ns() > deadline_ns {
            return Ok(false);
        }
        pause(STOP_GAP);
    }
}

/// Whether every dial ends in one of these ways; no address at all proves nothing.
///
/// # Errors
///
/// The place to dial from is gone.
pub(super) fn all_end(from: &Netns, to: &[SocketAddr], ends: &[Outcome]) -> Result<bool> {
    for address in to {
        if !ends.contains(&dial_from(from, *address, DIAL_LIMIT)?) {
            return Ok(false);
        }
    }
    Ok(!to.is_empty())
}

/// A signal is sent at once and taken when the process next runs: waits for that.
fn all_stop(programs: &[PodChild]) -> Result<bool> {
    let deadline_ns = now_ns() + STOP_LIMIT_NS;
    for program in programs {
        while !is_stopped(program.pid())? {
            if now_ns() > deadline_ns {
                return Ok(false);
            }
            pause(STOP_GAP);
        }
    }
    Ok(!programs.is_empty())
}

/// proc(5): the state follows the command's name, which is in parentheses and may hold some itself; T is stopped.
fn is_stopped(pid: u32) -> Result<bool> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(state(&text) == Some("T"))
}

fn state(stat: &str) -> Option<&str> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_state_is_found_behind_any_name() {
        assert_eq!(state("12 (splitsecond-lab) T 1 12 12 0"), Some("T"));
        assert_eq!(state("12 (a) R (b)) S 1 12"), Some("S"));
        assert_eq!(state("12"), None);
    }

    #[test]
    fn a_running_process_is_not_stopped() {
        assert!(!is_stopped(std::process::id()).expect("this process is there"));
        assert!(is_stopped(0).is_err());
    }

    #[test]
    fn what_was_noted_is_met() {
        let seen = Arc::new(AtomicBool::new(false));
        let proof = Proof::Noted(seen.clone());
        assert!(!proof.is_met().expect("nothing to dial"));
        seen.store(true, Ordering::Relaxed);
        assert!(proof.is_met().expect("nothing to dial"));
        assert!(!Proof::Clients.is_met().expect("nothing to dial"));
    }
}
