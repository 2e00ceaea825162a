//! The sum of all cold values, read a few at a time. Pure.
//!
//! In: the value at each index in turn, and the last value of an index whose owner changes. Out: sums that never fall.
//! No value is remembered: 50,000 of them would cost more than the maps that hold them. What is shown is at most one
//! turn old.

use probe_common::abi::Cold;
use probe_common::cause::FailureCause;

/// Sums over all cold indices.
#[derive(Debug, Default)]
pub(super) struct ColdSum {
    /// The next offset to be read.
    cursor: u32,
    /// Sum of what this turn has read.
    turn: Cold,
    /// Sum of former owners that left before this turn began.
    former: Cold,
    /// Sum of former owners that left in this turn.
    leaving: Cold,
    shown: Cold,
}

impl ColdSum {
    /// The offset to read next, of `in_use` that were ever used.
    pub(super) fn next(&mut self, in_use: u32) -> Option<u32> {
        if self.cursor >= in_use {
            self.cursor = 0;
            add(&mut self.former, &std::mem::take(&mut self.leaving));
            self.turn = Cold::default();
        }
        (in_use > 0).then_some(self.cursor)
    }

    /// The value at the offset that [`next`](Self::next) named.
    pub(super) fn on_value(&mut self, value: &Cold) {
        add(&mut self.turn, value);
        self.cursor += 1;
        let mut sum = self.turn;
        add(&mut sum, &self.former);
        raise(&mut self.shown, &sum);
    }

    /// The last value of an index that gets a new owner now.
    pub(super) fn on_leave(&mut self, offset: u32, last: &Cold) {
        add(&mut self.leaving, last);
        // An offset that this turn has passed is in its sum already, with what it was then.
        if offset >= self.cursor {
            add(&mut self.turn, last);
        }
    }

    /// The sums, each at most one turn old.
    pub(super) const fn sums(&self) -> &Cold {
        &self.shown
    }
}

fn add(sum: &mut Cold, value: &Cold) {
    sum.attempts += value.attempts;
    sum.established += value.established;
    sum.cancelled += value.cancelled;
    for index in 0..FailureCause::COUNT {
        sum.failed[index] += value.failed[index];
    }
}

fn raise(shown: &mut Cold, sum: &Cold) {
    shown.attempts = shown.attempts.max(sum.attempts);
    shown.established = shown.established.max(sum.established);
    shown.cancelled = shown.cancelled.max(sum.cancelled);
    for index in 0..FailureCause::COUNT {
        shown.failed[index] = shown.failed[index].max(sum.failed[index]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mk_value(attempts: u64) -> Cold {
        Cold { attempts, ..Cold::default() }
    }

    proptest! {
        #[test]
        fn sums_never_fall_never_exceed_and_are_right_after_two_quiet_turns(
            steps in prop::collection::vec((0usize..3, 0usize..6, 1u64..10), 0..300),
        ) {
            let mut values = [0; 6];
            let (mut truth, mut before) = (0, 0);
            let mut sum = ColdSum::default();
            let read = |sum: &mut ColdSum, values: &[u64; 6]| {
                let offset = sum.next(6).expect("six in use");
                sum.on_value(&mk_value(values[offset as usize]));
            };
            for (step, offset, more) in steps {
                match step {
                    0 => {
                        values[offset] += more;
                        truth += more;
                    }
                    1 => {
                        sum.on_leave(offset as u32, &mk_value(values[offset]));
                        values[offset] = 0;
                    }
                    _ => read(&mut sum, &values),
                }
                let shown = sum.sums().attempts;
                prop_assert!(shown >= before && shown <= truth, "{before} <= {shown} <= {truth}");
                before = shown;
            }
            for _ in 0..12 {
                read(&mut sum, &values);
            }
            prop_assert_eq!(sum.sums().attempts, truth);
        }
    }

    #[test]
    fn nothing_in_use_is_nothing_to_read() {
        assert_eq!(ColdSum::default().next(0), None);
    }
}
