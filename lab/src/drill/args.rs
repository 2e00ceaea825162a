//! The drill's command line. In: what clap parsed. Out: a [`Plan`], or every fault of the command line at once. Not
//! here: anything about the machine; whether it can run a drill is found out later. Pure.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::drill::scenario::{self, FaultKind, Scenario};
use crate::drill::shape::Ground;
use crate::load::wire::DEFAULT_BACKLOG;

/// The most runs of one scenario that one invocation takes: ten times what a claim needs.
pub const RUNS_LIMIT: u32 = 1_000;

/// The most nodes of east: a Service's mathematics do not change beyond it, and each node has an agent.
pub const NODES_LIMIT: u32 = 30;

/// The highest rate: beyond it two cores measure the load's own queueing.
pub const RATE_LIMIT: u32 = 10_000;

/// `splitsecond-lab drill`.
#[derive(Args, Clone, Debug)]
#[command(after_help = scenario::list())]
pub struct DrillArgs {
    /// What to drill; without a name a tour of the scenarios that people ask for first.
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// Runs of each scenario, 1 to 1000; a claim needs 100.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub runs: u32,
    /// Connections per second of all clients together, open loop, 0 to 10000; 0 leaves only the agents' own checks.
    #[arg(long, default_value_t = 1_000, value_name = "CONNS_PER_S")]
    pub rate: u32,
    /// How many clients and endpoints there are.
    #[arg(long, value_enum, default_value_t = Shape::Standard)]
    pub shape: Shape,
    /// All pods of east on so many nodes, each both client and backend node.
    #[arg(long, value_name = "N")]
    pub nodes: Option<u32>,
    /// Whether the nodes have agents; without them only what the API server tells can move a split.
    #[arg(long, value_enum, default_value_t = Agents::On)]
    pub agents: Agents,
    /// Who follows the weights.
    #[arg(long, value_enum, default_value_t = Follow::Mesh)]
    pub follow: Follow,
    /// Which API server.
    #[arg(long, value_enum, default_value_t = ControlPlane::Embedded)]
    pub control_plane: ControlPlane,
    /// With `--control-plane kube`: etcd writes to the disk instead of a tmpfs.
    #[arg(long)]
    pub etcd_disk: bool,
    /// The controller's profile.
    #[arg(long, value_enum, default_value_t = Profile::Default)]
    pub profile: Profile,
    /// Where the figures go, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Leaves the last run's cluster running until Ctrl-C and prints a kubeconfig.
    #[arg(long)]
    pub keep: bool,
    /// The agent to drill; by default `splitsecond-agent` beside this program.
    #[arg(long, value_name = "FILE")]
    pub agent_program: Option<PathBuf>,
    /// The controller to drill; by default `splitsecond-controller` beside this program.
    #[arg(long, value_name = "FILE")]
    pub controller_program: Option<PathBuf>,
    /// Panics in the middle of the first run: shows that nothing stays behind even then.
    #[arg(long, hide = true)]
    pub panic: bool,
}

/// How many clients and endpoints there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Three client nodes with two clients each, three backend nodes with two endpoints each, a gateway.
    Standard,
    /// The same nodes, one client and one endpoint.
    Workshop,
}

impl Shape {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Workshop => "workshop",
        }
    }
}

/// Whether the nodes have agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Agents {
    /// One on every node.
    On,
    /// None at all.
    Off,
}

/// Who follows the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Follow {
    /// The clients themselves, as a mesh's proxies do.
    Mesh,
    /// The agents' steering.
    Steer,
}

/// Which API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlPlane {
    /// The lab's own, in this program.
    Embedded,
    /// The real one, with etcd.
    Kube,
}

/// The controller's profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// As shipped.
    Default,
    /// Shorter holds.
    Fast,
    /// Longer holds.
    Strict,
}

/// What to do: a command line without faults.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order in which they run.
    pub scenarios: Vec<Scenario>,
    /// Of each scenario.
    pub runs: u32,
    /// Connections per second of all clients together.
    pub rate: u32,
    /// How many clients and endpoints there are.
    pub shape: Shape,
    /// All pods of east on so many nodes; none for the shape's own.
    pub nodes: Option<u32>,
    /// Whether the nodes have agents.
    pub agents: bool,
    /// Whether the cluster stays until Ctrl-C.
    pub keep: bool,
    /// Where the figures go.
    pub json: Option<PathBuf>,
    /// The agent's program, where the default is not wanted.
    pub agent_program: Option<PathBuf>,
    /// The controller's program, where the default is not wanted.
    pub controller_program: Option<PathBuf>,
    /// Panic in the first run.
    pub panic: bool,
}

/// Everything that is wrong with a command line, one sentence each, and what would have been right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// At least one.
    pub faults: Vec<String>,
    /// The scenarios, when one was not found.
    pub list: Option<String>,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.faults.iter().enumerate() {
            let before = if number > 0 { "\n" } else { "" };
            write!(f, "{before}error: {fault}")?;
        }
        self.list.as_ref().map_or(Ok(()), |list| write!(f, "\n\n{list}"))
    }
}

impl std::error::Error for Usage {}

impl Plan {
    /// The cluster that all scenarios take place on.
    #[must_use]
    pub fn ground(&self) -> Ground {
        self.nodes.map_or(Ground::Shape(self.shape), |nodes| Ground::Nodes(self.shape, nodes))
    }
}

impl DrillArgs {
    /// What to do.
    ///
    /// # Errors
    ///
    /// Every fault of the command line, not only the first.
    pub fn plan(&self) -> Result<Plan, Usage> {
        let mut faults = self.unbuilt();
        if !(1..=RUNS_LIMIT).contains(&self.runs) {
            faults.push(format!("--runs takes 1 to {RUNS_LIMIT}, not {}.", self.runs));
        }
        if self.rate > RATE_LIMIT {
            faults.push(format!("--rate takes 0 to {RATE_LIMIT} connections per second, not {}.", self.rate));
        }
        if let Some(nodes) = self.nodes.filter(|nodes| !(1..=NODES_LIMIT).contains(nodes)) {
            faults.push(format!("--nodes takes 1 to {NODES_LIMIT}, not {nodes}."));
        }
        let (scenarios, list) = self.chosen(&mut faults);
        if !faults.is_empty() {
            return Err(Usage { faults, list });
        }
        Ok(Plan {
            scenarios,
            runs: self.runs,
            rate: self.rate,
            shape: self.shape,
            nodes: self.nodes,
            agents: self.agents == Agents::On,
            keep: self.keep,
            json: self.json.clone(),
            agent_program: self.agent_program.clone(),
            controller_program: self.controller_program.clone(),
            panic: self.panic,
        })
    }

    /// The flags whose part of the product does not exist yet.
    fn unbuilt(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.control_plane == ControlPlane::Kube {
            faults.push("--control-plane kube is not built yet; the embedded API server is.".to_owned());
        } else if self.etcd_disk {
            faults.push("--etcd-disk goes with --control-plane kube, which is not built yet.".to_owned());
        }
        if self.follow == Follow::Steer {
            faults.push("--follow steer is not built yet; --follow mesh is.".to_owned());
        }
        match self.profile {
            Profile::Default => {}
            Profile::Fast => faults.push("--profile fast is not built yet; --profile default is.".to_owned()),
            Profile::Strict => faults.push("--profile strict is not built yet; --profile default is.".to_owned()),
        }
        faults
    }

    /// The named scenarios, each once, in the order named; the tour where none is. With the list where one is not found.
    fn chosen(&self, faults: &mut Vec<String>) -> (Vec<Scenario>, Option<String>) {
        if self.scenarios.is_empty() {
            let fit = scenario::tour().filter(|scenario| self.unfit(scenario).is_none());
            return (fit.map(|scenario| scenario.on(self.nodes)).collect(), None);
        }
        let mut chosen: Vec<Scenario> = Vec::new();
        let mut unknown = false;
        for name in &self.scenarios {
            let Some(found) = scenario::find(name) else {
                let is_later = scenario::LATER.contains(&name.as_str());
                faults.push(match is_later {
                    true => format!("The scenario {name} is not built yet."),
                    false => format!("There is no scenario {name}."),
                });
                unknown = true;
                continue;
            };
            if let Some(fault) = self.unfit(found) {
                faults.push(fault);
            } else if !chosen.iter().any(|known| known.name == found.name) {
                chosen.push(found.on(self.nodes));
            }
        }
        (chosen, unknown.then(scenario::list))
    }

    /// Why a scenario cannot be drilled with these flags.
    fn unfit(&self, scenario: &Scenario) -> Option<String> {
        let name = scenario.name;
        if self.agents == Agents::Off && scenario.needs_agents {
            return Some(format!(
                "{name} needs agents: without them nothing but the API server's word moves a split; scale-to-zero works \
                 with --agents off."
            ));
        }
        if let Some(why) = scenario.cannot(self.shape, None) {
            return Some(format!("{name} cannot be drilled with --shape {}: {why}.", self.shape.name()));
        }
        if let (Some(nodes), Some(why)) = (self.nodes, scenario.cannot(self.shape, self.nodes)) {
            return Some(format!("{name} cannot be drilled with --nodes {nodes}: {why}."));
        }
        let highest = highest_rate(self.shape);
        (scenario.fault == FaultKind::Frozen && self.rate > highest).then(|| {
            format!(
                "{name} takes at most --rate {highest} with --shape {}: beyond it a backlog of {DEFAULT_BACKLOG} would be \
                 full before the programs go on.",
                self.shape.name()
            )
        })
    }
}

/// The most connections per second of which stopped programs keep all in their backlogs, until they go on: three seconds
/// and a half later at the latest.
fn highest_rate(shape: Shape) -> u32 {
    let endpoints = u32::try_from(shape.cast().primary.len()).unwrap_or(u32::MAX);
    let backlog = u32::try_from(DEFAULT_BACKLOG).unwrap_or(0);
    backlog.saturating_mul(endpoints) / 7 * 2
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::drill::scenario::Expect;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        drill: DrillArgs,
    }

    fn plan(line: &str) -> Result<Plan, Usage> {
        let words = std::iter::once("drill").chain(line.split_whitespace());
        Line::try_parse_from(words).expect("clap takes the line").drill.plan()
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.scenarios.iter().map(|scenario| scenario.name).collect()
    }

    #[test]
    fn without_a_name_the_tour_runs_once_at_a_thousand() {
        let plan = plan("").expect("no faults");
        let tour = [
            "refused",
            "blackhole",
            "scale-to-zero",
            "mesh-crash",
            "blip",
            "one-bad-client-node",
            "one-bad-endpoint",
            "failback",
        ];
        assert_eq!(names(&plan), tour);
        assert_eq!((plan.runs, plan.rate, plan.shape, plan.agents), (1, 1_000, Shape::Standard, true));
    }

    #[test]
    fn scenarios_run_in_the_order_named_and_once() {
        let plan = plan("noise refused noise --runs 20 --shape workshop").expect("no faults");
        assert_eq!(names(&plan), ["noise", "refused"]);
        assert_eq!((plan.runs, plan.shape), (20, Shape::Workshop));
    }

    #[test]
    fn few_nodes_change_what_is_expected_and_what_can_be_drilled() {
        let two = plan("refused --nodes 2").expect("no faults");
        assert_eq!((two.ground(), two.scenarios[0].expect), (Ground::Nodes(Shape::Standard, 2), Expect::Failover));
        let one = plan("refused scale-to-zero --nodes 1").expect("no faults");
        assert_eq!(one.scenarios.iter().map(|row| row.expect).collect::<Vec<_>>(), [Expect::None, Expect::Failover]);
        let usage = plan("zone-loss failback --nodes 1").expect_err("faults");
        assert!(
            usage.faults[0].starts_with("zone-loss cannot be drilled with --nodes 1: it has three zones"),
            "{usage}"
        );
        assert!(usage.faults[1].starts_with("failback cannot be drilled with --nodes 1: one node alone"), "{usage}");
        let tour = plan("--nodes 1").expect("no faults");
        assert!(!names(&tour).contains(&"failback") && names(&tour).contains(&"mesh-crash"));
    }

    #[test]
    fn an_unknown_scenario_prints_the_list() {
        let usage = plan("refusd").expect_err("a fault");
        assert_eq!(usage.faults, ["There is no scenario refusd."]);
        let text = usage.to_string();
        for known in scenario::ALL {
            assert!(text.contains(known.name) && text.contains(known.line), "{text}");
        }
    }

    #[test]
    fn what_is_not_built_yet_says_so_all_together() {
        let usage =
            plan("api-outage --control-plane kube --follow steer --profile fast --nodes 31 --runs 0 --rate 10001")
                .expect_err("faults");
        assert_eq!(
            usage.faults,
            [
                "--control-plane kube is not built yet; the embedded API server is.",
                "--follow steer is not built yet; --follow mesh is.",
                "--profile fast is not built yet; --profile default is.",
                "--runs takes 1 to 1000, not 0.",
                "--rate takes 0 to 10000 connections per second, not 10001.",
                "--nodes takes 1 to 30, not 31.",
                "The scenario api-outage is not built yet.",
            ]
        );
    }

    #[test]
    fn without_agents_only_readiness_can_move_a_split() {
        assert_eq!(names(&plan("scale-to-zero --agents off").expect("no faults")), ["scale-to-zero"]);
        assert_eq!(names(&plan("--agents off").expect("no faults")), ["scale-to-zero"]);
        for name in ["refused", "process-killed", "blackhole", "noise", "failback"] {
            let usage = plan(&format!("{name} --agents off")).expect_err("a fault");
            assert!(usage.faults[0].starts_with(&format!("{name} needs agents:")), "{usage}");
        }
    }

    #[test]
    fn the_help_lists_every_scenario_and_marks_the_tour() {
        let help = Line::try_parse_from(["drill", "--help"]).err().expect("help is no plan").to_string();
        for known in scenario::ALL {
            let line = help.lines().find(|line| line.trim_start().trim_start_matches("* ").starts_with(known.name));
            let line = line.unwrap_or_else(|| panic!("{} is not in:\n{help}", known.name));
            assert_eq!(line.contains("* "), known.tour, "{line}");
        }
    }

    #[test]
    fn what_a_shape_cannot_hold_is_said_and_left_out_of_the_tour() {
        for name in ["one-of-two", "one-bad-endpoint", "node-loss"] {
            let usage = plan(&format!("{name} --shape workshop")).expect_err("a fault");
            let said = format!("{name} cannot be drilled with --shape workshop: the workshop has one endpoint");
            assert!(usage.faults[0].starts_with(&said), "{usage}");
            assert!(plan(name).is_ok());
        }
        let tour = plan("--shape workshop").expect("no faults");
        assert_eq!(
            names(&tour),
            ["refused", "blackhole", "scale-to-zero", "mesh-crash", "blip", "one-bad-client-node", "failback"]
        );
    }

    #[test]
    fn stopped_programs_must_not_lose_connections() {
        assert!(plan("frozen").is_ok() && plan("frozen --shape workshop").is_ok());
        let usage = plan("frozen --shape workshop --rate 2000").expect_err("a fault");
        assert!(usage.faults[0].starts_with("frozen takes at most --rate 1170 with --shape workshop:"), "{usage}");
    }
}
