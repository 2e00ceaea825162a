//! Two replicas decide the same, one write wins, and the loser's watch is faster than the loser's answer.

use std::collections::BTreeMap;
use std::time::Duration;

use controller_core::facts::{BackendFacts, EndpointFacts, MoveCause, ObjectId, Record, RecordedState, SplitFacts};
use controller_core::input::WriteOutcome;
use controller_core::output::Write;
use controller_core::weights::Weight;
use controller_core::{Config, Core, Input, Output, Time};

fn id(name: &str) -> ObjectId {
    ObjectId::new("demo", name)
}

fn mk_endpoints(service: u8, ready: bool) -> Vec<EndpointFacts> {
    vec![EndpointFacts {
        identity: format!("pod-{service}"),
        addresses: vec![[198, 18, service, 1].into()],
        ports: BTreeMap::from([("http".to_owned(), 80)]),
        node: None,
        zone: None,
        ready,
    }]
}

fn mk_split(version: &str, weights: [u32; 2], record: Option<Record>) -> SplitFacts {
    let backend = |(name, weight): (&str, u32)| BackendFacts { service: name.into(), weight: Weight::whole(weight) };
    SplitFacts {
        uid: "uid-1".into(),
        resource_version: version.into(),
        generation: 1,
        service: "web".into(),
        backends: ["web", "web-west"].into_iter().zip(weights).map(backend).collect(),
        primary: None,
        port: None,
        single_node: false,
        check_all_ports: false,
        record,
    }
}

fn next_write(core: &mut Core) -> Option<Write> {
    let mut written = None;
    while let Some(output) = core.poll() {
        if let Output::Write(write) = output {
            written = Some(write);
        }
    }
    written
}

/// A core whose first write, off the primary for readiness, is under way.
fn mk_core_in_failover() -> (Core, Write) {
    let mut core = Core::new(Config::default());
    for input in [
        Input::Split(id("web"), mk_split("1", [1, 0], None)),
        Input::Endpoints(id("web"), mk_endpoints(1, false)),
        Input::Endpoints(id("web-west"), mk_endpoints(2, true)),
        Input::CachesComplete,
    ] {
        core.handle(input, Time(1));
    }
    let write = next_write(&mut core).expect("a failover");
    (core, write)
}

#[track_caller]
fn check_goes_on_from_the_object(outcome: WriteOutcome) {
    let (mut core, write) = mk_core_in_failover();
    let record = Record {
        state: RecordedState::Failed,
        epoch: 1,
        cause: MoveCause::Readiness,
        failovers: 0,
        dwell_left: Duration::ZERO,
        age: Duration::ZERO,
        steady: BTreeMap::from([("web".to_owned(), Weight::ONE), ("web-west".to_owned(), Weight::ZERO)]),
    };
    core.handle(Input::Split(id("web"), mk_split("2", [0, 1], Some(record))), Time(2));
    core.handle(Input::WriteDone { id: write.id, outcome }, Time(3));
    assert_eq!(next_write(&mut core), None);
    assert_eq!(core.explain(&id("web"), Time(3)).map(|split| split.state), Some("failed"));

    // It knows the way back as well.
    core.handle(Input::Endpoints(id("web"), mk_endpoints(1, true)), Time(4));
    let later = Time(4) + Duration::from_secs(6);
    core.handle_timeout(later);
    let back = next_write(&mut core).expect("a failback");
    assert_eq!(back.weights, [("web".to_owned(), Weight::ONE), ("web-west".to_owned(), Weight::ZERO)]);
    assert_eq!(back.resource_version, "2");
}

#[test]
fn a_replica_that_lost_goes_on_from_what_the_winner_wrote() {
    check_goes_on_from_the_object(WriteOutcome::Conflict);
}

#[test]
fn a_write_that_was_taken_although_its_answer_was_lost_is_taken_for_done() {
    check_goes_on_from_the_object(WriteOutcome::Failed("no answer within 500ms".into()));
}

fn mk_record(epoch: u64) -> Record {
    Record {
        state: RecordedState::Failed,
        epoch,
        cause: MoveCause::Readiness,
        failovers: 0,
        dwell_left: Duration::ZERO,
        age: Duration::ZERO,
        steady: BTreeMap::from([("web".to_owned(), Weight::ONE), ("web-west".to_owned(), Weight::ZERO)]),
    }
}

fn applied(version: &str) -> WriteOutcome {
    WriteOutcome::Applied { acknowledged: Time(2), resource_version: version.into() }
}

#[test]
fn an_answer_that_comes_after_a_newer_object_does_not_take_it_back() {
    let (mut core, write) = mk_core_in_failover();
    core.handle(Input::Split(id("web"), mk_split("2", [0, 1], write.record.clone())), Time(2));
    // Somebody labels the object before our answer arrives.
    core.handle(Input::Split(id("web"), mk_split("3", [0, 1], write.record)), Time(2));
    core.handle(Input::WriteDone { id: write.id, outcome: applied("2") }, Time(3));
    core.handle(Input::Endpoints(id("web"), mk_endpoints(1, true)), Time(4));
    core.handle_timeout(Time(4) + Duration::from_secs(6));
    let back = next_write(&mut core).expect("a failback");
    assert_eq!(back.resource_version, "3", "guarded by what was seen last");
}

#[test]
fn another_replicas_failover_after_our_failback_is_seen_whatever_its_epoch() {
    for epoch in [1, 2, 3] {
        let (mut core, write) = mk_core_in_failover();
        core.handle(Input::WriteDone { id: write.id, outcome: applied("2") }, Time(3));
        core.handle(Input::Endpoints(id("web"), mk_endpoints(1, true)), Time(4));
        let later = Time(4) + Duration::from_secs(6);
        core.handle_timeout(later);
        let back = next_write(&mut core).expect("a failback");
        assert_eq!(back.record, None);
        core.handle(Input::WriteDone { id: back.id, outcome: applied("3") }, later);
        let dwell_left = Duration::from_secs(30);
        let record = Record { cause: MoveCause::Connections, dwell_left, ..mk_record(epoch) };
        core.handle(Input::Split(id("web"), mk_split("4", [0, 1], Some(record))), later);
        let explained = core.explain(&id("web"), later).expect("known");
        assert_eq!((explained.state, explained.dwell_left), ("failed", dwell_left), "epoch {epoch}");
    }
}

#[test]
fn a_split_that_another_hand_takes_off_its_primary_goes_back_whatever_its_record() {
    let (mut core, write) = mk_core_in_failover();
    core.handle(Input::WriteDone { id: write.id, outcome: applied("2") }, Time(3));
    let steady = Record { state: RecordedState::Steady, epoch: 2, failovers: 1, ..mk_record(2) };
    core.handle(Input::Endpoints(id("web"), mk_endpoints(1, true)), Time(4));
    core.handle(Input::Split(id("web"), mk_split("3", [1, 0], Some(steady.clone()))), Time(5));
    assert_eq!(core.explain(&id("web"), Time(5)).map(|split| split.state), Some("steady"));
    core.handle(Input::Split(id("web"), mk_split("4", [0, 1], Some(steady))), Time(6));
    core.handle_timeout(Time(6) + Duration::from_secs(6));
    let back = next_write(&mut core).expect("a failback");
    assert_eq!(back.weights, [("web".to_owned(), Weight::ONE), ("web-west".to_owned(), Weight::ZERO)]);
}
