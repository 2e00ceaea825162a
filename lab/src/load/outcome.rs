//! How one connection ended, as its own client saw it. Pure.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// The end of one connection that had a second to get one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "i16", into = "i16")]
pub enum Outcome {
    /// The byte came.
    Ok,
    /// The kernel gave this errno, at connect or later.
    Errno(i16),
    /// The handshake did not end in time.
    NoHandshake,
    /// Connected, but no byte in time.
    NoAnswer,
    /// Connected, and the peer closed without a byte.
    Ended,
    /// Nobody to dial: the chosen leaf had no ready endpoint.
    NoEndpoint,
}

/// Numbers of Linux (asm-generic/errno.h) that a dial can meet.
const NAMES: [(i16, &str); 13] = [
    (1, "EPERM"),
    (13, "EACCES"),
    (22, "EINVAL"),
    (24, "EMFILE"),
    (32, "EPIPE"),
    (98, "EADDRINUSE"),
    (99, "EADDRNOTAVAIL"),
    (100, "ENETDOWN"),
    (101, "ENETUNREACH"),
    (104, "ECONNRESET"),
    (110, "ETIMEDOUT"),
    (111, "ECONNREFUSED"),
    (113, "EHOSTUNREACH"),
];

impl Outcome {
    /// The refusal of a port without a listener.
    pub const REFUSED: Outcome = Outcome::Errno(111);

    /// Anything but an answer.
    #[must_use]
    pub fn is_failure(self) -> bool {
        self != Outcome::Ok
    }

    /// True for failures of the client's own machine (no port, no descriptor): they say nothing about a backend.
    #[must_use]
    pub fn is_local(self) -> bool {
        matches!(self, Outcome::Errno(24 | 98 | 99))
    }

    /// The errno of an IO error; one without a number counts as a peer that closed.
    #[must_use]
    pub fn of_error(error: &io::Error) -> Outcome {
        let errno = error.raw_os_error().and_then(|number| i16::try_from(number).ok());
        errno.map_or(Outcome::Ended, Outcome::Errno)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Ok => f.write_str("ok"),
            Outcome::NoHandshake => f.write_str("no-handshake"),
            Outcome::NoAnswer => f.write_str("no-answer"),
            Outcome::Ended => f.write_str("ended"),
            Outcome::NoEndpoint => f.write_str("no-endpoint"),
            Outcome::Errno(number) => match NAMES.iter().find(|(known, _)| known == number) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "errno-{number}"),
            },
        }
    }
}

/// Positive numbers are errnos, so that a record stays one small number on the wire.
impl From<Outcome> for i16 {
    fn from(outcome: Outcome) -> i16 {
        match outcome {
            Outcome::Ok => 0,
            Outcome::Errno(number) => number,
            Outcome::NoHandshake => -1,
            Outcome::NoAnswer => -2,
            Outcome::Ended => -3,
            Outcome::NoEndpoint => -4,
        }
    }
}

impl From<i16> for Outcome {
    fn from(code: i16) -> Outcome {
        match code {
            0 => Outcome::Ok,
            -1 => Outcome::NoHandshake,
            -2 => Outcome::NoAnswer,
            -4 => Outcome::NoEndpoint,
            code if code < 0 => Outcome::Ended,
            number => Outcome::Errno(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_survives_the_wire() {
        for outcome in [
            Outcome::Ok,
            Outcome::REFUSED,
            Outcome::NoHandshake,
            Outcome::NoAnswer,
            Outcome::Ended,
            Outcome::NoEndpoint,
            Outcome::Errno(200),
        ] {
            assert_eq!(Outcome::from(i16::from(outcome)), outcome);
        }
    }

    #[test]
    fn errnos_are_printed_by_name() {
        assert_eq!(Outcome::REFUSED.to_string(), "ECONNREFUSED");
        assert_eq!(Outcome::of_error(&io::Error::from_raw_os_error(113)).to_string(), "EHOSTUNREACH");
        assert_eq!(Outcome::Errno(200).to_string(), "errno-200");
    }
}
