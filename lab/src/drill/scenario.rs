//! What can be drilled. In: a name, and the conditions of a drill. Out: what is done to the cluster, what is expected of
//! it, and the figure beside it. Not here: how a fault is made, and how a run is judged. Pure.

mod table;

use std::time::Duration;

use serde::Serialize;

use crate::drill::args::Shape;

pub use self::table::{ALL, LATER};

/// One row of the table.
#[derive(Debug)]
pub struct Scenario {
    /// As on the command line.
    pub name: &'static str,
    /// What happens, in one line.
    pub line: &'static str,
    /// What must follow.
    pub expect: Expect,
    /// What is done.
    pub fault: FaultKind,
    /// How a run that must not move proves that it could have.
    pub control: Option<Control>,
    /// Who is on the stage.
    pub players: Players,
    /// Nothing but agents can notice the fault.
    pub needs_agents: bool,
    /// Clients need not see a failed connection: something else proves the fault.
    pub clients_may_miss_it: bool,
    /// Why it cannot be drilled in the workshop's shape, where it cannot.
    pub not_in_workshop: Option<&'static str>,
    /// Upper limits of the time from the fault to the written weights, each with its own conditions.
    pub figures: &'static [Figure],
    /// Part of the tour.
    pub tour: bool,
}

/// What must follow the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// The split leaves its primary.
    Failover,
    /// It leaves it and comes back, in steps.
    Failback,
    /// It stays where it is.
    None,
    /// It may move, but not oftener and not sooner back than its settings allow.
    Bound,
    /// Whatever happens is reported.
    Report,
}

/// What is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// All listeners of the primary are closed; the programs and their readiness live on.
    Refused,
    /// SIGKILL of all of the primary's programs.
    ProcessKilled,
    /// Packets to the primary's endpoints are dropped beyond the client nodes.
    Blackhole,
    /// The path to the primary's endpoints answers with ICMP host unreachable.
    Unreachable,
    /// The primary's programs keep a short backlog and accept no more.
    Hang,
    /// All of the primary's endpoints not ready; 50 ms later SIGTERM, and REJECT on the nodes.
    ScaleToZero,
    /// So many thousandths of the connections to the primary are refused, at random.
    Brownout {
        /// 1 to 1000.
        permille: u32,
    },
    /// Refused for 200 ms, fine for 200 ms, for a minute.
    Flap,
    /// Refused for 50 ms.
    Blip,
    /// 1 % of connections refused at random, nodes stall, one client loops on a dead path.
    Noise,
    /// Nothing leaves one client node for the primary's endpoints any more.
    OneBadClientNode,
    /// SIGKILL of the first of the primary's programs.
    OneBadEndpoint,
    /// The node of the primary's first endpoint loses its only cable.
    NodeLoss,
    /// The primary refuses, and so does everything behind and in front of the secondary.
    AllDown,
    /// The secondary dies, and a second later the primary refuses.
    SecondaryDown,
    /// SIGSTOP of all of the primary's programs.
    Frozen,
    /// Refused; 50 ms later one agent is killed and started again.
    AgentRestart,
}

/// How a run that must not move proves that it could have: every application endpoint of the primary refuses, in the
/// same processes, and the split has to leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// The fault stays meanwhile.
    FaultStays,
    /// The fault is healed first, because it hit a secondary, a gateway or every backend, or stopped a process: until all
    /// endpoints answer and the controller calls the secondary healthy, nothing could move.
    AfterHealing,
    /// As [`Control::FaultStays`], for a fault that is over, and only where nothing moved: what moved has proved it.
    IfUnmoved,
}

/// Who is on the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Players {
    /// Clients and endpoints as the shape has them.
    AllOfShape,
    /// Two endpoints of the primary, on two nodes; else as the shape has them.
    TwoEndpoints,
}

/// A limit and the conditions under which it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// For this shape only.
    pub shape: Shape,
    /// For so many connections per second only.
    pub rate: u32,
    /// Also without agents.
    pub without_agents: bool,
    /// p99 of `written`.
    pub limit_ms: u32,
}

/// Under what a drill takes place, as far as figures depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// How many clients and endpoints.
    pub shape: Shape,
    /// Connections per second of all clients together.
    pub rate: u32,
    /// Whether the nodes have agents.
    pub agents: bool,
}

/// How long everything is refused in `blip`.
pub const BLIP: Duration = Duration::from_millis(50);

/// How long `flap` is down, and then up.
pub const FLAP_PHASE: Duration = Duration::from_millis(200);

/// How long `flap` goes on.
pub const FLAP_LENGTH: Duration = Duration::from_secs(60);

/// The scenario of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// What runs when nobody names a scenario: as long as each run is once, three minutes.
pub fn tour() -> impl Iterator<Item = &'static Scenario> {
    ALL.iter().filter(|scenario| scenario.tour)
}

/// The scenarios with their lines, for whoever named another.
#[must_use]
pub fn list() -> String {
    let width = ALL.iter().map(|scenario| scenario.name.len()).max().unwrap_or(0);
    let mut text = String::from("The scenarios are:");
    for scenario in ALL {
        text.push_str(&format!("\n  {:width$}  {}", scenario.name, scenario.line));
    }
    text
}

impl Scenario {
    /// The limit that holds under these conditions; `None` where the table has no figure for them.
    #[must_use]
    pub fn limit_ms(&self, under: Circumstances) -> Option<u32> {
        let applies = |figure: &&Figure| {
            figure.shape == under.shape && figure.rate == under.rate && (under.agents || figure.without_agents)
        };
        self.figures.iter().find(applies).map(|figure| figure.limit_ms)
    }

    /// Why it cannot be drilled so, where it cannot.
    #[must_use]
    pub fn cannot(&self, shape: Shape) -> Option<&'static str> {
        match shape {
            Shape::Standard => None,
            Shape::Workshop => self.not_in_workshop,
        }
    }
}

impl FaultKind {
    /// How long it goes on by itself; zero where it begins and stays.
    #[must_use]
    pub const fn length(self) -> Duration {
        match self {
            Self::Blip => BLIP,
            Self::Flap => FLAP_LENGTH,
            Self::Refused
            | Self::ProcessKilled
            | Self::Blackhole
            | Self::Unreachable
            | Self::Hang
            | Self::ScaleToZero
            | Self::Brownout { .. }
            | Self::Noise
            | Self::OneBadClientNode
            | Self::OneBadEndpoint
            | Self::NodeLoss
            | Self::AllDown
            | Self::SecondaryDown
            | Self::Frozen
            | Self::AgentRestart => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_stands_only_under_its_own_conditions() {
        let check = |name, shape, rate, agents, limit| {
            let under = Circumstances { shape, rate, agents };
            assert_eq!(find(name).expect("a scenario").limit_ms(under), limit, "{name}");
        };
        check("refused", Shape::Standard, 1_000, true, Some(150));
        check("refused", Shape::Workshop, 1_000, true, Some(350));
        check("refused", Shape::Standard, 100, true, Some(215));
        check("refused", Shape::Standard, 0, true, Some(500));
        check("refused", Shape::Standard, 500, true, None);
        check("refused", Shape::Workshop, 100, true, None);
        check("blackhole", Shape::Workshop, 1_000, true, None);
        check("scale-to-zero", Shape::Standard, 1_000, false, Some(20));
        check("scale-to-zero", Shape::Workshop, 1_000, true, None);
        check("noise", Shape::Standard, 1_000, true, None);
    }

    #[test]
    fn what_must_not_move_has_a_control_and_what_must_has_none() {
        for scenario in ALL {
            let needs_one = matches!(scenario.expect, Expect::None | Expect::Bound);
            assert_eq!(scenario.control.is_some(), needs_one, "{}", scenario.name);
        }
    }

    #[test]
    fn no_scenario_is_both_built_and_to_come_and_none_is_there_twice() {
        for (index, scenario) in ALL.iter().enumerate() {
            assert!(!LATER.contains(&scenario.name), "{}", scenario.name);
            assert!(ALL[..index].iter().all(|other| other.name != scenario.name), "{}", scenario.name);
        }
    }

    #[test]
    fn only_what_moves_has_a_figure() {
        for scenario in ALL {
            assert!(scenario.figures.is_empty() || scenario.expect == Expect::Failover, "{}", scenario.name);
        }
    }
}
