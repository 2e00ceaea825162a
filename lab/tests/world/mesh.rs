//! Meshed pods on the real kernel: what goes through the proxy, what a client meets when the application or the proxy
//! dies alone, and how the application is dialled again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use lab::load::outcome::Outcome;
use lab::load::records::Records;
use lab::load::wire::{PodProgram, ServerSpec};
use lab::world::fault::{Fault, Killed};
use lab::world::mesh::{INBOUND_PORT, Meshed};
use lab::world::{Pod, World, clock, dial_from};

use crate::{PORT, READY, SHORT, at, mk_layout, pause, wait_for};

/// Longer than a proxy keeps a client waiting.
const PATIENT: Duration = Duration::from_secs(3);
/// Where a test itself plays the application.
const TEST_PORT: u16 = 9090;

/// A client, a meshed pod and a plain one.
fn mk_meshed() -> (World, Meshed) {
    let pods = [("client", "north"), ("meshed", "south"), ("plain", "south")];
    let world = World::create(&mk_layout(&["north", "south"], &pods)).unwrap();
    let program = PodProgram::Server(ServerSpec::new(PORT, b'm'));
    let meshed = world.pod("meshed").unwrap().spawn_meshed(&program, &Records::new()).unwrap();
    meshed.wait_ready(READY).unwrap();
    (world, meshed)
}

fn pod<'a>(world: &'a World, name: &str) -> &'a Pod {
    world.pod(name).unwrap()
}

fn listen(pod: &Pod) -> TcpListener {
    let address = SocketAddr::new(pod.address(), TEST_PORT);
    pod.netns().within(|| TcpListener::bind(address)).unwrap().unwrap()
}

fn connect(from: &Pod, address: SocketAddr) -> TcpStream {
    from.netns().within(|| TcpStream::connect_timeout(&address, SHORT)).unwrap().unwrap()
}

/// Begins and outcomes of refused attempts as the proxy wrote them down.
fn refused_ns(world: &World) -> Vec<u64> {
    let log = std::fs::read_to_string(world.run_dir().join("meshed-linkerd-proxy.log")).unwrap();
    let of_line = |line: &str| line.strip_prefix("refused ")?.rsplit_once(' ')?.1.parse().ok();
    log.lines().filter_map(of_line).collect()
}

/// Failed connection attempts of the pod as its own kernel counted them, whoever made them.
fn attempt_fails(pod: &Pod) -> u64 {
    let text = pod.netns().within(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let at = lines.next().unwrap().split_whitespace().position(|word| word == "AttemptFails").unwrap();
    lines.next().unwrap().split_whitespace().nth(at).unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_meshed_pod_answers_through_its_proxy_in_both_families() {
    let (world, meshed) = mk_meshed();
    let (client, pod) = (pod(&world, "client"), pod(&world, "meshed"));
    assert_eq!(meshed.proxy.counts().accepted, 0);
    for address in [at(pod), SocketAddr::new(pod.address_v6(), PORT)] {
        for place in [client.netns(), world.control().netns(), world.node("south").unwrap().netns()] {
            assert_eq!(dial_from(place, address, SHORT).unwrap(), Outcome::Ok, "{address}");
        }
    }
    assert!(wait_for(|| meshed.proxy.counts().answered == 6), "{:?}", meshed.proxy.counts());
    assert!(wait_for(|| meshed.application.counts().answered == 6), "{:?}", meshed.application.counts());
    // A connection to the proxy itself has no original destination, and must not go round for ever.
    let direct = SocketAddr::new(pod.address(), INBOUND_PORT);
    let met = dial_from(client.netns(), direct, PATIENT).unwrap();
    assert!([Outcome::Ended, Outcome::Errno(104)].contains(&met), "{met}");
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_proxy_carries_bytes_both_ways_and_dials_the_pod_from_the_pod() {
    let (world, meshed) = mk_meshed();
    let (client, pod) = (pod(&world, "client"), pod(&world, "meshed"));
    let application = listen(pod);
    let mut outside = connect(client, application.local_addr().unwrap());
    outside.write_all(b"?").unwrap();
    let (mut inside, peer) = application.accept().unwrap();
    assert_eq!(peer.ip(), pod.address(), "a self-hop: from the pod's address to itself");
    let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[number as usize % 4]).collect();
    for forth in [true, false] {
        let (from, to) = if forth { (&mut outside, &mut inside) } else { (&mut inside, &mut outside) };
        let mut got = vec![0; sent.len()];
        if forth {
            to.read_exact(&mut got[..1]).unwrap();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| from.write_all(&sent).unwrap());
            to.read_exact(&mut got).unwrap();
        });
        assert!(got == sent, "forth {forth}");
    }
    // The end of one side reaches the other.
    drop(outside);
    assert_eq!(inside.read(&mut [0]).unwrap(), 0);
    drop(inside);
    assert!(wait_for(|| meshed.proxy.counts().answered == 1));
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn what_the_application_dials_goes_through_its_proxy() {
    let (world, meshed) = mk_meshed();
    let (pod, plain) = (pod(&world, "meshed"), pod(&world, "plain"));
    let outside = listen(plain);
    let mut application = connect(pod, outside.local_addr().unwrap());
    application.write_all(b"!").unwrap();
    let (mut accepted, peer) = outside.accept().unwrap();
    assert_eq!(peer.ip(), pod.address());
    assert_ne!(peer, application.local_addr().unwrap(), "another connection than the application's");
    let mut byte = [0];
    accepted.read_exact(&mut byte).unwrap();
    accepted.write_all(&byte).unwrap();
    application.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"!");
    assert!(wait_for(|| meshed.proxy.counts().accepted == 1));
    // What stays in the pod does not.
    assert_eq!(dial_from(pod.netns(), at(pod), SHORT).unwrap(), Outcome::Ok);
    pause(200);
    assert_eq!(meshed.proxy.counts().accepted, 1);
    // Without its proxy an application reaches nobody, though the other side answers.
    Killed(vec![meshed.proxy.clone()]).inject().unwrap();
    assert!(wait_for(|| dial_from(pod.netns(), outside.local_addr().unwrap(), SHORT).unwrap() == Outcome::REFUSED));
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_dead_application_behind_a_living_proxy_takes_connections_and_answers_none() {
    let (world, meshed) = mk_meshed();
    let (client, pod) = (pod(&world, "client"), pod(&world, "meshed"));
    let mut dead = Killed(vec![meshed.application.clone()]);
    dead.inject().unwrap();
    assert!(wait_for(|| !meshed.application.is_running()));
    assert!(meshed.proxy.is_running());

    // Protocol detection comes first: who says nothing makes nobody dial.
    let silent = connect(client, at(pod));
    pause(200);
    assert!(refused_ns(&world).is_empty());

    let begun_ns = clock::now_ns();
    let mut stream = connect(client, at(pod));
    let connected_ns = clock::now_ns();
    stream.set_read_timeout(Some(PATIENT)).unwrap();
    stream.write_all(b"?").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed without a byte");
    let (connect_ms, closed_ms) = (millis(begun_ns, connected_ns), millis(begun_ns, clock::now_ns()));
    println!("connected in {connect_ms:.1} ms, closed without an answer after {closed_ms:.0} ms");
    assert!((900.0..1_500.0).contains(&closed_ms));
    drop(silent);

    dead.heal().unwrap();
    assert!(wait_for(|| dial_from(client.netns(), at(pod), PATIENT).unwrap() == Outcome::Ok));

    // The other way round nobody connects at all, though the application answers within its pod.
    let mut dead = Killed(vec![meshed.proxy.clone()]);
    dead.inject().unwrap();
    assert!(wait_for(|| dial_from(client.netns(), at(pod), SHORT).unwrap() == Outcome::REFUSED));
    assert_eq!(dial_from(pod.netns(), at(pod), SHORT).unwrap(), Outcome::Ok);
    dead.heal().unwrap();
    assert!(wait_for(|| dial_from(client.netns(), at(pod), SHORT).unwrap() == Outcome::Ok));
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_dead_application_is_dialled_by_one_attempt_at_a_time_after_doubling_pauses() {
    let (world, meshed) = mk_meshed();
    let (client, pod) = (pod(&world, "client"), pod(&world, "meshed"));
    for round in 0..2 {
        let (before, failed_before) = (refused_ns(&world).len(), attempt_fails(pod));
        let mut dead = Killed(vec![meshed.application.clone()]);
        dead.inject().unwrap();
        assert!(wait_for(|| !meshed.application.is_running()));
        // Forty clients at once, and still one attempt at a time.
        std::thread::scope(|scope| {
            for number in 0..40 {
                scope.spawn(move || {
                    pause(number * 40);
                    assert_eq!(dial_from(client.netns(), at(pod), PATIENT).unwrap(), Outcome::Ended);
                });
            }
        });
        let refused = refused_ns(&world)[before..].to_vec();
        let gaps: Vec<f64> = refused.windows(2).map(|pair| millis(pair[0], pair[1])).collect();
        println!("round {round}: {} attempts, gaps in ms {gaps:.1?}", refused.len());
        assert_eq!(refused.len() as u64, attempt_fails(pod) - failed_before, "the kernel's own count");
        for (gap, pause_ms) in gaps.iter().zip([100.0, 200.0, 400.0, 800.0]) {
            assert!((pause_ms..pause_ms * 1.1 + 50.0).contains(gap), "{gap} of {pause_ms}");
        }
        assert!(gaps.len() >= 4);
        // A success sets the pauses back: the second round begins like the first.
        dead.heal().unwrap();
        assert!(wait_for(|| dial_from(client.netns(), at(pod), PATIENT).unwrap() == Outcome::Ok));
    }
}

fn millis(from_ns: u64, to_ns: u64) -> f64 {
    (to_ns - from_ns) as f64 / 1e6
}
