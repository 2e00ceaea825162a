//! A short outage in the middle of noise: the noise must not have used up its hold. And outages that let half through.

use crate::cluster::{Answer, Cluster, Layout, Lots, is_primary};
use crate::{check_failover, check_stays, refuse_primary};

/// One in a hundred fails, and one client loops on one endpoint that is dead for it.
fn mk_noise(rate: u64, seed: u64) -> Cluster {
    let mut cluster = Cluster::new(Layout { rate, ..Layout::default() });
    cluster.lots = Lots(seed);
    cluster.warm_up()
}

fn fails(to: probe_common::wire::Destination, lots: &mut Lots) -> bool {
    is_primary(to) && lots.below(100) == 0
}

#[test]
fn a_blip_in_noise_moves_nothing() {
    for rate in [30, 100, 1_000] {
        for seed in 1..40 {
            let mut cluster = mk_noise(rate, seed * 7_919);
            let from = cluster.now_ms + 1_000;
            cluster.world = Box::new(move |_, to, at, lots| {
                let blip = (from..from + 50).contains(&at) && is_primary(to);
                if blip || fails(to, lots) { Answer::Refused } else { Answer::Established }
            });
            let victim = ([198, 18, 1, 1], crate::cluster::PORT).into();
            let world = std::mem::replace(&mut cluster.world, Box::new(|_, _, _, _| Answer::Established));
            cluster.world =
                Box::new(
                    move |node, to, at, lots| {
                        if node == "client-0" && to == victim { Answer::Refused } else { world(node, to, at, lots) }
                    },
                );
            for _ in 0..1_000 {
                cluster.dial("client-0", victim);
                cluster.run(2);
            }
            assert_eq!(cluster.written.len(), 0, "{rate}/s, seed {seed}: {:?}", cluster.written);
        }
    }
}

#[test]
fn two_blips_are_no_outage() {
    for gap in [150, 250, 400, 800] {
        for phase in (0..100).step_by(7) {
            let mut cluster = Cluster::new(Layout::default()).warm_up();
            let from = cluster.now_ms + phase;
            cluster.world = Box::new(move |_, to, at, _| {
                let is_blip = [from, from + gap].iter().any(|from| (*from..from + 50).contains(&at));
                if is_blip && is_primary(to) { Answer::Refused } else { Answer::Established }
            });
            check_stays(cluster, 3_000);
        }
    }
}

#[test]
fn an_outage_in_noise_is_still_left_in_time() {
    for (rate, at_most) in [(1_000, 130), (100, 260)] {
        for seed in 1..40 {
            let mut cluster = mk_noise(rate, seed * 104_729);
            cluster.world =
                Box::new(|_, to, _, lots| if fails(to, lots) { Answer::Refused } else { Answer::Established });
            let mut cluster = check_stays(cluster, 1_000 + seed);
            refuse_primary(&mut cluster);
            let took = check_failover(cluster, at_most);
            assert!(took >= 90, "{rate}/s: after {took} ms");
        }
    }
}

#[test]
fn half_of_the_connections_refused_is_an_outage_and_a_tenth_is_none() {
    let mut took: Vec<u64> = (1..60)
        .map(|seed| {
            let mut cluster = mk_noise(1_000, seed * 15_485_863);
            cluster.world =
                Box::new(
                    |_, to, _, lots: &mut Lots| {
                        if is_primary(to) && lots.below(2) == 0 { Answer::Refused } else { Answer::Established }
                    },
                );
            cluster.run_until_written(3_000).expect("fails over")
        })
        .collect();
    took.sort_unstable();
    println!("brownout-50: p50 {} ms, max {} ms", took[took.len() / 2], took[took.len() - 1]);
    assert!(took[took.len() / 2] <= 300 && took[took.len() - 2] <= 700 && took[took.len() - 1] <= 1_000, "{took:?}");
    for seed in 1..6 {
        let mut cluster = mk_noise(1_000, seed * 15_485_863);
        cluster.world =
            Box::new(
                |_, to, _, lots: &mut Lots| {
                    if is_primary(to) && lots.below(10) == 0 { Answer::Refused } else { Answer::Established }
                },
            );
        check_stays(cluster, 30_000);
    }
}

#[test]
fn one_client_whose_connections_fail_by_half_is_an_outage_too() {
    for seed in 1..40 {
        let mut cluster = Cluster::new(Layout { client_nodes: 1, endpoints: 1, ..Layout::default() });
        cluster.lots = Lots(seed * 104_729);
        cluster.one_client = true;
        let mut cluster = cluster.warm_up();
        cluster.world =
            Box::new(
                |_, to, _, lots: &mut Lots| {
                    if is_primary(to) && lots.below(2) == 0 { Answer::Refused } else { Answer::Established }
                },
            );
        cluster.run_until_written(3_000).expect("fails over");
    }
}
