//! Scripts in virtual time: what must move moves in time, what must not stays. The whole core is under test, through
//! its front page only.

mod cluster;
mod hands;
mod limits;
mod mesh;
mod noise;
mod ports;
mod review_back;
mod review_false;
mod review_missed;
mod review_world;
mod small;
mod vantage;

use std::net::IpAddr;

use cluster::{Answer, Cluster, Layout, Lots, id, is_primary, mk_split};
use controller_core::facts::MoveCause;
use controller_core::input::WriteOutcome;
use controller_core::output::Direction;
use controller_core::{Config, Input};
use probe_common::cause::FailureCause;
use probe_common::wire::{AgentFrame, CheckOutcome, CheckResult, CheckResults, Destination, First, Report, Row};

fn refuse_primary(cluster: &mut Cluster) {
    cluster.world = Box::new(|_, to, _, _| if is_primary(to) { Answer::Refused } else { Answer::Established });
}

fn heal(cluster: &mut Cluster) {
    cluster.world = Box::new(|_, _, _, _| Answer::Established);
}

#[track_caller]
fn check_failover(mut cluster: Cluster, at_most_ms: u64) -> u64 {
    assert_eq!(cluster.written.len(), 0, "a healthy split is never written");
    let took = cluster.run_until_written(3_000);
    let took = took.unwrap_or_else(|| {
        panic!("no failover; held by {:?}; {:?}", cluster.held(), cluster.core.explain(&id("emoji-svc"), cluster.now()))
    });
    assert_eq!(cluster.weights(), [0, 1]);
    assert!(took <= at_most_ms, "took {took} ms, at most {at_most_ms}");
    let (_, write) = &cluster.written[0];
    assert_eq!((write.direction, write.cause), (Direction::Failover, MoveCause::Connections));
    assert_eq!(write.event.as_deref(), Some("trafficsplit/emoji-svc failing over to fallbacks"));
    took
}

#[track_caller]
fn check_stays(mut cluster: Cluster, ms: u64) -> Cluster {
    cluster.run(ms);
    assert_eq!(cluster.written.len(), 0, "moved: {:?}", cluster.written);
    assert_eq!(cluster.weights(), [1, 0]);
    cluster
}

#[test]
fn a_refusing_primary_is_left_after_the_hold_and_not_before() {
    for (rate, at_most) in [(1000, 115), (100, 200), (10, 450)] {
        let mut cluster = Cluster::new(Layout { rate, ..Layout::default() }).warm_up();
        refuse_primary(&mut cluster);
        let took = check_failover(cluster, at_most);
        assert!(took >= 100, "after {took} ms, before the hold was over");
    }
}

#[test]
fn an_idle_primary_that_dies_is_found_by_canaries() {
    let mut cluster = Cluster::new(Layout { rate: 0, ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    check_failover(cluster, 500);
}

#[test]
fn a_silent_primary_is_left_once_its_attempts_are_late() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    cluster.world = Box::new(|_, to, _, _| if is_primary(to) { Answer::Nothing } else { Answer::Established });
    check_failover(cluster, 180);
}

#[test]
fn successes_from_before_an_outage_do_not_put_its_begin_off() {
    // Every phase of the quiet nodes' 100 ms against the outage's begin.
    for phase in 0..100 {
        let mut cluster = Cluster::new(Layout { rate: 300, ..Layout::default() }).warm_up();
        cluster.run(phase);
        cluster.world = Box::new(|_, to, _, _| if is_primary(to) { Answer::Nothing } else { Answer::Established });
        check_failover(cluster, 175);
    }
}

#[test]
fn a_single_endpoint_on_one_client_node_is_left_after_its_longer_hold() {
    let mut cluster = Cluster::new(Layout { client_nodes: 1, endpoints: 1, ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    let took = check_failover(cluster, 265);
    assert!(took >= 250, "after {took} ms");
}

#[test]
fn a_blip_shorter_than_the_hold_moves_nothing() {
    for rate in [10, 100, 1000] {
        let mut cluster = Cluster::new(Layout { rate, ..Layout::default() }).warm_up();
        let from = cluster.now_ms;
        cluster.world = Box::new(
            move |_, to, at, _| if is_primary(to) && at < from + 50 { Answer::Refused } else { Answer::Established },
        );
        check_stays(cluster, 5_000);
    }
}

#[test]
fn one_node_that_sees_everything_fail_moves_nothing() {
    for node in ["client-0", "backend-0"] {
        let mut cluster = Cluster::new(Layout::default()).warm_up();
        cluster.world = Box::new(
            move |from, to, _, _| if from == node && is_primary(to) { Answer::Refused } else { Answer::Established },
        );
        check_stays(cluster, 10_000);
    }
}

#[test]
fn the_only_client_node_alone_moves_nothing() {
    let mut cluster = Cluster::new(Layout { client_nodes: 1, ..Layout::default() }).warm_up();
    cluster.world = Box::new(
        |from, to, _, _| if from == "client-0" && is_primary(to) { Answer::Refused } else { Answer::Established },
    );
    check_stays(cluster, 10_000);
}

#[test]
fn half_of_the_endpoints_dead_moves_nothing_and_more_than_half_does() {
    let dead = |count: u8| {
        let mut cluster = Cluster::new(Layout::default()).warm_up();
        cluster.world = Box::new(move |_, to: Destination, _, _| match to.ip() {
            IpAddr::V4(ip) if is_primary(to) && ip.octets()[3] <= count => Answer::Refused,
            IpAddr::V4(_) | IpAddr::V6(_) => Answer::Established,
        });
        cluster
    };
    check_stays(dead(1), 10_000);
    check_stays(dead(3), 10_000);
    check_failover(dead(5), 600);
}

#[test]
fn one_of_two_endpoints_dead_moves_nothing() {
    let mut cluster = Cluster::new(Layout { endpoints: 2, ..Layout::default() }).warm_up();
    cluster.world = Box::new(|_, to: Destination, _, _| match to.ip() {
        IpAddr::V4(ip) if is_primary(to) && ip.octets()[3] == 1 => Answer::Refused,
        IpAddr::V4(_) | IpAddr::V6(_) => Answer::Established,
    });
    check_stays(cluster, 10_000);
}

#[test]
fn one_percent_of_failures_moves_nothing() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    cluster.world =
        Box::new(
            |_, to, _, lots: &mut Lots| {
                if is_primary(to) && lots.below(100) == 0 { Answer::Refused } else { Answer::Established }
            },
        );
    check_stays(cluster, 60_000);
}

#[test]
fn silence_is_not_failure() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    refuse_primary(&mut cluster);
    cluster.set_agent_alive("*", false);
    check_stays(cluster, 10_000);
}

#[test]
fn too_few_fresh_agents_hold() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    for node in ["client-2", "backend-1", "backend-2"] {
        cluster.set_agent_alive(node, false);
    }
    cluster.run(1_000);
    refuse_primary(&mut cluster);
    let cluster = check_stays(cluster, 3_000);
    assert!(cluster.held().contains(&"few-fresh-agents"), "{:?}", cluster.held());
}

#[test]
fn a_dead_secondary_holds_and_says_so_on_the_split() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    cluster.world = Box::new(|_, _, _, _| Answer::Refused);
    let cluster = check_stays(cluster, 5_000);
    assert!(cluster.held().contains(&"no-healthy-secondary"), "{:?}", cluster.held());
    assert_eq!(cluster.notices.len(), 1, "{:?}", cluster.notices);
    assert_eq!(
        cluster.notices[0].1,
        "trafficsplit/emoji-svc stays on emoji-svc, which fails: no other backend is proved healthy"
    );
}

#[test]
fn one_observer_is_not_enough_and_says_so() {
    let mut cluster = Cluster::new(Layout { client_nodes: 1, backend_nodes: 0, ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    let cluster = check_stays(cluster, 5_000);
    assert!(cluster.held().contains(&"insufficient-observers"), "{:?}", cluster.held());
}

#[test]
fn no_ready_endpoint_moves_at_once_and_without_any_agent() {
    let mut cluster = Cluster::new(Layout { client_nodes: 0, backend_nodes: 0, ..Layout::default() });
    cluster.input(Input::CachesComplete);
    cluster.run(1_000);
    cluster.set_ready("emoji-svc", false);
    assert_eq!(cluster.weights(), [0, 1]);
    assert_eq!(cluster.written[0].1.cause, MoveCause::Readiness);

    cluster.set_ready("emoji-svc", true);
    cluster.run(4_900);
    assert_eq!(cluster.weights(), [0, 1], "readiness has not held for five seconds");
    cluster.run(200);
    assert_eq!(cluster.weights(), [1, 0]);
    assert_eq!(cluster.written[1].1.event.as_deref(), Some("trafficsplit/emoji-svc switching traffic to primary"));
    assert_eq!(cluster.record(), None);
}

#[test]
fn nothing_ready_anywhere_leaves_the_weights() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    cluster.set_ready("emoji-svc-west", false);
    cluster.set_ready("emoji-svc", false);
    check_stays(cluster, 2_000);
}

#[test]
fn nothing_is_written_before_the_caches_are_complete() {
    let mut cluster = Cluster::new(Layout::default());
    cluster.set_ready("emoji-svc", false);
    cluster.connect_agents();
    let mut cluster = check_stays(cluster, 1_000);
    cluster.input(Input::CachesComplete);
    assert_eq!(cluster.weights(), [0, 1]);
}

fn mk_quick_config() -> Config {
    Config {
        dwell: Cluster::span(2_000),
        ramp_step: Cluster::span(500),
        recovery_span: Cluster::span(1_000),
        ..Config::default()
    }
}

#[test]
fn failback_waits_for_the_dwell_and_ramps() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    let failed_at = cluster.now_ms;
    cluster.run(300);
    heal(&mut cluster);
    cluster.run(15_000);
    let path: Vec<_> = cluster
        .written
        .iter()
        .map(|(_, write)| write.weights.iter().map(|(_, weight)| weight.milli() / 1000).collect::<Vec<_>>())
        .collect();
    assert_eq!(path, [vec![0, 1], vec![50, 950], vec![250, 750], vec![500, 500], vec![1, 0]]);
    assert!(cluster.written[1].0 >= failed_at + 2_000, "before the dwell was over");
    let gaps: Vec<_> = cluster.written.windows(2).skip(1).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(gaps.iter().all(|gap| (500..520).contains(gap)), "{gaps:?}");
    let events: Vec<_> = cluster.written.iter().filter_map(|(_, write)| write.event.clone()).collect();
    assert_eq!(
        events,
        ["trafficsplit/emoji-svc failing over to fallbacks", "trafficsplit/emoji-svc switching traffic to primary"]
    );
}

#[test]
fn a_primary_that_stays_dead_is_never_tried() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    cluster.run(30_000);
    assert_eq!(cluster.written.len(), 1, "{:?}", cluster.written);
}

#[test]
fn a_primary_that_fails_in_its_probation_waits_twice_as_long() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    heal(&mut cluster);
    cluster.run_until_written(20_000).expect("ramps");
    assert_eq!(cluster.weights(), [50, 950]);
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over again");
    assert_eq!(cluster.weights(), [0, 1]);
    let record = cluster.record().expect("says why");
    assert_eq!((record.failovers, record.dwell_left), (2, Cluster::span(4_000)));
}

#[test]
fn a_flapping_primary_is_left_at_most_as_often_as_the_dwell_allows() {
    let mut cluster = Cluster::new(Layout { rate: 300, ..Layout::default() }).warm_up();
    cluster.world =
        Box::new(
            |_, to, at, _| if is_primary(to) && at / 60_000 % 2 == 0 { Answer::Refused } else { Answer::Established },
        );
    cluster.run(3_600_000);
    let failovers = cluster.written.iter().filter(|(_, write)| write.direction == Direction::Failover).count();
    assert!((2..=8).contains(&failovers), "{failovers} failovers in an hour");
    let opposite: Vec<_> = cluster
        .written
        .windows(2)
        .filter(|pair| pair[0].1.direction == Direction::Failover && pair[1].1.direction == Direction::Ramp)
        .map(|pair| pair[1].0 - pair[0].0)
        .collect();
    assert!(opposite.iter().all(|gap| *gap >= 30_000), "{opposite:?}");
}

#[test]
fn a_write_that_fails_is_decided_again_until_it_holds() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    cluster.outcomes = vec![WriteOutcome::Failed("timed out".into()), WriteOutcome::Conflict, WriteOutcome::Expired];
    refuse_primary(&mut cluster);
    cluster.run(1_500);
    assert_eq!(cluster.weights(), [0, 1]);
    assert_eq!(cluster.written.len(), 4);
}

#[test]
fn a_write_that_fails_is_not_repeated_when_the_primary_is_well_again() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    cluster.outcomes = vec![WriteOutcome::Refused("forbidden".into())];
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("tries");
    heal(&mut cluster);
    cluster.run(10_000);
    assert_eq!((cluster.written.len(), cluster.weights()), (1, vec![1, 0]));
}

#[test]
fn a_controller_that_restarts_in_the_outage_goes_on_where_it_was() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    cluster.run(500);
    cluster.restart_controller(mk_quick_config());
    cluster.run(5_000);
    assert_eq!((cluster.written.len(), cluster.weights()), (1, vec![0, 1]), "nothing new to write");
    heal(&mut cluster);
    cluster.run(15_000);
    assert_eq!(cluster.weights(), [1, 0]);
}

#[test]
fn a_restarted_agent_moves_nothing_by_restarting() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    cluster.restart_controller(Config::default());
    check_stays(cluster, 3_000);
}

#[test]
fn a_bad_split_is_held_and_the_next_one_still_moves() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    let fault = "spec.backends[0].weight \"abc\" is not a number";
    cluster.input(Input::SplitInvalid { split: id("bad"), fault: fault.into() });
    cluster.input(Input::SplitInvalid { split: id("bad"), fault: fault.into() });
    assert_eq!(cluster.notices.len(), 1, "said once: {:?}", cluster.notices);
    assert_eq!(cluster.notices[0].1, format!("trafficsplit/bad is held as it is: {fault}"));
    let explained = cluster.core.explain(&id("bad"), cluster.now()).expect("known");
    assert_eq!((explained.state, explained.fault.as_deref()), ("invalid", Some(fault)));
    refuse_primary(&mut cluster);
    check_failover(cluster, 115);
}

#[test]
fn a_split_that_turns_invalid_in_its_failover_is_not_touched() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    cluster.input(Input::SplitInvalid { split: id("emoji-svc"), fault: "no".into() });
    heal(&mut cluster);
    cluster.run(10_000);
    assert_eq!(cluster.written.len(), 1);
}

#[test]
fn observe_mode_decides_and_writes_nothing() {
    let config = Config { mode: controller_core::config::Mode::Observe, ..Config::default() };
    let mut cluster = Cluster::new(Layout { config, ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    let cluster = check_stays(cluster, 1_000);
    assert_eq!(cluster.held(), ["observe-mode"]);
}

#[test]
fn user_weights_come_back_as_they_were() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    cluster.set_split("emoji-svc", mk_split(&[("emoji-svc", 70), ("emoji-svc-west", 30)]));
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    assert_eq!(cluster.weights(), [0, 30]);
    heal(&mut cluster);
    cluster.run(15_000);
    assert_eq!(cluster.weights(), [70, 30]);
}

#[test]
fn the_same_inputs_at_the_same_times_give_the_same_outputs() {
    let run = |seed| {
        let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() });
        cluster.lots = Lots(seed);
        let mut cluster = cluster.warm_up();
        cluster.world = Box::new(|_, to, at, lots: &mut Lots| {
            if is_primary(to) && (at % 4_000 < 800 || lots.below(50) == 0) {
                Answer::Refused
            } else {
                Answer::Established
            }
        });
        cluster.run(8_000);
        cluster.log
    };
    for seed in 1..4 {
        let (first, second) = (run(seed), run(seed));
        assert!(first.len() > 100);
        assert_eq!(first, second);
    }
}

/// A report of one node with whatever a seed makes of it: huge counts, impossible times, other nodes' destinations.
fn mk_lie(lots: &mut Lots, seq: u64, now_ms: u64) -> AgentFrame {
    let mut number = |bound: u64| if lots.below(8) == 0 { u64::MAX } else { lots.below(bound) };
    let rows = (0..8).map(|_| {
        let to = Destination::from(([198, 18, 1, 1 + number(6) as u8 % 6], cluster::PORT));
        let first = First { started_ns: number(now_ms * cluster::MS), failed_ns: number(now_ms * cluster::MS) };
        Row {
            attempts: number(1_000),
            established: number(3),
            refused: number(1_000),
            late: number(1_000),
            reset: number(1_000),
            clients: number(64) as u32,
            first: Some(first),
            ..Row::empty(to, number(now_ms * cluster::MS), number(now_ms * cluster::MS))
        }
    });
    AgentFrame::Report(Report { seq, now_ns: now_ms * cluster::MS, rows: rows.collect(), ..Report::default() })
}

#[test]
fn a_lying_agent_moves_nothing_whatever_it_says() {
    for seed in 1..20 {
        for liar in ["client-0", "backend-1"] {
            let mut cluster = Cluster::new(Layout { rate: 100, ..Layout::default() }).warm_up();
            cluster.world =
                Box::new(
                    move |from, to, _, _| {
                        if from == liar && is_primary(to) { Answer::Refused } else { Answer::Established }
                    },
                );
            let mut lots = Lots(seed * 7919);
            for seq in 0..600 {
                cluster.run(5);
                let frame = mk_lie(&mut lots, 1_000 + seq, cluster.now_ms);
                cluster.input(Input::Agent { node: liar.into(), stream: 1, frame });
                let made_up = CheckResult {
                    id: lots.below(2_000),
                    to: ([198, 18, 1, 1 + lots.below(6) as u8], cluster::PORT).into(),
                    started_ns: 0,
                    ended_ns: 0,
                    outcome: CheckOutcome::Failed(FailureCause::Refused),
                };
                let results = CheckResults { now_ns: 0, results: vec![made_up; 20] };
                cluster.input(Input::Agent { node: liar.into(), stream: 1, frame: AgentFrame::CheckResults(results) });
            }
            assert_eq!(cluster.written.len(), 0, "seed {seed}, liar {liar}: {:?}", cluster.written);
        }
    }
}

#[test]
fn a_retry_loop_at_one_dead_path_moves_nothing() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    for seq in 0..2_000 {
        cluster.run(5);
        let to = ([198, 18, 1, 1], cluster::PORT).into();
        let at = cluster.now_ms * cluster::MS;
        let row = Row {
            attempts: 3,
            refused: 3,
            clients: 1,
            first: Some(First { started_ns: at, failed_ns: at }),
            ..Row::empty(to, at, at)
        };
        let report = Report { seq: 10_000 + seq, now_ns: at, rows: vec![row], ..Report::default() };
        cluster.input(Input::Agent { node: "client-1".into(), stream: 1, frame: AgentFrame::Report(report) });
    }
    assert_eq!(cluster.written.len(), 0, "{:?}", cluster.written);
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("and a real outage beside it is still seen");
}
