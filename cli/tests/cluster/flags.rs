//! Whether the real binaries take what the manifests give them: every argument, every environment variable, every port.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;

use crate::documents::{Documents, INSTALLS, cannot_render, container};
use crate::programs::{self, Ended, command, ended};

/// The binary that a workload starts.
pub(crate) fn program(workload: &Value) -> std::path::PathBuf {
    let started = container(workload)["command"].as_array().unwrap();
    assert_eq!(started.len(), 1);
    programs::path(Path::new(started[0].as_str().unwrap()).file_name().unwrap().to_str().unwrap())
}

/// A workload's arguments as kubelet passes them: `$(NAME)` stands for a variable of the container.
pub(crate) fn arguments(workload: &Value) -> Vec<String> {
    let mut arguments: Vec<String> = container(workload)["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|argument| argument.as_str().unwrap().to_owned())
        .collect();
    for (name, value) in environment(workload) {
        for argument in &mut arguments {
            *argument = argument.replace(&format!("$({name})"), value);
        }
    }
    for argument in &arguments {
        assert!(!argument.contains("$("), "{argument} names a variable that the container lacks");
    }
    arguments
}

/// A workload's variables as kubelet sets them.
pub(crate) fn environment(workload: &Value) -> Vec<(&str, &str)> {
    let variables = container(workload)["env"].as_array().unwrap();
    let value = |variable: &Value| match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
        Some("spec.nodeName") => "node-1",
        Some("metadata.namespace") => "splitsecond",
        other => panic!("no test knows what {other:?} is"),
    };
    variables.iter().map(|variable| (variable["name"].as_str().unwrap(), value(variable))).collect()
}

/// Starts it so that it ends after its arguments were understood.
async fn parsed(workload: &Value, more: &[&str]) -> Ended {
    let is_agent = workload["kind"] == "DaemonSet";
    let mut arguments = arguments(workload);
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    if is_agent {
        // Tries the probe and ends, with or without the rights for it.
        arguments.push("--once".to_owned());
    }
    let mut command = command(&program(workload), &arguments);
    command.envs(environment(workload));
    if !is_agent {
        command.env("SPLITSECOND_KUBECONFIG", NOWHERE);
    }
    ended(command).await
}

/// A controller that cannot have this is one that understood everything else.
const NOWHERE: &str = "/nonexistent/kubeconfig";

#[tokio::test]
async fn the_binaries_take_every_argument_of_every_install() {
    if cannot_render() {
        return;
    }
    for folder in INSTALLS {
        let documents = Documents::of(folder);
        for workload in documents.workloads() {
            let ended = parsed(workload, &[]).await;
            match workload["kind"].as_str().unwrap() {
                "DaemonSet" => assert!([0, 69].contains(&ended.code), "{folder}: {ended:?}"),
                _ => {
                    assert_eq!(ended.code, 64, "{folder}: {ended:?}");
                    let lines: Vec<&str> = ended.stderr.lines().collect();
                    assert!(lines.len() == 1 && lines[0].contains(NOWHERE), "{folder}: {ended:?}");
                }
            }
            let wrong = parsed(workload, &["--no-such-flag"]).await;
            assert!(wrong.code == 64 && wrong.stderr.contains("--no-such-flag"), "the test can fail: {wrong:?}");
        }
    }
}

#[tokio::test]
async fn every_variable_and_every_port_is_one_that_the_binary_knows() {
    if cannot_render() {
        return;
    }
    for folder in INSTALLS {
        let documents = Documents::of(folder);
        for workload in documents.workloads() {
            let help = ended(command(&program(workload), &["--help".to_owned()])).await.stdout;
            let written = container(workload)["args"].to_string();
            for (variable, _) in environment(workload) {
                let is_setting = help.contains(&format!("[env: {variable}="));
                assert!(is_setting || written.contains(&format!("$({variable})")), "{folder}: nobody reads {variable}");
            }
            for port in container(workload)["ports"].as_array().unwrap() {
                let option = format!("--{}-addr", port["name"].as_str().unwrap());
                assert_eq!(port["containerPort"], default_address(&help, &option).port(), "{folder}: {option}");
            }
        }
    }
}

#[tokio::test]
async fn the_binaries_look_for_the_names_that_the_manifests_give() {
    if cannot_render() {
        return;
    }
    let documents = Documents::of("base");
    let agent = documents.find("DaemonSet", "splitsecond-agent").unwrap();
    let help = ended(command(&program(agent), &["--help".to_owned()])).await.stdout;
    let service = default(&help, "--controller-service");
    let (namespace, name) = service.split_once('/').unwrap();
    let found = documents.find("Service", name).unwrap();
    assert_eq!(found["metadata"]["namespace"], namespace);
    let port = default(&help, "--controller-port");
    assert!(
        found["spec"]["ports"].as_array().unwrap().iter().any(|own| own["port"].as_u64() == port.parse().ok()),
        "{port}"
    );
}

/// The default that `--help` tells of an option.
fn default<'a>(help: &'a str, option: &str) -> &'a str {
    let after = &help[help.find(&format!("{option} ")).unwrap_or_else(|| panic!("no {option} in {help}"))..];
    let marked = &after[after.find("[default: ").unwrap() + "[default: ".len()..];
    &marked[..marked.find(']').unwrap()]
}

fn default_address(help: &str, option: &str) -> SocketAddr {
    default(help, option).parse().unwrap()
}

#[test]
fn base_observes_and_the_overlays_differ_from_it_by_what_they_say() {
    if cannot_render() {
        return;
    }
    let of = |folder| {
        let documents = Documents::of(folder);
        let arguments = |kind, name| arguments(documents.find(kind, name).unwrap());
        (arguments("Deployment", "splitsecond-controller"), arguments("DaemonSet", "splitsecond-agent"))
    };
    let agent = ["--cgroup-root=/host/sys/fs/cgroup", "--controller=none"].map(str::to_owned).to_vec();
    assert_eq!(of("base"), (vec!["--mode=observe".to_owned()], agent.clone()));
    assert_eq!(of("overlays/enforce"), (vec!["--mode=enforce".to_owned()], agent));
    let (controller, agent) = of("overlays/enforce-without-tls");
    assert_eq!(
        controller,
        ["--mode=enforce", "--ingest-addr=0.0.0.0:9443", "--insecure-ingest-from=203.0.113.0/24"].map(str::to_owned)
    );
    let service = "--controller-service=splitsecond/splitsecond-controller";
    assert_eq!(agent, ["--cgroup-root=/host/sys/fs/cgroup", service, "--insecure-controller"].map(str::to_owned));
}
