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
        if text.starts_with('-') {
            return match Self::parse(&text[1..]) {
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
        if self.milli % 1000 == 0 { write!(f, "{}", self.milli / 1000) } else { write!(f, "{}m", self.milli) }
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
}
