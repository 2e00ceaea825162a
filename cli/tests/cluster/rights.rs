//! The rights of the shipped roles against what the binaries really ask for: one that is missing and one that is superfluous
//! both fail. The install is the shipped one, in enforce mode, with the workshop's objects.

use std::collections::BTreeSet;

use lab::apiserver::{Request, Resource};
use serde_json::{Value, json};

use crate::bench::{Bench, Controller, Running};
use crate::documents::{Documents, cannot_render, container};
use crate::flags::{arguments, environment, program};
use crate::programs::{self, command, ended, until};

/// API group, resource, verb.
type Right = (String, String, String);

/// Kinds that the embedded API server has; it applies no manifests, so that workloads are started by hand.
const SERVED: [&str; 5] = ["Namespace", "ServiceAccount", "Service", "Endpoints", "TrafficSplit"];

/// What a role grants.
fn granted(documents: &Documents, account: &str) -> BTreeSet<Right> {
    let is_bound =
        |binding: &&Value| binding["subjects"].as_array().unwrap().iter().any(|subject| subject["name"] == account);
    let mut rights = BTreeSet::new();
    for binding in documents.all("ClusterRoleBinding").filter(is_bound) {
        let role = documents.find("ClusterRole", binding["roleRef"]["name"].as_str().unwrap()).unwrap();
        for rule in role["rules"].as_array().unwrap() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        assert!([group, resource, verb].iter().all(|word| !word.contains('*')), "{rule}");
                        rights.insert((group.to_owned(), resource.to_owned(), verb.to_owned()));
                    }
                }
            }
        }
    }
    rights
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap())
}

/// What a run asked for. Discovery and health need no right of ours: every account may read them (`system:discovery`).
fn asked(requests: &[Request]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for request in requests {
        let Some(resource) = request.resource else {
            let is_open_to_all =
                ["/api", "/apis", "/version", "/readyz"].iter().any(|start| request.path.starts_with(start));
            assert!(is_open_to_all && request.verb == "get", "{request:?}");
            continue;
        };
        let group = request.api_version.split_once('/').map_or("", |(group, _)| group);
        let plural = resource.row().plural;
        let resource = if request.is_status { format!("{plural}/status") } else { plural.to_owned() };
        rights.insert((group.to_owned(), resource, request.verb.to_owned()));
    }
    rights
}

/// A cluster in which the install's and the workshop's objects were applied.
async fn mk_cluster(install: &Documents) -> Bench {
    let bench = Bench::new().await;
    let workshop = Documents::of("examples/workshop-mirrored");
    let is_served = |document: &&Value| SERVED.contains(&document["kind"].as_str().unwrap());
    for document in install.0.iter().chain(&workshop.0).filter(is_served) {
        bench.server.create(document.clone()).unwrap();
    }
    bench.endpoints(("emojivoto", "emoji-svc"), "198.18.1", 2, &json!({"name": "grpc", "port": 8080}), true);
    // As Kubernetes mirrors Endpoints into an EndpointSlice.
    let subset = &workshop.find("Endpoints", "emoji-svc-west").unwrap()["subsets"][0];
    let address = &subset["addresses"][0]["ip"];
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "emoji-svc-west-1", "namespace": "emojivoto",
                     "labels": {"kubernetes.io/service-name": "emoji-svc-west"}},
        "ports": subset["ports"], "endpoints": [{"addresses": [address], "conditions": {"ready": true}}]});
    bench.server.create(slice).unwrap();
    // An agent runs on each of two nodes, and none may speak: there is no TLS.
    bench.endpoints(("splitsecond", "splitsecond-agent"), "198.18.9", 2, &json!({"name": "admin", "port": 9910}), true);
    bench
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controllers_role_is_what_it_asks_for() {
    if cannot_render() {
        return;
    }
    let install = Documents::of("overlays/enforce");
    let bench = mk_cluster(&install).await;
    let workload = install.find("Deployment", "splitsecond-controller").unwrap();
    let controller = Controller::start(&bench, &arguments(workload)).await;
    controller.until(|state| state["ready"] == true).await;
    let split = ("emojivoto", "emoji-svc");
    controller.until(|state| state["splits"][0]["state"] == "steady").await;
    assert_eq!(bench.weights(split.0, split.1), ["1", "0"]);

    // The workshop's own failure: the application is scaled to nothing.
    let port = json!({"name": "grpc", "port": 8080});
    bench.endpoints(("emojivoto", "emoji-svc"), "198.18.1", 2, &port, false);
    bench.until_weights(split, &["0", "1"], &controller.running.log).await;
    bench.until_event("emojivoto", "Failover").await;
    bench.endpoints(("emojivoto", "emoji-svc"), "198.18.1", 2, &port, true);
    bench.until_weights(split, &["1", "0"], &controller.running.log).await;

    // What a bad object, a refusal and an outage make it ask for.
    bench
        .server
        .update_with(Resource::TrafficSplits, split.0, split.1, |split| {
            split["metadata"]["annotations"]["failover.linkerd.io/primary-service"] = json!("nobody");
        })
        .unwrap();
    bench.until_event("emojivoto", "InvalidPolicy").await;
    bench.server.stop().await;
    controller.until(|state| state["watches"]["services"] != "synced").await;
    bench.server.start().await;
    controller.until(|state| state["watches"]["services"] == "synced").await;

    let account = workload["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap();
    assert_eq!(asked(&bench.server.requests()), granted(&install, account), "asked for, and granted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_role_is_what_it_asks_for() {
    if cannot_render() {
        return;
    }
    // The one in which agents look for controllers, through the API server too.
    let install = Documents::of("overlays/enforce-without-tls");
    let bench = mk_cluster(&install).await;
    let workload = install.find("DaemonSet", "splitsecond-agent").unwrap();
    let own = [&environment(workload)[..], &[("SPLITSECOND_ADMIN_ADDR", "127.0.0.1:0")]].concat();
    let mut agent = Running::start(&program(workload), &arguments(workload), &own, &bench);
    let watches = || bench.server.requests().iter().filter(|request| request.verb == "watch").count();
    until(|| watches() >= 2, || agent.log.text()).await;
    bench.server.stop().await;
    let before = bench.server.requests().len();
    bench.server.start().await;
    until(|| bench.server.requests().len() >= before + 2, || agent.log.text()).await;
    assert!(agent.lives());
    let account = workload["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap();
    assert_eq!(asked(&bench.server.requests()), granted(&install, account), "asked for, and granted");
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test runs it"]
async fn the_rights_of_the_agents_pod_are_enough_to_count() {
    if cannot_render() {
        return;
    }
    let install = Documents::of("base");
    let workload = install.find("DaemonSet", "splitsecond-agent").unwrap();
    let context = &container(workload)["securityContext"];
    let added: Vec<String> =
        texts(&context["capabilities"]["add"]).map(|name| format!("+{}", name.to_lowercase())).collect();
    let set = format!("-all,{}", added.join(","));
    let agent = programs::path("splitsecond-agent");
    let run = async |set: &str| {
        let line = ["--no-new-privs", &format!("--inh-caps={set}"), &format!("--bounding-set={set}")];
        let mut arguments: Vec<String> = line.map(str::to_owned).to_vec();
        // The machine's own cgroup2 mount: there is no container around it.
        arguments.extend([agent.to_str().unwrap().to_owned(), "--once".to_owned()]);
        ended(command(std::path::Path::new("setpriv"), &arguments)).await
    };
    let ended = run(&set).await;
    assert_eq!(ended.code, 0, "{set}: {ended:?}");
    assert!(ended.stdout.starts_with("this node can count"), "{ended:?}");
    let without = run("-all,+net_admin").await;
    assert_eq!(without.code, 69, "the test can fail: {without:?}");
}
