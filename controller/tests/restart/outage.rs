//! One outage from its beginning to its end: `emoji` fails over, dwells, and comes back in steps, while `calm` beside it
//! never moves. What the controller wrote stands in the server's audit.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lab::apiserver::{Request, Resource};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::agent::{Agent, World, now_ns};
use crate::bench::{self, Bench, Controller, weights_of};

pub(crate) const STEADY: [u64; 2] = [1, 0];
pub(crate) const FAILED_OVER: [u64; 2] = [0, 1];
const STEPS: [[u64; 2]; 2] = [[100, 900], [500, 500]];

const DWELL: Duration = Duration::from_millis(2_500);

/// The record's times are whole milliseconds, and two clocks are compared.
const CLOCKS: SignedDuration = SignedDuration::from_millis(20);

const SETTINGS: [&str; 7] = [
    "--dwell=2500ms",
    "--recovery-successes=5",
    "--recovery-span=200ms",
    "--ramp=100,500",
    "--ramp-step=700ms",
    "--group-spacing=0s",
    "--group-limit=100",
];

/// When somebody goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// 100 ms before the first failure.
    Before,
    /// As soon as a failure was reported.
    FirstFailure,
    /// As soon as the primary is suspect.
    Suspect,
    /// The decision stands, the write is on its way.
    Decided,
    /// As soon as the server has it.
    Written,
    /// Half of it is over, and the primary answers again.
    Dwell,
    /// In this step of the ramp.
    Ramp(usize),
    /// As soon as the primary has its weight back.
    Back,
}

/// See the file's header.
pub(crate) struct Outage {
    pub(crate) bench: Bench,
    name: String,
    world: World,
    controller: Option<Controller>,
    ingest: SocketAddr,
    agents: Vec<Agent>,
}

impl Outage {
    /// A healthy cluster, and a controller that knows it.
    pub(crate) async fn begin(name: &str) -> Self {
        let bench = Bench::new().await;
        for service in ["cart", "cart-west"] {
            bench.add_service(service, 80);
        }
        bench
            .server
            .create(json!({
                "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit",
                "metadata": {"name": "calm", "namespace": "demo",
                             "labels": {"failover.linkerd.io/controlled-by": "linkerd-failover"}},
                "spec": {"service": "cart", "backends": [
                    {"service": "cart", "weight": 1}, {"service": "cart-west", "weight": 0}]},
            }))
            .unwrap();
        let controller = Controller::start(&bench, &SETTINGS).await;
        let ingest = controller.ingest;
        let world = World::all_alive();
        let mut outage =
            Self { bench, name: name.to_owned(), world, controller: Some(controller), ingest, agents: Vec::new() };
        outage.restart_agents();
        outage.controller().until_ready().await;
        outage.controller().until(|state| is_healthy(state, "demo/emoji") && is_healthy(state, "demo/calm")).await;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        outage
    }

    fn controller(&mut self) -> &mut Controller {
        self.controller.as_mut().expect("it runs")
    }

    /// Lets things take their course until `moment`.
    pub(crate) async fn until(&mut self, moment: Moment) {
        if moment == Moment::Before {
            return;
        }
        if moment == Moment::Decided {
            self.bench.server.set_latency(Duration::from_millis(100));
        }
        self.world.kill("198.18.1.");
        let kind = match moment {
            Moment::FirstFailure => Some("reported"),
            Moment::Suspect => Some("suspect"),
            Moment::Decided => Some("decided"),
            _ => None,
        };
        if let Some(kind) = kind {
            self.controller().until(|state| has(state, kind)).await;
            return;
        }
        self.bench.until_weights("emoji", FAILED_OVER).await;
        if moment == Moment::Written {
            return;
        }
        self.world.revive("198.18.1.");
        match moment {
            Moment::Dwell => tokio::time::sleep(DWELL / 2).await,
            Moment::Ramp(step) => self.bench.until_weights("emoji", STEPS[step]).await,
            _ => self.bench.until_weights("emoji", STEADY).await,
        }
    }

    /// kill -9, and a new process on the same addresses.
    pub(crate) async fn kill_and_start(&mut self) {
        let mut controller = self.controller.take().expect("it runs");
        controller.signal(Signal::KILL);
        assert_eq!(controller.ended().await, None, "a signal ended it");
        drop(controller);
        self.bench.server.set_latency(Duration::ZERO);
        self.controller = Some(Controller::start_at(&self.bench, self.ingest, &SETTINGS).await);
    }

    /// Every agent ends, and others with new counters take their places.
    pub(crate) fn restart_agents(&mut self) {
        self.drop_agents();
        let start = |node| Agent::start(node, self.ingest, self.world.clone());
        self.agents = ["n1", "n2", "n3"].map(start).into();
    }

    pub(crate) fn drop_agents(&mut self) {
        self.agents.clear();
    }

    /// The weights that are right at `moment` are there within `limit`, which begins with the last start.
    #[expect(clippy::disallowed_methods, reason = "the test's own clock measures how long it takes")]
    pub(crate) async fn right_within(&mut self, limit: Duration, moment: Moment) {
        let started = Instant::now();
        self.bench.server.set_latency(Duration::ZERO);
        let right: &[[u64; 2]] = match moment {
            Moment::Before => {
                self.world.kill("198.18.1.");
                &[FAILED_OVER]
            }
            Moment::FirstFailure | Moment::Suspect | Moment::Decided | Moment::Written => &[FAILED_OVER],
            Moment::Dwell => &[FAILED_OVER, STEPS[0]],
            Moment::Ramp(_) => &[STEPS[0], STEPS[1], STEADY],
            Moment::Back => &[STEADY],
        };
        let is_right = || right.contains(&weights_of(&self.bench.split("emoji")));
        bench::until(is_right, || format!("{}: never right", self.name)).await;
        let took = started.elapsed();
        assert!(took <= limit, "{}: right only after {took:?}", self.name);
    }

    /// The outage ends, and everything comes back.
    pub(crate) async fn comes_back(&mut self, moment: Moment) {
        if !matches!(moment, Moment::Dwell | Moment::Ramp(_) | Moment::Back) {
            self.world.revive("198.18.1.");
        }
        self.bench.until_weights("emoji", STEADY).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    /// No wrong write among all that there were.
    pub(crate) async fn check_writes(mut self) {
        let writes = self.writes();
        for write in &writes {
            assert_eq!(write.name, "emoji", "{}: a healthy split was written", self.name);
            let weights = weights_of(write.left.as_ref().unwrap());
            assert_ne!(weights, [0, 0], "{}: all weights are zero", self.name);
        }
        let history: Vec<[u64; 2]> = writes.iter().map(|write| weights_of(write.left.as_ref().unwrap())).collect();
        let expected = [FAILED_OVER, STEPS[0], STEPS[1], STEADY];
        assert_eq!(history, expected, "{}: something was written twice, out of order, or left out", self.name);
        let early = not_before(&writes[0]).duration_since(when(&writes[1]));
        assert!(early <= CLOCKS, "{}: back {early} before the object allows it", self.name);
        let agents = std::mem::take(&mut self.agents);
        drop(agents);
        assert_eq!(self.controller.take().expect("it runs").stop().await, 0, "{}", self.name);
    }

    /// Everything that the controller wrote to splits, in order.
    fn writes(&self) -> Vec<Request> {
        let is_write = |one: &Request| one.resource == Some(Resource::TrafficSplits) && one.left.is_some();
        self.bench.server.requests().into_iter().filter(is_write).collect()
    }
}

/// When the server had it, on the wall clock.
fn when(write: &Request) -> Timestamp {
    Timestamp::now() - SignedDuration::from_nanos(i64::try_from(now_ns() - write.at_ns).unwrap())
}

/// Before then the object allows no way back.
fn not_before(write: &Request) -> Timestamp {
    let record = write.left.as_ref().unwrap()["metadata"]["annotations"]["splitsecond.dev/state"].as_str().unwrap();
    let record: Value = serde_json::from_str(record).unwrap();
    record["notBefore"].as_str().unwrap().parse().unwrap()
}

fn has(state: &Value, kind: &str) -> bool {
    let transitions = state["transitions"].as_array().unwrap();
    transitions.iter().any(|one| one["kind"] == kind && one["split"] == "demo/emoji")
}

fn is_healthy(state: &Value, split: &str) -> bool {
    let splits = state["splits"].as_array().unwrap();
    let found = splits.iter().find(|one| one["split"] == split);
    found.is_some_and(|split| split["backends"].as_array().unwrap().iter().all(|one| one["health"] == "healthy"))
}
