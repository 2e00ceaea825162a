//! Meshed pods: which sockets count where, when a proxy stands between an application and whom it dials.

use probe_agent::kernel::{PROXY_UID, now_ns};
use probe_common::abi::{DestinationKey, DestinationValue, Loss, PROXY_RENEWED_NS, late_slots_for};

use crate::{
    ECONNREFUSED, REFUSED, by_cause,
    client::Client,
    world::{ANSWERING, Counter, DROPPED, REFUSING, SERVER, SERVER6, Space, Sum, World, at, destination, pause_ms},
};

#[path = "table.rs"]
mod table;

/// An application's user: anybody but root and the proxy.
const APP_UID: u32 = 1000;

impl Counter {
    /// Counts a mesh proxy's own connects from the address to itself at a hot index.
    fn count_self_hops(&mut self, index: u32, address: &str, port: u16) {
        let key = DestinationKey { kind: DestinationKey::SELF_HOP, ..destination(address, port) };
        self.probe.assign(&key, &patient(index)).expect("there is room");
    }

    fn count_patiently(&mut self, index: u32, address: &str, port: u16) {
        self.probe.assign(&destination(address, port), &patient(index)).expect("there is room");
    }

    fn has_seen_proxy_at(&self, address: &str) -> bool {
        self.proxy_seen_ns(address).is_some()
    }

    fn proxy_seen_ns(&self, address: &str) -> Option<u64> {
        self.probe.proxy_seen_ns(address.parse().expect("is an address")).expect("is readable")
    }

    fn spaces(&self) -> usize {
        self.probe.proxy_spaces().expect("is readable")
    }

    #[track_caller]
    fn check_at(&self, index: u32, expected: &Sum) {
        let sum = self.wait(index, |sum| sum.attempts == expected.attempts && sum.ended() == expected.ended());
        assert_eq!(sum, *expected);
    }

    /// Nothing was lost, and nothing ended that had not begun.
    #[track_caller]
    fn check_no_loss(&self) {
        assert_eq!(self.probe.losses().expect("are readable"), [0; Loss::COUNT]);
    }
}

/// Late only after a time in which any machine comes to an established connection: these tests ask who is counted where.
fn patient(index: u32) -> DestinationValue {
    DestinationValue { index, generation: 1, late_slots: late_slots_for(300_000_000) }
}

fn refused(count: u64) -> Sum {
    Sum { attempts: count, failed: by_cause(REFUSED, count), ..Sum::default() }
}

fn established(count: u64) -> Sum {
    Sum { attempts: count, established: count, ..Sum::default() }
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_self_hop_is_counted_apart_in_every_family() {
    let mut world = World::new();
    let mut counter = world.probe();
    counter.count_patiently(0, SERVER, REFUSING);
    counter.count_self_hops(1, SERVER, REFUSING);
    counter.count_patiently(2, SERVER6, REFUSING);
    counter.count_self_hops(3, SERVER6, REFUSING);
    counter.count_self_hops(4, SERVER, ANSWERING);
    let mut proxy = world.process(Space::Server, "node/pod", PROXY_UID);
    assert_eq!(proxy.block(at(SERVER, REFUSING)).errno, ECONNREFUSED);
    assert_eq!(proxy.block(at(&format!("::ffff:{SERVER}"), REFUSING)).errno, ECONNREFUSED);
    assert_eq!(proxy.block(at(SERVER6, REFUSING)).errno, ECONNREFUSED);
    assert_eq!(proxy.block(at(SERVER, ANSWERING)).errno, 0);
    // From elsewhere, the proxy's user is a client as any other.
    let mut client = world.process(Space::Client, "node/other", PROXY_UID);
    assert_eq!(client.block(at(SERVER, REFUSING)).errno, ECONNREFUSED);
    for (index, expected) in [refused(1), refused(2), Sum::default(), refused(1), established(1)].iter().enumerate() {
        counter.check_at(index as u32, expected);
    }
    counter.check_no_loss();
    assert!(counter.has_seen_proxy_at(SERVER) && counter.has_seen_proxy_at(SERVER6));
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn nobody_but_the_proxy_makes_a_self_hop_and_no_other_such_connect_is_counted() {
    const NODE: &str = "198.51.100.1";
    let mut world = World::new();
    let mut counter = world.probe();
    for (index, address) in [(0, SERVER), (2, NODE), (4, SERVER6)] {
        counter.count_patiently(index, address, REFUSING);
        counter.count_self_hops(index + 1, address, REFUSING);
    }
    // As the node's own processes are, in its network namespace, whose address is both source and destination.
    let mut host = world.process(Space::Node, "node/host", 0);
    let mut pods = world.process(Space::Server, "node/pod", APP_UID);
    assert_eq!(host.block(at(NODE, REFUSING)).errno, ECONNREFUSED);
    for address in [SERVER, SERVER6, &format!("::ffff:{SERVER}")] {
        assert_eq!(pods.block(at(address, REFUSING)).errno, ECONNREFUSED);
    }
    // From a pod to the node, and from the node to a pod, is ordinary.
    assert_eq!(pods.block(at(NODE, REFUSING)).errno, ECONNREFUSED);
    assert_eq!(host.block(at(SERVER, REFUSING)).errno, ECONNREFUSED);
    let mut proxy = world.process(Space::Node, "node/host", PROXY_UID);
    assert_eq!(proxy.block(at(NODE, REFUSING)).errno, ECONNREFUSED);
    let nothing = Sum::default;
    for (index, expected) in [refused(1), nothing(), refused(1), refused(1), nothing(), nothing()].iter().enumerate() {
        counter.check_at(index as u32, expected);
    }
    counter.check_no_loss();
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn the_proxys_user_is_a_setting() {
    const OTHER_UID: u32 = 3000;
    let mut world = World::new();
    let mut counter = world.probe_for("node", OTHER_UID);
    counter.count_self_hops(0, SERVER, REFUSING);
    counter.count_patiently(1, SERVER, REFUSING);
    let mut usual = world.process(Space::Server, "node/pod", PROXY_UID);
    assert_eq!(usual.block(at(SERVER, REFUSING)).errno, ECONNREFUSED);
    assert_eq!(counter.spaces(), 0);
    let mut proxy = world.process(Space::Server, "node/pod", OTHER_UID);
    assert_eq!(proxy.block(at(SERVER, REFUSING)).errno, ECONNREFUSED);
    counter.check_at(0, &refused(1));
    counter.check_at(1, &Sum::default());
    assert_eq!(counter.spaces(), 1);
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn what_an_application_dials_counts_until_its_proxy_is_seen() {
    let mut world = World::new();
    world.add_second_pod();
    let mut counter = world.probe();
    counter.count_patiently(0, SERVER, ANSWERING);
    counter.count_patiently(1, DROPPED, ANSWERING);
    counter.count_patiently(2, SERVER6, ANSWERING);
    let mut app = world.process(Space::Client, "node/pod/app", APP_UID);
    let mut proxy = world.process(Space::Client, "node/pod/proxy", PROXY_UID);
    let mut neighbour = world.process(Space::Second, "node/neighbour", APP_UID);
    assert_eq!(app.block(at(SERVER, ANSWERING)).errno, 0);
    app.begin("pending", at(DROPPED, ANSWERING));
    counter.wait(1, |sum| sum.outstanding == 1);
    // Whom the proxy dials does not matter, nor whether anybody answers.
    assert_eq!(proxy.block(at(SERVER, REFUSING)).errno, ECONNREFUSED);
    for to in [at(SERVER, ANSWERING), at(SERVER6, ANSWERING), at(&format!("::ffff:{SERVER}"), ANSWERING)] {
        assert_eq!(app.block(to).errno, 0);
    }
    counter.check_at(0, &established(1));
    assert_eq!(proxy.block(at(SERVER, ANSWERING)).errno, 0);
    assert_eq!(neighbour.block(at(SERVER, ANSWERING)).errno, 0);
    counter.check_at(0, &established(3));
    counter.check_at(2, &Sum::default());
    // What had begun before ends as it would have.
    app.close("pending");
    let under_way = counter.wait(1, |sum| sum.outstanding == 0);
    assert_eq!((under_way.attempts, under_way.cancelled + under_way.cancelled_late), (1, 1));
    counter.check_no_loss();
    assert_eq!(counter.spaces(), 1);
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_proxy_is_seen_by_what_it_accepted() {
    const PORT: u16 = 8006;
    let mut world = World::new();
    let counter = world.probe();
    let mut client = world.process(Space::Client, "node/client", 0);
    let mut app = world.process(Space::Server, "node/pod", APP_UID);
    app.serve(PORT);
    assert_eq!(client.block(at(SERVER, PORT)).errno, 0);
    assert_eq!(counter.spaces(), 0, "an application that accepts is no proxy");
    let mut proxy = world.process(Space::Server, "node/pod", PROXY_UID);
    proxy.serve(PORT + 1);
    assert_eq!(counter.spaces(), 0, "one that listens was not seen at work");
    // Over loopback, where an address says nothing: only that there is a proxy in this namespace.
    assert_eq!(app.block(at("127.0.0.1", PORT + 1)).errno, 0);
    assert_eq!((counter.spaces(), counter.has_seen_proxy_at("127.0.0.1")), (1, false));
    assert!(!counter.has_seen_proxy_at(SERVER));
    assert_eq!(client.block(at(SERVER, PORT + 1)).errno, 0);
    assert!(counter.has_seen_proxy_at(SERVER) && !counter.has_seen_proxy_at(SERVER6));
    assert_eq!(client.block(at(SERVER6, PORT + 1)).errno, 0);
    assert!(counter.has_seen_proxy_at(SERVER6));
    assert_eq!(counter.spaces(), 1);
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_proxy_of_another_node_is_not_seen() {
    let mut world = World::new();
    let (one, two) = (world.probe_of("one"), world.probe_of("two"));
    let mut proxy = world.process(Space::Server, "two/pod", PROXY_UID);
    assert_eq!(proxy.block(at(SERVER, REFUSING)).errno, ECONNREFUSED);
    assert_eq!((one.spaces(), two.spaces()), (0, 1));
    assert_eq!((one.has_seen_proxy_at(SERVER), two.has_seen_proxy_at(SERVER)), (false, true));
}

#[test]
#[ignore = "needs root and a kernel with BTF: cargo xtask test runs it"]
fn a_sighting_is_renewed_once_a_second() {
    let mut world = World::new();
    let counter = world.probe();
    let mut proxy = world.process(Space::Server, "node/pod", PROXY_UID);
    let before_ns = now_ns();
    proxy.block(at(SERVER, REFUSING));
    let seen_ns = counter.proxy_seen_ns(SERVER).expect("was seen");
    assert!((before_ns..now_ns()).contains(&seen_ns));
    while now_ns() < seen_ns + PROXY_RENEWED_NS / 2 {
        proxy.block(at(SERVER, REFUSING));
        pause_ms(20);
    }
    assert_eq!(counter.proxy_seen_ns(SERVER), Some(seen_ns));
    pause_ms(600);
    proxy.block(at(SERVER, REFUSING));
    assert!(counter.proxy_seen_ns(SERVER).expect("was seen") >= seen_ns + PROXY_RENEWED_NS);
}

/// What a client gets that dials, says a byte and waits for one.
fn talk(client: &mut Client, address: &str, port: u16) -> &'static str {
    client.begin("talk", at(address, port));
    let errno = client.finish("talk", 2000).errno;
    let got = match errno {
        0 => match client.exchange("talk") {
            1 => "an answer",
            0 => "an end",
            -104 => "a reset",
            other => panic!("exchanged {other}"),
        },
        ECONNREFUSED => "refused",
        crate::ETIMEDOUT => "nothing",
        101 | 113 => "unreachable",
        other => panic!("connected with {other}"),
    };
    client.close("talk");
    got
}
