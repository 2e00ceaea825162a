//! One run's figures. In: everything that one run saw, as raw CLOCK_MONOTONIC nanoseconds. Out: what the report says of
//! it, in milliseconds since t0, null for what did not happen. Not here: whether that is good. Pure.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::drill::observation::{Observation, Seen, SplitObservation};
use crate::drill::transition::{Kind, Transition};

/// One run as the report says it. All `_ms` are since t0; those of writes are the last split's where there are several,
/// and null where one of them did not move.
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
    /// What the controller called the reason for staying, when the run was closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// The clients' connections from t0 to the closing.
    pub requests: Requests,
    /// How often the split left its primary; of several splits, the one that did so most often.
    pub failovers: u32,
    /// How often it came back whole; of several splits as above.
    pub failbacks: u32,
    /// As they stood at the closing, of all splits.
    pub weights: Map<String, Value>,
    /// The way back, where the scenario waits for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failback: Option<Failback>,
    /// Each split, where there are several or where one changed more than once.
    #[serde(skip_serializing_if = "is_told_already")]
    pub splits: Vec<SplitRun>,
}

/// One split of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SplitRun {
    /// `namespace/name`.
    pub split: String,
    /// Its primary backend.
    pub primary: String,
    /// As [`Run::decided_ms`].
    pub decided_ms: Option<f64>,
    /// As [`Run::written_ms`].
    pub written_ms: Option<f64>,
    /// As [`Run::acknowledged_ms`].
    pub acknowledged_ms: Option<f64>,
    /// As [`Run::shifted_ms`].
    pub shifted_ms: Option<f64>,
    /// How often it left its primary.
    pub failovers: u32,
    /// How often it came back whole.
    pub failbacks: u32,
    /// As they stood at the closing.
    pub weights: Map<String, Value>,
    /// Every change of the weights up to the closing.
    pub changes: Vec<Change>,
}

/// One change of a split's weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Change {
    /// When the drill's watch delivered it.
    pub at_ms: f64,
    /// Whether it took the last weight from the primary.
    pub left: bool,
    /// Weights in the object's order.
    pub weights: Vec<Value>,
}

/// A run of one split that changed once at most, or came back as planned, is told by its other fields.
fn is_told_already(splits: &[SplitRun]) -> bool {
    let [only] = splits else { return splits.is_empty() };
    only.failovers <= 1 && only.failbacks <= 1
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
    let report = first_report(seen);
    let splits: Vec<SplitRun> = seen.splits.iter().map(|split| measure_split(split, seen)).collect();
    let last = |time: fn(&SplitRun) -> Option<f64>| last_of_all(splits.iter().map(time));
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
        decided_ms: last(|split| split.decided_ms),
        written_ms: last(|split| split.written_ms),
        acknowledged_ms: last(|split| split.acknowledged_ms),
        shifted_ms: last(|split| split.shifted_ms),
        control_ms: control_ms(seen),
        held_by: seen.held_by.clone(),
        requests: Requests { sent: seen.clients.sent, failed: seen.clients.failed },
        failovers: splits.iter().map(|split| split.failovers).max().unwrap_or(0),
        failbacks: splits.iter().map(|split| split.failbacks).max().unwrap_or(0),
        weights: splits.iter().flat_map(|split| split.weights.clone()).collect(),
        failback: seen.healed.map(|healed| Failback {
            healed_ms: since(healed.healed_ns),
            steps: splits.first().map(steps).unwrap_or_default(),
            failed_after_heal: healed.failed_after,
        }),
        splits,
    }
}

/// The greatest, if all are there.
fn last_of_all(times: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let times: Option<Vec<f64>> = times.collect();
    times?.into_iter().max_by(f64::total_cmp)
}

fn measure_split(of: &SplitObservation, seen: &Observation) -> SplitRun {
    let since = |at_ns: u64| millis(seen.t0_ns, at_ns);
    let moves = Moves::of(of, seen);
    let write = taken_write(counted(seen).filter(|entry| is_of(entry, &of.split)), seen.t0_ns);
    SplitRun {
        split: of.split.clone(),
        primary: of.primary.clone(),
        decided_ms: write.decided_ns.map(since),
        written_ms: moves.changes.iter().find(|change| change.left).map(|change| change.at_ms),
        acknowledged_ms: write.acknowledged_ns.map(since),
        shifted_ms: of.shifted_ns.filter(|at_ns| *at_ns <= seen.closed_ns).map(since),
        failovers: moves.failovers,
        failbacks: moves.failbacks,
        weights: moves.weights.into_iter().collect(),
        changes: moves.changes,
    }
}

/// The way back: what followed the first failover and was none itself.
fn steps(split: &SplitRun) -> Vec<Step> {
    let after_first = split.changes.iter().skip_while(|change| !change.left);
    let on_the_way = after_first.filter(|change| !change.left);
    on_the_way.map(|change| Step { at_ms: change.at_ms, weights: change.weights.clone() }).collect()
}

/// Up to the closing.
fn counted(seen: &Observation) -> impl Iterator<Item = &Transition> {
    seen.transitions.iter().filter(|entry| entry.at_ns <= seen.closed_ns)
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
    failovers: u32,
    failbacks: u32,
    weights: Vec<(String, Value)>,
    changes: Vec<Change>,
}

impl Moves {
    fn of(split: &SplitObservation, seen: &Observation) -> Self {
        let steady = split.seen.first().map(|look| look.weights.clone()).unwrap_or_default();
        let mut moves = Self { failovers: 0, failbacks: 0, weights: steady.clone(), changes: Vec::new() };
        for look in split.seen.iter().filter(|look| look.at_ns <= seen.closed_ns) {
            if look.weights == moves.weights {
                continue;
            }
            let was_active = weight_milli(&moves.weights, &split.primary) > 0;
            let left = was_active && weight_milli(&look.weights, &split.primary) == 0;
            moves.failovers += u32::from(left);
            moves.failbacks += u32::from(look.weights == steady);
            moves.changes.push(Change {
                at_ms: millis(seen.t0_ns, look.at_ns),
                left,
                weights: look.weights.iter().map(|(_, weight)| weight.clone()).collect(),
            });
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

/// The first report of a failure of a primary that came after t0: when it failed, and when that was decoded.
fn first_report(seen: &Observation) -> Option<(u64, u64)> {
    for entry in counted(seen) {
        if let Kind::Reported { backend, started_ns, failed_ns, .. } = &entry.kind {
            let is_primary = seen.splits.iter().any(|split| split.primary == *backend && is_of(entry, &split.split));
            let begun_after = started_ns.saturating_add(AGE_SLOT_NS) >= seen.t0_ns;
            if is_primary && begun_after && *failed_ns >= seen.t0_ns {
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

/// The last split's.
fn control_ms(seen: &Observation) -> Option<f64> {
    let control = seen.control.filter(|control| control.proved)?;
    let written = |split: &SplitObservation| written_after(&split.seen, &split.primary, control.t0_ns);
    last_of_all(seen.splits.iter().map(|split| written(split).map(|at_ns| millis(control.t0_ns, at_ns))))
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
