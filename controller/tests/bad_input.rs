//! Bad input against the controller's own binary: each is fed to it while a healthy split stands beside, which must still
//! fail over. In: an embedded API server, agents that speak the real protocol, and one mistake at a time. Out: what the
//! controller printed, published and counted, as the page `docs/bad-input.md`. The test fails when the committed page says
//! something else. To write the page anew after a change that is meant:
//!
//! ```text
//! cargo test -p controller --test bad_input -- --ignored
//! ```
//!
//! No root, no cluster. Deliberately not here: wrong settings, which end the program before it has started (`whole.rs`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions that its steps share")]

#[expect(dead_code, reason = "shared with the other tests of the whole binary")]
#[path = "whole/agent.rs"]
mod agent;
#[expect(dead_code, reason = "shared with the other tests of the whole binary")]
#[path = "whole/bench.rs"]
mod bench;

#[path = "bad_input/guards.rs"]
mod guards;
#[path = "bad_input/middle.rs"]
mod middle;
#[path = "bad_input/objects.rs"]
mod objects;
#[path = "bad_input/page.rs"]
mod page;
#[path = "bad_input/peer.rs"]
mod peer;
#[path = "bad_input/scene.rs"]
mod scene;
#[path = "bad_input/streams.rs"]
mod streams;

use std::panic::AssertUnwindSafe;

use futures::{FutureExt, StreamExt, stream};

use page::Entry;
use scene::Case;

/// Cases at the same time: each has a server and a controller of its own, and waits for most of its time.
const AT_ONCE: usize = 6;

fn cases() -> Vec<Case> {
    [objects::cases(), streams::cases(), middle::cases(), guards::cases()].into_iter().flatten().collect()
}

/// Plays every case, also after one failed, so that one run tells all.
async fn entries() -> Vec<Entry> {
    let played = cases().into_iter().map(|case| {
        let input = case.input;
        async move { AssertUnwindSafe(scene::play(case)).catch_unwind().await.map_err(|_| input) }
    });
    let played: Vec<_> = stream::iter(played).buffered(AT_ONCE).collect().await;
    let failed: Vec<_> = played.iter().filter_map(|entry| entry.as_ref().err()).collect();
    assert!(failed.is_empty(), "these failed, each as told above: {failed:#?}");
    played.into_iter().map(|entry| entry.expect("looked at above")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_input_is_told_as_the_page_says_and_stops_nobody_else() {
    page::compare(&entries().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes docs/bad-input.md instead of comparing it"]
async fn write_the_page() {
    page::write(&entries().await);
}
