//! Splits, Services and EndpointSlices that are not as they should be.

use lab::apiserver::Resource;
use serde_json::{Value, json};

use crate::scene::{Case, Scene, Step, case};

const FIELDS: &str = "Fields and annotations of a TrafficSplit";
const JOINED: &str = "Objects that do not go together";

const HELD: &str = "That split is held as it is. Every other split is driven.";
const FINDING: &str = "splitsecond_controller_findings{kind=\"undecodable\"}";
const DRIVEN: &str =
    "What can be judged is judged: that split is driven by what is right of it, and every other split too.";

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = fields();
    cases.extend(joined());
    cases
}

/// A split that cannot be understood; mended by a good one of the same name.
fn undecodable(input: &'static str, feed: Step) -> Case {
    Case { mend: Some(put_right), events: 1, metric: FINDING, ..case(FIELDS, input, feed, HELD) }
}

fn put_right(scene: &mut Scene) -> futures::future::BoxFuture<'_, ()> {
    Box::pin(async {
        let good = scene.mk_bad(|_| {});
        scene.change_bad(|split| {
            split["spec"] = good["spec"].clone();
            split["metadata"]["annotations"] = json!({});
        });
    })
}

fn weight(scene: &Scene, weight: Value) {
    scene.plant_bad(|split| split["spec"]["backends"][0]["weight"] = weight);
}

fn annotation(scene: &Scene, key: &str, value: &str) {
    scene.plant_bad(|split| split["metadata"]["annotations"][key] = json!(value));
}

fn fields() -> Vec<Case> {
    vec![
        undecodable("Weight \"abc\"", |scene| Box::pin(async { weight(scene, json!("abc")) })),
        undecodable("Weight -1", |scene| Box::pin(async { weight(scene, json!(-1)) })),
        undecodable("Weight 1e30", |scene| Box::pin(async { weight(scene, json!(1e30)) })),
        undecodable("Weight missing", |scene| {
            Box::pin(async {
                scene.plant_bad(|split| {
                    split["spec"]["backends"][0].as_object_mut().unwrap().remove("weight");
                });
            })
        }),
        Case {
            lines: 0,
            ..case(
                FIELDS,
                "Weights \"900m\" and 0.5",
                |scene| {
                    Box::pin(async {
                        scene.plant_bad(|split| {
                            split["spec"]["backends"][0]["weight"] = json!("900m");
                            split["spec"]["backends"][1]["weight"] = json!(0.5);
                        });
                        scene
                            .controller()
                            .until(|state| state["splits"][0]["backends"][1]["weight_milli"] == json!(500))
                            .await;
                    })
                },
                "Both are legal: nine tenths and a half.",
            )
        },
        undecodable("A backend named twice", |scene| {
            Box::pin(async { scene.plant_bad(|split| split["spec"]["backends"][1]["service"] = json!("cart")) })
        }),
        undecodable("No backends", |scene| {
            Box::pin(async { scene.plant_bad(|split| split["spec"]["backends"] = json!([])) })
        }),
        undecodable("The primary's annotation names no backend", |scene| {
            Box::pin(async { annotation(scene, "failover.linkerd.io/primary-service", "cart-east") })
        }),
        undecodable("The port's annotation is no port", |scene| {
            Box::pin(async { annotation(scene, "splitsecond.dev/port", "http") })
        }),
        undecodable("Another annotation has no such value", |scene| {
            Box::pin(async { annotation(scene, "splitsecond.dev/single-node", "yes") })
        }),
        undecodable("The record that we keep on the split was edited", |scene| {
            Box::pin(async { annotation(scene, "splitsecond.dev/state", "failed") })
        }),
        undecodable("The record is of another version", |scene| {
            Box::pin(async { annotation(scene, "splitsecond.dev/state", "{\"version\":9}") })
        }),
        Case {
            lines: 0,
            ..case(
                FIELDS,
                "The same split written through v1alpha1 and v1alpha2",
                |scene| {
                    Box::pin(async {
                        let mut split = scene.mk_bad(|_| {});
                        scene.bench.server.create(split.clone()).unwrap();
                        split["apiVersion"] = json!("split.smi-spec.io/v1alpha2");
                        split["spec"]["backends"][1]["weight"] = json!(0.5);
                        scene.bench.server.put(split).unwrap();
                    })
                },
                "They are one object; the last writer's fields stand.",
            )
        },
    ]
}

/// Objects that do not go together; every one is a finding.
fn finding(input: &'static str, metric: &'static str, feed: Step, mend: Step) -> Case {
    Case { mend: Some(mend), events: 1, metric, ..case(JOINED, input, feed, DRIVEN) }
}

fn add_service(scene: &Scene, name: &str, spec: Value) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "demo"},
                         "spec": spec});
    scene.bench.server.create(service).unwrap();
}

fn mk_ports(port: u16) -> Value {
    json!({"ports": [{"name": "http", "port": port, "protocol": "TCP"}]})
}

fn second_backend(scene: &Scene, service: &str) {
    scene.plant_bad(|split| split["spec"]["backends"][1]["service"] = json!(service));
}

fn joined() -> Vec<Case> {
    let mut cases = named();
    cases.extend(ports());
    cases.extend(others());
    cases
}

fn named() -> Vec<Case> {
    vec![
        finding(
            "A backend's Service does not exist",
            "splitsecond_controller_findings{kind=\"missing-service\"}",
            |scene| Box::pin(async { second_backend(scene, "cart-east") }),
            |scene| Box::pin(async { add_service(scene, "cart-east", mk_ports(80)) }),
        ),
        finding(
            "The apex Service does not exist",
            "splitsecond_controller_findings{kind=\"missing-service\"}",
            |scene| Box::pin(async { scene.plant_bad(|split| split["spec"]["service"] = json!("cart-apex")) }),
            |scene| Box::pin(async { add_service(scene, "cart-apex", mk_ports(80)) }),
        ),
        finding(
            "A backend is a Service of type ExternalName",
            "splitsecond_controller_findings{kind=\"external-name\"}",
            |scene| {
                Box::pin(async {
                    let spec = json!({"type": "ExternalName", "externalName": "cart.example"});
                    add_service(scene, "cart-east", spec);
                    second_backend(scene, "cart-east");
                })
            },
            |scene| {
                Box::pin(async {
                    scene.bench.server.delete(Resource::Services, "demo", "cart-east").unwrap();
                    scene.change_bad(|split| split["spec"]["backends"][1]["service"] = json!("cart-west"));
                })
            },
        ),
    ]
}

fn ports() -> Vec<Case> {
    vec![
        finding(
            "The apex has no port in common with a backend",
            "splitsecond_controller_findings{kind=\"no-common-port\"}",
            |scene| {
                Box::pin(async {
                    add_service(scene, "cart-east", mk_ports(9_090));
                    second_backend(scene, "cart-east");
                })
            },
            |scene| {
                Box::pin(async {
                    let change = |service: &mut Value| service["spec"]["ports"][0]["port"] = json!(80);
                    scene.bench.server.update_with(Resource::Services, "demo", "cart-east", change).unwrap();
                })
            },
        ),
        Case {
            lines: 2,
            events: 2,
            ..finding(
                "The port's annotation names a port that nobody has",
                "splitsecond_controller_findings{kind=\"port-not-served\"}",
                |scene| Box::pin(async { annotation(scene, "splitsecond.dev/port", "81") }),
                put_right,
            )
        },
    ]
}

fn others() -> Vec<Case> {
    vec![
        Case {
            lines: 2,
            events: 2,
            goes_on: "Both are driven, each by itself. Delete one of them.",
            ..finding(
                "Two splits for one apex Service",
                "splitsecond_controller_findings{kind=\"shared-apex\"}",
                |scene| {
                    Box::pin(async {
                        scene.plant_bad(|_| {});
                        scene.plant_bad(|split| split["metadata"]["name"] = json!("worse"));
                    })
                },
                |scene| {
                    Box::pin(async {
                        scene.bench.server.delete(Resource::TrafficSplits, "demo", "worse").unwrap();
                    })
                },
            )
        },
        Case {
            goes_on: "There is nothing to move traffic to. Every other split is driven.",
            ..finding(
                "A split with one backend",
                "splitsecond_controller_findings{kind=\"no-other-backend\"}",
                |scene| {
                    Box::pin(async {
                        scene.plant_bad(|split| {
                            split["spec"]["backends"].as_array_mut().unwrap().truncate(1);
                        });
                    })
                },
                put_right,
            )
        },
        slice("An EndpointSlice with a port that is none", |scene| {
            Box::pin(async { add_slice(scene, json!([{"name": "http", "port": 70_000}]), "198.18.4.9") })
        }),
        slice("An EndpointSlice with an address that is none", |scene| {
            Box::pin(async { add_slice(scene, json!([{"name": "http", "port": 8_080}]), "cart.example") })
        }),
    ]
}

/// A slice beside the good ones of cart-west, which counts for nothing.
fn slice(input: &'static str, feed: Step) -> Case {
    Case {
        mend: Some(|scene| {
            Box::pin(async {
                scene.bench.server.delete(Resource::EndpointSlices, "demo", "cart-west-2").unwrap();
            })
        }),
        metric: "splitsecond_controller_findings{kind=\"endpoint-slice\"}",
        ..case(JOINED, input, feed, "What cannot be read is left out; the Service's other endpoints count.")
    }
}

fn add_slice(scene: &Scene, ports: Value, address: &str) {
    scene.plant_bad(|_| {});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "cart-west-2", "namespace": "demo", "labels": {"kubernetes.io/service-name": "cart-west"}},
        "ports": ports, "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
    });
    scene.bench.server.plant(slice).unwrap();
}
