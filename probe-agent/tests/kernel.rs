//! The probe against the running kernel: real sockets of client processes, in network namespaces and cgroups of their
//! own. Each test needs root and a kernel with BTF, so that `cargo xtask test` runs them and the plain run does not.

#![expect(unreachable_pub, reason = "a test is a crate of its own: nothing of it can be reached")]

#[path = "kernel/client.rs"]
mod client;
#[path = "kernel/meshed.rs"]
mod meshed;
#[path = "kernel/world.rs"]
mod world;

use std::time::Duration;

use probe_agent::kernel::{MapError, PROXY_UID, Probe, Settings, now_ns};
use probe_common::{
    abi::{DestinationValue, FirstFailure, Loss, SLOT_SHIFT, cell_count, late_slots_for, slot_of, start_of},
    cause::FailureCause,
};
use world::{
    ANSWERING, ANSWERING_THEN_RESETTING, Counter, DROPPED, DROPPED6, HOT_CAPACITY, LATE_NS, REFUSING, REJECTED,
    REJECTED6, RESETTING, SERVER, SERVER6, Sum, World, at, destination, pause_ms,
};

const ECONNREFUSED: i32 = 111;
const ETIMEDOUT: i32 = 110;
const ECONNRESET: i32 = 104;
const EINPROGRESS: i32 = 115;

const REFUSED: usize = FailureCause::Refused.index();
const UNREACHABLE: usize = FailureCause::Unreachable.index();
const RESET: usize = FailureCause::Reset.index();

/// Not a test: the client processes of the tests are this binary, started with this name.
#[test]
#[ignore = "started by the other tests"]
fn a_client_process_of_the_other_tests() {
    client::main();
}

/// Makes the test below start this process only to load the probe.
const LOADING: &str = "SPLITSECOND_TEST_LOADING";

/// Not a test: loads the probe with the capabilities that it was left, and says how that went.
#[test]
#[ignore = "started by the other tests"]
fn a_loading_process_of_the_other_tests() {
    if std::env::var_os(LOADING).is_none() {
        return;
    }
    let began_ns = now_ns();
    match Probe::load(&Settings { node_cgroup: 1, hot_capacity: 256, cold_capacity: 4096, proxy_uid: PROXY_UID }) {
        Ok(probe) => {
            let took_ms = (now_ns() - began_ns) / 1_000_000;
            println!("\n@ loaded in {took_ms} ms, {} KiB in the kernel", probe.memory_bytes().expect("is told") / 1024);
        }
        Err(error) => println!("\n@ {error}"),
    }
}

/// What a process says that has only these capabilities when it loads the probe.
fn loading_with(capabilities: &str) -> String {
    let output = std::process::Command::new("setpriv")
        .arg(format!("--bounding-set=-all{capabilities}"))
        .arg(std::env::current_exe().expect("this is a binary"))
        .args(["--exact", "a_loading_process_of_the_other_tests", "--ignored", "--nocapture"])
        .env(LOADING, "1")
        .output()
        .expect("setpriv is installed");
    let text = String::from_utf8(output.stdout).expect("is text");
    text.lines().find_map(|line| line.strip_prefix("@ ")).expect("says how it went").to_owned()
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn two_capabilities_are_enough_and_their_lack_is_told() {
    let said = loading_with(",+bpf,+perfmon");
    println!("{said}");
    assert!(said.starts_with("loaded in "), "{said}");
    for too_few in ["", ",+perfmon", ",+bpf"] {
        let said = loading_with(too_few);
        assert!(said.contains("needs CAP_BPF and CAP_PERFMON"), "with {too_few:?}: {said}");
    }
}

/// Compares what was counted at hot index 0, except for how many are late while they are outstanding.
#[track_caller]
fn check(counter: &Counter, expected: Sum) {
    let settled = expected.ended();
    let sum = counter.wait(0, |sum| sum.ended() == settled && sum.attempts == expected.attempts);
    assert_eq!(sum, expected, "losses {:?}", counter.probe.losses());
}

fn by_cause(cause: usize, count: u64) -> [u64; 4] {
    let mut counts = [0; 4];
    counts[cause] = count;
    counts
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn an_established_connection_is_one_success_and_one_answer() {
    let mut world = World::new();
    let mut counter = world.probe();
    counter.count(0, SERVER, ANSWERING);
    let mut client = world.client();
    client.begin("a", at(SERVER, ANSWERING));
    assert_eq!(client.finish("a", 1000).errno, 0);
    assert_eq!(client.exchange("a"), 1);
    client.close("a");
    check(&counter, Sum { attempts: 1, established: 1, flows_answered: 1, ..Sum::default() });
}

/// A world with one client, and the destination counted at hot index 0. In the order in which they must be dropped last.
fn mk(address: &str, port: u16) -> (World, Counter, client::Client) {
    let mut world = World::new();
    let mut counter = world.probe();
    counter.count(0, address, port);
    let client = world.client();
    (world, counter, client)
}

/// Begins a connect of socket "a" that nobody answers, waits until it is late, and checks after how long it was.
#[track_caller]
fn begin_and_become_late(counter: &Counter, client: &mut client::Client, address: &str, port: u16) {
    let began = client.begin("a", at(address, port));
    assert_eq!(began.errno, EINPROGRESS);
    check_late(late_at_ns(counter).0, began.began_ns, began.ended_ns);
}

/// When the one outstanding attempt becomes late, by its slot: the moment at which this process looks, on a busy machine,
/// says nothing about the probe. Returns that moment, and one at which the attempt had begun already, when it is seen as
/// late.
#[track_caller]
fn late_at_ns(counter: &Counter) -> (u64, u64) {
    counter.wait(0, |sum| sum.outstanding == 1);
    let had_begun_ns = now_ns();
    let values = counter.probe.hot(0).expect("is readable");
    let late_slots = late_slots_for(LATE_NS);
    let now = slot_of(now_ns());
    let cells = values.iter().flat_map(|value| (0..).zip(value.slots));
    let begun =
        cells.filter(|(_, cell)| cell_count(*cell) == 1).find_map(|(position, cell)| start_of(position, cell, now));
    let begun = begun.expect("has a slot");
    let is_late = |now: &u32| values.iter().map(|value| value.outstanding_late(*now, late_slots)).sum::<i64>() == 1;
    let slot = (begun..begun + 2 * late_slots).find(is_late).expect("is late in time");
    counter.wait(0, |sum| sum.outstanding_late == 1);
    (u64::from(slot) << SLOT_SHIFT, had_begun_ns)
}

/// The attempt began between the two times; it must be late 25 ms after its begin, and not much later.
#[track_caller]
fn check_late(late_at_ns: u64, not_before_ns: u64, not_after_ns: u64) {
    let (longest, shortest) = (late_at_ns - not_before_ns, late_at_ns.saturating_sub(not_after_ns));
    assert!(longest >= LATE_NS && shortest < 45_000_000, "late after {shortest} to {longest} ns");
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_refused_connection_is_one_failure() {
    let (_world, counter, mut client) = mk(SERVER, REFUSING);
    assert_eq!(client.block(at(SERVER, REFUSING)).errno, ECONNREFUSED);
    check(&counter, Sum { attempts: 1, failed: by_cause(REFUSED, 1), ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_refused_connection_over_ipv6_is_one_failure() {
    let (_world, counter, mut client) = mk(SERVER6, REFUSING);
    assert_eq!(client.block(at(SERVER6, REFUSING)).errno, ECONNREFUSED);
    check(&counter, Sum { attempts: 1, failed: by_cause(REFUSED, 1), ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn an_ipv6_socket_to_a_mapped_address_counts_for_the_ipv4_destination() {
    let (_world, mut counter, mut client) = mk(SERVER, REFUSING);
    counter.count(1, SERVER, ANSWERING);
    let mapped = format!("::ffff:{SERVER}");
    assert_eq!(client.block(at(&mapped, REFUSING)).errno, ECONNREFUSED);
    assert_eq!(client.block(at(&mapped, ANSWERING)).errno, 0);
    check(&counter, Sum { attempts: 1, failed: by_cause(REFUSED, 1), ..Sum::default() });
    assert_eq!(counter.wait(1, |sum| sum.established == 1).attempts, 1);
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_rejected_connection_is_one_failure_within_10_ms_and_none_when_it_is_closed() {
    let (_world, counter, mut client) = mk(REJECTED, ANSWERING);
    let began = client.begin("a", at(REJECTED, ANSWERING));
    assert_eq!(began.errno, EINPROGRESS);
    assert_eq!(counter.wait(0, |sum| sum.failed[UNREACHABLE] == 1).outstanding, 0);
    // By the kernel's own times: when this process gets its turn to look says nothing about the probe.
    let values = counter.probe.hot(0).expect("is readable");
    let window = values.iter().flat_map(|value| value.failing).find(|window| window.clients != 0);
    let window = window.expect("the failure is in a window");
    let counted_after_ns = window.first_failed_ns - window.oldest_start_ns;
    assert!(window.oldest_start_ns >= began.began_ns && counted_after_ns < 10_000_000, "after {counted_after_ns} ns");
    assert_eq!(client.finish("a", 1000).errno, ECONNREFUSED);
    client.close("a");
    check(&counter, Sum { attempts: 1, failed: by_cause(UNREACHABLE, 1), ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_rejected_blocking_connection_is_counted_at_once_and_not_again_when_it_returns() {
    let (_world, counter, mut client) = mk(REJECTED, ANSWERING);
    let before_ns = now_ns();
    client.begin_block(at(REJECTED, ANSWERING));
    counter.wait(0, |sum| sum.failed[UNREACHABLE] == 1);
    assert!(now_ns() - before_ns < 50_000_000, "counted only after {} ns", now_ns() - before_ns);
    let went = client.blocked();
    assert_eq!(went.errno, ECONNREFUSED);
    assert!(went.took_ms() > 500, "this kernel returns at once ({} ms): nothing was tested", went.took_ms());
    check(&counter, Sum { attempts: 1, failed: by_cause(UNREACHABLE, 1), ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn an_ipv6_rejection_is_late_in_time_and_ends_once() {
    let (_world, counter, mut client) = mk(REJECTED6, ANSWERING);
    client.begin_block(at(REJECTED6, ANSWERING));
    let (late_at_ns, had_begun_ns) = late_at_ns(&counter);
    let went = client.blocked();
    check_late(late_at_ns, went.began_ns, had_begun_ns);
    assert_eq!(went.errno, ECONNREFUSED);
    check(&counter, Sum { attempts: 1, failed_late: by_cause(REFUSED, 1), ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn an_ipv6_blackhole_is_late_in_time_and_its_cancel_is_no_second_sample() {
    let (_world, counter, mut client) = mk(DROPPED6, ANSWERING);
    begin_and_become_late(&counter, &mut client, DROPPED6, ANSWERING);
    client.close("a");
    check(&counter, Sum { attempts: 1, cancelled_late: 1, ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_blackhole_that_the_application_gives_up_after_100_ms_is_late() {
    let (_world, counter, mut client) = mk(DROPPED, ANSWERING);
    assert_eq!(client.attempt(at(DROPPED, ANSWERING), 100).errno, ETIMEDOUT);
    check(&counter, Sum { attempts: 1, cancelled_late: 1, ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_blackhole_that_the_application_gives_up_after_10_ms_is_nobodys_failure() {
    let (_world, counter, mut client) = mk(DROPPED, ANSWERING);
    // On a busy machine the client may get its turn too late to give up in time.
    let mut attempts = 0;
    let in_time = std::iter::repeat_with(|| client.attempt(at(DROPPED, ANSWERING), 10)).take(50).find(|went| {
        assert_eq!(went.errno, ETIMEDOUT);
        attempts += 1;
        went.ended_ns - went.began_ns < LATE_NS
    });
    assert!(in_time.is_some(), "the machine was too slow to test this");
    let sum = counter.wait(0, |sum| sum.ended() == attempts);
    assert_eq!((sum.attempts, sum.cancelled + sum.cancelled_late), (attempts, attempts));
    assert_ne!(sum.cancelled, 0, "{sum:?}");
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_connection_that_recovers_after_it_was_late_counts_as_established_late() {
    let (world, counter, mut client) = mk(SERVER, ANSWERING);
    world.cut(ANSWERING);
    begin_and_become_late(&counter, &mut client, SERVER, ANSWERING);
    world.heal(ANSWERING);
    // The kernel sends its SYN again after a second.
    assert_eq!(client.finish("a", 3000).errno, 0);
    assert_eq!(client.exchange("a"), 1);
    client.close("a");
    check(&counter, Sum { attempts: 1, established_late: 1, flows_answered: 1, ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn an_attempt_older_than_the_ring_of_slots_is_late_all_the_while() {
    let (_world, counter, mut client) = mk(DROPPED, ANSWERING);
    client.begin("old", at(DROPPED, ANSWERING));
    counter.wait(0, |sum| sum.outstanding_late == 1);
    // More than two laps of 1.07 s, with others that come and go in the same slots.
    for _ in 0..250 {
        assert_eq!(client.attempt(at(DROPPED, ANSWERING), 1).errno, ETIMEDOUT);
        let sum = counter.sum(0);
        assert_eq!((sum.outstanding, sum.outstanding_late - sum.outstanding), (1, 0), "{sum:?}");
        pause_ms(8);
    }
    client.close("old");
    let sum = counter.wait(0, |sum| sum.outstanding == 0);
    assert_eq!((sum.cancelled_late, sum.outstanding_late, sum.attempts), (251 - sum.cancelled, 0, 251));
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_node_counts_its_own_sockets_only() {
    let mut world = World::new();
    let (mut one, mut two) = (world.probe_of("one"), world.probe_of("two"));
    for node in [&mut one, &mut two] {
        node.count(0, SERVER, REFUSING);
    }
    // As deep as Kubernetes nests its cgroups.
    let mut client_of_one = world.client_in("one/kubelet/kubepods/burstable/pod/container");
    let mut client_of_two = world.client_in("two");
    for _ in 0..3 {
        client_of_one.block(at(SERVER, REFUSING));
    }
    client_of_two.block(at(SERVER, REFUSING));
    world.client_in("elsewhere").block(at(SERVER, REFUSING));
    check(&one, Sum { attempts: 3, failed: by_cause(REFUSED, 3), ..Sum::default() });
    check(&two, Sum { attempts: 1, failed: by_cause(REFUSED, 1), ..Sum::default() });
    assert_eq!(one.probe.losses().expect("are readable"), [0; Loss::COUNT]);
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn another_port_and_another_address_are_not_counted() {
    let (_world, counter, mut client) = mk(SERVER, REFUSING);
    client.block(at(SERVER, ANSWERING));
    client.block(at(SERVER6, REFUSING));
    client.block(at(SERVER, REFUSING));
    check(&counter, Sum { attempts: 1, failed: by_cause(REFUSED, 1), ..Sum::default() });
    assert_eq!(counter.probe.losses().expect("are readable"), [0; Loss::COUNT]);
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn the_agents_own_socket_is_not_counted() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let to = listener.local_addr().expect("has an address");
    // This process is no client of a world: here the node is the whole machine, and the socket is in scope.
    let node_cgroup = probe_agent::kernel::node_cgroup(None).expect("has cgroup2");
    let settings = Settings { node_cgroup, hot_capacity: HOT_CAPACITY, cold_capacity: 0, proxy_uid: PROXY_UID };
    let mut counter = Counter { probe: Probe::load(&settings).expect("loads") };
    counter.count(0, "127.0.0.1", to.port());
    let mut exemption = counter.probe.take_exemption().expect("is there");
    let dial = |exempt: &mut dyn FnMut(&rustix::fd::OwnedFd)| {
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        let socket = socket.expect("a socket");
        exempt(&socket);
        rustix::net::connect(&socket, &to).expect("connects");
    };
    dial(&mut |_| ());
    dial(&mut |socket| exemption.exempt(socket).expect("is marked"));
    dial(&mut |_| ());
    check(&counter, Sum { attempts: 2, established: 2, ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_reset_before_the_answer_is_a_failed_flow() {
    let (_world, counter, mut client) = mk(SERVER, RESETTING);
    client.begin("a", at(SERVER, RESETTING));
    assert_eq!(client.finish("a", 1000).errno, 0);
    assert_eq!(client.exchange("a"), -i64::from(ECONNRESET));
    client.close("a");
    counter.wait(0, |sum| sum.failed[RESET] == 1);
    check(&counter, Sum { attempts: 1, established: 1, failed: by_cause(RESET, 1), ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_reset_after_the_answer_is_an_answered_flow() {
    let (_world, counter, mut client) = mk(SERVER, ANSWERING_THEN_RESETTING);
    client.begin("a", at(SERVER, ANSWERING_THEN_RESETTING));
    assert_eq!(client.finish("a", 1000).errno, 0);
    assert_eq!(client.exchange("a"), 1);
    pause_ms(20);
    client.close("a");
    counter.wait(0, |sum| sum.flows_answered == 1);
    check(&counter, Sum { attempts: 1, established: 1, flows_answered: 1, ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_connection_closed_without_a_byte_is_no_flow() {
    let (_world, counter, mut client) = mk(SERVER, ANSWERING);
    assert_eq!(client.block(at(SERVER, ANSWERING)).errno, 0);
    pause_ms(20);
    check(&counter, Sum { attempts: 1, established: 1, ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn each_connect_of_one_socket_is_an_attempt_of_its_own() {
    let (_world, mut counter, mut client) = mk(SERVER, REFUSING);
    counter.count(1, SERVER, ANSWERING);
    client.begin("a", at(SERVER, REFUSING));
    assert_eq!(client.finish("a", 1000).errno, ECONNREFUSED);
    client.begin("a", at(SERVER, REFUSING));
    assert_eq!(client.finish("a", 1000).errno, ECONNREFUSED);
    client.begin("a", at(SERVER, ANSWERING));
    assert_eq!(client.finish("a", 1000).errno, 0);
    assert_eq!(client.exchange("a"), 1);
    client.close("a");
    check(&counter, Sum { attempts: 2, failed: by_cause(REFUSED, 2), ..Sum::default() });
    let answering = counter.wait(1, |sum| sum.flows_answered == 1);
    assert_eq!(answering, Sum { attempts: 1, established: 1, flows_answered: 1, ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn an_end_under_another_generation_touches_nothing() {
    let (_world, mut counter, mut client) = mk(DROPPED, ANSWERING);
    client.begin("a", at(DROPPED, ANSWERING));
    counter.wait(0, |sum| sum.outstanding == 1);
    counter.probe.release(&destination(DROPPED, ANSWERING)).expect("was counted");
    counter.assign(0, 2, SERVER, REFUSING);
    client.close("a");
    for _ in 0..100 {
        if counter.loss(Loss::Stale) == 1 {
            break;
        }
        pause_ms(1);
    }
    assert_eq!(counter.loss(Loss::Stale), 1);
    assert_eq!(counter.sum(0), Sum::default());
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn an_end_without_a_start_is_reported_and_touches_nothing() {
    let mut world = World::new();
    let mut client = world.client();
    client.begin("a", at(DROPPED, ANSWERING));
    let mut counter = world.probe();
    counter.count(0, DROPPED, ANSWERING);
    client.close("a");
    for _ in 0..100 {
        if counter.loss(Loss::EndWithoutStart) == 1 {
            break;
        }
        pause_ms(1);
    }
    assert_eq!(counter.loss(Loss::EndWithoutStart), 1);
    assert_eq!(counter.sum(0), Sum::default());
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_released_destination_is_counted_no_more() {
    let (_world, mut counter, mut client) = mk(SERVER, REFUSING);
    client.block(at(SERVER, REFUSING));
    check(&counter, Sum { attempts: 1, failed: by_cause(REFUSED, 1), ..Sum::default() });
    counter.probe.release(&destination(SERVER, REFUSING)).expect("was counted");
    counter.probe.release(&destination(SERVER, REFUSING)).expect("releasing twice is no error");
    client.block(at(SERVER, REFUSING));
    check(&counter, Sum { attempts: 1, failed: by_cause(REFUSED, 1), ..Sum::default() });
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_destination_of_no_split_is_counted_without_ages() {
    let mut world = World::new();
    let mut counter = world.probe();
    for (position, (address, port)) in
        (0..).zip([(SERVER, REFUSING), (SERVER, ANSWERING), (DROPPED, ANSWERING), (SERVER, RESETTING)])
    {
        counter.count(HOT_CAPACITY + position, address, port);
    }
    let mut client = world.client();
    client.block(at(SERVER, REFUSING));
    client.block(at(SERVER, ANSWERING));
    client.attempt(at(DROPPED, ANSWERING), 60);
    client.begin("a", at(SERVER, RESETTING));
    assert_eq!(client.finish("a", 1000).errno, 0);
    client.exchange("a");
    pause_ms(20);
    let cold = |position| {
        let cold = counter.probe.cold(HOT_CAPACITY + position).expect("is readable");
        (cold.attempts, cold.established, cold.cancelled, cold.failed)
    };
    assert_eq!(cold(0), (1, 0, 0, by_cause(REFUSED, 1)));
    assert_eq!(cold(1), (1, 1, 0, [0; 4]));
    assert_eq!(cold(2), (1, 0, 1, [0; 4]));
    assert_eq!(cold(3), (1, 1, 0, by_cause(RESET, 1)));
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn what_does_not_fit_is_refused_by_name() {
    let world = World::new();
    let mut counter = world.probe();
    let beyond = DestinationValue { index: HOT_CAPACITY + 16, generation: 1, late_slots: 4 };
    let refused = counter.probe.assign(&destination(SERVER, 1), &beyond);
    assert!(matches!(refused, Err(MapError::OutOfRange { index, .. }) if index == HOT_CAPACITY + 16));
    assert!(matches!(counter.probe.hot(HOT_CAPACITY), Err(MapError::OutOfRange { .. })));
    let value = DestinationValue { index: 0, ..beyond };
    let full = (1..100).find_map(|port| counter.probe.assign(&destination(SERVER, port), &value).err());
    assert!(matches!(full, Some(MapError::Full { map: "DESTINATIONS" })), "{full:?}");
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn the_first_failure_of_a_round_wakes_with_its_own_times() {
    let (_world, mut counter, mut client) = mk(SERVER, REFUSING);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("has no conditions");
    let mut events = runtime.block_on(async { counter.probe.take_events() }).expect("is taken once");
    assert!(matches!(counter.probe.take_events(), Err(MapError::Missing { .. })));
    let mut next = |limit_ms| {
        let mut records: Vec<FirstFailure> = Vec::new();
        let limit = Duration::from_millis(limit_ms);
        let waited = runtime.block_on(async { tokio::time::timeout(limit, events.next(&mut records)).await });
        waited.map(|woken| woken.expect("the ring can be waited for")).ok().map(|()| records)
    };
    assert!(next(20).is_none(), "woken by nothing");
    let went = client.block(at(SERVER, REFUSING));
    let records = next(1000).expect("the first failure wakes");
    let [record] = records[..] else { panic!("one failure, and {records:?}") };
    assert_eq!((record.index, record.generation, record.cause), (0, 1, FailureCause::Refused as u32));
    assert!(went.began_ns < record.started_ns && record.started_ns < record.failed_ns, "{record:?} of {went:?}");
    assert!(record.failed_ns < went.ended_ns, "{record:?} of {went:?}");
    // Others of the round are silent, but for the first on another CPU.
    let cpus = counter.probe.hot(0).expect("is readable").len();
    for _ in 0..20 {
        client.block(at(SERVER, REFUSING));
    }
    let others = next(20).map_or(0, |records| records.len());
    assert!(others < cpus, "{others} more records on {cpus} CPUs");
    assert_eq!(counter.probe.next_round().expect("can be raised"), 1);
    client.block(at(SERVER, REFUSING));
    assert_eq!(next(1000).expect("a new round has a first failure").len(), 1);
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_round_shows_its_failing_clients_and_its_oldest_start() {
    let (_world, mut counter, mut client) = mk(SERVER, REFUSING);
    let ended = counter.probe.next_round().expect("can be raised");
    let round = ended + 1;
    let went = client.block(at(SERVER, REFUSING));
    client.block(at(SERVER, REFUSING));
    counter.wait(0, |sum| sum.failed[REFUSED] == 2);
    assert_eq!(counter.probe.next_round().expect("can be raised"), round);
    assert_eq!(u64::from(counter.probe.stamps().expect("are readable").rounds[0]), round);
    let values = counter.probe.hot(0).expect("is readable");
    let windows: Vec<_> =
        values.iter().map(|value| value.failing[(round % 2) as usize]).filter(|window| window.round == round).collect();
    let clients = windows.iter().fold(0, |clients, window| clients | window.clients);
    assert_eq!(clients.count_ones(), 1, "one client: {windows:?}");
    let oldest_ns = windows.iter().map(|window| window.oldest_start_ns).min().expect("there is a window");
    assert!((went.began_ns..went.ended_ns).contains(&oldest_ns));
    let slot_clients = values.iter().flat_map(|value| value.slot_clients).fold(0, |clients, more| clients | more);
    assert_eq!(slot_clients.count_ones(), 1);
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn the_kernels_own_figures_can_be_read() {
    let (_world, counter, mut client) = mk(SERVER, REFUSING);
    let measured = world::Measured::begin();
    client.block(at(SERVER, REFUSING));
    let programs = counter.probe.programs().expect("are readable");
    drop(measured);
    assert!(programs.iter().any(|(_, figures)| figures.runs > 0), "{programs:?}");
    assert!(counter.probe.memory_bytes().expect("are readable") > 0);
    counter.probe.recursion_misses().expect("are readable");
}

/// Loads of client processes against the four destinations, compared with what the clients saw.
#[track_caller]
fn compare_load(processes: u64, connects: u64) {
    let mut world = World::new();
    let mut counter = world.probe();
    counter.count_load();
    let measured = world::Measured::begin();
    let mut clients: Vec<_> = (0..processes).map(|_| world.client()).collect();
    let began_ns = now_ns();
    for (seed, client) in (1..).zip(&mut clients) {
        client.begin_load(0x5851_f42d_4c95_7f2d_u64.wrapping_mul(seed), connects / processes);
    }
    let mut truth = client::Truth::default();
    for client in &mut clients {
        truth.add(&client.truth());
    }
    let took_ms = (now_ns() - began_ns) / 1_000_000;
    pause_ms(50);
    drop(measured);
    let sums: Vec<Sum> = (0..4).map(|index| counter.sum(index)).collect();
    let losses = counter.probe.losses().expect("are readable");
    let misses = counter.probe.recursion_misses().expect("are readable");
    println!("{connects} connects by {processes} processes in {took_ms} ms");
    println!("truth: {truth:?}\nlosses: {losses:?} (by {:?}), recursion misses {misses}", Loss::ALL);
    for (name, sum) in ["answering", "refusing", "rejected", "dropped"].into_iter().zip(&sums) {
        println!("{name}: {sum:?}");
    }
    for (program, figures) in counter.probe.programs().expect("are readable") {
        let per_run = figures.run_time_ns.checked_div(figures.runs);
        println!("{program}: {} runs, {per_run:?} ns each: {figures:?}", figures.runs);
        println!("  {:.3} us per connection", figures.run_time_ns as f64 / 1000.0 / truth.attempts() as f64);
    }
    for sum in &sums {
        assert_eq!(sum.attempts as i64, sum.ended() as i64 + sum.outstanding, "every start is counted or outstanding");
    }
    let attempts: u64 = sums.iter().map(|sum| sum.attempts).sum();
    let outstanding: i64 = sums.iter().map(|sum| sum.outstanding).sum();
    let unstarted = losses[Loss::EndWithoutStart as usize];
    assert_eq!(truth.attempts(), attempts + unstarted, "truth is what was counted and what was reported as lost");
    assert!((0..=misses as i64).contains(&outstanding), "{outstanding} outstanding after the end, {misses} misses");
    let counted = [
        sums[0].established + sums[0].established_late,
        sums[1].failed[REFUSED] + sums[1].failed_late[REFUSED],
        sums[2].failed[UNREACHABLE] + sums[2].failed_late[UNREACHABLE],
        sums[3].cancelled + sums[3].cancelled_late,
        sums[0].flows_answered,
    ];
    let seen = [truth.established, truth.refused, truth.unreachable, truth.cancelled, truth.answered];
    for (counted, seen) in counted.into_iter().zip(seen) {
        assert!(counted <= seen && seen - counted <= misses, "counted {counted}, seen {seen}, {misses} misses");
    }
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn twenty_thousand_mixed_connections_are_counted_as_their_clients_saw_them() {
    compare_load(4, 20_000);
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_hundred_thousand_mixed_connections_are_counted_as_their_clients_saw_them() {
    compare_load(4, 100_000);
}

/// Prints the kernel's own figures for a loop that only connects and closes, both ends on this machine, all of it on one
/// CPU. A figure, not a verdict: what it should be is for `cargo xtask bench`, on a quiet machine.
#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn what_a_connection_costs_is_printed() {
    const CONNECTS: u64 = 20_000;
    // Threads and processes that this one starts inherit it.
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(0);
    rustix::thread::sched_setaffinity(None, &cpus).expect("CPU 0 is there");
    let (_world, counter, mut client) = mk(SERVER, ANSWERING);
    for _ in 0..3 {
        let measured = world::Measured::begin();
        let before = counter.probe.programs().expect("are readable");
        let went = client.repeat(at(SERVER, ANSWERING), CONNECTS);
        let after = counter.probe.programs().expect("are readable");
        drop(measured);
        for ((program, before), (_, after)) in before.into_iter().zip(after) {
            let (runs, time_ns) = (after.runs - before.runs, after.run_time_ns - before.run_time_ns);
            println!(
                "{program}: {:.1} runs of {} ns, {:.3} us per connection",
                runs as f64 / CONNECTS as f64,
                time_ns.checked_div(runs).unwrap_or(0),
                time_ns as f64 / 1000.0 / CONNECTS as f64
            );
        }
        println!("{:.0} connects per second", CONNECTS as f64 * 1e9 / (went.ended_ns - went.began_ns) as f64);
    }
    assert_eq!(counter.wait(0, |sum| sum.ended() == 3 * CONNECTS).attempts, 3 * CONNECTS);
}
