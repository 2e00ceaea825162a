//! Spans as people say them. Pure.

/// Two units at most: `12 ms`, `4.2 s`, `3m10s`, `2h5m`, `4d2h`.
pub(crate) fn of_ms(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s}.{} s", ms % 1_000 / 100),
        60..3_600 => format!("{}m{}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_the_units_that_matter() {
        let check = |ms, text| assert_eq!(of_ms(ms), text);
        check(0, "0 ms");
        check(999, "999 ms");
        check(4_250, "4.2 s");
        check(190_000, "3m10s");
        check(7_500_000, "2h5m");
        check(352_800_000, "4d2h");
    }
}
