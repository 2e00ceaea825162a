//! The controller killed and started, agents restarted, and API servers that come back as others, at every moment of an
//! outage: right weights within two seconds of the last start, and no wrong write on the way. In: the controller's own binary,
//! an embedded API server, agents that speak the real protocol. The kernel's part in it is `lab/tests/restart.rs`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions that its steps share")]

#[path = "whole/agent.rs"]
mod agent;
#[expect(dead_code, reason = "shared with the other tests of the whole binary")]
#[path = "whole/bench.rs"]
mod bench;
#[path = "restart/outage.rs"]
mod outage;

use std::time::Duration;

use lab::apiserver::{Resource, Restart, Status};
use rustix::process::Signal;
use serde_json::Value;

use bench::{Bench, Controller, weights_of};
use outage::{FAILED_OVER, Moment, Outage, STEADY};

/// Who goes and comes back.
#[derive(Clone, Copy, Debug)]
enum Who {
    Controller,
    Agents,
    Both,
    Server(Restart),
}

/// Takes `who` away at `moment` of an outage, and looks at everything that was written.
async fn check(who: Who, moment: Moment) {
    let mut outage = Outage::begin(&format!("{who:?} at {moment:?}")).await;
    outage.until(moment).await;
    match who {
        Who::Controller => outage.kill_and_start().await,
        Who::Agents => outage.restart_agents(),
        Who::Both => {
            outage.drop_agents();
            outage.kill_and_start().await;
            outage.restart_agents();
        }
        Who::Server(how) => outage.bench.server.restart(how).await,
    }
    outage.right_within(Duration::from_secs(2), moment).await;
    outage.comes_back(moment).await;
    outage.check_writes().await;
}

macro_rules! at_every_moment {
    ($($name:ident: $who:expr, $moment:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                check($who, $moment).await;
            }
        )*
    };
}

at_every_moment! {
    the_controller_is_killed_before_the_first_failure: Who::Controller, Moment::Before;
    the_controller_is_killed_at_the_first_failure: Who::Controller, Moment::FirstFailure;
    the_controller_is_killed_at_the_suspicion: Who::Controller, Moment::Suspect;
    the_controller_is_killed_between_decision_and_write: Who::Controller, Moment::Decided;
    the_controller_is_killed_right_after_the_write: Who::Controller, Moment::Written;
    the_controller_is_killed_in_the_dwell: Who::Controller, Moment::Dwell;
    the_controller_is_killed_in_the_first_step_of_the_ramp: Who::Controller, Moment::Ramp(0);
    the_controller_is_killed_in_the_last_step_of_the_ramp: Who::Controller, Moment::Ramp(1);
    the_controller_is_killed_right_after_the_failback: Who::Controller, Moment::Back;
    every_agent_is_restarted_at_the_first_failure: Who::Agents, Moment::FirstFailure;
    every_agent_is_restarted_at_the_suspicion: Who::Agents, Moment::Suspect;
    every_agent_is_restarted_in_the_dwell: Who::Agents, Moment::Dwell;
    every_agent_is_restarted_in_the_ramp: Who::Agents, Moment::Ramp(0);
    everything_is_killed_at_the_first_failure: Who::Both, Moment::FirstFailure;
    everything_is_killed_right_after_the_write: Who::Both, Moment::Written;
    everything_is_killed_in_the_dwell: Who::Both, Moment::Dwell;
    everything_is_killed_in_the_ramp: Who::Both, Moment::Ramp(1);
    the_server_restarts_whole_before_the_first_failure: Who::Server(Restart::Whole), Moment::Before;
    the_server_restarts_whole_at_the_suspicion: Who::Server(Restart::Whole), Moment::Suspect;
    the_server_restarts_compacted_before_the_first_failure: Who::Server(Restart::Compacted), Moment::Before;
    the_server_restarts_compacted_between_decision_and_write: Who::Server(Restart::Compacted), Moment::Decided;
    the_server_restarts_compacted_in_the_dwell: Who::Server(Restart::Compacted), Moment::Dwell;
    the_server_counts_from_below_before_the_first_failure: Who::Server(Restart::Renumbered(1)), Moment::Before;
    the_server_counts_from_below_between_decision_and_write: Who::Server(Restart::Renumbered(1)), Moment::Decided;
    the_server_counts_from_below_right_after_the_write: Who::Server(Restart::Renumbered(1)), Moment::Written;
    the_server_counts_from_below_in_the_ramp: Who::Server(Restart::Renumbered(1)), Moment::Ramp(0);
    the_server_counts_from_above_right_after_the_write: Who::Server(Restart::Renumbered(1_000_000)), Moment::Written;
    the_server_counts_from_above_in_the_dwell: Who::Server(Restart::Renumbered(1_000_000)), Moment::Dwell;
}

/// Lists of a kind over the wire.
fn lists(bench: &Bench, resource: Resource) -> usize {
    let asked = bench.server.requests();
    asked.iter().filter(|one| one.resource == Some(resource) && one.verb == "list" && one.client.is_empty()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_changed_while_the_server_was_away_is_seen() {
    for how in [Restart::Whole, Restart::Compacted, Restart::Renumbered(1), Restart::Renumbered(1_000_000)] {
        let bench = Bench::new().await;
        let mut controller = Controller::start(&bench, &["--readiness-hold=200ms"]).await;
        controller.until_ready().await;
        let before = lists(&bench, Resource::EndpointSlices);
        bench.server.stop().await;
        bench.set_ready("web", false);
        bench.server.start().await;
        bench.until_weights("emoji", FAILED_OVER).await;
        // And again with the state that the failover left: the version of our own write is among those that changed.
        bench.server.restart(how).await;
        controller.until(|state| state["watches"]["trafficsplits"] == "synced").await;
        bench.set_ready("web", true);
        bench.until_weights("emoji", STEADY).await;
        assert!(lists(&bench, Resource::EndpointSlices) > before, "{how:?}: it lists anew");
        assert_eq!(controller.stop().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_told_410_lists_anew() {
    let bench = Bench::with_history(8).await;
    let mut controller = Controller::start(&bench, &[]).await;
    controller.until_ready().await;
    bench.server.stop().await;
    // More than the server remembers, and the last of it matters.
    for turn in 0..20 {
        bench.set_ready("web", turn % 2 == 0);
    }
    bench.server.start().await;
    bench.until_weights("emoji", FAILED_OVER).await;
    assert_eq!(controller.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_follows_a_write_whose_answer_was_lost_and_only_once() {
    for silent in [1, 2] {
        let bench = Bench::new().await;
        let mut controller = Controller::start(&bench, &["--readiness-hold=200ms"]).await;
        controller.until_ready().await;
        // The first try of the failover, or that and its hedge.
        bench.server.leave_unanswered(silent);
        bench.set_ready("web", false);
        bench.until_weights("emoji", FAILED_OVER).await;
        bench.until_event("trafficsplit/emoji failing over to fallbacks").await;
        controller.until(|state| state["splits"][0]["state"] == "failed").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(bench.events().len(), 1, "{silent} without an answer: {:#?}", bench.events());
        bench.until_history("emoji", &[STEADY, FAILED_OVER]).await;
        bench.server.leave_unanswered(1);
        bench.set_ready("web", true);
        bench.until_weights("emoji", STEADY).await;
        bench.until_event("trafficsplit/emoji switching traffic to primary").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(bench.events().len(), 2, "{silent} without an answer: {:#?}", bench.events());
        assert_eq!(controller.stop().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_cuts_the_draining_short_with_exit_code_130() {
    let bench = Bench::new().await;
    let mut controller = Controller::start(&bench, &[]).await;
    controller.until_ready().await;
    bench.set_ready("web", false);
    bench.until_weights("emoji", FAILED_OVER).await;
    // Its Event is refused for longer than anybody waits.
    bench.server.refuse_writes(1_000, &Status::scripted(503, "ServiceUnavailable", "not now"));
    bench.set_ready("web", true);
    bench.create_split("second", serde_json::json!("abc"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    controller.signal(Signal::TERM);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (status, _) = controller.get("/ready").await;
    assert_eq!(status, 503, "it drains, and says so");
    controller.signal(Signal::TERM);
    let ended = tokio::time::timeout(Duration::from_secs(1), controller.ended()).await;
    assert_eq!(ended.expect("at once"), Some(130));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_crd_is_told_and_waited_for_also_when_it_goes_later() {
    let bench = Bench::new().await;
    bench.server.withhold(Resource::TrafficSplits);
    let mut controller = Controller::start(&bench, &["--readiness-hold=200ms"]).await;
    let missing = |state: &Value| {
        state["watches"]["trafficsplits"].as_str().is_some_and(|text| text.contains("the TrafficSplit CRD"))
    };
    controller.until(missing).await;
    let (status, reason) = controller.get("/ready").await;
    assert_eq!(status, 503);
    assert!(reason.contains("trafficsplits: the TrafficSplit CRD"), "{reason}");
    bench.server.serve_again(Resource::TrafficSplits);
    controller.until_ready().await;
    bench.set_ready("web", false);
    bench.until_weights("emoji", FAILED_OVER).await;

    bench.server.withhold(Resource::TrafficSplits);
    bench.server.restart(Restart::Whole).await;
    controller.until(missing).await;
    assert_eq!(controller.get("/ready").await.0, 200, "the last facts stand");
    bench.server.serve_again(Resource::TrafficSplits);
    bench.set_ready("web", true);
    bench.until_weights("emoji", STEADY).await;
    assert_eq!(weights_of(&bench.split("emoji")), STEADY);
    assert_eq!(controller.stop().await, 0);
}
