//! What can be drilled. In: a name, and the conditions of a drill. Out: what is done to the cluster, what is expected of
//! it, and the figure beside it. Not here: how a fault is made, and how a run is judged. Pure.

mod table;

use std::time::Duration;

use serde::Serialize;

use crate::drill::args::Shape;

pub use self::table::{ALL, LATER};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
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
    /// What the controller has to call the reason for staying, where there is one to be told.
    pub held_by: Option<&'static str>,
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
    /// SIGKILL of the application in the first of the primary's meshed pods; its proxy lives.
    MeshCrash,
    /// Every node of the primary's zone loses its only cable, agents and clients included.
    ZoneLoss,
    /// SIGKILL of the gateway.
    GatewayDown,
    /// RST on a hundred long-lived connections to the primary, which its programs send.
    Reset,
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
    /// The fault stays, and then no endpoint is ready any more: where nobody may move a split by what connections tell,
    /// readiness alone still does.
    ByReadiness,
}

/// Who is on the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Players {
    /// Clients and endpoints as the shape has them.
    AllOfShape,
    /// Two endpoints of the primary, on two nodes; else as the shape has them.
    TwoEndpoints,
    /// One meshed endpoint of the primary; else as the shape has them.
    OneMeshed,
    /// Two of them, on two nodes.
    TwoMeshed,
    /// Both endpoints of the primary in one zone, a second local backend in the others. That zone's clients count in no
    /// figure.
    OneZone,
    /// Twenty splits of twenty Services, each mirrored through the one gateway and primary there.
    MirrorsFirst,
    /// The same, but the local backends are the primaries and the mirrors stand by.
    MirrorsStandBy,
}

/// A limit and the conditions under which it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// For this shape only.
    pub shape: Shape,
    /// On so many nodes only; none where the shape's own are meant.
    pub nodes: Option<u32>,
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
    /// On how many nodes, where not on the shape's own.
    pub nodes: Option<u32>,
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

/// The scenarios with their lines, for `--help` and for whoever named another.
#[must_use]
pub fn list() -> String {
    let width = ALL.iter().map(|scenario| scenario.name.len()).max().unwrap_or(0);
    let mut text = String::from("The scenarios are, the tour's with a star:");
    for scenario in ALL {
        let star = if scenario.tour { '*' } else { ' ' };
        text.push_str(&format!("\n  {star} {:width$}  {}", scenario.name, scenario.line));
    }
    text
}

impl Scenario {
    /// The limit that holds under these conditions; `None` where the table has no figure for them.
    #[must_use]
    pub fn limit_ms(&self, under: Circumstances) -> Option<u32> {
        let applies = |figure: &&Figure| {
            figure.shape == under.shape
                && figure.nodes == under.nodes
                && figure.rate == under.rate
                && (under.agents || figure.without_agents)
        };
        self.figures.iter().find(applies).map(|figure| figure.limit_ms)
    }

    /// Why it cannot be drilled so, where it cannot.
    #[must_use]
    pub fn cannot(&self, shape: Shape, nodes: Option<u32>) -> Option<&'static str> {
        let not_in_shape = match shape {
            Shape::Standard => None,
            Shape::Workshop => self.not_in_workshop,
        };
        not_in_shape.or_else(|| self.cannot_on(nodes?))
    }

    fn cannot_on(&self, nodes: u32) -> Option<&'static str> {
        match (self.fault, self.expect) {
            (FaultKind::ZoneLoss, _) => Some("it has three zones of two nodes each, which are its own"),
            (FaultKind::NodeLoss, _) if nodes < 3 => {
                Some("with a node of two gone, no more than half of the agents are left to tell anything")
            }
            (FaultKind::OneBadClientNode, _) if nodes < 2 => Some("there is no other client node"),
            (FaultKind::AgentRestart, _) | (_, Expect::Failback | Expect::Bound) if nodes < 2 => {
                Some("one node alone moves nothing by what it sees")
            }
            _ => None,
        }
    }

    /// What is expected other than the scenario's line makes believe.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let guard = self.held_by?;
        Some(format!(
            "one node alone moves nothing by what its connections tell: the split has to stay, the controller to say \
             {guard}, and readiness still to move it"
        ))
    }

    /// What it becomes on so many nodes of east. One node alone moves nothing by what its connections tell, and says so;
    /// a meshed pod's own word about itself needs no second node, and readiness moves as ever.
    #[must_use]
    pub fn on(self, nodes: Option<u32>) -> Self {
        let moves_as_ever = self.fault == FaultKind::MeshCrash || !self.needs_agents;
        if nodes != Some(1) || moves_as_ever || !matches!(self.expect, Expect::Failover | Expect::None) {
            return self;
        }
        let held_by = (self.expect == Expect::Failover).then_some(INSUFFICIENT_OBSERVERS);
        Self { expect: Expect::None, control: Some(Control::ByReadiness), figures: &[], held_by, ..self }
    }
}

/// The controller's word for a Service that fewer than two nodes can observe.
const INSUFFICIENT_OBSERVERS: &str = "insufficient-observers";

impl Players {
    /// Whether the primary's applications stand behind proxies.
    #[must_use]
    pub const fn are_meshed(self) -> bool {
        matches!(self, Self::OneMeshed | Self::TwoMeshed)
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
            | Self::AgentRestart
            | Self::MeshCrash
            | Self::ZoneLoss
            | Self::GatewayDown
            | Self::Reset => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_stands_only_under_its_own_conditions() {
        let check = |name, shape, rate, agents, limit| {
            let under = Circumstances { shape, nodes: None, rate, agents };
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
    fn small_clusters_have_figures_of_their_own() {
        let on_two = |rate| Circumstances { shape: Shape::Standard, nodes: Some(2), rate, agents: true };
        let refused = find("refused").expect("a scenario");
        assert_eq!((refused.limit_ms(on_two(1_000)), refused.limit_ms(on_two(0))), (Some(300), Some(1_100)));
        assert_eq!(refused.limit_ms(on_two(100)), None);
        assert_eq!(find("blackhole").expect("a scenario").limit_ms(on_two(1_000)), None);
    }

    #[test]
    fn one_node_alone_moves_only_by_readiness_and_by_a_pods_own_word() {
        let alone = |name| find(name).expect("a scenario").on(Some(1));
        let refused = alone("refused");
        assert_eq!((refused.expect, refused.control), (Expect::None, Some(Control::ByReadiness)));
        assert_eq!(refused.held_by, Some("insufficient-observers"));
        assert_eq!(alone("noise").held_by, None, "where nothing fails there is nothing to hold");
        for name in ["scale-to-zero", "mesh-crash"] {
            assert_eq!(alone(name).expect, Expect::Failover, "{name}");
        }
        assert_eq!(find("refused").expect("a scenario").on(Some(2)).expect, Expect::Failover);
        assert!(alone("failback").cannot(Shape::Standard, Some(1)).is_some());
        assert!(alone("failback").cannot(Shape::Standard, None).is_none());
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
