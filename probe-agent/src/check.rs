//! Checks: a controller asks, this node dials, and says what happened. IO.
//!
//! In: [`CheckRequest`]s. Out: one [`CheckResult`] per target, as each ends. A check is one TCP handshake from the
//! agent's own address and nothing more: no byte is sent, and no judgement is made of what failed.
//!
//! # How a check ends
//!
//! The handshake's last ACK is held back (TCP_QUICKACK off before connect) and the socket is closed with a zero linger
//! time, so that a RST follows the server's SYN/ACK: the server's kernel forgets the half-made connection, and no
//! application accepts, logs or counts a connection that says nothing. A plain close would wake every checked
//! application up to hundreds of times a second and leave the client's port in TIME_WAIT for a minute; a RST after the
//! ACK would show as an error in the application. Where the ACK goes out nevertheless, the RST is what remains.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use probe_common::cause::FailureCause;
use probe_common::wire::{CheckOutcome, CheckRequest, CheckResult, CheckTarget};
use rustix::io::Errno;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;

use crate::budget::Budget;
use crate::kernel::Exemption;

/// SYNs a second that this node sends at most, whoever asks. The cluster's budget is 2,000, kept by the controllers;
/// this one is what protects the node's neighbours from a controller gone wrong.
pub const PER_SECOND: u32 = 250;

/// SYNs at once after quiet: two volleys of a dozen splits.
pub const BURST: u32 = 50;

/// Checks under way at the same time: a second's worth, since no time-out is longer.
pub const CONCURRENT_LIMIT: usize = PER_SECOND as usize;

/// The longest time-out that a check may have; beyond it the answer is of no use to a decision.
pub const TIMEOUT_LIMIT: Duration = Duration::from_secs(1);

/// Requests that wait: each is taken up at once, so this only has to hold what arrives in one wake-up of every stream.
pub const REQUESTS_LIMIT: usize = 64;

/// Probes whose exemption waits to be taken up: one is loaded at a time.
pub const EXEMPTIONS_LIMIT: usize = 1;

/// Makes checks until the sender of requests is gone. Results go out in the order in which checks end. Once a probe is
/// attached and has sent its exemption, no check is counted as traffic.
pub async fn run(
    mut requests: mpsc::Receiver<CheckRequest>,
    mut exemptions: mpsc::Receiver<Exemption>,
    results: mpsc::Sender<CheckResult>,
    clock: impl Fn() -> u64,
) {
    let mut budget = Budget::new(PER_SECOND, BURST);
    let mut exemption = None;
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(newer) = exemptions.recv() => exemption = Some(newer),
            request = requests.recv() => {
                let Some(request) = request else { return };
                for target in request.targets {
                    let now_ns = clock();
                    let socket = if under_way.len() < CONCURRENT_LIMIT && budget.take(now_ns).is_ok() {
                        mk_socket(target.to, exemption.as_mut()).ok()
                    } else {
                        None
                    };
                    if let Some(socket) = socket {
                        under_way.push(check(request.id, target, socket, &clock));
                        continue;
                    }
                    let refused = mk_result(request.id, target.to, now_ns, now_ns, CheckOutcome::NotMade);
                    if results.send(refused).await.is_err() {
                        return;
                    }
                }
            }
            Some(result) = under_way.next() => {
                if results.send(result).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn check(id: u64, target: CheckTarget, socket: TcpSocket, clock: &impl Fn() -> u64) -> CheckResult {
    let timeout = Duration::from_millis(u64::from(target.timeout_ms)).min(TIMEOUT_LIMIT);
    let started_ns = clock();
    let outcome = match tokio::time::timeout(timeout, socket.connect(target.to)).await {
        Err(_) => CheckOutcome::Failed(FailureCause::NoAnswer),
        Ok(Ok(_)) => CheckOutcome::Passed,
        Ok(Err(error)) => outcome_of(&error),
    };
    mk_result(id, target.to, started_ns, clock(), outcome)
}

/// A socket for one handshake. It is closed when its future ends, or is dropped by a time-out.
fn mk_socket(to: SocketAddr, exemption: Option<&mut Exemption>) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    rustix::net::sockopt::set_tcp_quickack(&socket, false)?;
    socket.set_zero_linger()?;
    if let Some(exemption) = exemption {
        exemption.exempt(&socket).map_err(io::Error::other)?;
    }
    Ok(socket)
}

/// What an error of `connect` says of the destination. Whatever is not listed is this node's own trouble (no port, no
/// file, a policy of its own) and says nothing.
fn outcome_of(error: &io::Error) -> CheckOutcome {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) => CheckOutcome::Failed(FailureCause::Refused),
        Some(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::HOSTDOWN | Errno::NETDOWN) => {
            CheckOutcome::Failed(FailureCause::Unreachable)
        }
        // ICMP "protocol unreachable" and "port unreachable" of a REJECT rule arrive as these two.
        Some(Errno::NOPROTOOPT | Errno::PROTO) => CheckOutcome::Failed(FailureCause::Unreachable),
        Some(Errno::TIMEDOUT) => CheckOutcome::Failed(FailureCause::NoAnswer),
        _ => CheckOutcome::NotMade,
    }
}

const fn mk_result(id: u64, to: SocketAddr, started_ns: u64, ended_ns: u64, outcome: CheckOutcome) -> CheckResult {
    CheckResult { id, to, started_ns, ended_ns, outcome }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;
    use crate::kernel::now_ns;

    struct Checker {
        requests: mpsc::Sender<CheckRequest>,
        results: mpsc::Receiver<CheckResult>,
        _exemptions: mpsc::Sender<Exemption>,
        _tasks: JoinSet<()>,
    }

    fn mk_checker() -> Checker {
        let (requests, incoming) = mpsc::channel(REQUESTS_LIMIT);
        let (exemptions, later) = mpsc::channel(EXEMPTIONS_LIMIT);
        let (outgoing, results) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        tasks.spawn(run(incoming, later, outgoing, now_ns));
        Checker { requests, results, _exemptions: exemptions, _tasks: tasks }
    }

    impl Checker {
        async fn ask(&mut self, targets: &[SocketAddr], timeout_ms: u32) -> Vec<CheckResult> {
            let targets: Vec<_> = targets.iter().map(|&to| CheckTarget { to, timeout_ms }).collect();
            let count = targets.len();
            self.requests.send(CheckRequest { id: 7, targets }).await.expect("runs");
            let mut results = Vec::new();
            while results.len() < count {
                results.push(self.results.recv().await.expect("runs"));
            }
            results
        }

        async fn outcome(&mut self, to: SocketAddr, timeout_ms: u32) -> CheckOutcome {
            let results = self.ask(&[to], timeout_ms).await;
            assert_eq!((results[0].id, results[0].to), (7, to));
            assert!(results[0].ended_ns >= results[0].started_ns);
            results[0].outcome
        }
    }

    #[tokio::test]
    async fn a_listening_server_passes_and_never_sees_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let to = listener.local_addr().expect("has an address");
        let mut checker = mk_checker();
        for _ in 0..5 {
            assert_eq!(checker.outcome(to, 500).await, CheckOutcome::Passed);
        }
        let accepted = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(accepted.is_err(), "the application was bothered");
    }

    #[tokio::test]
    async fn a_port_without_a_listener_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let to = listener.local_addr().expect("has an address");
        drop(listener);
        assert_eq!(mk_checker().outcome(to, 500).await, CheckOutcome::Failed(FailureCause::Refused));
    }

    #[tokio::test]
    async fn a_full_backlog_does_not_answer() {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let listener = socket.listen(1).expect("listens");
        let to = listener.local_addr().expect("has an address");
        // A backlog of one takes two; neither is accepted.
        let mut waiting = Vec::new();
        for _ in 0..2 {
            waiting.push(tokio::net::TcpStream::connect(to).await.expect("fills the backlog"));
        }
        let mut checker = mk_checker();
        let results = checker.ask(&[to], 50).await;
        assert_eq!(results[0].outcome, CheckOutcome::Failed(FailureCause::NoAnswer));
        assert!(results[0].ended_ns - results[0].started_ns >= 50_000_000);
    }

    #[tokio::test]
    async fn beyond_the_budget_no_check_is_made() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let to = listener.local_addr().expect("has an address");
        let mut checker = mk_checker();
        let mut outcomes = BTreeMap::new();
        for result in checker.ask(&vec![to; 200], 500).await {
            *outcomes.entry(format!("{:?}", result.outcome)).or_insert(0u32) += 1;
        }
        let passed = outcomes["Passed"];
        assert!((BURST..BURST + 40).contains(&passed), "{outcomes:?}");
        assert_eq!(outcomes["NotMade"], 200 - passed);
    }

    #[test]
    fn only_what_speaks_of_the_destination_counts_against_it() {
        let check = |errno: Errno, expected| {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            assert_eq!(outcome_of(&error), expected, "{errno:?}");
        };
        check(Errno::CONNREFUSED, CheckOutcome::Failed(FailureCause::Refused));
        check(Errno::HOSTUNREACH, CheckOutcome::Failed(FailureCause::Unreachable));
        check(Errno::NETUNREACH, CheckOutcome::Failed(FailureCause::Unreachable));
        check(Errno::TIMEDOUT, CheckOutcome::Failed(FailureCause::NoAnswer));
        for own in [Errno::ADDRNOTAVAIL, Errno::MFILE, Errno::PERM, Errno::ACCESS, Errno::NOBUFS] {
            check(own, CheckOutcome::NotMade);
        }
    }
}
