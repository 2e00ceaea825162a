//! The table of scenarios. In: a name. Out: what is done to the cluster, what is expected of it, and the figure beside
//! it. Not here: how a fault is made, and how a run is judged. Pure.

use serde::Serialize;

use crate::drill::args::Shape;

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
    /// Nothing but agents can notice the fault.
    pub needs_agents: bool,
    /// Clients need not see a failed connection: something else proves the fault.
    pub clients_may_miss_it: bool,
    /// Upper limits of the time from the fault to the written weights; each with the shape that it is for.
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
    /// All of the primary's endpoints not ready; 50 ms later SIGTERM, and REJECT on the nodes.
    ScaleToZero,
    /// 1 % of connections refused at random, nodes stall, one client loops on a dead path.
    Noise,
}

/// How a run that must not move proves that it could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// The fault stays while every application endpoint of the primary refuses.
    FaultStays,
}

/// A limit and the conditions under which it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// For this shape only.
    pub shape: Shape,
    /// Also without agents.
    pub without_agents: bool,
    /// p99 of `written`.
    pub limit_ms: u32,
}

/// The rate that every figure is stated for.
pub const FIGURE_RATE: u32 = 1_000;

const fn standard(limit_ms: u32) -> Figure {
    Figure { shape: Shape::Standard, without_agents: false, limit_ms }
}

const fn workshop(limit_ms: u32) -> Figure {
    Figure { shape: Shape::Workshop, without_agents: false, limit_ms }
}

/// Every scenario that exists.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "refused",
        line: "all listeners of the primary close, its programs and their readiness live on",
        expect: Expect::Failover,
        fault: FaultKind::Refused,
        control: None,
        needs_agents: true,
        clients_may_miss_it: false,
        figures: &[standard(150), workshop(350)],
        tour: true,
    },
    Scenario {
        name: "process-killed",
        line: "SIGKILL of all of the primary's programs",
        expect: Expect::Failover,
        fault: FaultKind::ProcessKilled,
        control: None,
        needs_agents: true,
        clients_may_miss_it: false,
        figures: &[standard(150), workshop(350)],
        tour: false,
    },
    Scenario {
        name: "blackhole",
        line: "packets to the primary's endpoints are dropped beyond the client nodes",
        expect: Expect::Failover,
        fault: FaultKind::Blackhole,
        control: None,
        needs_agents: true,
        clients_may_miss_it: false,
        figures: &[standard(180)],
        tour: true,
    },
    Scenario {
        name: "scale-to-zero",
        line: "no endpoint of the primary is ready any more; 50 ms later its pods go",
        expect: Expect::Failover,
        fault: FaultKind::ScaleToZero,
        control: None,
        needs_agents: false,
        clients_may_miss_it: true,
        figures: &[Figure { shape: Shape::Standard, without_agents: true, limit_ms: 20 }],
        tour: true,
    },
    Scenario {
        name: "noise",
        line: "1 % of connections refused at random, nodes stall, one client loops on a dead address",
        expect: Expect::None,
        fault: FaultKind::Noise,
        control: Some(Control::FaultStays),
        needs_agents: true,
        clients_may_miss_it: false,
        figures: &[],
        tour: false,
    },
    Scenario {
        name: "failback",
        line: "refused, then the primary listens again: back after the dwell, in steps",
        expect: Expect::Failback,
        fault: FaultKind::Refused,
        control: None,
        needs_agents: true,
        clients_may_miss_it: false,
        figures: &[],
        tour: true,
    },
];

/// Scenarios whose part of the product comes later: known by name, so that nobody looks for a typing error.
pub const LATER: &[&str] = &[
    "unreachable",
    "hang",
    "mesh-crash",
    "mesh-crash-one-of-two",
    "zone-loss",
    "gateway-down",
    "gateway-down-standby",
    "brownout-50",
    "brownout-30",
    "brownout-10",
    "flap",
    "reset",
    "blip",
    "one-bad-client-node",
    "one-bad-endpoint",
    "one-of-two",
    "node-loss",
    "all-down",
    "secondary-down",
    "frozen",
    "agent-restart",
    "controller-kill",
    "api-outage",
];

/// The scenario of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// What runs when nobody names a scenario.
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
    pub fn limit_ms(&self, shape: Shape, rate: u32, agents: bool) -> Option<u32> {
        if rate != FIGURE_RATE {
            return None;
        }
        let applies = |figure: &&Figure| figure.shape == shape && (agents || figure.without_agents);
        self.figures.iter().find(applies).map(|figure| figure.limit_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_stands_only_under_its_own_conditions() {
        let check = |name, shape, rate, agents, limit| {
            assert_eq!(find(name).expect("a scenario").limit_ms(shape, rate, agents), limit, "{name}");
        };
        check("refused", Shape::Standard, 1_000, true, Some(150));
        check("refused", Shape::Workshop, 1_000, true, Some(350));
        check("refused", Shape::Standard, 100, true, None);
        check("blackhole", Shape::Workshop, 1_000, true, None);
        check("scale-to-zero", Shape::Standard, 1_000, false, Some(20));
        check("scale-to-zero", Shape::Workshop, 1_000, true, None);
        check("noise", Shape::Standard, 1_000, true, None);
    }

    #[test]
    fn what_must_not_move_has_a_control_and_what_must_has_none() {
        for scenario in ALL {
            assert_eq!(scenario.control.is_some(), scenario.expect == Expect::None, "{}", scenario.name);
        }
    }

    #[test]
    fn no_scenario_is_both_built_and_to_come() {
        for scenario in ALL {
            assert!(!LATER.contains(&scenario.name), "{}", scenario.name);
        }
    }
}
