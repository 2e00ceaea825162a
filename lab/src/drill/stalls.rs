//! Nodes that stall now and then. In: nodes. Out: a fault that freezes one after the other for a moment, agents and all,
//! until it is healed. At most one node stands still at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::world::Node;
use crate::world::clock::{now_ns, pause};
use crate::world::fault::{Fault, Span, Stalled};

/// From one stall's end to the next one's begin.
const GAP: Duration = Duration::from_millis(450);

/// How long nodes stand still, in turn: from a garbage collection's pause to a hypervisor's, all well above what a hold
/// bridges by itself and below what makes an agent stale.
const LENGTHS_MS: [u64; 4] = [60, 100, 150, 200];

/// See the module's header.
#[derive(Debug)]
pub struct Stalls {
    nodes: Vec<Node>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    stop: Arc<AtomicBool>,
    begun_ns: u64,
    thread: JoinHandle<Result<u32>>,
}

impl Stalls {
    /// Of these nodes, in this order, over and over.
    #[must_use]
    pub fn new(nodes: &[&Node]) -> Self {
        Self { nodes: nodes.iter().map(|node| (*node).clone()).collect(), running: None }
    }

    fn end(&mut self) -> Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        running.stop.store(true, Ordering::Relaxed);
        let stalls = running.thread.join().map_err(|_| anyhow!("the stalling thread panicked"))??;
        let lasted = Duration::from_nanos(now_ns().saturating_sub(running.begun_ns));
        ensure!(stalls > 0 || lasted < 2 * GAP, "no node stalled in {lasted:?}");
        Ok(())
    }
}

impl Fault for Stalls {
    fn inject(&mut self) -> Result<Span> {
        self.end()?;
        let first_ns = now_ns();
        let stop = Arc::new(AtomicBool::new(false));
        let (nodes, asked) = (self.nodes.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("stalls".into())
            .spawn(move || stall_in_turn(&nodes, &asked))
            .context("cannot start the stalling thread")?;
        self.running = Some(Running { stop, begun_ns: first_ns, thread });
        Ok(Span { first_ns, last_ns: now_ns() })
    }

    fn heal(&mut self) -> Result<Span> {
        let first_ns = now_ns();
        self.end()?;
        Ok(Span { first_ns, last_ns: now_ns() })
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(error = format!("{error:#}"), "Nodes could not be stalled");
        }
    }
}

/// Returns how often a node stood still.
fn stall_in_turn(nodes: &[Node], stop: &AtomicBool) -> Result<u32> {
    let mut stalls = 0;
    for (node, length_ms) in nodes.iter().cycle().zip(LENGTHS_MS.into_iter().cycle()) {
        pause(GAP);
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut stall = Stalled::new(&[node]);
        let frozen = stall.inject();
        pause(Duration::from_millis(length_ms));
        stall.heal()?;
        frozen?;
        stalls += 1;
    }
    Ok(stalls)
}
