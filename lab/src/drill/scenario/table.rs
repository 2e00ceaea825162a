//! The table of scenarios: one row each, in the order in which `--help` and the tour have them. Data only.

use super::{Control, Expect, FaultKind, Figure, Players, Scenario};
use crate::drill::args::Shape;

const fn standard(rate: u32, limit_ms: u32) -> Figure {
    Figure { shape: Shape::Standard, nodes: None, rate, without_agents: false, limit_ms }
}

const fn two_nodes(rate: u32, limit_ms: u32) -> Figure {
    Figure { nodes: Some(2), ..standard(rate, limit_ms) }
}

const fn workshop(rate: u32, limit_ms: u32) -> Figure {
    Figure { shape: Shape::Workshop, ..standard(rate, limit_ms) }
}

/// A scenario that must move.
const MOVES: Scenario = Scenario {
    name: "",
    line: "",
    expect: Expect::Failover,
    fault: FaultKind::Refused,
    control: None,
    players: Players::AllOfShape,
    needs_agents: true,
    clients_may_miss_it: false,
    not_in_workshop: None,
    figures: &[],
    tour: false,
    held_by: None,
};

/// A scenario that must not.
const STAYS: Scenario = Scenario { expect: Expect::None, control: Some(Control::FaultStays), ..MOVES };

/// The workshop has one endpoint of the primary.
const ONE_ENDPOINT: Option<&str> = Some("the workshop has one endpoint of the primary, and without it nothing is left");

/// Every scenario that exists.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "refused",
        line: "all listeners of the primary close, its programs and their readiness live on",
        fault: FaultKind::Refused,
        figures: &[
            standard(1_000, 150),
            standard(100, 215),
            standard(10, 450),
            standard(0, 500),
            workshop(1_000, 350),
            two_nodes(1_000, 300),
            two_nodes(0, 1_100),
        ],
        tour: true,
        ..MOVES
    },
    Scenario {
        name: "process-killed",
        line: "SIGKILL of all of the primary's programs",
        fault: FaultKind::ProcessKilled,
        figures: &[standard(1_000, 150), workshop(1_000, 350)],
        ..MOVES
    },
    Scenario {
        name: "blackhole",
        line: "packets to the primary's endpoints are dropped beyond the client nodes",
        fault: FaultKind::Blackhole,
        figures: &[standard(1_000, 180), standard(100, 240), standard(10, 490), standard(0, 560)],
        tour: true,
        ..MOVES
    },
    Scenario {
        name: "unreachable",
        line: "the path to the primary's endpoints answers with ICMP host unreachable",
        fault: FaultKind::Unreachable,
        figures: &[standard(1_000, 180)],
        ..MOVES
    },
    Scenario {
        name: "hang",
        line: "the primary accepts no more; t0 is the first SYN that a full backlog drops",
        fault: FaultKind::Hang,
        figures: &[standard(1_000, 230)],
        ..MOVES
    },
    Scenario {
        name: "scale-to-zero",
        line: "no endpoint of the primary is ready any more; 50 ms later its pods go",
        fault: FaultKind::ScaleToZero,
        needs_agents: false,
        clients_may_miss_it: true,
        figures: &[Figure { without_agents: true, ..standard(1_000, 20) }],
        tour: true,
        ..MOVES
    },
    Scenario {
        name: "mesh-crash",
        line: "the only replica's application dies behind its proxy, which lives",
        fault: FaultKind::MeshCrash,
        players: Players::OneMeshed,
        clients_may_miss_it: true,
        figures: &[standard(1_000, 400), workshop(1_000, 400)],
        tour: true,
        ..MOVES
    },
    Scenario {
        name: "mesh-crash-one-of-two",
        line: "one of two applications dies behind its proxy, which lives",
        fault: FaultKind::MeshCrash,
        players: Players::TwoMeshed,
        clients_may_miss_it: true,
        ..STAYS
    },
    Scenario {
        name: "zone-loss",
        line: "the primary's zone is gone: its client node, its backend node, their agents",
        fault: FaultKind::ZoneLoss,
        players: Players::OneZone,
        not_in_workshop: Some("the workshop's only client is in the zone that is lost"),
        figures: &[standard(1_000, 400)],
        ..MOVES
    },
    Scenario {
        name: "gateway-down",
        line: "the gateway dies before which twenty mirrors are primary: twenty splits move",
        fault: FaultKind::GatewayDown,
        players: Players::MirrorsFirst,
        figures: &[standard(1_000, 500)],
        ..MOVES
    },
    Scenario {
        name: "gateway-down-standby",
        line: "the gateway dies behind which twenty mirrors stand by",
        fault: FaultKind::GatewayDown,
        control: Some(Control::AfterHealing),
        players: Players::MirrorsStandBy,
        clients_may_miss_it: true,
        ..STAYS
    },
    Scenario {
        name: "reset",
        line: "RST on a hundred long-lived connections to the primary, while new ones are fine",
        fault: FaultKind::Reset,
        clients_may_miss_it: true,
        ..STAYS
    },
    Scenario {
        name: "brownout-50",
        line: "half of the connections to the primary are refused, at random",
        fault: FaultKind::Brownout { permille: 500 },
        figures: &[standard(1_000, 700)],
        ..MOVES
    },
    Scenario {
        name: "brownout-30",
        line: "30 % of the connections to the primary are refused, at random; told, not judged",
        expect: Expect::Report,
        fault: FaultKind::Brownout { permille: 300 },
        ..MOVES
    },
    Scenario {
        name: "brownout-10",
        line: "10 % of the connections to the primary are refused, at random",
        fault: FaultKind::Brownout { permille: 100 },
        ..STAYS
    },
    Scenario {
        name: "flap",
        line: "200 ms refused, 200 ms fine, for a minute, with a dwell of 2 s",
        expect: Expect::Bound,
        fault: FaultKind::Flap,
        control: Some(Control::IfUnmoved),
        ..MOVES
    },
    Scenario {
        name: "blip",
        line: "every endpoint of the primary refuses for 50 ms",
        fault: FaultKind::Blip,
        tour: true,
        ..STAYS
    },
    Scenario {
        name: "noise",
        line: "1 % of connections refused at random, nodes stall, one client loops on a dead address",
        fault: FaultKind::Noise,
        ..STAYS
    },
    Scenario {
        name: "one-bad-client-node",
        line: "the path of one client node to the primary is cut",
        fault: FaultKind::OneBadClientNode,
        tour: true,
        ..STAYS
    },
    Scenario {
        name: "one-bad-endpoint",
        line: "one of six endpoints of the primary dies",
        fault: FaultKind::OneBadEndpoint,
        not_in_workshop: ONE_ENDPOINT,
        tour: true,
        ..STAYS
    },
    Scenario {
        name: "one-of-two",
        line: "one of two endpoints of the primary dies",
        fault: FaultKind::OneBadEndpoint,
        players: Players::TwoEndpoints,
        not_in_workshop: ONE_ENDPOINT,
        ..STAYS
    },
    Scenario {
        name: "node-loss",
        line: "one of three backend nodes is gone, its agent included",
        fault: FaultKind::NodeLoss,
        not_in_workshop: ONE_ENDPOINT,
        ..STAYS
    },
    Scenario {
        name: "all-down",
        line: "the primary and the secondary refuse: the weights stay",
        fault: FaultKind::AllDown,
        control: Some(Control::AfterHealing),
        ..STAYS
    },
    Scenario {
        name: "secondary-down",
        line: "the secondary dies, one second later the primary: the weights stay",
        fault: FaultKind::SecondaryDown,
        control: Some(Control::AfterHealing),
        ..STAYS
    },
    Scenario {
        name: "frozen",
        line: "SIGSTOP of all of the primary's programs: their kernel still shakes hands, a stated limit",
        fault: FaultKind::Frozen,
        control: Some(Control::AfterHealing),
        clients_may_miss_it: true,
        ..STAYS
    },
    Scenario {
        name: "agent-restart",
        line: "refused, and 50 ms later one agent is killed and started again",
        fault: FaultKind::AgentRestart,
        figures: &[standard(1_000, 300), workshop(1_000, 500)],
        ..MOVES
    },
    Scenario {
        name: "failback",
        line: "refused, then the primary listens again: back after the dwell, in steps",
        expect: Expect::Failback,
        fault: FaultKind::Refused,
        tour: true,
        ..MOVES
    },
];

/// Scenarios whose part of the product comes later: known by name, so that nobody looks for a typing error.
pub const LATER: &[&str] = &["controller-kill", "api-outage"];
