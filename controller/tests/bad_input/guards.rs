//! What holds a move: the Event names the guard, once.

use crate::scene::{Case, Control, Step, case, split_of};

const GUARDS: &str = "What holds a move";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        held(
            "Primary and secondary fail together",
            |scene| {
                Box::pin(async {
                    scene.world.kill("198.18.");
                    scene
                        .controller()
                        .until(|state| split_of(state, "demo/emoji")["guard"] == "no-healthy-secondary")
                        .await;
                })
            },
            &["reason=no-healthy-secondary"],
            "splitsecond_controller_held_total{guard=\"no-healthy-secondary\"}",
            "Weights stay: there is nowhere better to go.",
        ),
        Case {
            control: Control::Moves,
            ..held(
                "The secondaries fail while traffic is on them",
                |scene| {
                    Box::pin(async {
                        scene.fail_over_bad().await;
                        scene.world.kill("198.18.4.");
                        let held = "no-healthy-secondary";
                        scene.controller().until(|state| split_of(state, "demo/bad")["guard"] == held).await;
                    })
                },
                &["reason=no-healthy-secondary"],
                "splitsecond_controller_held_total{guard=\"no-healthy-secondary\"}",
                "Weights stay where they are until somebody answers: whoever answers first gets the traffic.",
            )
        },
        Case {
            nodes: &["n1"],
            ..held(
                "One node with an agent",
                |scene| {
                    Box::pin(async {
                        scene.controller().until_ready().await;
                        tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
                        scene.world.kill("198.18.1.");
                        let held = "insufficient-observers";
                        scene.controller().until(|state| split_of(state, "demo/emoji")["guard"] == held).await;
                    })
                },
                &["reason=insufficient-observers"],
                "splitsecond_controller_held_total{guard=\"insufficient-observers\"}",
                "One node alone moves nothing; readiness still does.",
            )
        },
        Case {
            settings: &["--mode=observe"],
            ..held(
                "Observe mode",
                |scene| {
                    Box::pin(async {
                        scene.world.kill("198.18.1.");
                        scene
                            .controller()
                            .until(|state| split_of(state, "demo/emoji")["guard"] == "observe-mode")
                            .await;
                    })
                },
                &["reason=observe-mode"],
                "splitsecond_controller_held_total{guard=\"observe-mode\"}",
                "Everything is decided and shown, nothing is written.",
            )
        },
    ]
}

fn held(
    input: &'static str,
    feed: Step,
    also: &'static [&'static str],
    metric: &'static str,
    goes_on: &'static str,
) -> Case {
    Case { lines: 0, also, events: 1, metric, control: Control::Stays, ..case(GUARDS, input, feed, goes_on) }
}
