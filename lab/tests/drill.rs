//! The drill's command as a person meets it: exit codes, what it says, and what it leaves behind. Scenarios themselves
//! need agent and controller and are `cargo xtask drill`'s; here stands, where one is needed, a controller that never
//! answers, so that a drill can be ended in the middle of its set-up.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

fn drill(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_splitsecond-lab"));
    command.arg("drill").args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    drill(arguments).output().expect("the lab starts")
}

#[test]
fn an_unknown_scenario_exits_2_and_prints_the_list() {
    let output = run(&["refusd"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("There is no scenario refusd.") && said.contains("scale-to-zero"), "{said}");
}

#[test]
fn a_part_that_is_not_built_yet_exits_2_with_a_sentence() {
    for (flag, value) in [("--control-plane", "kube"), ("--follow", "steer"), ("--profile", "fast")] {
        let output = run(&["refused", flag, value]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("{flag} ")) && said.contains("is not built yet"), "{said}");
    }
}

#[test]
fn a_scenario_that_a_shape_cannot_hold_exits_2_with_a_sentence() {
    for scenario in ["one-of-two", "one-bad-endpoint", "node-loss"] {
        let output = run(&[scenario, "--shape", "workshop"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let sentence = format!("{scenario} cannot be drilled with --shape workshop: ");
        assert!(said.contains(&sentence), "{said}");
    }
}

#[test]
fn a_scenario_of_a_later_version_is_known_by_name() {
    let output = run(&["controller-kill", "api-outage"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("controller-kill is not built yet.") && said.contains("api-outage is not built yet."),
        "{said}"
    );
}

#[test]
fn a_missing_program_exits_3_with_a_sentence() {
    let output = run(&["refused", "--agent-program", "/nonexistent/agent"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("There is no program /nonexistent/agent"), "{said}");
}

/// A drill whose controller never answers, when its network stands.
fn begin_without_answer(test: &str) -> (Child, String, BufReader<std::process::ChildStderr>) {
    let script = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("silent-{test}"));
    fs::write(&script, "#!/bin/sh\nexec sleep 60\n").expect("a script");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, mode).expect("an executable script");
    let path = script.display().to_string();
    let arguments = ["scale-to-zero", "--agents", "off", "--agent-program", &path, "--controller-program", &path];
    let mut child = drill(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the lab starts");
    let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    // The controller's line is the last one before the waiting begins.
    let mut prefix = None;
    while said.read_line(&mut line).expect("the lab speaks") > 0 {
        if let Some(names) = line.trim().strip_prefix("names:") {
            prefix = names.trim().split_once("-...").map(|(prefix, _)| prefix.to_owned());
        }
        if line.contains("controller:") {
            break;
        }
        line.clear();
    }
    (child, prefix.expect("the lab names its things"), said)
}

/// Everything of this drill that can still be found.
fn left_of(prefix: &str, lab: u32) -> Vec<String> {
    let mut left = Vec::new();
    let mut look = |directory: &str, matches: &dyn Fn(&str) -> bool| {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(matches) {
                left.push(entry.path().display().to_string());
            }
        }
    };
    look("/run/netns", &|name| name.starts_with(&format!("{prefix}-")));
    look("/sys/class/net", &|name| name.starts_with(prefix));
    look("/sys/fs/cgroup", &|name| name == prefix);
    look("/sys/fs/cgroup/unified", &|name| name == prefix);
    look("/sys/fs/bpf", &|name| name.contains("splitsecond"));
    let directory = std::env::temp_dir().join(format!("splitsecond-drill-{lab}"));
    left.extend(directory.exists().then(|| directory.display().to_string()));
    left.extend(processes_with(&directory));
    left
}

/// Command lines that name the drill's directory, as every agent's and controller's does.
fn processes_with(directory: &Path) -> Vec<String> {
    let name = directory.display().to_string();
    let line_of = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("cmdline")).ok();
    let lines = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(line_of);
    lines.filter(|line| line.contains(&name)).map(|line| line.replace('\0', " ")).collect()
}

fn end_and_look(test: &str, signals: &[Signal]) {
    let (mut child, prefix, mut said) = begin_without_answer(test);
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id")).expect("not zero");
    assert!(!left_of(&prefix, child.id()).is_empty(), "the drill has begun, and nothing of it is found");
    for signal in signals {
        kill_process(pid, *signal).expect("the lab can be signalled");
    }
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("the lab speaks");
    let status = child.wait().expect("the lab ends");
    assert_eq!(status.code(), Some(1), "{rest}");
    assert!(rest.contains("the drill ends before its time"), "{rest}");
    // The kernel removes a namespace's links a moment after the namespace.
    for _ in 0..200 {
        if left_of(&prefix, child.id()).is_empty() {
            return;
        }
        pause();
    }
    panic!("left behind: {:?}", left_of(&prefix, child.id()));
}

#[expect(clippy::disallowed_methods, reason = "a test that waits for the kernel, with a bound of two seconds")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_drill_that_is_interrupted_leaves_nothing() {
    end_and_look("once", &[Signal::INT]);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_drill_that_is_told_to_end_twice_leaves_nothing() {
    end_and_look("twice", &[Signal::TERM, Signal::INT]);
}

/// A program as the drill's own build leaves it.
fn release(program: &str) -> String {
    let here = Path::new(env!("CARGO_BIN_EXE_splitsecond-lab"));
    let target = here.parent().and_then(Path::parent).expect("the lab lies in a profile's folder of the target folder");
    let program = target.join("release").join(program);
    assert!(program.is_file(), "{} is not built: run `cargo xtask drill` first", program.display());
    program.display().to_string()
}

/// Stopped programs, a thread that breaks and mends, a path that is cut: all of it is under way when the end comes.
#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_drill_that_is_interrupted_in_the_middle_of_a_fault_leaves_nothing() {
    let (agent, controller) = (release("splitsecond-agent"), release("splitsecond-controller"));
    for scenario in ["flap", "frozen", "node-loss"] {
        let arguments = [scenario, "--runs", "9", "--agent-program", &agent, "--controller-program", &controller];
        let mut child = drill(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the lab starts");
        let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut prefix = None;
        let mut line = String::new();
        while said.read_line(&mut line).expect("the lab speaks") > 0 && !line.contains("controller:") {
            if let Some(names) = line.trim().strip_prefix("names:") {
                prefix = names.trim().split_once("-...").map(|(prefix, _)| prefix.to_owned());
            }
            line.clear();
        }
        let prefix = prefix.expect("the lab names its things");
        // Programs are warm three to five seconds after the controller began, and no fault is over three seconds later.
        (0..650).for_each(|_| pause());
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id")).expect("not zero");
        kill_process(pid, Signal::INT).expect("the lab can be signalled");
        let mut rest = String::new();
        said.read_to_string(&mut rest).expect("the lab speaks");
        assert_eq!(child.wait().expect("the lab ends").code(), Some(1), "{rest}");
        assert!(rest.contains("the drill ends before its time"), "{rest}");
        for _ in 0..200 {
            if left_of(&prefix, child.id()).is_empty() {
                break;
            }
            pause();
        }
        let left = left_of(&prefix, child.id());
        assert!(left.is_empty(), "{scenario} left behind: {left:?}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_drill_that_panics_on_its_stage_leaves_no_trace_in_the_system() {
    let (agent, controller) = (release("splitsecond-agent"), release("splitsecond-controller"));
    let arguments = ["refused", "--panic", "--agent-program", &agent, "--controller-program", &controller];
    let mut child = drill(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the lab starts");
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("the lab speaks");
    assert_eq!(child.wait().expect("the lab ends").code(), Some(101), "{said}");
    assert!(said.contains("--panic: everything that the drill made goes all the same"), "{said}");
    let names = said.lines().find_map(|line| line.trim().strip_prefix("names:")).expect("the lab names its things");
    let (prefix, _) = names.trim().split_once("-...").expect("a prefix");
    // Its logs stay: they are what a person needs then.
    let logs = std::env::temp_dir().join(format!("splitsecond-drill-{}", child.id()));
    fs::remove_dir_all(&logs).expect("the logs are there");
    for _ in 0..200 {
        if left_of(prefix, child.id()).is_empty() {
            return;
        }
        pause();
    }
    panic!("left behind: {:?}", left_of(prefix, child.id()));
}
