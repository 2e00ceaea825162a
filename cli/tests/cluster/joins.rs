//! Whether the manifests hold together: selectors meet labels, ports meet ports, bindings meet accounts; and whether the pods
//! have the rights, places and limits that the project promises, and no more.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::documents::{Documents, INSTALLS, cannot_render, container};

/// Whether labels have all of a selector's pairs.
fn selects(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().expect("a selector is there");
    !selector.is_empty() && selector.iter().all(|(label, value)| labels[label] == *value)
}

fn pod_labels(workload: &Value) -> &Value {
    &workload["spec"]["template"]["metadata"]["labels"]
}

/// The workloads whose pods a selector selects; of a right one there is one.
fn selected<'a>(documents: &'a Documents, selector: &Value) -> &'a Value {
    let mut found = documents.workloads().filter(|workload| selects(selector, pod_labels(workload)));
    let one = found.next().unwrap_or_else(|| panic!("{selector} selects no pods"));
    assert!(found.next().is_none(), "{selector} selects pods of two workloads");
    one
}

fn port_names(workload: &Value) -> BTreeSet<&str> {
    container(workload)["ports"].as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap()).collect()
}

#[test]
fn selectors_ports_and_accounts_meet() {
    if cannot_render() {
        return;
    }
    for folder in INSTALLS {
        let documents = Documents::of(folder);
        for workload in documents.workloads() {
            assert!(selects(&workload["spec"]["selector"]["matchLabels"], pod_labels(workload)), "{folder}");
            let account = workload["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap();
            assert!(documents.find("ServiceAccount", account).is_some(), "{folder}: {account}");
            for probe in ["livenessProbe", "readinessProbe"] {
                let port = container(workload)[probe]["httpGet"]["port"].as_str().unwrap();
                assert!(port_names(workload).contains(port), "{folder}: {probe}");
            }
            let annotations = &workload["spec"]["template"]["metadata"]["annotations"];
            let ports = container(workload)["ports"].as_array().unwrap();
            let admin = ports.iter().find(|port| port["name"] == "admin").unwrap()["containerPort"].to_string();
            assert_eq!(annotations["prometheus.io/port"], json!(admin), "{folder}");
        }
        for service in documents.all("Service") {
            let workload = selected(&documents, &service["spec"]["selector"]);
            assert_eq!(service["metadata"]["name"], workload["metadata"]["name"], "{folder}");
            assert_eq!(service["spec"]["clusterIP"], "None", "{folder}: headless");
            for port in service["spec"]["ports"].as_array().unwrap() {
                let target = port["targetPort"].as_str().expect("by name");
                let ports = container(workload)["ports"].as_array().unwrap();
                let own = ports.iter().find(|own| own["name"] == target).expect("the container has it");
                assert_eq!(own["containerPort"], port["port"], "{folder}: agents dial the port that the Service names");
            }
        }
        for policy in documents.all("NetworkPolicy") {
            let workload = selected(&documents, &policy["spec"]["podSelector"]["matchLabels"]);
            for rule in policy["spec"]["ingress"].as_array().unwrap() {
                for port in rule["ports"].as_array().unwrap() {
                    assert!(port_names(workload).contains(port["port"].as_str().unwrap()), "{folder}: {port}");
                }
                for from in rule["from"].as_array().unwrap() {
                    if from["podSelector"].is_object() {
                        selected(&documents, &from["podSelector"]["matchLabels"]);
                    }
                }
            }
        }
        for budget in documents.all("PodDisruptionBudget") {
            selected(&documents, &budget["spec"]["selector"]["matchLabels"]);
        }
        for binding in documents.all("ClusterRoleBinding") {
            assert!(documents.find("ClusterRole", binding["roleRef"]["name"].as_str().unwrap()).is_some(), "{folder}");
            for subject in binding["subjects"].as_array().unwrap() {
                let account = documents.find("ServiceAccount", subject["name"].as_str().unwrap()).unwrap();
                assert_eq!(account["metadata"]["namespace"], subject["namespace"], "{folder}");
            }
        }
    }
}

#[test]
fn objects_live_in_one_namespace_and_say_what_they_are_part_of() {
    if cannot_render() {
        return;
    }
    let cluster_wide = ["Namespace", "ClusterRole", "ClusterRoleBinding"];
    for folder in INSTALLS {
        let documents = Documents::of(folder);
        assert!(documents.find("Namespace", "splitsecond").is_some(), "{folder}");
        for document in &documents.0 {
            let kind = document["kind"].as_str().unwrap();
            let namespace = &document["metadata"]["namespace"];
            let expected = if cluster_wide.contains(&kind) { Value::Null } else { json!("splitsecond") };
            assert_eq!(*namespace, expected, "{folder}: {kind}");
            let labels = &document["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/part-of"], "splitsecond", "{folder}: {kind}");
        }
    }
}

#[test]
fn one_image_is_named_in_one_place() {
    if cannot_render() {
        return;
    }
    for folder in INSTALLS {
        let documents = Documents::of(folder);
        let images: BTreeSet<&str> =
            documents.workloads().map(|workload| container(workload)["image"].as_str().unwrap()).collect();
        assert_eq!(images, BTreeSet::from(["splitsecond:0.1.0"]), "{folder}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(version, "0.1.0", "newTag in deploy/base/kustomization.yaml follows the version");
}

/// What kubelet and kernel let a pod do.
fn check_restrictions(workload: &Value) {
    let name = &workload["metadata"]["name"];
    let pod = &workload["spec"]["template"]["spec"];
    for forbidden in ["hostPID", "hostIPC", "hostNetwork", "initContainers"] {
        assert!(pod[forbidden].is_null(), "{name}: {forbidden}");
    }
    // SPLITSECOND_CONTROLLER_PORT=tcp://..., made from a Service, would be read as a setting.
    assert_eq!(pod["enableServiceLinks"], false, "{name}");
    let context = &container(workload)["securityContext"];
    assert_eq!(context["privileged"], false, "{name}");
    assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
    assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
    assert_eq!(context["seccompProfile"], json!({"type": "RuntimeDefault"}), "{name}");
    let resources = &container(workload)["resources"];
    assert!(resources["limits"]["cpu"].is_null(), "{name}: throttling is lateness");
    assert!(resources["limits"]["memory"].is_string(), "{name}");
    assert!(resources["requests"]["cpu"].is_string() && resources["requests"]["memory"].is_string(), "{name}");
}

#[test]
fn pods_have_the_rights_that_they_need_and_no_more() {
    if cannot_render() {
        return;
    }
    for folder in INSTALLS {
        let documents = Documents::of(folder);
        documents.workloads().for_each(check_restrictions);
        let agent = documents.find("DaemonSet", "splitsecond-agent").unwrap();
        let context = &container(agent)["securityContext"];
        assert_eq!(context["runAsUser"], 0, "added capabilities are effective for uid 0 only");
        assert_eq!(context["capabilities"]["add"], json!(["BPF", "PERFMON", "NET_ADMIN"]));
        let mounts = container(agent)["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().all(|mount| mount["readOnly"] == true), "{mounts:?}");
        let volumes = agent["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 1);
        assert_eq!(volumes[0]["hostPath"], json!({"path": "/sys/fs/cgroup", "type": "Directory"}));
        let controller = documents.find("Deployment", "splitsecond-controller").unwrap();
        let context = &container(controller)["securityContext"];
        assert_eq!(context["runAsNonRoot"], true);
        assert!(context["runAsUser"].as_u64().unwrap() > 0);
        assert!(context["capabilities"]["add"].is_null());
        assert!(controller["spec"]["template"]["spec"]["volumes"].is_null());
        let namespace = documents.find("Namespace", "splitsecond").unwrap();
        let label = "pod-security.kubernetes.io/enforce";
        assert_eq!(namespace["metadata"]["labels"][label], "privileged", "a host path and capabilities need it");
    }
}

#[test]
fn an_agent_runs_on_every_node_and_is_the_last_to_go() {
    if cannot_render() {
        return;
    }
    for folder in INSTALLS {
        let documents = Documents::of(folder);
        let agent = documents.find("DaemonSet", "splitsecond-agent").unwrap();
        let pod = &agent["spec"]["template"]["spec"];
        assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]), "{folder}");
        assert_eq!(pod["priorityClassName"], "system-node-critical", "{folder}");
        assert_eq!(agent["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], "10%", "{folder}");
        let node = json!({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}});
        assert!(container(agent)["env"].as_array().unwrap().contains(&node), "{folder}");
        let quota = documents.all("ResourceQuota").next().unwrap();
        let classes = &quota["spec"]["scopeSelector"]["matchExpressions"][0]["values"];
        for workload in documents.workloads() {
            let class = &workload["spec"]["template"]["spec"]["priorityClassName"];
            assert!(classes.as_array().unwrap().contains(class), "{folder}: {class}");
        }
    }
}
