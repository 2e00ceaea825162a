//! Conversations on the real kernel: long-lived connections beside the load, and what their clients see of a reset.

use lab::load::outcome::Outcome;
use lab::load::records::Records;
use lab::load::wire::{CONVERSATION, ClientSpec, DEFAULT_TIMEOUT_MS, Order, PodProgram, Target};
use lab::world::clock;

use crate::{READY, at, check_everywhere, mk_small, pause, wait_for};

const CONNECTIONS: u32 = 100;
const EVERY_MS: u32 = 100;

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_reset_ends_every_conversation_at_once_and_nothing_else() {
    let (world, servers) = mk_small();
    let addresses = ["one", "two"].map(|name| at(world.pod(name).unwrap())).to_vec();
    let records = Records::new();
    let load = ClientSpec {
        target: Target::Address { address: addresses[0], answers: [(b'o', "one".to_owned())].into() },
        rate: 300.0,
        seed: 1,
        timeout_ms: DEFAULT_TIMEOUT_MS,
    };
    let client = world.pod("client").unwrap().spawn(&PodProgram::Client(load), &records).unwrap();
    client.wait_ready(READY).unwrap();
    let converse = |connections| Order::Converse { addresses: addresses.clone(), connections, every_ms: EVERY_MS };
    client.order(converse(CONNECTIONS)).unwrap();
    assert!(wait_for(|| client.conversations().alive == CONNECTIONS), "{:?}", client.conversations());

    // A byte each 100 ms on each, and none of it is load.
    let before = client.conversations().exchanged;
    pause(1_000);
    let exchanged = client.conversations().exchanged - before;
    println!("{exchanged} bytes exchanged in a second");
    assert!((850..=1_100).contains(&exchanged));
    assert!(records.ends_of(CONVERSATION, 0).is_empty());

    let t0_ns = clock::now_ns();
    for server in &servers {
        server.order(Order::ResetConversations).unwrap();
    }
    pause(100);
    client.order(Order::Flush).unwrap();
    let ends = records.ends_of(CONVERSATION, t0_ns);
    let last_ms = ends.last().map_or(0.0, |(at_ns, _)| (at_ns - t0_ns) as f64 / 1e6);
    println!("{} conversations ended, the last after {last_ms:.1} ms", ends.len());
    assert_eq!(ends.len(), CONNECTIONS as usize);
    assert!(ends.iter().all(|(_, outcome)| *outcome == Outcome::Errno(104)), "{ends:?}");
    assert!(last_ms < 100.0);

    // They are made anew, and the load never noticed.
    assert!(wait_for(|| client.conversations().alive == CONNECTIONS));
    pause(50);
    client.order(Order::Flush).unwrap();
    let since = records.since(t0_ns);
    assert!(since.sent > 30 && since.failed == 0, "{since:?}");
    check_everywhere(&world, addresses[1], Outcome::Ok);

    // An end that was asked for is none that befell them.
    let ended = records.ends_of(CONVERSATION, 0).len();
    client.order(converse(0)).unwrap();
    assert!(wait_for(|| client.conversations().alive == 0));
    pause(500);
    client.order(Order::Flush).unwrap();
    assert_eq!(records.ends_of(CONVERSATION, 0).len(), ended);
}
