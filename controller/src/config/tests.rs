use super::*;

fn parse(arguments: &[&str]) -> Result<Settings, Faults> {
    let arguments = std::iter::once("splitsecond-controller").chain(arguments.iter().copied());
    Args::try_parse_from(arguments).expect("known options").settings()
}

#[track_caller]
fn check(arguments: &[&str], expected: &[&str]) {
    let faults = parse(arguments).expect_err("a fault");
    assert_eq!(faults.0, expected);
}

#[test]
fn without_arguments_the_judgement_runs_with_its_own_defaults() {
    let settings = parse(&[]).expect("valid");
    assert_eq!(settings.core, controller_core::Config::default());
    assert_eq!(settings.ingest_addr, SocketAddr::from(([127, 0, 0, 1], 9443)));
    assert_eq!(settings.selector, "failover.linkerd.io/controlled-by");
    assert_eq!(settings.namespace, "splitsecond");
}

#[test]
fn every_setting_reaches_the_judgement() {
    let settings = parse(&[
        "--mode=observe",
        "--dwell=2s",
        "--dwell-max=1m",
        "--readiness-hold=500ms",
        "--ramp=100,900",
        "--ramp-step=1s",
        "--recovery-successes=5",
        "--recovery-span=2s",
        "--group-spacing=1s",
        "--group-limit=7",
        "--group-window=3m",
    ])
    .expect("valid");
    let expected = controller_core::Config {
        mode: Mode::Observe,
        dwell: Duration::from_secs(2),
        dwell_max: Duration::from_secs(60),
        readiness_hold: Duration::from_millis(500),
        ramp: vec![100, 900],
        ramp_step: Duration::from_secs(1),
        recovery_successes: 5,
        recovery_span: Duration::from_secs(2),
        group_spacing: Duration::from_secs(1),
        group_limit: 7,
        group_window: Duration::from_secs(180),
        ..controller_core::Config::default()
    };
    assert_eq!(settings.core, expected);
    assert_eq!(parse(&["--ramp=none"]).expect("valid").core.ramp, Vec::<u16>::new());
}

#[test]
fn all_faults_are_told_together() {
    check(
        &[
            "--mode=on",
            "--dwell=30",
            "--ramp=500,250",
            "--admin-addr=here",
            "--group-limit=0",
            "--namespace=Kube_System",
        ],
        &[
            "--mode \"on\" is not known: it is one of enforce, observe",
            "--dwell \"30\" has no unit: write ms, s, m or h after the number, such as 250ms, 10s or 1m",
            "--ramp \"500,250\" is not a rising list of thousandths from 1 to 999, nor \"none\"",
            "--group-limit \"0\" is not a whole number from 1 to 1000",
            "--admin-addr \"here\" is not an address and port, such as 127.0.0.1:9443 or [::1]:9443",
            "--namespace \"Kube_System\" is not a Kubernetes name: letters a-z, digits and dashes, at most 63",
        ],
    );
}

#[test]
fn relations_between_settings_are_checked() {
    check(&["--dwell=1h"], &["--dwell is longer than --dwell-max"]);
    check(&["--group-window=1s"], &["--group-spacing is longer than --group-window"]);
    check(&["--selector="], &["--selector is empty: it would take every TrafficSplit"]);
    check(&["--dwell=10ms"], &["--dwell \"10ms\" is below 100ms"]);
    check(&["--dwell-max=48h"], &["--dwell-max \"48h\" is above 24h"]);
}

#[test]
fn profiles_that_do_not_exist_yet_say_so() {
    check(&["--profile=fast"], &["--profile \"fast\" is not built yet"]);
    check(&["--profile=quick"], &["--profile \"quick\" is not known: it is one of default"]);
}

#[test]
fn reports_from_other_machines_need_their_addresses_named() {
    check(
        &["--ingest-addr=0.0.0.0:9443"],
        &[
            "--ingest-addr 0.0.0.0:9443 would take reports from other machines, and without TLS (not built yet) anyone could \
           send them: name the addresses to trust with --insecure-ingest-from CIDR, or listen on a loopback address",
        ],
    );
    let settings = parse(&[
        "--ingest-addr=0.0.0.0:9443",
        "--insecure-ingest-from=198.18.0.0/15",
        "--insecure-ingest-from=2001:db8::/32,203.0.113.7",
    ])
    .expect("valid");
    let blocks: Vec<_> = settings.ingest_from.iter().map(ToString::to_string).collect();
    assert_eq!(blocks, ["198.18.0.0/15", "2001:db8::/32", "203.0.113.7/32"]);
    check(
        &["--insecure-ingest-from=198.18.0.1/15"],
        &["--insecure-ingest-from \"198.18.0.1/15\" has bits set after its prefix"],
    );
}
