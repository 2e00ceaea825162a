//! `check --node` as a person runs it: with all rights, and with rights taken away. What needs root is ignored here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions that its steps share")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const SPLITSECOND: &str = env!("CARGO_BIN_EXE_splitsecond");

/// Every check by its description, with its result and what it says.
type Found = Vec<(String, String, String)>;

fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).env_remove("SPLITSECOND_CGROUP_ROOT").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn found(output: &Output) -> Found {
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(json["success"], output.status.success(), "the exit code says what the report says");
    let checks = json["categories"].as_array().unwrap().iter().flat_map(|one| one["checks"].as_array().unwrap());
    let said = |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
    checks
        .map(|check| {
            let all = format!("{}; hint: {}", said(check, "error"), said(check, "hint"));
            (said(check, "description"), said(check, "result"), all)
        })
        .collect()
}

/// Runs the check with these capabilities only, as uid 0, as a container with `drop: [ALL]` would.
fn with_capabilities(set: &str) -> (Output, Found) {
    let (inherited, bounding) = (format!("--inh-caps={set}"), format!("--bounding-set={set}"));
    let line = ["--no-new-privs", &inherited, &bounding, SPLITSECOND, "check", "--node", "--output", "json"];
    let output = run(Path::new("setpriv"), &line);
    let found = found(&output);
    (output, found)
}

#[track_caller]
fn result<'a>(found: &'a Found, start: &str) -> (&'a str, &'a str) {
    let check = found.iter().find(|(description, ..)| description.starts_with(start));
    let (_, result, said) = check.unwrap_or_else(|| panic!("no {start:?} in {found:#?}"));
    (result, said)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn with_all_rights_every_step_passes_again_and_again() {
    for _ in 0..2 {
        let output = run(Path::new(SPLITSECOND), &["check", "--node"]);
        let said = text(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains('×') && said.ends_with("Status check results are √\n"), "{said}");
        for part in ["kernel\n------\n√ Linux ", "√ cgroup2 root", "√ CAP_BPF", "inet_sock_set_state attaches\n", "KiB"]
        {
            assert!(said.contains(part), "no {part:?} in {said}");
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn each_right_that_is_taken_away_has_its_line() {
    let (output, found) = with_capabilities("-all,+bpf,+perfmon,+net_admin");
    assert!(output.status.success(), "the manifest's rights: {found:#?}");
    assert!(found.iter().all(|(_, result, _)| result == "success"), "{found:#?}");

    let (output, found) = with_capabilities("-all,+bpf,+perfmon");
    assert!(output.status.success(), "counting works without NET_ADMIN: {found:#?}");
    assert_eq!(result(&found, "CAP_NET_ADMIN").0, "warning");

    let (output, found) = with_capabilities("-all,+bpf,+net_admin");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(result(&found, "CAP_BPF").0, "success");
    let (outcome, said) = result(&found, "CAP_PERFMON");
    assert!(outcome == "error" && said.contains("capabilities.add: [PERFMON]"), "{said}");
    assert_eq!(result(&found, "maps can be made").0, "success");
    let (outcome, said) = result(&found, "program inet_sock_set_state loads");
    assert!(outcome == "error" && said.contains("Operation not permitted"), "{said}");
    assert!(result(&found, "program inet_sock_set_state attaches").1.starts_with("not tried"));

    let (output, found) = with_capabilities("-all,+perfmon,+net_admin");
    assert_eq!(output.status.code(), Some(1));
    let (outcome, said) = result(&found, "CAP_BPF");
    assert!(outcome == "error" && said.contains("capabilities.add: [BPF]"), "{said}");
    let (outcome, said) = result(&found, "maps can be made");
    assert!(outcome == "error" && said.contains("CAP_BPF"), "{said}");

    let (output, found) = with_capabilities("-all");
    assert_eq!(output.status.code(), Some(1));
    for capability in ["CAP_BPF", "CAP_PERFMON"] {
        assert_eq!(result(&found, capability).0, "error");
    }
    assert_eq!(result(&found, "kernel describes its types").0, "success", "everybody may read them");
}

#[test]
fn a_root_that_is_no_cgroup2_is_told_and_nothing_is_attached() {
    let output = run(Path::new(SPLITSECOND), &["check", "--node", "--cgroup-root", "/proc", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let found = found(&output);
    let (outcome, said) = result(&found, "cgroup2 root of this node is visible");
    assert!(outcome == "error" && said.contains("/proc is not in a cgroup2 file system"), "{said}");
    assert!(said.contains("--cgroup-root"), "{said}");
    assert!(result(&found, "probe loads").1.starts_with("not tried"));
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_is_right() {
    let check = |arguments: &[&str], part: &str| {
        let output = run(Path::new(SPLITSECOND), arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty() && said.contains(part), "{arguments:?}: no {part:?} in {said}");
    };
    check(&["check"], "--node checks this node");
    check(&["explain", "emoji"], "write NAMESPACE/NAME");
    check(&["explain"], "NAMESPACE/NAME");
    check(&["status", "--output", "yaml"], "possible values: table, json");
    check(&["frobnicate"], "unrecognized subcommand");
    let help = run(Path::new(SPLITSECOND), &["--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("Usage: splitsecond <COMMAND>"));
}

/// A link of another name, as a plugin is installed. Removed with this.
struct Link(PathBuf);

impl Link {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("splitsecond-{}-{name}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(SPLITSECOND, folder.join(name)).unwrap();
        Self(folder.join(name))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.0.parent().unwrap()).ok();
    }
}

#[test]
fn a_plugin_of_kubectl_or_linkerd_is_called_as_it_is_typed() {
    for (name, typed) in
        [("kubectl-splitsecond", "kubectl splitsecond"), ("linkerd-splitsecond", "linkerd splitsecond")]
    {
        let link = Link::new(name);
        let help = run(&link.0, &["explain", "--help"]);
        assert!(text(&help.stdout).contains(&format!("Usage: {typed} explain")), "{}", text(&help.stdout));
        let wrong = run(&link.0, &["check"]);
        assert_eq!(wrong.status.code(), Some(2));
        assert!(text(&wrong.stderr).contains(&format!("Usage: {typed} check")), "{}", text(&wrong.stderr));
        let path = format!("{}:/usr/bin:/bin", link.0.parent().unwrap().display());
        if name == "kubectl-splitsecond" && Path::new("/usr/bin/kubectl").exists() {
            let through = Command::new("kubectl").args(["splitsecond", "--help"]).env("PATH", path).output().unwrap();
            assert!(text(&through.stdout).contains("Usage: kubectl splitsecond <COMMAND>"), "{through:?}");
        }
    }
}
