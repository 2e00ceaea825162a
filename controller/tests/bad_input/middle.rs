//! Things that happen to a split in the middle of its failover, and to the API server.

use lab::apiserver::{Resource, Restart, Status};
use serde_json::{Value, json};

use crate::bench::weights_of;
use crate::scene::{Case, Scene, case, split_of};

const MIDDLE: &str = "In the middle of a failover";
const SERVER: &str = "An API server that refuses, forgets, or lacks something";
const START: &str = "A cluster that is not ready";

const LEFT: &str = "It is left as it is, with the weights of the failover. Every other split is driven.";
const GONE: &str = "TrafficSplit is gone or no longer ours: it is left as it is";

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = edits();
    cases.extend(ends());
    cases.extend(servers());
    cases
}

/// `bad` is over before the mistake is made; its own Service's failure is no part of the case.
fn edits() -> Vec<Case> {
    vec![
        Case {
            events: 1,
            mend: Some(|scene| {
                Box::pin(async {
                    scene.change_bad(|split| {
                        split["metadata"]["annotations"]["failover.linkerd.io/primary-service"] = json!("cart-2");
                    });
                    stays_failed(scene);
                })
            }),
            ..case(
                MIDDLE,
                "The primary's Service is renamed in the list, and not in the annotation",
                |scene| {
                    Box::pin(async {
                        scene.fail_over_bad().await;
                        scene.change_bad(|split| {
                            split["metadata"]["annotations"]["failover.linkerd.io/primary-service"] = json!("cart");
                        });
                        scene.change_bad(|split| split["spec"]["backends"][0]["service"] = json!("cart-2"));
                        stays_failed(scene);
                    })
                },
                "The split is held as it is, off its primary, until the annotation names a backend.",
            )
        },
        Case {
            events: 1,
            ..case(
                MIDDLE,
                "The primary is removed from the list",
                |scene| {
                    Box::pin(async {
                        scene.fail_over_bad().await;
                        scene.change_bad(|split| {
                            split["spec"]["backends"].as_array_mut().unwrap().remove(0);
                        });
                        scene.controller().until(|state| split_of(state, "demo/bad")["primary"] == "cart-west").await;
                    })
                },
                "The first backend that is left is the primary now, and has all traffic already.",
            )
        },
        Case {
            lines: 0,
            ..case(
                MIDDLE,
                "A person gives the dead primary its weight back",
                |scene| {
                    Box::pin(async {
                        scene.fail_over_bad().await;
                        scene.change_bad(|split| {
                            split["spec"]["backends"][0]["weight"] = json!(1);
                            split["spec"]["backends"][1]["weight"] = json!(0);
                        });
                        scene.bench.until_weights("bad", [0, 1]).await;
                    })
                },
                "Their weights are the new ones to go back to, and the decision is taken anew on what is seen: the primary \
                 still fails, so traffic leaves it again. To keep a split still, remove its label.",
            )
        },
        Case {
            lines: 0,
            ..case(
                MIDDLE,
                "A person changes a secondary's weight",
                |scene| {
                    Box::pin(async {
                        scene.fail_over_bad().await;
                        scene.change_bad(|split| split["spec"]["backends"][1]["weight"] = json!(5));
                        let is_seen =
                            |state: &Value| split_of(state, "demo/bad")["backends"][1]["weight_milli"] == json!(5_000);
                        scene.controller().until(is_seen).await;
                    })
                },
                "The ratio among secondaries is theirs; it stays.",
            )
        },
        Case {
            events: 1,
            mend: Some(|scene| {
                Box::pin(async {
                    scene.change_bad(|split| {
                        split["metadata"]["annotations"].as_object_mut().unwrap().remove("splitsecond.dev/state");
                    });
                    stays_failed(scene);
                })
            }),
            ..case(
                MIDDLE,
                "Our record on the split is edited",
                |scene| {
                    Box::pin(async {
                        scene.fail_over_bad().await;
                        scene.change_bad(|split| {
                            split["metadata"]["annotations"]["splitsecond.dev/state"] = json!("{\"version\":1}");
                        });
                        stays_failed(scene);
                    })
                },
                "The split is held as it is: without the record nobody knows the weights to go back to.",
            )
        },
    ]
}

fn stays_failed(scene: &Scene) {
    assert_eq!(weights_of(&scene.bench.split("bad")), [0, 1], "it was off its primary");
}

fn ends() -> Vec<Case> {
    vec![
        Case {
            lines: 0,
            also: &[GONE],
            ..case(
                MIDDLE,
                "The split is deleted",
                |scene| {
                    Box::pin(async {
                        scene.fail_over_bad().await;
                        scene.bench.server.delete(Resource::TrafficSplits, "demo", "bad").unwrap();
                    })
                },
                "Nothing of it is remembered. Every other split is driven.",
            )
        },
        Case {
            lines: 0,
            also: &[GONE],
            events: 1,
            ..case(
                MIDDLE,
                "The split is deleted and made anew under the same name",
                |scene| {
                    Box::pin(async {
                        scene.fail_over_bad().await;
                        scene.bench.server.delete(Resource::TrafficSplits, "demo", "bad").unwrap();
                        scene.plant_bad(|_| {});
                        scene.bench.until_weights("bad", [0, 1]).await;
                    })
                },
                "It is another object: its primary fails, and it is moved like any.",
            )
        },
        Case {
            lines: 0,
            also: &[GONE, "Write ended"],
            ..case(
                MIDDLE,
                "The split is deleted between the decision and its write",
                |scene| {
                    Box::pin(async {
                        scene.plant_bad(|_| {});
                        let known = |state: &Value| split_of(state, "demo/bad")["state"] == "steady";
                        scene.controller().until(known).await;
                        scene.bench.server.set_latency(std::time::Duration::from_millis(120));
                        scene.bench.set_ready("cart", false);
                        let decided = |state: &Value| {
                            let transitions = state["transitions"].as_array().unwrap();
                            transitions.iter().any(|one| one["kind"] == "decided" && one["split"] == "demo/bad")
                        };
                        scene.controller().until(decided).await;
                        scene.bench.server.delete(Resource::TrafficSplits, "demo", "bad").unwrap();
                        scene.bench.server.set_latency(std::time::Duration::ZERO);
                    })
                },
                "The write meets nothing, and there is nothing left to decide.",
            )
        },
        Case {
            lines: 0,
            also: &[GONE],
            ..case(
                MIDDLE,
                "The label is removed",
                |scene| {
                    Box::pin(async {
                        scene.fail_over_bad().await;
                        scene.change_bad(|split| split["metadata"]["labels"] = json!({}));
                        stays_failed(scene);
                    })
                },
                LEFT,
            )
        },
    ]
}

async fn refuse(scene: &mut Scene, status: Status) {
    scene.plant_bad(|_| {});
    let known = |state: &Value| split_of(state, "demo/bad")["state"] == "steady";
    scene.controller().until(known).await;
    scene.bench.server.refuse_writes(1, &status);
    scene.bench.set_ready("cart", false);
    scene.bench.until_weights("bad", [0, 1]).await;
}

fn servers() -> Vec<Case> {
    let retried = "The decision is taken anew on what is true then, and written.";
    vec![
        Case {
            metric: "splitsecond_controller_writes_total{direction=\"failover\",outcome=\"refused\"}",
            ..case(
                SERVER,
                "A write is forbidden",
                |scene| Box::pin(refuse(scene, Status::scripted(403, "Forbidden", "trafficsplits is forbidden"))),
                "It is tried again every second at most, for as long as the decision stands.",
            )
        },
        Case {
            metric: "splitsecond_controller_writes_total{direction=\"failover\",outcome=\"failed\"}",
            ..case(
                SERVER,
                "A write meets a server that is not ready",
                |scene| Box::pin(refuse(scene, Status::scripted(503, "ServiceUnavailable", "not now"))),
                retried,
            )
        },
        Case {
            lines: 3,
            ..case(
                SERVER,
                "The server comes back with other versions for the same objects, counted from below",
                |scene| {
                    Box::pin(async {
                        scene.fail_over_bad().await;
                        scene.bench.server.restart(Restart::Renumbered(5)).await;
                    })
                },
                "Everything is listed anew; versions from now on count as later than those from before.",
            )
        },
        Case {
            section: START,
            input: "The CRD of TrafficSplit is missing",
            goes_on: "It is live and not ready, /ready says this line, and it goes on by itself when the CRD appears.",
            before: |scene| {
                Box::pin(async {
                    scene.bench.server.withhold(Resource::TrafficSplits);
                })
            },
            feed: |scene| {
                Box::pin(async {
                    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
                    let (status, reason) = scene.controller().get("/ready").await;
                    assert_eq!(status, 503);
                    assert!(reason.contains("the TrafficSplit CRD (split.smi-spec.io"), "{reason}");
                    assert_eq!(scene.controller().get("/live").await.0, 200);
                    scene.bench.server.serve_again(Resource::TrafficSplits);
                    scene.controller().until_ready().await;
                    let healthy = |state: &Value| state["splits"][0]["backends"][1]["health"] == "healthy";
                    scene.controller().until(healthy).await;
                    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
                })
            },
            ..case(START, "", |_| Box::pin(async {}), "")
        },
    ]
}
