//! Ages as kubectl writes them: a time in text and the present come in, `93s` or `2d4h` goes out. Pure. The steps are
//! those of `k8s.io/apimachinery/pkg/util/duration.HumanDuration`.

use k8s_openapi::jiff::Timestamp;

const MINUTE_S: i64 = 60;
const HOUR_S: i64 = 60 * MINUTE_S;
const DAY_S: i64 = 24 * HOUR_S;
const YEAR_S: i64 = 365 * DAY_S;

/// How long ago the time was, `<unknown>` when it is absent or unreadable.
pub(super) fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human(now.as_second() - time.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

fn human(seconds: i64) -> String {
    let (minutes, hours, days, years) = (seconds / MINUTE_S, seconds / HOUR_S, seconds / DAY_S, seconds / YEAR_S);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        _ if seconds < 2 * MINUTE_S => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % MINUTE_S, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if days < 2 * 365 => format!("{days}d"),
        _ if days < 8 * 365 => two(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

fn two(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_grow_coarser_with_time() {
        for (seconds, shown) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (3 * HOUR_S, "3h"),
            (3 * HOUR_S + 60, "3h1m"),
            (9 * HOUR_S, "9h"),
            (2 * DAY_S, "2d"),
            (2 * DAY_S + 4 * HOUR_S, "2d4h"),
            (30 * DAY_S, "30d"),
            (3 * YEAR_S + DAY_S, "3y1d"),
            (9 * YEAR_S, "9y"),
        ] {
            assert_eq!(human(seconds), shown, "{seconds}");
        }
    }

    #[test]
    fn a_missing_time_has_no_age() {
        assert_eq!(since("", Timestamp::UNIX_EPOCH), "<unknown>");
        assert_eq!(since("1969-12-31T23:59:00.000000Z", Timestamp::UNIX_EPOCH), "60s");
    }
}
