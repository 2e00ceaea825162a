use controller_core::facts::BackendFacts;
use controller_core::weights::Weight;

use super::*;

fn id(name: &str) -> ObjectId {
    ObjectId::new("demo", name)
}

fn mk_facts(service: &str, backends: &[&str], port: Option<u16>) -> SplitFacts {
    let backend = |name: &&str| BackendFacts { service: (*name).to_owned(), weight: Weight::ONE };
    SplitFacts {
        uid: "u-1".into(),
        resource_version: "1".into(),
        generation: 1,
        service: service.into(),
        backends: backends.iter().map(backend).collect(),
        primary: None,
        port,
        single_node: false,
        check_all_ports: false,
        record: None,
    }
}

fn mk_service(ports: &[u16]) -> Option<ServiceOutline> {
    Some(ServiceOutline { ports: ports.iter().copied().collect(), is_external: false })
}

fn at(ms: u64) -> Time {
    Time(1_000_000_000) + Duration::from_millis(ms)
}

/// The Services `web` and `west` on port 80, every list complete.
fn mk_findings() -> Findings {
    let mut findings = Findings::default();
    for name in ["web", "west"] {
        findings.on_service(&id(name), mk_service(&[80]), at(0));
    }
    findings.on_complete(at(0));
    findings
}

fn texts(news: Vec<News>) -> Vec<String> {
    let text = |news: News| match news {
        News::Found(finding) => format!("+{}: {}", finding.kind.as_str(), finding.text),
        News::Mended(finding) => format!("-{}", finding.kind.as_str()),
    };
    news.into_iter().map(text).collect()
}

#[track_caller]
fn check(findings: &mut Findings, facts: &SplitFacts, expected: &[&str]) {
    findings.on_split(&id("emoji"), Ok(facts), at(10));
    let told = texts(findings.step(at(2_000)));
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told}");
    }
}

#[test]
fn a_split_as_it_should_be_has_none() {
    check(&mut mk_findings(), &mk_facts("web", &["web", "west"], Some(80)), &[]);
}

#[test]
fn each_mistake_names_its_field() {
    let with = |facts: &SplitFacts, expected: &[&str]| check(&mut mk_findings(), facts, expected);
    with(
        &mk_facts("web", &["web", "nope"], None),
        &["+missing-service: spec.backends[1].service \"nope\" does not exist"],
    );
    with(&mk_facts("apex", &["web", "west"], None), &["+missing-service: spec.service \"apex\" does not exist"]);
    with(
        &mk_facts("web", &["web", "west"], Some(81)),
        &[
            "+port-not-served: annotation splitsecond.dev/port 81 is no port of spec.backends[0].service \"web\"",
            "+port-not-served: annotation splitsecond.dev/port 81 is no port of spec.backends[1].service \"west\"",
        ],
    );
    with(&mk_facts("web", &["web"], None), &["+no-other-backend: spec.backends has one entry"]);
    let mut findings = mk_findings();
    findings.on_service(&id("west"), mk_service(&[8080]), at(0));
    let facts = mk_facts("web", &["web", "west"], None);
    check(
        &mut findings,
        &facts,
        &["+no-common-port: spec.backends[1].service \"west\" has no TCP port in common with spec.service \"web\""],
    );
    let mut findings = mk_findings();
    findings.on_service(&id("west"), Some(ServiceOutline { is_external: true, ..ServiceOutline::default() }), at(0));
    check(&mut findings, &facts, &["+external-name: spec.backends[1].service \"west\" is of type ExternalName"]);
}

#[test]
fn a_mirror_with_ports_under_a_headless_apex_is_right() {
    let mut findings = mk_findings();
    findings.on_service(&id("web"), mk_service(&[]), at(0));
    findings.on_service(&id("east"), mk_service(&[8080]), at(0));
    check(&mut findings, &mk_facts("web", &["east", "west"], None), &[]);
}

#[test]
fn what_is_created_one_after_the_other_is_no_mistake() {
    let mut findings = Findings::default();
    findings.on_complete(at(0));
    findings.on_split(&id("emoji"), Ok(&mk_facts("web", &["web", "west"], None)), at(0));
    assert_eq!(texts(findings.step(at(999))), [""; 0]);
    assert_eq!(findings.due(), Some(at(1_000)));
    findings.on_service(&id("web"), mk_service(&[80]), at(999));
    findings.on_service(&id("west"), mk_service(&[80]), at(999));
    assert_eq!((texts(findings.step(at(5_000))).len(), findings.due()), (0, None));
}

#[test]
fn nothing_is_missing_before_every_list_is_complete() {
    let mut findings = Findings::default();
    findings.on_split(&id("emoji"), Ok(&mk_facts("web", &["web", "west"], None)), at(0));
    assert_eq!((texts(findings.step(at(60_000))).len(), findings.due()), (0, None));
    findings.on_complete(at(60_000));
    assert_eq!(texts(findings.step(at(61_000))).len(), 2);
}

#[test]
fn it_is_told_once_and_once_more_when_it_is_mended() {
    let mut findings = mk_findings();
    let bad = mk_facts("web", &["web", "nope"], None);
    findings.on_split(&id("emoji"), Ok(&bad), at(0));
    assert_eq!(texts(findings.step(at(1_000))).len(), 1);
    for turn in 0..10 {
        findings.on_split(&id("emoji"), Ok(&bad), at(2_000 + turn));
        assert_eq!(texts(findings.step(at(5_000))), [""; 0], "a mistake that stays is not told again");
    }
    assert_eq!(findings.standing().map(|(_, since)| since).collect::<Vec<_>>(), [at(0)]);
    findings.on_service(&id("nope"), mk_service(&[80]), at(6_000));
    assert_eq!(texts(findings.step(at(6_000))), ["-missing-service"]);
    assert_eq!(findings.standing().count(), 0);
    findings.on_service(&id("nope"), None, at(7_000));
    assert_eq!(texts(findings.step(at(8_000))).len(), 1, "it is back");
    findings.on_split_gone(&id("emoji"), at(9_000));
    assert_eq!(texts(findings.step(at(9_000))), ["-missing-service"]);
}

#[test]
fn a_field_that_makes_no_sense_is_told_at_once_and_alone() {
    let mut findings = mk_findings();
    findings.on_split(&id("emoji"), Err(&"spec.backends is missing".to_owned()), at(0));
    assert_eq!(texts(findings.step(at(0))), ["+undecodable: spec.backends is missing"]);
    findings.on_split(&id("emoji"), Err(&"spec.backends is empty".to_owned()), at(1));
    assert_eq!(texts(findings.step(at(1))), ["+undecodable: spec.backends is empty", "-undecodable"]);
    findings.on_split(&id("emoji"), Ok(&mk_facts("web", &["web", "west"], None)), at(2));
    assert_eq!(texts(findings.step(at(2))), ["-undecodable"]);
}

#[test]
fn two_splits_of_one_apex_name_each_other() {
    let mut findings = mk_findings();
    let facts = mk_facts("web", &["web", "west"], None);
    findings.on_split(&id("emoji"), Ok(&facts), at(0));
    findings.on_split(&id("emoji-2"), Ok(&facts), at(0));
    findings.on_split(&ObjectId::new("other", "emoji-3"), Ok(&mk_facts("web", &["web", "west"], None)), at(0));
    let told = texts(findings.step(at(1_000)));
    let shared: Vec<_> = told.iter().filter(|text| text.starts_with("+shared-apex")).collect();
    assert_eq!(shared.len(), 2, "{told:?}");
    assert!(shared[0].contains("trafficsplit/emoji-2") && shared[1].contains("trafficsplit/emoji too"), "{shared:?}");
    findings.on_split_gone(&id("emoji-2"), at(2_000));
    assert_eq!(texts(findings.step(at(2_000))), ["-shared-apex", "-shared-apex"]);
}

#[test]
fn a_slice_matters_where_a_split_names_its_service() {
    let mut findings = mk_findings();
    let fault = || vec!["ports[0].port 0 is no port".to_owned()];
    findings.on_slice(&id("west-1"), &id("west"), fault(), at(0));
    findings.on_slice(&id("other-1"), &id("other"), fault(), at(0));
    assert_eq!(texts(findings.step(at(2_000))), [""; 0]);
    findings.on_split(&id("emoji"), Ok(&mk_facts("web", &["web", "west"], None)), at(3_000));
    assert_eq!(texts(findings.step(at(4_000))), ["+endpoint-slice: ports[0].port 0 is no port"]);
    findings.on_slice(&id("west-1"), &id("west"), Vec::new(), at(5_000));
    assert_eq!(texts(findings.step(at(5_000))), ["-endpoint-slice"]);
}

#[test]
fn one_object_cannot_fill_the_log() {
    let names: Vec<String> = (0..1_000).map(|number| format!("nope-{number}")).collect();
    let backends: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut findings = mk_findings();
    findings.on_split(&id("emoji"), Ok(&mk_facts("web", &backends, None)), at(0));
    assert_eq!(texts(findings.step(at(1_000))).len(), PER_OBJECT);
}
