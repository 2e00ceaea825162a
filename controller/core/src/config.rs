//! The settings of the judgement. Pure.

use std::time::Duration;

/// Settings; [`Config::default`] is the profile `default`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether writes are asked for at all, or only recorded as held.
    pub mode: Mode,
    /// At least this long between the first failing attempt of an episode and the last look (C7).
    pub hold: Duration,
    /// The same for a Service with one ready endpoint, which C2 cannot protect.
    pub single_endpoint_hold: Duration,
    /// Age from which an attempt without an answer counts as late, in the cluster.
    pub late_after: Duration,
    /// The same through a gateway.
    pub late_after_gateway: Duration,
    /// Evidence of an agent that is silent for this long weighs nothing.
    pub stale_after: Duration,
    /// Its weight begins to fall from here.
    pub decay_from: Duration,
    /// How long a failover lasts at least; doubled by each further one without a quiet hour between.
    pub dwell: Duration,
    /// The longest dwell.
    pub dwell_max: Duration,
    /// Moves caused by readiness alone go back when it has held for this long.
    pub readiness_hold: Duration,
    /// Straight successful checks before a failback of a move caused by connections.
    pub recovery_successes: u32,
    /// And over at least this long.
    pub recovery_span: Duration,
    /// Shares of the primary during the ramp, in thousandths; the steady weights follow the last.
    pub ramp: Vec<u16>,
    /// How long each step of the ramp lasts.
    pub ramp_step: Duration,
    /// At most one cause group may fail over per this span.
    pub group_spacing: Duration,
    /// And at most this many per [`Config::group_window`].
    pub group_limit: u32,
    /// See [`Config::group_limit`].
    pub group_window: Duration,
    /// From one canary of a node to its next, per target that is idle or stands by.
    pub canary_interval: Duration,
    /// The same for a target with traffic of its own.
    pub canary_interval_busy: Duration,
    /// Checks of all targets together, per second.
    pub checks_per_second: u32,
}

/// What the controller does with its decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Write them.
    Enforce,
    /// Record them, write nothing.
    Observe,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            // Shorter than the blips that must not move anything (50 ms) would be 30 ms, the profile `fast`.
            hold: Duration::from_millis(100),
            single_endpoint_hold: Duration::from_millis(250),
            // About 8 times the p99 handshake inside a cluster, and never below what a loaded node's own scheduling adds.
            late_after: Duration::from_millis(25),
            late_after_gateway: Duration::from_millis(125),
            // One lost segment of the agent's stream costs a TCP retransmission of 200 ms.
            stale_after: Duration::from_millis(350),
            decay_from: Duration::from_millis(150),
            dwell: Duration::from_secs(30),
            dwell_max: Duration::from_secs(15 * 60),
            readiness_hold: Duration::from_secs(5),
            // ln(1e6) / 0.683 nats per success, rounded up.
            recovery_successes: 21,
            recovery_span: Duration::from_secs(5),
            ramp: vec![50, 250, 500],
            ramp_step: Duration::from_secs(5),
            group_spacing: Duration::from_secs(10),
            group_limit: 3,
            group_window: Duration::from_secs(600),
            canary_interval: Duration::from_millis(250),
            canary_interval_busy: Duration::from_secs(1),
            checks_per_second: 2_000,
        }
    }
}
