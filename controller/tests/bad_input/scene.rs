//! One case: a cluster with a healthy split, a controller, three agents, and a mistake that is made on it.
//!
//! `emoji` (web, web-west) is the healthy split. The Services cart and cart-west are for the mistakes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use lab::apiserver::Resource;
use serde_json::{Map, Value, json};

use crate::agent::{Agent, World};
use crate::bench::{self, Bench, Controller, weights_of};
use crate::page::Entry;

/// How long nothing more may be logged before a case is taken as told: a finding stands for a second first.
const SETTLE: Duration = Duration::from_millis(1_700);

/// What a case does.
pub(crate) type Step = for<'a> fn(&'a mut Scene) -> BoxFuture<'a, ()>;

/// What has to be true at the end, beside that the case was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// The healthy split fails over while the mistake is there.
    Moves,
    /// It must not: the case is about what holds it.
    Stays,
}

/// One mistake.
pub(crate) struct Case {
    pub(crate) section: &'static str,
    pub(crate) input: &'static str,
    pub(crate) goes_on: &'static str,
    /// Before the controller starts.
    pub(crate) before: Step,
    pub(crate) feed: Step,
    pub(crate) mend: Option<Step>,
    /// Lines of the log, at warn and above, that the mistake makes.
    pub(crate) lines: usize,
    /// Parts of lines below warn that belong to it, one line each.
    pub(crate) also: &'static [&'static str],
    pub(crate) events: usize,
    pub(crate) metric: &'static str,
    pub(crate) control: Control,
    pub(crate) settings: &'static [&'static str],
    pub(crate) nodes: &'static [&'static str],
}

/// A case that prints one line; everything else as most have it.
pub(crate) fn case(section: &'static str, input: &'static str, feed: Step, goes_on: &'static str) -> Case {
    Case {
        section,
        input,
        goes_on,
        before: |_| Box::pin(async {}),
        feed,
        mend: None,
        lines: 1,
        also: &[],
        events: 0,
        metric: "",
        control: Control::Moves,
        settings: &[],
        nodes: &["n1", "n2", "n3"],
    }
}

/// See the file's header.
pub(crate) struct Scene {
    pub(crate) bench: Bench,
    pub(crate) world: World,
    controller: Option<Controller>,
    agents: Vec<Agent>,
    /// What a case keeps until its end.
    pub(crate) kept: Vec<Box<dyn std::any::Any + Send + Sync>>,
}

impl Scene {
    pub(crate) fn controller(&mut self) -> &mut Controller {
        self.controller.as_mut().expect("it was started")
    }

    pub(crate) fn ingest(&self) -> SocketAddr {
        self.controller.as_ref().expect("it was started").ingest
    }

    /// A split `bad` over cart and cart-west, with changes.
    pub(crate) fn mk_bad(&self, change: impl FnOnce(&mut Value)) -> Value {
        let mut split = json!({
            "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit",
            "metadata": {"name": "bad", "namespace": "demo", "annotations": {},
                         "labels": {"failover.linkerd.io/controlled-by": "linkerd-failover"}},
            "spec": {"service": "cart", "backends": [
                {"service": "cart", "weight": 1}, {"service": "cart-west", "weight": 0}]},
        });
        change(&mut split);
        split
    }

    pub(crate) fn plant_bad(&self, change: impl FnOnce(&mut Value)) {
        self.bench.server.plant(self.mk_bad(change)).unwrap();
    }

    pub(crate) fn change_bad(&self, change: impl FnMut(&mut Value)) {
        self.bench.server.update_with(Resource::TrafficSplits, "demo", "bad", change).unwrap();
    }

    /// `bad` fails over.
    pub(crate) async fn fail_over_bad(&mut self) {
        self.plant_bad(|_| {});
        self.until_healthy(2).await;
        self.world.kill("198.18.3.");
        self.bench.until_weights("bad", [0, 1]).await;
        self.controller().until(|state| split_of(state, "demo/bad")["state"] == "failed").await;
    }

    /// As many splits as there should be, each with backends that are proved.
    async fn until_healthy(&mut self, splits: usize) {
        let healthy = |split: &Value| {
            let backends = split["backends"].as_array().unwrap();
            !backends.is_empty() && backends.iter().all(|backend| backend["health"] == "healthy")
        };
        let all = |state: &Value| {
            let listed = state["splits"].as_array().unwrap();
            listed.len() == splits && listed.iter().all(healthy)
        };
        self.controller().until(all).await;
        // Nobody said how many agents there are, so that their totals are waited for for a second.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
}

pub(crate) fn split_of(state: &Value, name: &str) -> Value {
    let splits = state["splits"].as_array().unwrap();
    splits.iter().find(|split| split["split"] == name).cloned().unwrap_or_default()
}

/// Plays one case to its end.
pub(crate) async fn play(case: Case) -> Entry {
    let bench = Bench::new().await;
    for service in ["cart", "cart-west"] {
        bench.add_service(service, 80);
    }
    let world = World::all_alive();
    let mut scene = Scene { bench, world, controller: None, agents: Vec::new(), kept: Vec::new() };
    (case.before)(&mut scene).await;
    let mut settings = vec!["--group-spacing=0s", "--group-limit=100", "--dwell=60s"];
    settings.extend(case.settings);
    scene.controller = Some(Controller::start(&scene.bench, &settings).await);
    scene.agents = case.nodes.iter().map(|node| Agent::start(node, scene.ingest(), scene.world.clone())).collect();
    if case.nodes.len() > 1 && case.section != "A cluster that is not ready" {
        scene.controller().until_ready().await;
        scene.until_healthy(1).await;
    }
    let (seen, known) = (scene.controller().logged(), ids(&scene));
    (case.feed)(&mut scene).await;
    let (log, events) = told(&mut scene, &case, seen, &known).await;
    check_metric(&mut scene, &case).await;
    stays_or_moves(&mut scene, &case).await;
    let mended = mend(&mut scene, &case).await;
    drop(scene.agents);
    assert_eq!(scene.controller.take().expect("it runs").stop().await, 0, "{}", case.input);
    let Case { section, input, goes_on, metric, .. } = case;
    Entry { section, input, log, events, metric, mended, goes_on }
}

fn ids(scene: &Scene) -> BTreeSet<String> {
    scene.bench.events().iter().map(|event| event["metadata"]["uid"].to_string()).collect()
}

/// Waits until the mistake is told as often as it should be, and makes sure that it is told no more often.
async fn told(scene: &mut Scene, case: &Case, seen: usize, known: &BTreeSet<String>) -> (Vec<String>, Vec<String>) {
    let wanted = case.lines + case.also.len();
    let lines = |scene: &mut Scene| lines_of(&scene.controller().lines_after(seen), case.also);
    let enough = async |scene: &mut Scene| {
        for _ in 0..1_000 {
            if lines(scene).len() >= wanted && events_of(scene, known).len() >= case.events {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    enough(scene).await;
    tokio::time::sleep(SETTLE).await;
    let (log, events) = (lines(scene), events_of(scene, known));
    assert_eq!(log.len(), wanted, "{}: {log:#?} of {:#?}", case.input, scene.controller().lines_after(seen));
    assert_eq!(events.len(), case.events, "{}: {events:#?}", case.input);
    (log, events)
}

/// What an operator would see of these lines: warnings, errors, and those that belong to the case.
fn lines_of(lines: &[Value], also: &[&str]) -> Vec<String> {
    let is_shown = |line: &String| {
        let is_loud = line.starts_with("WARN") || line.starts_with("ERROR");
        is_loud || also.iter().any(|part| line.contains(part))
    };
    let mut told: Vec<String> = lines.iter().map(printed).filter(is_shown).collect();
    // What is told within the same millisecond may come in either order.
    told.sort();
    told
}

/// A line as `--log-format plain` has it, without time and module.
fn printed(line: &Value) -> String {
    let fields = line.as_object().unwrap();
    let known = ["timestamp", "level", "message", "target", "rows", "hushed", "elapsed", "write"];
    let shown = fields.iter().filter(|(field, _)| !known.contains(&field.as_str()));
    let shown: Vec<String> = shown.map(|(field, value)| format!("{field}={}", masked(field, value))).collect();
    let (level, message) = (text(fields, "level"), text(fields, "message"));
    format!("{level} {message} {}", shown.join(" ")).trim_end().to_owned()
}

fn text<'a>(fields: &'a Map<String, Value>, field: &str) -> &'a str {
    fields.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Ports and clocks differ from run to run.
fn masked(field: &str, value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    if field == "peer" {
        return text.rsplit_once(':').map_or(text.clone(), |(address, _)| format!("{address}:*"));
    }
    let long = |word: &str| word.len() > 12 && word.bytes().all(|byte| byte.is_ascii_digit());
    let words: Vec<&str> = text.split(' ').map(|word| if long(word) && word.len() < 18 { "*" } else { word }).collect();
    words.join(" ")
}

/// Events that were not there before, except those about failovers that are as they should be.
fn events_of(scene: &Scene, known: &BTreeSet<String>) -> Vec<String> {
    let is_new = |event: &&Value| {
        !known.contains(&event["metadata"]["uid"].to_string()) && event["reason"].as_str() != Some("Failover")
    };
    let events = scene.bench.events();
    let mut told: Vec<String> = events
        .iter()
        .filter(is_new)
        .map(|event| format!("{}: {}", event["reason"].as_str().unwrap(), event["message"].as_str().unwrap()))
        .collect();
    told.sort();
    told
}

/// The family is there, and counts at least one.
async fn check_metric(scene: &mut Scene, case: &Case) {
    if case.metric.is_empty() {
        return;
    }
    for _ in 0..200 {
        let metrics = scene.controller().get("/metrics").await.1;
        let line = metrics.lines().find(|line| line.starts_with(case.metric));
        let count = line.and_then(|line| line.rsplit_once(' ')).and_then(|(_, count)| count.parse::<f64>().ok());
        if count.is_some_and(|count| count >= 1.0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}: {} is not counted in {}", case.input, case.metric, scene.controller().get("/metrics").await.1);
}

/// The healthy split fails over beside the mistake, unless the case is what holds it.
async fn stays_or_moves(scene: &mut Scene, case: &Case) {
    match case.control {
        Control::Moves => {
            let weights = weights_of(&scene.bench.split("emoji"));
            assert_eq!(weights, [1, 0], "{}: a healthy split was written", case.input);
            scene.world.kill("198.18.1.");
            let moved = || weights_of(&scene.bench.split("emoji")) == [0, 1];
            bench::until(moved, || format!("{}: the healthy split beside it did not fail over", case.input)).await;
        }
        Control::Stays => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let weights = weights_of(&scene.bench.split("emoji"));
            assert_eq!(weights, [1, 0], "{}: it should be held", case.input);
        }
    }
}

/// Mends the mistake, which is told once.
async fn mend(scene: &mut Scene, case: &Case) -> Vec<String> {
    let Some(mend) = case.mend else { return Vec::new() };
    let seen = scene.controller().logged();
    mend(scene).await;
    let over = |line: &Value| {
        let message = line["message"].as_str().unwrap_or_default();
        message.ends_with("mended") || message.ends_with("again")
    };
    for _ in 0..1_000 {
        if scene.controller().lines_after(seen).iter().any(over) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let lines = scene.controller().lines_after(seen);
    let mut told: Vec<String> = lines.iter().filter(|line| over(line)).map(printed).collect();
    assert_eq!(told.len(), case.lines, "{}: {told:#?} of {lines:#?}", case.input);
    told.sort();
    told
}
