//! How much of the truth the agents count. In: the drill's standard cluster with the real agents and controller. Out:
//! a table of truth and count by outcome, the figures, and whether the difference is what the agents admit to have lost.
//!
//! The truth is told by programs that know nothing of the agents: the clients by their errno, the servers by their
//! accepts. The controller only observes, so that the weights stay and every connection goes to the primary. Whatever
//! else dials these destinations (the agents' own checks do, all the time) has no truth here: counted, it would show
//! as more counted than happened.

pub mod compare;
pub mod counted;
pub mod load;
pub mod mix;
pub mod truth;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::compare::{Comparison, LIMIT};
use self::counted::Counted;
use self::load::Load;
use self::mix::Mix;
use self::truth::Truth;
use crate::bench::BenchArgs;
use crate::bench::figures::{Figure, Figures};
use crate::drill::args::{Plan, Shape};
use crate::drill::cluster::Cluster;
use crate::drill::halt::Halt;
use crate::drill::look;
use crate::drill::policy::Policy;
use crate::drill::programs::{CONTROLLER_ADMIN_PORT, Programs};
use crate::drill::progress::Progress;
use crate::drill::scenario::{Expect, Players};
use crate::drill::shape::{AGENT_ADMIN_PORT, PRIMARY};
use crate::drill::stage::{Billing, Stage};
use crate::load::wire::Counts;
use crate::world::World;
use crate::world::clock::now_ns;
use crate::world::netns::Netns;

/// For so long nothing may change before it counts as settled: the agents sweep all their counters in 2 s and publish
/// every 0.1 s, and no retransmission pauses longer at the end of these faults.
const SETTLED_AFTER_NS: u64 = 3_500_000_000;

/// The same while agents still tell of attempts without an end: then those are lost ends.
const LOST_AFTER_NS: u64 = 10_000_000_000;

/// How long settling may take: the last orphan's retransmissions after a blackhole, and some.
const SETTLE_LIMIT_NS: u64 = 25_000_000_000;

/// Between two looks at what settles.
const LOOK_GAP: Duration = Duration::from_millis(250);

/// The whole bench. False when the count is not the truth.
///
/// # Errors
///
/// The machine cannot run it, or the truth cannot be told.
pub fn run(args: &BenchArgs, mut programs: Programs, halt: &Halt, progress: Progress) -> Result<bool> {
    programs.controller_flags = vec!["--mode".to_owned(), "observe".to_owned()];
    World::sweep_stale().context("cannot remove what an earlier run left")?;
    let run_dir = std::env::temp_dir().join(format!("splitsecond-bench-{}", std::process::id()));
    fs::create_dir_all(&run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
    progress.line(&format!("Starting a cluster of shape standard; logs are in {}", run_dir.display()));
    let bench = Bench { args, programs: &programs, plan: plan(), halt, progress };
    let measured = bench.measure(&run_dir);
    if measured.as_ref().is_ok_and(|ok| *ok) {
        fs::remove_dir_all(&run_dir).with_context(|| format!("cannot remove {}", run_dir.display()))?;
    } else {
        progress.line(&format!("Logs: {}", run_dir.display()));
    }
    measured
}

/// The drill's cluster, without a load of its own.
fn plan() -> Plan {
    Plan {
        scenarios: Vec::new(),
        runs: 1,
        rate: 0,
        nodes: None,
        shape: Shape::Standard,
        agents: true,
        keep: false,
        json: None,
        agent_program: None,
        controller_program: None,
        panic: false,
    }
}

struct Bench<'a> {
    args: &'a BenchArgs,
    programs: &'a Programs,
    plan: Plan,
    halt: &'a Halt,
    progress: Progress,
}

/// What a load brought.
struct Measured {
    comparison: Comparison,
    rate: u32,
    settled: bool,
}

impl Bench<'_> {
    /// Builds, measures, removes.
    fn measure(&self, run_dir: &Path) -> Result<bool> {
        let cluster = Cluster::start(&self.plan, self.programs, run_dir, self.halt, self.progress)?;
        let measured = self.on_cluster(&cluster);
        let removed = cluster.remove();
        let measured = measured?;
        removed?;
        self.tell(&measured)
    }

    fn on_cluster(&self, cluster: &Cluster) -> Result<Measured> {
        let policy = Policy::of(Expect::None);
        let billing = Billing { policy: &policy, players: Players::AllOfShape, number: 1 };
        let mut stage = Stage::set(cluster, &self.plan, self.programs, billing, self.halt, self.progress)?;
        // The load has clients of its own.
        stage.clients.clear();
        let measured =
            stage.warm_up(cluster, &self.plan, self.halt, self.progress).and_then(|()| self.on_stage(cluster, &stage));
        let struck = stage.strike(cluster);
        let measured = measured?;
        struck?;
        Ok(measured)
    }

    fn on_stage(&self, cluster: &Cluster, stage: &Stage) -> Result<Measured> {
        let mut mix = Mix::arm(cluster, stage)?;
        let mut load = Load::start(cluster, &stage.namespace, self.args.connections, self.halt)?;
        let rate = load.find_rate(self.args.rate)?;
        self.progress.line(&format!("The clients keep up with {rate} connections a second."));
        mix.play(&load)?;
        load.pause()?;
        self.progress.line(&format!("{} connections have ended; waiting for the counts.", load.records().ended()));
        let (counted, counts, settled) = self.settle(cluster, stage)?;
        stage.controller_lives()?;
        cluster.agents_live()?;
        self.save_metrics(cluster)?;
        let truth = Truth::of(&load.records().totals(), &counts, PRIMARY)?;
        let comparison = Comparison::new(&truth, &counted);
        if !settled || !comparison.reasons().is_empty() {
            save_states(cluster)?;
        }
        Ok(Measured { comparison, rate, settled })
    }

    /// Waits until nothing changes any more. False when that does not come about.
    fn settle(&self, cluster: &Cluster, stage: &Stage) -> Result<(Counted, Vec<Counts>, bool)> {
        let began_ns = now_ns();
        let mut last = look_at(cluster, stage)?;
        let mut changed_ns = now_ns();
        loop {
            let now = now_ns();
            let rest_ns = if last.0.outstanding() == 0 { SETTLED_AFTER_NS } else { LOST_AFTER_NS };
            let settled = now.saturating_sub(changed_ns) > rest_ns;
            if settled || now.saturating_sub(began_ns) > SETTLE_LIMIT_NS {
                return Ok((last.0, last.1, settled));
            }
            self.halt.wait(LOOK_GAP)?;
            let next = look_at(cluster, stage)?;
            if next != last {
                changed_ns = now_ns();
                last = next;
            }
        }
    }

    /// As an operator's scrape sees them.
    fn save_metrics(&self, cluster: &Cluster) -> Result<()> {
        let Some(folder) = &self.args.metrics_to else { return Ok(()) };
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let node = cluster.world().nodes().find(|node| node.name().starts_with("client")).context("no client node")?;
        let agent = metrics(cluster, node.netns(), SocketAddr::new(node.address(), AGENT_ADMIN_PORT))?;
        let control = cluster.world().control();
        let controller = metrics(cluster, control.netns(), SocketAddr::new(control.address(), CONTROLLER_ADMIN_PORT))?;
        for (name, text) in [("agent.metrics", agent), ("controller.metrics", controller)] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Prints and writes. Whether the count is the truth.
    fn tell(&self, measured: &Measured) -> Result<bool> {
        let comparison = &measured.comparison;
        self.progress.print(&comparison.table());
        let mut reasons = comparison.reasons();
        if !measured.settled {
            reasons.push("the counts did not come to rest".to_owned());
        }
        for reason in &reasons {
            self.progress.print(&format!("FAIL: {reason}"));
        }
        let figures = figures(comparison, measured.rate, reasons.is_empty());
        if let Some(path) = &self.args.json {
            figures.write(path)?;
        }
        Ok(figures.ok())
    }
}

fn figures(comparison: &Comparison, rate: u32, ok: bool) -> Figures {
    #[expect(clippy::cast_precision_loss, reason = "at most a million")]
    let count = |name, value: i64| Figure::plain(name, value as f64, "count");
    Figures::new(vec![
        Figure::required("probe.uncounted_ratio", comparison.uncounted_ratio(), "ratio", LIMIT, ok),
        count("loss.attempts", comparison.attempts.truth),
        count("loss.uncounted", comparison.attempts.difference()),
        count("loss.admitted", comparison.admitted()),
        count("loss.recursion_misses", comparison.counted.recursion_misses),
        count("loss.outstanding", comparison.left),
        Figure::plain("loss.rate", f64::from(rate), "1/s"),
    ])
}

/// Everything that has to come to rest: all agents' figures, and the servers' counts.
fn look_at(cluster: &Cluster, stage: &Stage) -> Result<(Counted, Vec<Counts>)> {
    let mut sum = Counted::default();
    for node in cluster.world().nodes() {
        let text = metrics(cluster, node.netns(), SocketAddr::new(node.address(), AGENT_ADMIN_PORT))?;
        sum += Counted::parse(&text).with_context(|| format!("the metrics of {} are incomplete", node.name()))?;
    }
    Ok((sum, stage.primary.iter().map(|server| server.counts()).collect()))
}

/// What each agent knows of each destination goes beside the logs, where somebody can look for what was lost.
fn save_states(cluster: &Cluster) -> Result<()> {
    for node in cluster.world().nodes() {
        let address = SocketAddr::new(node.address(), AGENT_ADMIN_PORT);
        let state = look::state(cluster.background(), node.netns(), address)?;
        let path = cluster.world().run_dir().join(format!("agent-{}.state.json", node.name()));
        fs::write(&path, format!("{state:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
        let path = path.with_extension("").with_extension("metrics");
        let text = metrics(cluster, node.netns(), address)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn metrics(cluster: &Cluster, netns: &Netns, address: SocketAddr) -> Result<String> {
    let (status, body) = look::get(cluster.background(), netns, address, "/metrics")?;
    ensure!(status == 200, "{address} answers /metrics with {status}");
    String::from_utf8(body.into()).with_context(|| format!("{address} answers /metrics with something else than text"))
}
