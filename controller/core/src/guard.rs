//! What can hold a split where it is although a backend looks dead. Pure.

/// The first of the conditions, in this order, that is not met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// Not every watch has delivered its first list, or agents are still sending their totals.
    NotWarm,
    /// A write of this split is under way.
    WritePending,
    /// Too few agents are fresh to tell a dead backend from a dead network (C6).
    FewFreshAgents,
    /// Fewer than two nodes can observe the backend (C3).
    InsufficientObservers,
    /// Nobody ever saw the backend healthy (C6).
    NeverHealthy,
    /// No other backend is proved healthy (C5).
    NoHealthySecondary,
    /// Too many unrelated groups of backends failed lately (C6).
    Budget,
    /// The split moved too short a time ago.
    Dwell,
    /// `--mode observe`: decide and record, write nothing.
    ObserveMode,
}

impl Guard {
    /// Its name in metrics and /state.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotWarm => "not-warm",
            Self::WritePending => "write-pending",
            Self::FewFreshAgents => "few-fresh-agents",
            Self::InsufficientObservers => "insufficient-observers",
            Self::NeverHealthy => "never-healthy",
            Self::NoHealthySecondary => "no-healthy-secondary",
            Self::Budget => "budget",
            Self::Dwell => "dwell",
            Self::ObserveMode => "observe-mode",
        }
    }

    /// One sentence for an Event or `explain`.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NotWarm => "not every watch and agent has reported in since the controller started",
            Self::WritePending => "a write of this split is under way",
            Self::FewFreshAgents => "no more than half of the agents are fresh",
            Self::InsufficientObservers => "fewer than two nodes can observe it",
            Self::NeverHealthy => "nobody has seen it healthy yet",
            Self::NoHealthySecondary => "no other backend is proved healthy",
            Self::Budget => "too many unrelated backends failed within a short time",
            Self::Dwell => "the split moved a short time ago",
            Self::ObserveMode => "the controller runs in observe mode",
        }
    }
}
