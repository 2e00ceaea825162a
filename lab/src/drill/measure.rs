//! One run's figures. In: everything that one run saw, as raw CLOCK_MONOTONIC nanoseconds. Out: what the report says of
//! it, in milliseconds since t0, null for what did not happen. Not here: whether that is good. Pure.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::drill::transition::{Kind, Transition};

/// Everything that one run saw.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The split, `namespace/name`.
    pub split: String,
    /// Its primary backend.
    pub primary: String,
    /// Just before the first call that made the fault.
    pub t0_ns: u64,
    /// Just after the last.
    pub injected_ns: u64,
    /// The drill itself saw the fault after t0: by dialling, or by the API server's acknowledgement.
    pub proved_by_drill: bool,
    /// What the clients saw between t0 and the closing.
    pub clients: Clients,
    /// The controller's transitions.
    pub transitions: Vec<Transition>,
    /// The split as the drill's own watch delivered it, from before t0 on.
    pub seen: Vec<Seen>,
    /// The first SYN of a client to another backend than the primary after the weights were written.
    pub shifted_ns: Option<u64>,
    /// Nothing later counts, but for the control and the way back.
    pub closed_ns: u64,
    /// The control, where the scenario has one.
    pub control: Option<ControlObservation>,
    /// The way back, where the scenario waits for one.
    pub healed: Option<HealObservation>,
}

/// What the clients saw after t0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Connections begun.
    pub sent: u64,
    /// Those that ended with an errno, or without a byte within a second.
    pub failed: u64,
    /// Those whose connect failed, by their own errno.
    pub connects_failed: u64,
    /// When the first of these failed.
    pub first_failed_ns: Option<u64>,
    /// When the last of these failed.
    pub last_failed_ns: Option<u64>,
}

/// The split as a watch delivered it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// When it was there.
    pub at_ns: u64,
    /// Backends and weights, in the object's order, as the API has them.
    pub weights: Vec<(String, Value)>,
}

/// The control of a run that must not move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlObservation {
    /// Just before the control's fault.
    pub t0_ns: u64,
    /// The drill saw the control's fault.
    pub proved: bool,
}

/// What happened after the fault was healed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealObservation {
    /// All endpoints answered again.
    pub healed_ns: u64,
    /// Connections begun after that which failed.
    pub failed_after: u64,
}

/// One run as the report says it. All `_ms` are since t0.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Run {
    /// The fault as it was met.
    pub fault: Fault,
    /// The last call that made the fault was done.
    pub injected_ms: f64,
    /// The kernel saw the first failed attempt begun at or after t0, as an agent counted it.
    pub first_failure_ms: Option<f64>,
    /// The controller decoded the first report that holds it.
    pub reported_ms: Option<f64>,
    /// The core emitted the write that took effect.
    pub decided_ms: Option<f64>,
    /// The drill's own watch delivered the new weights.
    pub written_ms: Option<f64>,
    /// The controller had the API server's answer.
    pub acknowledged_ms: Option<f64>,
    /// The first SYN of a client to the new backend after that.
    pub shifted_ms: Option<f64>,
    /// From the control's own t0 to the new weights.
    pub control_ms: Option<f64>,
    /// The clients' connections from t0 to the closing.
    pub requests: Requests,
    /// How often the split left its primary.
    pub failovers: u32,
    /// How often it came back whole.
    pub failbacks: u32,
    /// As they stood at the closing.
    pub weights: Map<String, Value>,
    /// The way back, where the scenario waits for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failback: Option<Failback>,
}

/// The fault as it was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Fault {
    /// Somebody saw it after t0.
    pub proved: bool,
    /// Connects of clients that failed, by their own errno.
    pub connects_failed: u64,
    /// When the first failed.
    pub first_ms: Option<f64>,
    /// When the last failed.
    pub last_ms: Option<f64>,
}

/// The clients' connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Begun.
    pub sent: u64,
    /// Ended with an errno, or without a byte within a second.
    pub failed: u64,
}

/// The way back.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Failback {
    /// All endpoints answered again.
    pub healed_ms: f64,
    /// Every change of the weights after the failover, in order.
    pub steps: Vec<Step>,
    /// Connections begun after the healing that failed.
    pub failed_after_heal: u64,
}

/// One change of the weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Step {
    /// When the drill's watch delivered it.
    pub at_ms: f64,
    /// Weights in the object's order.
    pub weights: Vec<Value>,
}

/// The width of an age slot in the kernel (`probe_common::abi::SLOT_SHIFT`): a late attempt is known to have begun not
/// earlier than its slot, so one begun just after t0 may be told as begun up to one slot before.
const AGE_SLOT_NS: u64 = 1 << 23;

/// The figures of one run.
#[must_use]
pub fn measure(seen: &Observation) -> Run {
    let since = |at_ns: u64| millis(seen.t0_ns, at_ns);
    let counted = || seen.transitions.iter().filter(|entry| entry.at_ns <= seen.closed_ns && is_of(entry, &seen.split));
    let moves = Moves::of(seen, seen.closed_ns);
    let report = first_report(counted(), seen);
    let write = taken_write(counted(), seen.t0_ns);
    Run {
        fault: Fault {
            proved: seen.proved_by_drill || seen.clients.connects_failed > 0,
            connects_failed: seen.clients.connects_failed,
            first_ms: seen.clients.first_failed_ns.map(since),
            last_ms: seen.clients.last_failed_ns.map(since),
        },
        injected_ms: since(seen.injected_ns),
        first_failure_ms: report.map(|(failed_ns, _)| since(failed_ns)),
        reported_ms: report.map(|(_, decoded_ns)| since(decoded_ns)),
        decided_ms: write.decided_ns.map(since),
        written_ms: moves.written_ns.map(since),
        acknowledged_ms: write.acknowledged_ns.map(since),
        shifted_ms: seen.shifted_ns.filter(|at_ns| *at_ns <= seen.closed_ns).map(since),
        control_ms: control_ms(seen),
        requests: Requests { sent: seen.clients.sent, failed: seen.clients.failed },
        failovers: moves.failovers,
        failbacks: moves.failbacks,
        weights: moves.weights.iter().cloned().collect(),
        failback: seen.healed.map(|healed| Failback {
            healed_ms: since(healed.healed_ns),
            steps: moves.steps,
            failed_after_heal: healed.failed_after,
        }),
    }
}

/// When the split first left its primary at or after `from_ns`, as the watch delivered it.
#[must_use]
pub fn written_after(seen: &[Seen], primary: &str, from_ns: u64) -> Option<u64> {
    let mut active = true;
    for look in seen {
        let now_active = weight_milli(&look.weights, primary) > 0;
        if active && !now_active && look.at_ns >= from_ns {
            return Some(look.at_ns);
        }
        active = now_active;
    }
    None
}

/// What the watch showed up to the closing.
struct Moves {
    written_ns: Option<u64>,
    failovers: u32,
    failbacks: u32,
    weights: Vec<(String, Value)>,
    steps: Vec<Step>,
}

impl Moves {
    fn of(seen: &Observation, until_ns: u64) -> Self {
        let steady = seen.seen.first().map(|look| look.weights.clone()).unwrap_or_default();
        let mut moves =
            Self { written_ns: None, failovers: 0, failbacks: 0, weights: steady.clone(), steps: Vec::new() };
        for look in seen.seen.iter().filter(|look| look.at_ns <= until_ns) {
            if look.weights == moves.weights {
                continue;
            }
            let was_active = weight_milli(&moves.weights, &seen.primary) > 0;
            let is_active = weight_milli(&look.weights, &seen.primary) > 0;
            if was_active && !is_active {
                moves.failovers += 1;
                moves.written_ns = moves.written_ns.or(Some(look.at_ns));
            } else if moves.failovers > 0 {
                moves.steps.push(Step {
                    at_ms: millis(seen.t0_ns, look.at_ns),
                    weights: look.weights.iter().map(|(_, weight)| weight.clone()).collect(),
                });
            }
            if look.weights == steady {
                moves.failbacks += 1;
            }
            moves.weights = look.weights.clone();
        }
        moves
    }
}

/// A weight in thousandths; what cannot be read weighs nothing.
fn weight_milli(weights: &[(String, Value)], backend: &str) -> u64 {
    let Some((_, weight)) = weights.iter().find(|(name, _)| name == backend) else { return 0 };
    match weight {
        Value::Number(number) => number.as_u64().map_or_else(
            || number.as_f64().map_or(0, |wholes| if wholes > 0.0 { 1 } else { 0 }),
            |wholes| wholes.saturating_mul(1_000),
        ),
        Value::String(text) => match text.strip_suffix('m') {
            Some(thousandths) => thousandths.parse().unwrap_or(0),
            None => text.parse::<u64>().unwrap_or(0).saturating_mul(1_000),
        },
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => 0,
    }
}

fn is_of(entry: &Transition, split: &str) -> bool {
    entry.split.as_deref().is_none_or(|of| of == split)
}

/// The first report of a failure of the primary that came after t0: when it failed, and when that was decoded.
fn first_report<'a>(entries: impl Iterator<Item = &'a Transition>, seen: &Observation) -> Option<(u64, u64)> {
    for entry in entries {
        if let Kind::Reported { backend, started_ns, failed_ns, .. } = &entry.kind {
            let begun_after = started_ns.saturating_add(AGE_SLOT_NS) >= seen.t0_ns;
            if *backend == seen.primary && begun_after && *failed_ns >= seen.t0_ns {
                return Some((*failed_ns, entry.at_ns));
            }
        }
    }
    None
}

#[derive(Default)]
struct TakenWrite {
    decided_ns: Option<u64>,
    acknowledged_ns: Option<u64>,
}

/// The first failover that the API server took; where none was taken, the first that was decided.
fn taken_write<'a>(entries: impl Iterator<Item = &'a Transition>, t0_ns: u64) -> TakenWrite {
    let entries: Vec<&Transition> = entries.filter(|entry| entry.at_ns >= t0_ns).collect();
    let taken = entries.iter().find_map(|entry| match &entry.kind {
        Kind::Acknowledged { write, direction } if direction == "failover" => Some((*write, entry.at_ns)),
        _ => None,
    });
    let decided_ns = entries.iter().find_map(|entry| match &entry.kind {
        Kind::Decided { write, direction } if direction == "failover" => {
            taken.is_none_or(|(id, _)| id == *write).then_some(entry.at_ns)
        }
        _ => None,
    });
    TakenWrite { decided_ns, acknowledged_ns: taken.map(|(_, at_ns)| at_ns) }
}

fn control_ms(seen: &Observation) -> Option<f64> {
    let control = seen.control.filter(|control| control.proved)?;
    let written_ns = written_after(&seen.seen, &seen.primary, control.t0_ns)?;
    Some(millis(control.t0_ns, written_ns))
}

/// From one instant to another, to the microsecond; negative where the order is wrong, which is a bug to be seen.
#[expect(clippy::cast_precision_loss, reason = "a run's nanoseconds are far below 2^52")]
fn millis(from_ns: u64, to_ns: u64) -> f64 {
    let micros = (i128::from(to_ns) - i128::from(from_ns)) / 1_000;
    micros as f64 / 1_000.0
}

/// Order statistics by nearest rank; null without values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: Option<f64>,
    /// Below 100 values that is the maximum.
    pub p99: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}

impl Percentiles {
    /// Of the values that are there.
    #[must_use]
    pub fn of(values: impl Iterator<Item = Option<f64>>) -> Self {
        let mut sorted: Vec<f64> = values.flatten().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |hundredths: usize| {
            let nearest = (sorted.len() * hundredths).div_ceil(100).max(1);
            sorted.get(nearest - 1).copied()
        };
        Self { p50: rank(50), p99: rank(99), max: sorted.last().copied() }
    }
}

#[cfg(test)]
mod tests;
