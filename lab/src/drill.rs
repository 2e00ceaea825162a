//! The drill: real programs, real traffic, a real fault, and a clock. In: a command line. Out: a table for people, JSON
//! for programs, and an exit code: 0 when every verdict is pass, 1 when one is not, 2 for a wrong command line, 3 when
//! this machine cannot run it.
//!
//! What lives on from run to run is in [`cluster`]; each run has a Kubernetes namespace, a split, the programs in the
//! pods and a controller of its own ([`stage`]), so that no run inherits another's evidence, dwell or budget.

pub mod args;
pub mod background;
pub mod cluster;
pub mod halt;
pub mod inject;
pub mod look;
pub mod measure;
pub mod objects;
pub mod observation;
pub mod observe;
pub mod policy;
pub mod programs;
pub mod progress;
pub mod report;
pub mod run;
pub mod scenario;
pub mod shape;
pub mod stage;
pub mod stalls;
pub mod transition;
pub mod verdict;

use std::fs;
use std::path::Path;

use anyhow::{Context, Error, Result};

use self::args::{ControlPlane, DrillArgs, Follow, Plan, Profile};
use self::cluster::{Cluster, Premises};
use self::halt::{Cause, Halt};
use self::measure::{Run, measure};
use self::policy::Policy;
use self::programs::Programs;
use self::progress::Progress;
use self::report::{Report, ScenarioReport, run_line, table};
use self::run::Running;
use self::scenario::{Circumstances, Expect, Scenario};
use self::shape::PRIMARY;
use self::stage::{Billing, Stage};
use self::verdict::{Conditions, reasons};
use crate::world::clock::now_ns;
use crate::world::{World, lacks};

/// The whole command. Returns the exit code.
#[must_use]
pub fn main(args: &DrillArgs) -> u8 {
    let plan = match args.plan() {
        Ok(plan) => plan,
        Err(usage) => {
            Progress::to_stderr().line(&usage.to_string());
            return 2;
        }
    };
    let mut missing = lacks();
    let programs = Programs::find(plan.agent_program.as_deref(), plan.controller_program.as_deref());
    let programs = programs.map_err(|lacks| missing.extend(lacks));
    let (Ok(programs), true) = (programs, missing.is_empty()) else {
        Progress::to_stderr().line(&format!("This machine cannot run the drill:\n  {}", missing.join("\n  ")));
        return 3;
    };
    let halt = Halt::default();
    rehearse(&plan, &programs, &halt).unwrap_or_else(|error| end_early(&error, 3))
}

/// Removes what killed drills left, and drills.
fn rehearse(plan: &Plan, programs: &Programs, halt: &Halt) -> Result<u8> {
    let begun_ns = now_ns();
    let progress = Progress::to_stderr();
    for prefix in World::sweep_stale().context("cannot remove what an earlier drill left")? {
        progress.line(&format!("Removed what the killed drill {prefix} had left."));
    }
    let run_dir = std::env::temp_dir().join(format!("splitsecond-drill-{}", std::process::id()));
    fs::create_dir_all(&run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
    let begun = Premises::take(programs, &run_dir, halt, progress).and_then(|premises| {
        progress.line(&format!("Starting a cluster of {}; logs are in {}", plan.ground().name(), run_dir.display()));
        let cluster = Cluster::start_on(&premises, plan.ground(), plan.agents)?;
        Ok(Drill { plan, cluster, premises, runs_begun: 0, begun_ns, kept: None })
    });
    match begun {
        Ok(drill) => Ok(drill.play()),
        Err(error) => {
            remove_logs(&run_dir);
            Err(error)
        }
    }
}

/// Says why; somebody's wish is not the machine's fault.
fn end_early(error: &Error, code: u8) -> u8 {
    let progress = Progress::to_stderr();
    match error.downcast_ref::<Cause>() {
        Some(Cause::Asked(signal)) => {
            progress.line(&format!("{signal}: the drill ends before its time and removes what it made."));
            1
        }
        Some(Cause::Broken(_)) | None => {
            progress.line(&format!("The drill cannot go on: {error:#}"));
            code
        }
    }
}

struct Drill<'a> {
    plan: &'a Plan,
    cluster: Cluster,
    premises: Premises<'a>,
    runs_begun: u32,
    begun_ns: u64,
    /// The last stage, where the cluster is kept.
    kept: Option<Stage>,
}

/// A scenario's runs and what speaks against them.
#[derive(Default)]
struct Played {
    runs: Vec<Run>,
    reasons: Vec<String>,
}

impl Drill<'_> {
    /// Plays every scenario, reports, and removes everything.
    fn play(mut self) -> u8 {
        let plan = self.plan;
        let mut scenarios = Vec::new();
        let mut end = Ok(());
        for (position, scenario) in plan.scenarios.iter().enumerate() {
            let last = position + 1 == plan.scenarios.len();
            let mut played = Played::default();
            end = self.play_scenario(scenario, last, &mut played);
            if let Err(error) = &end {
                played.reasons.push(format!("not all runs took place: {error:#}"));
            }
            scenarios.push(self.scenario_report(scenario, played));
            if end.is_err() {
                break;
            }
        }
        let report = self.report(scenarios);
        self.premises.progress.print(&table(&report));
        let mut code = report.exit_code();
        if let Err(error) = self.write_json(&report).and(end) {
            code = end_early(&error, 1);
        } else if plan.keep
            && let Err(error) = self.keep()
        {
            code = end_early(&error, 1);
        }
        self.end(code)
    }

    /// Every run of one scenario. A run that could not be carried through counts against it.
    fn play_scenario(&mut self, scenario: &Scenario, last: bool, played: &mut Played) -> Result<()> {
        self.premises.progress.line(&format!("{}: {}", scenario.name, scenario.line));
        if let Some(note) = scenario.note() {
            self.premises.progress.line(&format!("  {note}"));
        }
        for number in 1..=self.plan.runs {
            let keep = last && self.plan.keep && number == self.plan.runs;
            let conditions_policy = Policy::of(scenario.expect);
            match self.play_run(scenario, &conditions_policy, keep) {
                Ok(run) => {
                    let conditions = Conditions { scenario, rate: self.plan.rate, policy: &conditions_policy };
                    let against = reasons(&run, &conditions);
                    self.premises.progress.line(&format!(
                        "  {number:>3} of {}: {}",
                        self.plan.runs,
                        run_line(&run, &against)
                    ));
                    played.reasons.extend(against.into_iter().map(|reason| format!("run {number}: {reason}")));
                    played.runs.push(run);
                }
                Err(error) => {
                    self.premises.halt.check()?;
                    self.premises.progress.line(&format!("  {number:>3} of {}: FAIL: {error:#}", self.plan.runs));
                    played.reasons.push(format!("run {number}: {error:#}"));
                    // An agent that is gone stays gone: every later run would only wait for it.
                    self.cluster.agents_live()?;
                }
            }
        }
        Ok(())
    }

    fn play_run(&mut self, scenario: &Scenario, policy: &Policy, keep: bool) -> Result<Run> {
        self.runs_begun += 1;
        let Premises { programs, halt, progress, .. } = self.premises;
        let cluster = &self.cluster;
        let billing = Billing { policy, players: scenario.players, number: self.runs_begun };
        let mut stage = Stage::set(cluster, self.plan, programs, billing, halt, progress)?;
        let outcome = stage.warm_up(cluster, self.plan, halt, progress).and_then(|()| {
            progress.now("breaking it");
            let running = Running { cluster, stage: &mut stage, plan: self.plan, scenario, policy, halt };
            running.run()
        });
        let complete = !stage.history().has_gap();
        if keep && outcome.is_ok() {
            self.kept = Some(stage);
        } else {
            let struck = stage.strike(cluster);
            if outcome.is_ok() {
                struck?;
            }
        }
        let observation = outcome?;
        // Many splits at once have more transitions than the controller keeps; their times are the watch's.
        anyhow::ensure!(
            complete || observation.splits.len() > 1,
            "transitions of the controller went by unseen: its times cannot be trusted"
        );
        Ok(measure(&observation))
    }

    fn scenario_report(&self, scenario: &Scenario, played: Played) -> ScenarioReport {
        let Plan { shape, nodes, rate, agents, .. } = *self.plan;
        let limit_ms = scenario.limit_ms(Circumstances { shape, nodes, rate, agents });
        let mut report = ScenarioReport::new(scenario, self.plan.runs, played.runs, played.reasons, limit_ms);
        let policy = Policy::of(scenario.expect);
        report.policy = (policy != Policy::of(Expect::Failover)).then_some(policy);
        report
    }

    fn report(&self, scenarios: Vec<ScenarioReport>) -> Report {
        Report {
            schema: 1,
            control_plane: ControlPlane::Embedded,
            profile: Profile::Default,
            shape: self.plan.shape,
            nodes: self.plan.nodes,
            follow: Follow::Mesh,
            rate: self.plan.rate,
            agents: self.plan.agents,
            policy: Policy::of(Expect::Failover),
            scenarios,
        }
    }

    fn write_json(&self, report: &Report) -> Result<()> {
        let Some(path) = &self.plan.json else { return Ok(()) };
        let text = serde_json::to_string_pretty(report).context("the report cannot be written as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// Leaves everything running until somebody wants the end.
    fn keep(&self) -> Result<()> {
        let Some(stage) = &self.kept else { return Ok(()) };
        let kubeconfig = self.cluster.outside().kubeconfig.display().to_string();
        let namespace = &stage.namespace;
        self.premises.progress.print(&format!(
            "The cluster of the last run goes on, its fault mended. In another terminal:\n\n  \
             export KUBECONFIG={kubeconfig}\n  \
             kubectl get ts,svc,endpointslices -A\n  \
             kubectl -n {namespace} get ts -w\n  \
             kubectl get events -A\n  \
             kubectl -n {namespace} patch ts {PRIMARY} --type merge -p \
             '{{\"metadata\":{{\"annotations\":{{\"example\":\"yes\"}}}}}}'\n\n\
             Ctrl-C ends it and removes everything."
        ));
        Ok(self.premises.halt.wait_for_signal()?)
    }

    /// Removes everything; logs stay where something went wrong.
    fn end(self, code: u8) -> u8 {
        let Self { cluster, kept, premises, begun_ns, .. } = self;
        let Premises { run_dir, halt, progress, .. } = premises;
        drop(kept);
        let asked = matches!(halt.check(), Err(Cause::Asked(_)));
        let removed = cluster.remove();
        let code = if removed.is_err() { code.max(1) } else { code };
        if let Err(error) = &removed {
            progress.line(&format!("Something could not be removed: {error:#}"));
        }
        if code == 0 || asked {
            remove_logs(run_dir);
        } else {
            progress.line(&format!("Logs: {}", run_dir.display()));
        }
        progress.line(&format!("Done after {} s.", now_ns().saturating_sub(begun_ns) / 1_000_000_000));
        code
    }
}

fn remove_logs(run_dir: &Path) {
    if let Err(error) = fs::remove_dir_all(run_dir) {
        Progress::to_stderr().line(&format!("Cannot remove {}: {error}", run_dir.display()));
    }
}
