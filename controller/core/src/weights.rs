//! Weights: reading what users write, computing what we write. Pure.
//!
//! The one rule that everything here keeps: never all zeros.

use std::fmt;

/// A backend's weight, in thousandths: `1` is 1000, `"900m"` is 900, `0.5` is 500.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight {
    milli: u64,
}

/// Why a text is no weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightError {
    /// Neither a decimal number nor one with the suffix `m`.
    NotANumber,
    /// Below zero.
    Negative,
    /// Finer than a thousandth.
    TooFine,
    /// Above [`Weight::LIMIT`].
    TooLarge,
}

impl fmt::Display for WeightError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotANumber => "is not a number (an integer, a decimal, or thousandths such as \"900m\")",
            Self::Negative => "is negative",
            Self::TooFine => "is finer than a thousandth",
            Self::TooLarge => "is above 1000000",
        })
    }
}

impl std::error::Error for WeightError {}

impl Weight {
    /// No traffic.
    pub const ZERO: Self = Self { milli: 0 };
    /// The weight that steady states give the active backends, as linkerd-failover does.
    pub const ONE: Self = Self { milli: 1000 };
    /// The largest weight that is taken: a million. Sums of 1,000 backends stay far from overflow.
    pub const LIMIT: Self = Self { milli: 1_000_000_000 };

    /// A weight of so many wholes; saturates at [`Weight::LIMIT`].
    #[must_use]
    pub const fn whole(units: u32) -> Self {
        let milli = units as u64 * 1000;
        Self { milli: if milli > Self::LIMIT.milli { Self::LIMIT.milli } else { milli } }
    }

    /// In thousandths.
    #[must_use]
    pub const fn milli(self) -> u64 {
        self.milli
    }

    /// Whether it draws no traffic.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.milli == 0
    }

    /// From the text of a JSON number or string.
    ///
    /// # Errors
    ///
    /// [`WeightError`].
    pub fn parse(text: &str) -> Result<Self, WeightError> {
        if let Some(magnitude) = text.strip_prefix('-') {
            return match Self::parse(magnitude) {
                Ok(Self::ZERO) => Ok(Self::ZERO),
                Ok(_) | Err(WeightError::TooLarge) => Err(WeightError::Negative),
                Err(error) => Err(error),
            };
        }
        if let Some(thousandths) = text.strip_suffix('m') {
            return Self::from_milli(digits(thousandths)?);
        }
        // JSON numbers may come with an exponent (1e3, 1.0E0): shift the point instead of using floats.
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().map_err(|_| WeightError::NotANumber)?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.is_empty() || !(whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit())) {
            return Err(WeightError::NotANumber);
        }
        let all = format!("{whole}{fraction}");
        let significant = all.trim_start_matches('0');
        if significant.is_empty() {
            return Ok(Self::ZERO);
        }
        let scale = exponent.saturating_add(3).saturating_sub(i32::try_from(fraction.len()).unwrap_or(i32::MAX));
        if scale >= 0 {
            let zeros = usize::try_from(scale).unwrap_or(usize::MAX);
            if significant.len().saturating_add(zeros) > 12 {
                return Err(WeightError::TooLarge);
            }
            return Self::from_milli(digits(&format!("{significant}{}", "0".repeat(zeros)))?);
        }
        let cut = usize::try_from(scale.unsigned_abs()).unwrap_or(usize::MAX);
        let (kept, dropped) = significant.split_at(significant.len().saturating_sub(cut));
        if dropped.bytes().any(|byte| byte != b'0') {
            return Err(WeightError::TooFine);
        }
        Self::from_milli(digits(kept)?)
    }

    /// From thousandths.
    ///
    /// # Errors
    ///
    /// [`WeightError::TooLarge`].
    pub const fn from_milli(milli: u64) -> Result<Self, WeightError> {
        if milli > Self::LIMIT.milli { Err(WeightError::TooLarge) } else { Ok(Self { milli }) }
    }
}

impl fmt::Display for Weight {
    /// As the API takes it: an integer where it is one, else thousandths.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.milli.is_multiple_of(1000) { write!(f, "{}", self.milli / 1000) } else { write!(f, "{}m", self.milli) }
    }
}

fn digits(text: &str) -> Result<u64, WeightError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(WeightError::NotANumber);
    }
    if text.trim_start_matches('0').len() > 12 {
        return Err(WeightError::TooLarge);
    }
    text.parse().map_err(|_| WeightError::TooLarge)
}

/// The weights of a failover: the primary gets none, the chosen secondaries what `steady` gives them, or one each where
/// it gives none of them any. `None` when no secondary is chosen: all zeros are never written.
#[must_use]
pub fn failover(primary: usize, chosen: &[bool], steady: &[Weight]) -> Option<Vec<Weight>> {
    let is_chosen = |index: usize| index != primary && chosen.get(index).copied().unwrap_or(false);
    let steady_of = |index: usize| steady.get(index).copied().unwrap_or(Weight::ZERO);
    let has_steady = (0..chosen.len()).any(|index| is_chosen(index) && !steady_of(index).is_zero());
    let weight = |index| match (is_chosen(index), has_steady) {
        (false, _) => Weight::ZERO,
        (true, true) => steady_of(index),
        (true, false) => Weight::ONE,
    };
    unless_all_zero((0..chosen.len()).map(weight).collect())
}

/// A step of the ramp: the primary gets `share` of a thousand, the chosen secondaries divide the rest. `None` when no
/// secondary is chosen, or the share leaves nothing to either side.
#[must_use]
pub fn ramp(primary: usize, chosen: &[bool], share: u16) -> Option<Vec<Weight>> {
    let secondaries = chosen.iter().enumerate().filter(|(index, chosen)| *index != primary && **chosen).count();
    let rest = 1000u32.saturating_sub(u32::from(share));
    let each = rest.checked_div(u32::try_from(secondaries).ok()?)?;
    if share == 0 || each == 0 {
        return None;
    }
    let mut left = rest - each * u32::try_from(secondaries).ok()?;
    let mut weight = |(index, chosen): (usize, &bool)| match (index == primary, chosen) {
        (true, _) => Weight::whole(u32::from(share)),
        (false, false) => Weight::ZERO,
        // What the division leaves over goes to the first.
        (false, true) => Weight::whole(each + std::mem::take(&mut left)),
    };
    Some(chosen.iter().enumerate().map(&mut weight).collect())
}

/// The weights of the steady state: as they were before the failover, or all to the primary where that is not known.
#[must_use]
pub fn steady(primary: usize, recorded: &[Weight]) -> Option<Vec<Weight>> {
    if recorded.get(primary).is_some_and(|weight| !weight.is_zero()) {
        return Some(recorded.to_vec());
    }
    let weight = |index| if index == primary { Weight::ONE } else { Weight::ZERO };
    unless_all_zero((0..recorded.len()).map(weight).collect())
}

fn unless_all_zero(weights: Vec<Weight>) -> Option<Vec<Weight>> {
    weights.iter().any(|weight| !weight.is_zero()).then_some(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_weights_are_read_to_the_thousandth() {
        let check = |text: &str, milli| assert_eq!(Weight::parse(text).map(Weight::milli), Ok(milli), "{text}");
        check("0", 0);
        check("1", 1000);
        check("900m", 900);
        check("0.5", 500);
        check("0.500000", 500);
        check("1e3", 1_000_000);
        check("1.5E0", 1500);
        check("25e-2", 250);
        check("-0", 0);
        check("1000000", 1_000_000_000);
    }

    #[test]
    fn everything_else_says_what_is_wrong() {
        let check = |text: &str, error| assert_eq!(Weight::parse(text), Err(error), "{text}");
        check("abc", WeightError::NotANumber);
        check("", WeightError::NotANumber);
        check(".5", WeightError::NotANumber);
        check("1.2.3", WeightError::NotANumber);
        check("m", WeightError::NotANumber);
        check("-1", WeightError::Negative);
        check("-abc", WeightError::NotANumber);
        check("1e30", WeightError::TooLarge);
        check("1e999999999999", WeightError::NotANumber);
        check("99999999999999999999999999m", WeightError::TooLarge);
        check("0.0001", WeightError::TooFine);
    }

    #[test]
    fn a_weight_prints_as_the_api_takes_it() {
        assert_eq!(Weight::parse("900m").map(|weight| weight.to_string()), Ok("900m".into()));
        assert_eq!(Weight::ONE.to_string(), "1");
    }

    #[test]
    fn a_failover_keeps_the_ratio_of_the_secondaries_or_gives_each_one() {
        let weights = |units: &[u32]| units.iter().map(|unit| Weight::whole(*unit)).collect::<Vec<_>>();
        assert_eq!(failover(0, &[true, true, true], &weights(&[1, 0, 0])), Some(weights(&[0, 1, 1])));
        assert_eq!(failover(0, &[true, false, true], &weights(&[1, 0, 0])), Some(weights(&[0, 0, 1])));
        assert_eq!(failover(0, &[true, true, true], &weights(&[60, 30, 10])), Some(weights(&[0, 30, 10])));
        assert_eq!(failover(0, &[true, false, false], &weights(&[60, 30, 10])), None);
        assert_eq!(failover(0, &[true], &weights(&[1])), None);
    }

    #[test]
    fn a_ramp_divides_a_thousand() {
        let weights = |units: &[u32]| units.iter().map(|unit| Weight::whole(*unit)).collect::<Vec<_>>();
        assert_eq!(ramp(0, &[true, true], 50), Some(weights(&[50, 950])));
        assert_eq!(ramp(1, &[true, true, false, true], 50), Some(weights(&[475, 50, 0, 475])));
        assert_eq!(ramp(0, &[true, true, true, true], 500), Some(weights(&[500, 168, 166, 166])));
        assert_eq!(ramp(0, &[true, false], 50), None);
    }

    proptest::proptest! {
        #[test]
        fn no_weights_that_are_ever_planned_are_all_zero(
            primary in 0usize..6, chosen in proptest::collection::vec(proptest::bool::ANY, 0..6), share in 0u16..1200,
            recorded in proptest::collection::vec(0u32..3, 0..6),
        ) {
            let recorded: Vec<_> = recorded.into_iter().map(Weight::whole).collect();
            for planned in [failover(primary, &chosen, &recorded), ramp(primary, &chosen, share), steady(primary, &recorded)].into_iter().flatten() {
                proptest::prop_assert!(planned.iter().any(|weight| !weight.is_zero()), "{planned:?}");
            }
        }
    }
}
