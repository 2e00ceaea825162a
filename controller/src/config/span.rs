//! Durations as people write them: `250ms`, `10s`, `1m`, `2h`. Pure.
//!
//! In: text. Out: a [`Duration`], or one sentence on what is wrong. Deliberately no fractions and no sums (`1m30s`): every
//! duration has one spelling to search for.

use std::fmt;
use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpanError {
    /// No digits, or something other than digits before the unit.
    NotANumber,
    /// No unit, or none that is known.
    Unit,
    /// More than a `u64` of milliseconds.
    TooLarge,
}

impl fmt::Display for SpanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotANumber => "is not a duration: write a whole number and a unit, such as 250ms, 10s or 1m",
            Self::Unit => "has no unit: write ms, s, m or h after the number, such as 250ms, 10s or 1m",
            Self::TooLarge => "is too large",
        })
    }
}

/// Reads `text`.
pub(crate) fn parse(text: &str) -> Result<Duration, SpanError> {
    let digits = text.len() - text.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(SpanError::NotANumber);
    }
    let factor_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => return Err(SpanError::Unit),
        _ if unit.bytes().all(|letter| letter.is_ascii_alphabetic()) => return Err(SpanError::Unit),
        _ => return Err(SpanError::NotANumber),
    };
    let number: u64 = number.parse().map_err(|_| SpanError::TooLarge)?;
    number.checked_mul(factor_ms).map(Duration::from_millis).ok_or(SpanError::TooLarge)
}

/// Writes `span` as [`parse`] reads it, in the largest unit that keeps it whole.
pub(crate) fn format(span: Duration) -> String {
    let ms = span.as_millis();
    match ms {
        0 => "0s".to_owned(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read_and_written_back() {
        let check = |text: &str, ms| {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(format(Duration::from_millis(ms)), text);
        };
        check("0s", 0);
        check("250ms", 250);
        check("1500ms", 1_500);
        check("10s", 10_000);
        check("1m", 60_000);
        check("2h", 7_200_000);
    }

    #[test]
    fn everything_else_says_what_is_wrong() {
        let check = |text: &str, error| assert_eq!(parse(text), Err(error), "{text}");
        check("", SpanError::NotANumber);
        check("s", SpanError::NotANumber);
        check("-1s", SpanError::NotANumber);
        check("1.5s", SpanError::NotANumber);
        check("1m30s", SpanError::NotANumber);
        check("10", SpanError::Unit);
        check("10 s", SpanError::NotANumber);
        check("10sec", SpanError::Unit);
        check("10d", SpanError::Unit);
        check("99999999999999999999s", SpanError::TooLarge);
        check("18446744073709551615h", SpanError::TooLarge);
    }
}
