//! Other hands on the object: people, GitOps and other replicas change it while it is failed over.

use controller_core::facts::{BackendFacts, MoveCause, Record, RecordedState};

use crate::cluster::{Cluster, Layout, id, mk_split};
use crate::{heal, mk_quick_config, refuse_primary};

#[test]
fn a_record_with_the_largest_epoch_breaks_nothing() {
    let mut cluster = Cluster::new(Layout::default()).warm_up();
    let mut facts = mk_split(&[("emoji-svc", 1), ("emoji-svc-west", 0)]);
    facts.record = Some(Record {
        state: RecordedState::Steady,
        epoch: u64::MAX,
        cause: MoveCause::Connections,
        failovers: u32::MAX,
        dwell_left: Cluster::span(u64::MAX),
        age: Cluster::span(0),
        steady: std::collections::BTreeMap::new(),
    });
    cluster.set_split("emoji-svc", facts);
    refuse_primary(&mut cluster);
    cluster.run(1_000);
    assert_eq!(cluster.weights(), [0, 1]);
}

#[test]
fn backends_that_change_their_order_in_a_failover_get_their_own_weights_back() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    cluster.set_split("emoji-svc", mk_split(&[("emoji-svc", 70), ("emoji-svc-west", 30)]));
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    let mut facts = cluster.splits[&id("emoji-svc")].clone();
    facts.backends.reverse();
    facts.primary = Some("emoji-svc".into());
    cluster.set_split("emoji-svc", facts);
    heal(&mut cluster);
    cluster.run(15_000);
    let backends: Vec<_> = cluster.splits[&id("emoji-svc")]
        .backends
        .iter()
        .map(|BackendFacts { service, weight }| (service.as_str(), weight.milli() / 1000))
        .collect();
    assert_eq!(backends, [("emoji-svc-west", 30), ("emoji-svc", 70)]);
}

#[test]
fn a_ramp_that_a_person_ends_is_over() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    heal(&mut cluster);
    while cluster.weights() != [500, 500] {
        cluster.run_until_written(20_000).expect("ramps");
    }
    let mut facts = cluster.splits[&id("emoji-svc")].clone();
    facts.backends = mk_split(&[("emoji-svc", 1), ("emoji-svc-west", 0)]).backends;
    cluster.set_split("emoji-svc", facts);
    cluster.run(5_000);
    assert_eq!(cluster.weights(), [1, 0]);
    let explained = cluster.core.explain(&id("emoji-svc"), cluster.now()).expect("known");
    assert_eq!(explained.state, "steady");
    assert_eq!(cluster.record().map(|record| record.state), Some(RecordedState::Steady));
}

#[test]
fn a_ramp_that_another_replica_begins_is_not_judged_by_the_outage_before_it() {
    let mut cluster = Cluster::new(Layout { config: mk_quick_config(), ..Layout::default() }).warm_up();
    refuse_primary(&mut cluster);
    cluster.run_until_written(1_000).expect("fails over");
    cluster.run(300);
    heal(&mut cluster);
    cluster.run(200);
    let mut facts = cluster.splits[&id("emoji-svc")].clone();
    let record = facts.record.take().expect("failed over");
    facts.record = Some(Record { state: RecordedState::Probation, epoch: record.epoch + 1, ..record });
    facts.backends = mk_split(&[("emoji-svc", 50), ("emoji-svc-west", 950)]).backends;
    cluster.set_split("emoji-svc", facts);
    cluster.run(400);
    assert_eq!(cluster.weights(), [50, 950], "{:?}", cluster.written.last());
}
