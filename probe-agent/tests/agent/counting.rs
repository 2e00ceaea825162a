//! The binary with the real probe: real connections of a cgroup of its own, the truth beside what was reported.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use probe_agent::kernel::now_ns;
use probe_common::wire::{AgentFrame, Row};
use tokio::net::TcpSocket;

use crate::controller::{Controller, Mood};
use crate::running::Running;

/// A cgroup that this process is in, until it is dropped.
pub(crate) struct Node {
    path: PathBuf,
    before: PathBuf,
}

impl Node {
    pub(crate) fn enter() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("reads");
        let is_cgroup2 = |line: &&str| line.contains(" - cgroup2 ");
        let mount = mounts.lines().find(is_cgroup2).and_then(|line| line.split(' ').nth(4)).expect("cgroup2");
        let cgroups = fs::read_to_string("/proc/self/cgroup").expect("reads");
        let own = cgroups.lines().find_map(|line| line.strip_prefix("0::")).expect("a cgroup2 membership");
        let before = Path::new(mount).join(own.trim_start_matches('/'));
        let path = Path::new(mount).join(format!("ssagent{}-{}", std::process::id(), now_ns()));
        fs::create_dir(&path).expect("needs root");
        let node = Self { path, before };
        join(&node.path, std::process::id());
        node
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        join(&self.before, std::process::id());
        // Best effort: a child that is being reaped may keep it for a moment longer.
        drop(fs::remove_dir(&self.path));
    }
}

fn join(cgroup: &Path, pid: u32) {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string()).expect("joins");
}

/// Answers one byte with one byte, for as long as the test lives.
pub(crate) fn mk_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_ok() {
                drop(stream.write_all(&byte));
                drop(stream.shutdown(Shutdown::Write));
            }
        }
    });
    address
}

pub(crate) fn mk_closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("has an address")
}

/// A listener whose backlog is full: SYNs to it are dropped.
pub(crate) fn mk_full() -> (SocketAddr, tokio::net::TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let listener = socket.listen(1).expect("listens");
    let address = listener.local_addr().expect("has an address");
    let waiting = (0..2).map(|_| TcpStream::connect(address).expect("fills the backlog")).collect();
    (address, listener, waiting)
}

pub(crate) fn exchange(to: SocketAddr) -> bool {
    let exchange = || {
        let mut stream = TcpStream::connect(to)?;
        stream.write_all(b"x")?;
        let mut byte = [0];
        stream.read_exact(&mut byte)
    };
    exchange().is_ok()
}

#[derive(Default, Debug, PartialEq, Eq)]
struct Sum {
    attempts: u64,
    established: u64,
    refused: u64,
    late: u64,
    answered: u64,
}

impl Sum {
    fn add(&mut self, row: &Row) {
        self.attempts += row.attempts;
        self.established += row.established;
        self.refused += row.refused;
        self.late += row.late;
        self.answered += row.answered;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
async fn what_is_reported_is_what_happened() {
    let node = Node::enter();
    let mut controller = Controller::start(Mood::Attentive).await;
    let (server, closed, (full, _listener, _waiting)) = (mk_server(), mk_closed(), mk_full());
    let agent = Running::start(&[
        format!("--cgroup-root={}", node.path().display()),
        "--kubeconfig=/nowhere".to_owned(),
        format!("--controller={}", controller.address),
    ]);
    assert_eq!(controller.hello().await.blind, None);
    controller.tell(&[server, closed, full], 25).await;
    assert_eq!(controller.totals().await.rows.len(), 3);

    // The first failure after quiet: from the kernel to the controller.
    let mut delays_us = Vec::new();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(220)).await;
        controller.drain();
        assert!(!exchange(closed));
        let (arrived_ns, row) = loop {
            let (arrived_ns, report) = controller.report().await;
            if let Some(row) = report.rows.into_iter().find(|row| row.to == closed) {
                break (arrived_ns, row);
            }
        };
        let first = row.first.expect("a failure has times");
        assert_eq!((row.refused, row.clients), (1, 1));
        assert!(first.started_ns <= first.failed_ns && first.failed_ns < arrived_ns);
        delays_us.push((arrived_ns - first.failed_ns) / 1000);
    }
    delays_us.sort_unstable();
    println!("first failure to controller: p50 {} us, max {} us", delays_us[10], delays_us[19]);

    // Many of every kind at once; SPLITSECOND_TURNS=17000 makes it 100,000.
    let turns = std::env::var_os("SPLITSECOND_TURNS").and_then(|turns| turns.to_str()?.parse().ok()).unwrap_or(500);
    controller.drain();
    let began_ns = now_ns();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            tokio::task::spawn_blocking(move || {
                let mut answered = 0;
                for turn in 0..turns {
                    answered += u64::from(exchange(server));
                    assert!(turn % 2 == 0 || !exchange(closed));
                    if turn % 100 == 0 {
                        assert!(TcpStream::connect_timeout(&full, Duration::from_millis(100)).is_err());
                    }
                }
                answered
            })
        })
        .collect();
    let mut truth = Sum { refused: 2 * turns, late: 4 * turns.div_ceil(100), ..Sum::default() };
    for client in clients {
        truth.answered += client.await.expect("ends");
    }
    let elapsed_ms = (now_ns() - began_ns) / 1_000_000;
    truth.established = truth.answered;
    truth.attempts = truth.established + truth.refused + truth.late;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut told = Sum::default();
    for (_, frame) in controller.drain() {
        if let AgentFrame::Report(report) = frame {
            // Events that the kernel skipped may be any socket's; what was lost of ours shows in the sums.
            assert_eq!(report.dropped_rows, 0);
            report.rows.iter().for_each(|row| told.add(row));
        }
    }
    assert_eq!(told, truth);
    println!("{} connects within {elapsed_ms} ms reported exactly", truth.attempts);

    // The same as figures, with the twenty from before; the checks below come on top.
    let hot = |name: &str| format!("{name}_total{{tier=\"hot\"}}");
    assert_eq!(agent.figure(&hot("connect_attempts")).await, truth.attempts + 20);
    assert_eq!(agent.figure(&hot("connect_established")).await, truth.established);
    let failures = |cause: &str| format!("connect_failures_total{{tier=\"hot\",cause=\"{cause}\"}}");
    assert_eq!(agent.figure(&failures("refused")).await, truth.refused + 20);
    assert_eq!(agent.figure(&failures("no-answer")).await, truth.late);
    assert_eq!(agent.figure("connect_late_ends_total{end=\"cancelled\"}").await, truth.late);
    assert_eq!(agent.figure("connects_outstanding").await, 0);
    assert_eq!(agent.figure("rows_dropped_total").await, 0);

    tokio::time::sleep(Duration::from_millis(600)).await;
    let state = agent.state().await;
    let shown = state["destinations"].as_array().expect("an array").iter();
    let shown = shown.clone().find(|shown| shown["destination"] == closed.to_string()).expect("shown");
    assert_eq!(
        (&shown["refused"], &shown["backends"][0]),
        (&(truth.refused + 20).into(), &"shop/emoji/emoji-svc".into())
    );
    let kinds: Vec<_> = state["transitions"].as_array().expect("an array").iter().map(|one| &one["kind"]).collect();
    assert!(kinds.starts_with(&[&"attached".into(), &"stream-up".into(), &"failing".into()]), "{kinds:?}");
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("reads");
    println!("{}", status.lines().find(|line| line.starts_with("VmRSS")).expect("has one"));

    let (status, log) = agent.terminate().await;
    assert!(status.success(), "{status}: {log}");
}
