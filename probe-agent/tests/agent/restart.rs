//! The agent killed in the middle of traffic, and started again: what the kernel counted for the old one is gone with it,
//! and what the new one tells is right from its first word.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use probe_common::wire::AgentFrame;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::controller::{Controller, Mood};
use crate::counting::{Node, exchange, mk_closed, mk_full, mk_server};
use crate::running::Running;

fn mk_agent(node: &Node, controller: &Controller) -> Running {
    Running::start(&[
        format!("--cgroup-root={}", node.path().display()),
        "--kubeconfig=/nowhere".to_owned(),
        format!("--controller={}", controller.address),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
async fn an_agent_that_was_killed_under_traffic_counts_anew_and_owes_nothing() {
    let node = Node::enter();
    let mut controller = Controller::start(Mood::Attentive).await;
    let (server, closed, (full, _listener, _waiting)) = (mk_server(), mk_closed(), mk_full());
    let agent = mk_agent(&node, &controller);
    let first = controller.hello().await;
    controller.tell(&[server, closed, full], 25).await;
    controller.totals().await;

    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let traffic = tokio::task::spawn_blocking(move || {
        let mut exchanges = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            exchanges += u64::from(exchange(server));
            drop(TcpStream::connect(closed));
        }
        exchanges
    });
    // An attempt of the old agent's that ends under the new one: nobody answers it.
    let mut waiting = JoinSet::new();
    waiting.spawn(TcpSocket::new_v4().expect("a socket").connect(full));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let counted_before = agent.figure("connect_attempts_total{tier=\"hot\"}").await;
    assert!(counted_before > 0);
    // SIGKILL, and nothing is pinned.
    drop(agent);

    let agent = mk_agent(&node, &controller);
    let second = controller.hello().await;
    assert_ne!(second.incarnation, first.incarnation);
    controller.tell(&[server, closed, full], 25).await;
    let totals = controller.totals().await;
    assert!(totals.complete && totals.rows.len() == 3, "{totals:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(waiting.try_join_next().is_none(), "was answered");
    waiting.shutdown().await;
    stop.store(true, Ordering::Relaxed);
    let exchanges = traffic.await.expect("ends");
    tokio::time::sleep(Duration::from_millis(300)).await;

    // History and rows are all there is, and each attempt is in one of them.
    let (mut attempts, mut established, mut refused, mut late) = (0, 0, 0, 0);
    for total in &totals.rows {
        attempts += total.attempts;
        established += total.established;
    }
    let refused_before = totals.rows.iter().find(|total| total.to == closed).expect("is told").attempts;
    for (_, frame) in controller.drain() {
        let AgentFrame::Report(report) = frame else { continue };
        assert_eq!(report.dropped_rows, 0);
        for row in report.rows {
            attempts += row.attempts;
            established += row.established;
            refused += row.refused;
            late += row.late;
        }
    }
    let figure = async |name: &str| agent.figure(&format!("{name}_total{{tier=\"hot\"}}")).await;
    assert_eq!((attempts, established), (figure("connect_attempts").await, figure("connect_established").await));
    assert_eq!(attempts, established + refused + refused_before, "late: {late}");
    assert!(established > 0 && established < exchanges, "{established} of {exchanges}");
    assert_eq!(late, 0, "the old agent's attempt is none of the new one's");
    assert_eq!(agent.figure("connects_outstanding").await, 0);
    assert!(agent.figure("losses_total{kind=\"end-without-start\"}").await >= 1);
    let (status, log) = agent.terminate().await;
    assert!(status.success(), "{status}: {log}");
}
