//! Peers and agents that are not as they should be.

use std::net::IpAddr;
use std::time::Duration;

use lab::apiserver::Resource;
use probe_common::wire::{AgentFrame, Destination, First, Meshed, Report, Row, Total, Totals, VERSION};
use serde_json::{Value, json};

use crate::agent::now_ns;
use crate::peer::{self, Peer, mk_hello};
use crate::scene::{Case, Scene, Step, case};

const STREAMS: &str = "Connections and streams";
const FRAMES: &str = "Frames";
const WORDS: &str = "What agents say";

const ENDED: &str =
    "That stream is ended, the connection and every other agent's stream go on. An agent comes back by itself.";
const PASSED_OVER: &str = "That frame is passed over, the stream goes on.";

macro_rules! faults {
    ($kind:literal) => {
        concat!("splitsecond_controller_ingest_faults_total{kind=\"", $kind, "\"}")
    };
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = connections();
    cases.extend(beginnings());
    cases.extend(frames());
    cases.extend(words());
    cases.extend(manners());
    cases
}

fn stream(input: &'static str, metric: &'static str, feed: Step) -> Case {
    Case { metric, ..case(STREAMS, input, feed, ENDED) }
}

fn frame(input: &'static str, metric: &'static str, feed: Step, goes_on: &'static str) -> Case {
    Case { metric, ..case(FRAMES, input, feed, goes_on) }
}

fn word(input: &'static str, metric: &'static str, feed: Step, goes_on: &'static str) -> Case {
    Case { metric, ..case(WORDS, input, feed, goes_on) }
}

fn connections() -> Vec<Case> {
    let gone = "That connection is ended. Nobody else's is.";
    vec![
        Case {
            goes_on: gone,
            ..stream("A connection that does not speak HTTP/2", faults!("transport"), |scene| {
                Box::pin(async {
                    let socket = peer::scribble(scene.ingest()).await;
                    scene.kept.push(Box::new(socket));
                })
            })
        },
        Case {
            goes_on: "It is answered 404.",
            ..stream("A request for something else", faults!("request"), |scene| {
                Box::pin(async {
                    let peer = Peer::request(scene.ingest(), "/metrics").await;
                    scene.kept.push(Box::new(peer));
                })
            })
        },
        Case {
            goes_on: gone,
            ..stream("A stream that never says Hello", faults!("no-hello"), |scene| {
                Box::pin(async {
                    let peer = Peer::connect(scene.ingest()).await;
                    scene.kept.push(Box::new(peer));
                })
            })
        },
    ]
}

fn beginnings() -> Vec<Case> {
    vec![
        stream("A stream whose first frame is no Hello", faults!("first-frame"), |scene| {
            Box::pin(async {
                let mut peer = Peer::connect(scene.ingest()).await;
                peer.say(&AgentFrame::Report(Report { seq: 1, now_ns: now_ns(), ..Report::default() }));
                scene.kept.push(Box::new(peer));
            })
        }),
        stream("A Hello for what is no node's name", faults!("node-name"), |scene| {
            Box::pin(async {
                let mut peer = Peer::connect(scene.ingest()).await;
                peer.say(&mk_hello("Node 9\n"));
                scene.kept.push(Box::new(peer));
            })
        }),
        stream("A second Hello, for another node", faults!("second-hello"), |scene| {
            Box::pin(async {
                let mut peer = Peer::hello(scene.ingest()).await;
                peer.say(&mk_hello("n1"));
                scene.kept.push(Box::new(peer));
            })
        }),
    ]
}

async fn bytes(scene: &mut Scene, bytes: Vec<u8>, ends: bool) {
    let mut peer = Peer::hello(scene.ingest()).await;
    peer.bytes(bytes);
    if ends {
        peer.end();
    }
    scene.kept.push(Box::new(peer));
}

fn frames() -> Vec<Case> {
    vec![
        frame(
            "Garbage instead of a frame",
            faults!("version"),
            |scene| Box::pin(bytes(scene, b"garbage, garbage".to_vec(), false)),
            ENDED,
        ),
        frame(
            "A frame of another version",
            faults!("version"),
            |scene| Box::pin(bytes(scene, vec![VERSION + 1, 2, 0, 0, 0, 0, 0, 2, b'{', b'}'], false)),
            ENDED,
        ),
        frame(
            "A frame that is larger than any may be",
            faults!("too-large"),
            |scene| Box::pin(bytes(scene, vec![VERSION, 2, 0, 0, 1, 0, 0, 0], false)),
            ENDED,
        ),
        frame(
            "A stream that ends within a frame",
            faults!("truncated"),
            |scene| Box::pin(bytes(scene, vec![VERSION, 2, 0, 0, 0, 0, 0, 9, b'{'], true)),
            ENDED,
        ),
        frame(
            "A frame whose content cannot be read",
            faults!("payload"),
            |scene| Box::pin(bytes(scene, vec![VERSION, 2, 0, 0, 0, 0, 0, 2, b'n', b'o'], false)),
            PASSED_OVER,
        ),
        Case {
            lines: 0,
            ..frame(
                "A frame of an unknown kind",
                "splitsecond_controller_frames_skipped_total",
                |scene| Box::pin(bytes(scene, vec![VERSION, 77, 0, 0, 0, 0, 0, 2, b'{', b'}'], false)),
                "A newer agent's frame, perhaps: it is passed over and counted, the stream goes on.",
            )
        },
    ]
}

fn to(address: &str) -> Destination {
    address.parse().unwrap()
}

/// A report with one row, changed.
async fn row(scene: &mut Scene, change: fn(&mut Row)) {
    let now_ns = now_ns();
    let mut row = Row { attempts: 3, established: 3, ..Row::empty(to("198.18.1.1:8080"), now_ns - 10_000_000, now_ns) };
    change(&mut row);
    let mut peer = Peer::hello(scene.ingest()).await;
    peer.say(&AgentFrame::Report(Report { seq: 1, now_ns, rows: vec![row], ..Report::default() }));
    scene.kept.push(Box::new(peer));
}

fn words() -> Vec<Case> {
    let nonsense = |input, feed| word(input, faults!("nonsense"), feed, PASSED_OVER);
    vec![
        nonsense("Counts beyond any node's", |scene| Box::pin(row(scene, |row| row.refused = u64::MAX))),
        nonsense("A period that ends before it begins", |scene| Box::pin(row(scene, |row| row.to_ns = 5))),
        nonsense("A failure that is still to come", |scene| {
            Box::pin(row(scene, |row| row.first = Some(First { started_ns: row.from_ns, failed_ns: u64::MAX })))
        }),
        nonsense("A success from before the node's start", |scene| {
            Box::pin(async {
                let total = Total {
                    to: to("198.18.1.1:8080"),
                    attempts: 1,
                    established: 1,
                    last_success_age_ns: Some(u64::MAX),
                    last_check_age_ns: None,
                };
                let totals = Totals { now_ns: now_ns(), complete: true, rows: vec![total] };
                let mut peer = Peer::hello(scene.ingest()).await;
                peer.say(&AgentFrame::Totals(totals));
                scene.kept.push(Box::new(peer));
            })
        }),
        word(
            "Reports about a destination that does not exist, for longer than a change takes to get around",
            "splitsecond_controller_disbelieved_total{kind=\"unknown-destination\"}",
            |scene| {
                Box::pin(async {
                    let mut peer = Peer::hello(scene.ingest()).await;
                    for seq in 1..=25 {
                        let rows = vec![mk_failures(to("203.0.113.9:80"), false)];
                        peer.say(&AgentFrame::Report(Report { seq, now_ns: now_ns(), rows, ..Report::default() }));
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    scene.kept.push(Box::new(peer));
                })
            },
            "Nothing follows from such rows.",
        ),
        word(
            "An agent that speaks for another node's endpoint (self-hop rows)",
            "splitsecond_controller_disbelieved_total{kind=\"foreign-endpoint\"}",
            |scene| {
                Box::pin(async {
                    let mut peer = Peer::hello(scene.ingest()).await;
                    for seq in 1..=10 {
                        let rows = (1..=3).map(|end| mk_failures(to(&format!("198.18.1.{end}:8080")), true)).collect();
                        peer.say(&AgentFrame::Report(Report { seq, now_ns: now_ns(), rows, ..Report::default() }));
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    scene.kept.push(Box::new(peer));
                })
            },
            "Nothing follows from such rows: only the endpoint's own node may give them.",
        ),
        word(
            "An agent that calls another node's endpoint meshed",
            "splitsecond_controller_disbelieved_total{kind=\"foreign-endpoint\"}",
            |scene| {
                Box::pin(async {
                    let endpoints: Vec<IpAddr> = (1..=3).map(|end| IpAddr::from([198, 18, 1, end])).collect();
                    let mut peer = Peer::hello(scene.ingest()).await;
                    peer.say(&AgentFrame::Meshed(Meshed { now_ns: now_ns(), endpoints }));
                    scene.kept.push(Box::new(peer));
                })
            },
            "Nothing follows from it: checks of that endpoint count as before.",
        ),
    ]
}

/// Three refused attempts within the last 10 ms.
fn mk_failures(to: Destination, self_hop: bool) -> Row {
    let now_ns = now_ns();
    let first = First { started_ns: now_ns - 2_000_000, failed_ns: now_ns - 1_000_000 };
    let row = Row::empty(to, now_ns - 10_000_000, now_ns);
    Row { self_hop, attempts: 3, refused: 3, clients: 2, first: Some(first), ..row }
}

fn manners() -> Vec<Case> {
    vec![
        word(
            "Two agents that speak for one node",
            "splitsecond_controller_frames_total{kind=\"hello\"}",
            |scene| {
                Box::pin(async {
                    for _ in 0..8 {
                        let peer = Peer::hello(scene.ingest()).await;
                        scene.kept.push(Box::new(peer));
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                })
            },
            "The newest stream counts, each older one is ended. Every other node's agent is believed as before.",
        ),
        Case {
            lines: 0,
            ..word(
                "One agent that says that everything fails",
                "splitsecond_controller_transitions_total{kind=\"reported\"}",
                |scene| {
                    Box::pin(async {
                        let mut peer = Peer::hello(scene.ingest()).await;
                        for seq in 1..=100 {
                            let rows =
                                (1..=3).map(|end| mk_failures(to(&format!("198.18.1.{end}:8080")), false)).collect();
                            peer.say(&AgentFrame::Report(Report { seq, now_ns: now_ns(), rows, ..Report::default() }));
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        scene.kept.push(Box::new(peer));
                    })
                },
                "One node's word moves nothing: others are asked to check, and they see it answer.",
            )
        },
        Case {
            lines: 0,
            also: &["freshness=stale"],
            ..word(
                "An agent that falls silent within a frame, with its connection open",
                "splitsecond_controller_agents{freshness=\"stale\"}",
                |scene| {
                    Box::pin(async {
                        let mut peer = Peer::hello(scene.ingest()).await;
                        peer.bytes(vec![VERSION, 2, 0, 0, 0]);
                        scene.kept.push(Box::new(peer));
                    })
                },
                "Its evidence weighs nothing after 350 ms; silence is no failure of anybody.",
            )
        },
        Case {
            lines: 0,
            ..word(
                "An agent that sends more than it may",
                "splitsecond_controller_frames_delayed_total",
                |scene| {
                    Box::pin(async {
                        let mut peer = Peer::hello(scene.ingest()).await;
                        for seq in 1..=400 {
                            peer.say(&AgentFrame::Report(Report { seq, now_ns: now_ns(), ..Report::default() }));
                        }
                        scene.kept.push(Box::new(peer));
                    })
                },
                "Its frames wait, 250 a second are taken; nobody else's do.",
            )
        },
        word(
            "An agent that does not read what it is sent",
            "splitsecond_controller_streams_overrun_total",
            |scene| {
                Box::pin(async {
                    let peer = Peer::hello(scene.ingest()).await.answered().await;
                    scene.kept.push(Box::new(peer));
                    scene.plant_bad(|_| {});
                    for turn in 0..12_000_u32 {
                        scene
                            .bench
                            .server
                            .update_with(Resource::TrafficSplits, "demo", "bad", |split: &mut Value| {
                                split["spec"]["backends"][0]["weight"] = json!(1 + turn % 2);
                            })
                            .unwrap();
                        // Slowly enough for everybody who reads.
                        if turn % 32 == 0 {
                            tokio::time::sleep(Duration::from_millis(10)).await;
                            let is_told = |line: &Value| line["message"].as_str().unwrap().contains("does not read");
                            if scene.controller().lines_after(0).iter().any(is_told) {
                                return;
                            }
                        }
                    }
                })
            },
            ENDED,
        ),
    ]
}
