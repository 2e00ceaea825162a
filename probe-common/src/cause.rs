//! Why a connection attempt, or the flow that followed it, failed. Pure.
//!
//! The order is part of the kernel contract (an index into counters) and of the wire: append, never reorder.

/// The cause of one failure, as the kernel of the connecting node saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[repr(u32)]
pub enum FailureCause {
    /// A RST answered the SYN: nothing listens there.
    Refused = 0,
    /// ICMP, or the neighbour layer, said that there is no way there.
    Unreachable = 1,
    /// Nothing answered within the destination's time, or the kernel gave up retransmitting.
    NoAnswer = 2,
    /// The connection was established and reset before the first byte of an answer.
    Reset = 3,
}

impl FailureCause {
    /// How many causes there are: the length of every per-cause array.
    pub const COUNT: usize = 4;

    /// Every cause, in the order of its index.
    pub const ALL: [Self; Self::COUNT] = [Self::Refused, Self::Unreachable, Self::NoAnswer, Self::Reset];

    /// Its place in a per-cause array.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The cause at that place, or `None` for a number from a newer peer.
    #[must_use]
    pub const fn from_index(index: u32) -> Option<Self> {
        match index {
            0 => Some(Self::Refused),
            1 => Some(Self::Unreachable),
            2 => Some(Self::NoAnswer),
            3 => Some(Self::Reset),
            _ => None,
        }
    }

    /// Its name in metrics, logs and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::NoAnswer => "no-answer",
            Self::Reset => "reset",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FailureCause;

    #[test]
    fn an_index_leads_back_to_its_cause() {
        for (index, cause) in FailureCause::ALL.into_iter().enumerate() {
            assert_eq!(cause.index(), index);
            assert_eq!(FailureCause::from_index(index as u32), Some(cause));
        }
        assert_eq!(FailureCause::from_index(FailureCause::COUNT as u32), None);
    }
}
