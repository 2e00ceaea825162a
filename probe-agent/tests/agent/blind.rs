//! The binary on a node that cannot count: it lives, says why, and goes on making checks.

use std::io::Write as _;
use std::process::{Command, Stdio};

use probe_common::cause::FailureCause;
use probe_common::wire::CheckOutcome;
use tokio::net::TcpListener;

use crate::controller::{Controller, Mood};
use crate::running::Running;

fn blind_arguments(controllers: &[&Controller]) -> Vec<String> {
    let mut arguments = vec!["--cgroup-root=/nowhere".to_owned(), "--kubeconfig=/nowhere".to_owned()];
    arguments.extend(controllers.iter().map(|controller| format!("--controller={}", controller.address)));
    arguments
}

#[tokio::test]
async fn a_node_that_cannot_count_says_so_everywhere_and_lives() {
    let mut controller = Controller::start(Mood::Attentive).await;
    let agent = Running::start(&blind_arguments(&[&controller]));
    let hello = controller.hello().await;
    assert!(hello.blind.expect("blind").contains("/nowhere"));
    controller.tell(&["198.18.0.1:80".parse().expect("an address")], 25).await;
    assert_eq!(controller.totals().await.rows, []);
    let (_, report) = controller.report().await;
    assert!(report.blind.expect("blind").contains("/nowhere"));
    assert_eq!(agent.get("/live").await, (200, "alive\n".to_owned()));
    let (status, reason) = agent.get("/ready").await;
    assert_eq!(status, 503);
    assert!(reason.contains("blind: ") && reason.contains("Services are not listed yet"), "{reason}");
    assert!(!reason.contains("no controller answers"), "{reason}");
    assert_eq!(agent.figure("probe_attached").await, 0);
    assert_eq!(agent.figure("controller_streams").await, 1);
    let state = agent.state().await;
    assert_eq!(state["probe"]["attached"], false);
    assert_eq!(state["transitions"][0]["kind"], "blind");
    let (status, log) = agent.terminate().await;
    assert!(status.success(), "{status}: {log}");
}

#[tokio::test]
async fn checks_work_without_a_probe_and_every_replica_hears_of_them() {
    let (mut one, mut two) = (Controller::start(Mood::Attentive).await, Controller::start(Mood::Attentive).await);
    let agent = Running::start(&blind_arguments(&[&one, &two]));
    one.hello().await;
    two.hello().await;
    two.tell(&[], 25).await;
    two.totals().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let alive = listener.local_addr().expect("has an address");
    let free = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let dead = free.local_addr().expect("has an address");
    drop(free);
    one.ask(42, &[alive, dead]).await;
    for controller in [&mut one, &mut two] {
        let mut results = controller.results(2).await;
        results.sort_by_key(|result| result.to != alive);
        let ends: Vec<_> = results.iter().map(|result| (result.id, result.to, result.outcome)).collect();
        let refused = CheckOutcome::Failed(FailureCause::Refused);
        assert_eq!(ends, [(42, alive, CheckOutcome::Passed), (42, dead, refused)]);
    }
    assert_eq!(agent.figure("checks_total{outcome=\"passed\"}").await, 1);
    assert_eq!(agent.figure("checks_total{outcome=\"refused\"}").await, 1);
}

#[tokio::test]
async fn signs_of_life_come_every_hundred_milliseconds() {
    let mut controller = Controller::start(Mood::Attentive).await;
    let _agent = Running::start(&blind_arguments(&[&controller]));
    let (first_ns, first) = controller.report().await;
    let (mut last_ns, mut last) = (first_ns, first.seq);
    let mut longest_ns = 0;
    while last < first.seq + 10 {
        let (arrived_ns, report) = controller.report().await;
        assert_eq!(report.seq, last + 1);
        longest_ns = longest_ns.max(arrived_ns - last_ns);
        (last_ns, last) = (arrived_ns, report.seq);
    }
    // Silence of 350 ms makes a node stale.
    assert!(longest_ns < 350_000_000, "{longest_ns} ns without a sign of life");
    assert!(last_ns - first_ns >= 900_000_000, "ten within {} ns", last_ns - first_ns);
}

#[tokio::test]
async fn promtool_accepts_what_the_agent_exposes() {
    let controller = Controller::start(Mood::Attentive).await;
    let agent = Running::start(&blind_arguments(&[&controller]));
    let (status, text) = agent.get("/metrics").await;
    assert_eq!(status, 200);
    let promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut promtool = match promtool {
        Ok(promtool) => promtool,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "promtool is part of the tests under CI: {error}");
            eprintln!("left out: promtool cannot be started: {error}");
            return;
        }
    };
    promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("writes");
    let output = promtool.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
}
