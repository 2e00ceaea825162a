//! The page that the cases make: entries in, Markdown out, and a comparison with the committed one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// One row.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) section: &'static str,
    pub(crate) input: &'static str,
    /// What was logged, one line each.
    pub(crate) log: Vec<String>,
    /// Reason and note of each Event.
    pub(crate) events: Vec<String>,
    /// The metric that counts it.
    pub(crate) metric: &'static str,
    /// What was logged when it was mended.
    pub(crate) mended: Vec<String>,
    pub(crate) goes_on: &'static str,
}

const HEAD: &str = "\
# Bad input, and what it prints

This page is made by the test that feeds each of these to the controller's own binary, `controller/tests/bad_input.rs`; it
fails when the page and the program differ. In every case a healthy split stands beside, and has to fail over while the
bad thing is there; where a row says otherwise, it says why.

How to read it: *Log* is a line of the controller's log (`--log-format json` has the same fields), *Event* the reason and
note of the Kubernetes Event on the split, *Metric* what to alert on, *When mended* the line that says that it is over. A
mistake is told once when it appears, not once per reconciliation, and stands in `/state` under `findings` for as long as
it is there. Peers' ports are shown as `*`.

Not among them:

- `FailoverPolicy` does not exist yet. Until it does, two policies for one split can only be two splits of one apex Service.
- TrafficSplits of v1alpha1 and v1alpha2 are two views of one stored object (the CRD converts nothing), so that they cannot
  contradict each other.
- What the API server itself refuses (a weight of a wrong type, an address that is none in a slice of IPv4) is listed where
  objects from before such a check, or from a store that somebody edited, still have to be lived with.
- Wrong settings end the program with exit code 64 before it starts, all of them told at once.
";

fn render(entries: &[Entry]) -> String {
    let mut page = HEAD.to_owned();
    let mut section = "";
    for entry in entries {
        if entry.section != section {
            section = entry.section;
            write!(page, "\n## {section}\n").unwrap();
        }
        write!(page, "\n### {}\n\n", entry.input).unwrap();
        list(&mut page, "Log", &entry.log);
        list(&mut page, "Event", &entry.events);
        if !entry.metric.is_empty() {
            writeln!(page, "- Metric: `{}`", entry.metric).unwrap();
        }
        list(&mut page, "When mended", &entry.mended);
        writeln!(page, "- What goes on: {}", entry.goes_on).unwrap();
    }
    page
}

fn list(page: &mut String, name: &str, lines: &[String]) {
    match lines {
        [] if name == "Log" => writeln!(page, "- {name}: nothing").unwrap(),
        [] => {}
        lines => lines.iter().for_each(|line| writeln!(page, "- {name}: `{}`", line.replace('`', "'")).unwrap()),
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bad-input.md")
}

/// Fails where the committed page and what happened differ, with the first lines that do.
pub(crate) fn compare(entries: &[Entry]) {
    let made = render(entries);
    let committed = std::fs::read_to_string(path()).unwrap_or_default();
    if made == committed {
        return;
    }
    let differ = made.lines().zip(committed.lines().chain(std::iter::repeat(""))).filter(|(made, there)| made != there);
    let told: Vec<_> = differ.take(5).map(|(made, there)| format!("now:       {made}\ncommitted: {there}")).collect();
    panic!(
        "docs/bad-input.md is not what happens:\n{}\n\nIf this is meant: cargo test -p controller --test bad_input -- --ignored",
        told.join("\n")
    );
}

/// Writes the page.
pub(crate) fn write(entries: &[Entry]) {
    std::fs::create_dir_all(path().parent().unwrap()).unwrap();
    std::fs::write(path(), render(entries)).unwrap();
}
