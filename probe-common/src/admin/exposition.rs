//! OpenMetrics text in, Prometheus text format 0.0.4 out. Pure.
//!
//! The two differ in what the scrapers of the field trip over: OpenMetrics names a counter family without the `_total`
//! that its samples have, ends with `# EOF`, knows `# UNIT`, the types `info` and `unknown`, and exemplars. Everything
//! else is passed on as it is: no family is renamed beyond its own samples, dropped or sorted.

/// Content type of the text format, as Prometheus' documentation of exposition formats spells it
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
pub(super) const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Content type of OpenMetrics 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
pub(super) const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Rewrites a complete OpenMetrics exposition.
pub(super) fn text_format(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + openmetrics.len() / 16);
    // Family names depend on the type, and the type's line comes after the help's.
    let mut help = None;
    for line in openmetrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(without_exemplar(line));
            text.push('\n');
            continue;
        };
        match comment.split_once(' ') {
            Some(("HELP", rest)) => help = rest.split_once(' '),
            Some(("TYPE", rest)) => write_family(&mut text, rest, help.take()),
            // `EOF`, `UNIT` and what a later version may add: comments mean nothing to the text format.
            _ => {}
        }
    }
    text
}

fn write_family(text: &mut String, type_line: &str, help: Option<(&str, &str)>) {
    let (name, kind) = type_line.split_once(' ').unwrap_or((type_line, "unknown"));
    let (suffix, kind) = match kind {
        "counter" => ("_total", "counter"),
        "info" => ("_info", "gauge"),
        "unknown" => ("", "untyped"),
        known => ("", known),
    };
    let help = help.map_or("", |(_, help)| help);
    for part in ["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"] {
        text.push_str(part);
    }
}

/// Cuts ` # {...} value` behind a sample; a `#` within a label's value stays.
fn without_exemplar(line: &str) -> &str {
    let mut in_quotes = false;
    let mut escaped = false;
    for (position, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_quotes => escaped = true,
            b'"' => in_quotes = !in_quotes,
            b'#' if !in_quotes => return line[..position].trim_end(),
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::text_format;

    #[track_caller]
    fn check(openmetrics: &str, expected: &str) {
        assert_eq!(text_format(openmetrics), expected);
    }

    #[test]
    fn a_counter_family_is_named_as_its_samples_are() {
        check(
            "# HELP a_b Things.\n# TYPE a_b counter\na_b_total{x=\"1\"} 7\na_b_total{x=\"2\"} 8\n# EOF\n",
            "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total{x=\"1\"} 7\na_b_total{x=\"2\"} 8\n",
        );
    }

    #[test]
    fn gauges_and_histograms_stay_as_they_are_and_units_go() {
        check(
            "# HELP g_bytes Size.\n# TYPE g_bytes gauge\n# UNIT g_bytes bytes\ng_bytes 1\n\
             # HELP h Time.\n# TYPE h histogram\nh_sum 0.5\nh_count 1\nh_bucket{le=\"+Inf\"} 1\n# EOF\n",
            "# HELP g_bytes Size.\n# TYPE g_bytes gauge\ng_bytes 1\n\
             # HELP h Time.\n# TYPE h histogram\nh_sum 0.5\nh_count 1\nh_bucket{le=\"+Inf\"} 1\n",
        );
    }

    #[test]
    fn types_that_the_text_format_lacks_are_replaced() {
        check(
            "# HELP build Version.\n# TYPE build info\nbuild_info{version=\"1\"} 1\n# HELP u U.\n# TYPE u unknown\nu 2\n",
            "# HELP build_info Version.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n\
             # HELP u U.\n# TYPE u untyped\nu 2\n",
        );
    }

    #[test]
    fn an_exemplar_goes_and_a_hash_in_a_label_stays() {
        check("a_total{x=\" # {\\\"\"} 7 # {trace=\"9\"} 1.0 12.5\n", "a_total{x=\" # {\\\"\"} 7\n");
    }
}
