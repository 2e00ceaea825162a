//! What truly happened, told by those to whom it happened: the clients by their errno, the servers by their accepts. In:
//! the clients' totals and the servers' counts. Out: one number per outcome. Neither knows of the agents. Pure.
//!
//! # Which connections are attempts
//!
//! An attempt begins with the socket's transition to SYN_SENT. A client that found no endpoint, or had no descriptor
//! left, never came so far. One without a free local port did: the kernel enters SYN_SENT before it looks for a port
//! (`tcp_v4_connect` in <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_ipv4.c>).

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

use crate::load::records::Totals;
use crate::load::wire::Counts;

/// Sums over all clients and servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// Wanted by the load, and never tried: no endpoint, no descriptor.
    pub never_tried: i64,
    /// Connected and got the byte.
    pub answered: i64,
    /// Connected, and the peer reset it before the byte.
    pub reset: i64,
    /// Connected, and nothing came, or an end without a byte.
    pub silent: i64,
    /// ECONNREFUSED.
    pub refused: i64,
    /// EHOSTUNREACH, ENETUNREACH.
    pub unreachable: i64,
    /// ETIMEDOUT: the kernel gave up.
    pub timed_out: i64,
    /// The client gave up before the handshake's end.
    pub given_up: i64,
    /// EADDRNOTAVAIL: no local port was free.
    pub no_port: i64,
    /// What the servers accepted.
    pub accepted: i64,
}

impl Truth {
    /// Of whole lives. All connections must have gone to `leaf`.
    ///
    /// # Errors
    ///
    /// A record was lost, a connection went elsewhere, or an errno appears that nobody placed: the truth is not known.
    pub fn of(clients: &BTreeMap<String, Totals>, servers: &[Counts], leaf: &str) -> Result<Self> {
        let mut truth = Self::default();
        for (client, totals) in clients {
            ensure!(totals.lost == 0, "{client} lost {} of its records", totals.lost);
            for ((to, outcome), count) in &totals.by_leaf_and_outcome {
                ensure!(to == leaf, "{client} had {count} connections to {to}: the weights moved");
                *truth.of_outcome(outcome)? += i64::try_from(*count)?;
            }
        }
        for counts in servers {
            truth.accepted += i64::try_from(counts.accepted)?;
        }
        Ok(truth)
    }

    fn of_outcome(&mut self, outcome: &str) -> Result<&mut i64> {
        Ok(match outcome {
            "ok" => &mut self.answered,
            // A RST in SYN_SENT says ECONNREFUSED: these two come to connected sockets only.
            "ECONNRESET" | "EPIPE" => &mut self.reset,
            "no-answer" | "ended" => &mut self.silent,
            "ECONNREFUSED" => &mut self.refused,
            "EHOSTUNREACH" | "ENETUNREACH" => &mut self.unreachable,
            "ETIMEDOUT" => &mut self.timed_out,
            "no-handshake" => &mut self.given_up,
            "EADDRNOTAVAIL" => &mut self.no_port,
            "no-endpoint" | "EMFILE" => &mut self.never_tried,
            other => bail!("connections ended with {other}, which says nothing of whether they were attempts"),
        })
    }

    /// Handshakes that ended, as the clients saw them.
    #[must_use]
    pub fn established(&self) -> i64 {
        self.answered + self.reset + self.silent
    }

    /// Handshakes that ended, as the servers saw them: what they accepted, and what was reset in the backlog, which no
    /// server has seen. (The bench resets nothing else.)
    #[must_use]
    pub fn established_by_servers(&self) -> i64 {
        self.accepted + self.reset
    }

    /// Attempts.
    #[must_use]
    pub fn attempts(&self) -> i64 {
        self.established() + self.refused + self.unreachable + self.timed_out + self.given_up + self.no_port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_totals(outcomes: &[(&str, u64)]) -> Totals {
        let keyed = outcomes.iter().map(|(outcome, count)| (("leaf".to_owned(), (*outcome).to_owned()), *count));
        Totals { by_leaf_and_outcome: keyed.collect(), lost: 0 }
    }

    fn mk_clients(outcomes: &[(&str, u64)]) -> BTreeMap<String, Totals> {
        BTreeMap::from([("web-1".to_owned(), mk_totals(outcomes))])
    }

    #[test]
    fn what_never_reached_syn_sent_is_no_attempt() {
        let clients = mk_clients(&[("ok", 5), ("EMFILE", 2), ("no-endpoint", 3), ("EADDRNOTAVAIL", 1)]);
        let truth = Truth::of(&clients, &[], "leaf").expect("known");
        assert_eq!((truth.attempts(), truth.never_tried), (6, 5));
    }

    #[test]
    fn resets_in_the_backlog_were_established_though_nobody_accepted_them() {
        let clients = mk_clients(&[("ok", 5), ("ECONNRESET", 2), ("no-answer", 1), ("ECONNREFUSED", 9)]);
        let servers = [Counts { accepted: 4, answered: 4 }, Counts { accepted: 2, answered: 1 }];
        let truth = Truth::of(&clients, &servers, "leaf").expect("known");
        assert_eq!((truth.established(), truth.established_by_servers(), truth.attempts()), (8, 8, 17));
    }

    #[test]
    fn an_unknown_truth_is_an_error() {
        assert!(Truth::of(&mk_clients(&[("errno-200", 1)]), &[], "leaf").is_err());
        assert!(Truth::of(&mk_clients(&[("ok", 1)]), &[], "another").is_err());
        let lost = BTreeMap::from([("web-1".to_owned(), Totals { lost: 1, ..mk_totals(&[]) })]);
        assert!(Truth::of(&lost, &[], "leaf").is_err());
    }
}
