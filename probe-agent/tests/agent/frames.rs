//! Bad frames from a controller: the binary says once what is wrong with each, goes on or begins anew, and lives.

use probe_common::wire::{CONTROLLER_PAYLOAD_LIMIT, VERSION};

use crate::controller::{Controller, Mood};
use crate::running::Running;

fn mk_agent(controller: &Controller) -> Running {
    Running::start(&[
        "--cgroup-root=/nowhere".to_owned(),
        "--kubeconfig=/nowhere".to_owned(),
        format!("--controller={}", controller.address),
    ])
}

/// Lines of the log that hold this text.
#[track_caller]
fn check_logged(log: &str, count: usize, text: &str) {
    let lines: Vec<_> = log.lines().filter(|line| line.contains(text)).collect();
    assert_eq!(lines.len(), count, "{text:?} in\n{log}");
    assert!(lines.iter().all(|line| line.contains("WARN")), "{lines:?}");
}

#[tokio::test]
async fn bytes_that_cannot_be_followed_end_the_stream_with_one_word_and_it_begins_anew() {
    let mut controller = Controller::start(Mood::Attentive).await;
    let agent = mk_agent(&controller);
    controller.hello().await;
    let too_large = (CONTROLLER_PAYLOAD_LIMIT as u32 + 1).to_be_bytes();
    controller.send_bytes(b"\xde\xad\xbe\xef what is this".to_vec()).await;
    controller.hello().await;
    controller.send_bytes(vec![VERSION + 1, 131, 0, 0, 0, 0, 0, 2, b'{', b'}']).await;
    controller.hello().await;
    controller.send_bytes([&[VERSION, 130, 0, 0][..], &too_large].concat()).await;
    controller.hello().await;
    controller.send_last_bytes(vec![VERSION, 131, 0, 0, 0, 0, 0, 9, b'{']).await;
    controller.hello().await;
    // A stream as good as any: what follows is understood.
    controller.tell(&[], 25).await;
    assert!(controller.totals().await.complete);
    assert_eq!(agent.figure("stream_ends_total").await, 4);
    let (status, log) = agent.terminate().await;
    assert!(status.success(), "{status}: {log}");
    check_logged(&log, 1, "peer speaks frame version 222, this build speaks 1");
    check_logged(&log, 1, "peer speaks frame version 2, this build speaks 1");
    check_logged(&log, 1, "peer announced a frame of 1048577 bytes, the limit is 1048576");
    check_logged(&log, 1, "stream ended 9 bytes into a frame");
}

#[tokio::test]
async fn frames_that_cannot_be_read_are_passed_over_with_one_word_for_each_kind() {
    let mut controller = Controller::start(Mood::Attentive).await;
    let agent = mk_agent(&controller);
    controller.hello().await;
    for _ in 0..20 {
        controller.send_bytes(vec![VERSION, 77, 0, 0, 0, 0, 0, 1, b'x']).await;
        controller.send_bytes([&[VERSION, 130, 0, 0, 0, 0, 0, 14][..], b"{\"namespace\":7"].concat()).await;
    }
    controller.tell(&[], 25).await;
    assert!(controller.totals().await.complete, "the stream goes on");
    assert_eq!(agent.figure("frames_skipped_total").await, 40);
    assert_eq!(agent.figure("stream_ends_total").await, 0);
    let (_, log) = agent.terminate().await;
    check_logged(&log, 1, "frame of kind 77 is not known to this build");
    check_logged(&log, 1, "frame of kind 130 cannot be read");
}
