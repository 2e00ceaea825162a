//! Worlds on the real kernel: what the network carries, what a node's child sees, what each fault looks like from
//! elsewhere, and that nothing stays behind. Needs root; `cargo xtask test` runs it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "world/converse.rs"]
mod converse;
#[path = "world/load.rs"]
mod load;
#[path = "world/mesh.rs"]
mod mesh;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::load::outcome::Outcome;
use lab::load::records::Records;
use lab::load::wire::{ClientSpec, DEFAULT_TIMEOUT_MS, Order, PodProgram, ServerSpec, Target};
use lab::world::cgroup::mount_point;
use lab::world::fault::{
    ExtraLoop, Fault, Filter, Frozen, Hang, Killed, Refused, Span, Stalled, Terminated, Unplugged,
};
use lab::world::netns::Netns;
use lab::world::{Launch, Layout, NodeSpec, Pod, PodChild, PodSpec, World, clock, dial_from};

const PORT: u16 = 8080;
const SHORT: Duration = Duration::from_millis(500);
const READY: Duration = Duration::from_secs(5);

fn mk_layout(nodes: &[&str], pods: &[(&str, &str)]) -> Layout {
    Layout {
        nodes: nodes.iter().map(|name| NodeSpec { name: (*name).into(), zone: "zone-a".into() }).collect(),
        pods: pods
            .iter()
            .map(|(name, node)| PodSpec { name: (*name).into(), node: (*node).into(), uid: format!("uid-{name}") })
            .collect(),
        executable: Some(PathBuf::from(env!("CARGO_BIN_EXE_splitsecond-lab"))),
        ..Layout::default()
    }
}

/// A client node, a node with two endpoints, and one server in each endpoint.
fn mk_small() -> (World, Vec<PodChild>) {
    let pods = [("client", "north"), ("one", "south"), ("two", "south")];
    let world = World::create(&mk_layout(&["north", "south"], &pods)).unwrap();
    let servers = ["one", "two"].map(|name| mk_server(&world, name)).to_vec();
    for server in &servers {
        server.wait_ready(READY).unwrap();
    }
    (world, servers)
}

fn mk_server(world: &World, pod: &str) -> PodChild {
    let answer = pod.as_bytes()[0];
    let program = PodProgram::Server(ServerSpec::new(PORT, answer));
    world.pod(pod).unwrap().spawn(&program, &Records::new()).unwrap()
}

fn at(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.address(), PORT)
}

fn names_of(world: &World) -> BTreeSet<String> {
    let prefix = format!("{}-", world.prefix());
    netns_with(&prefix)
}

fn netns_with(prefix: &str) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return BTreeSet::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

fn links_of_the_machine() -> String {
    let output = Command::new("ip").args(["-br", "link"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn check_gone(prefix: &str) {
    assert_eq!(netns_with(&format!("{prefix}-")), BTreeSet::new(), "namespaces");
    assert!(!mount_point().unwrap().join(prefix).exists(), "cgroups, and with them processes");
    assert!(!Path::new("/run/splitsecond-lab").join(prefix).exists(), "the run directory");
    assert!(!Path::new("/run/splitsecond-lab").join(format!("{prefix}.lock")).exists(), "the lock");
    assert!(!links_of_the_machine().contains(prefix), "links");
}

/// What a dial meets from the control namespace, from a pod on another node and from the endpoint's own node.
#[track_caller]
fn check_everywhere(world: &World, address: SocketAddr, expected: Outcome) {
    let places: [(&str, &Netns); 3] = [
        ("control", world.control().netns()),
        ("client", world.pod("client").unwrap().netns()),
        ("own node", world.node("south").unwrap().netns()),
    ];
    for (name, place) in places {
        assert_eq!(dial_from(place, address, SHORT).unwrap(), expected, "from {name}");
    }
}

#[track_caller]
fn check_fault(world: &World, fault: &mut dyn Fault, address: SocketAddr, expected: Outcome) {
    check_everywhere(world, address, Outcome::Ok);
    let before_ns = clock::now_ns();
    fault.arm().unwrap();
    let span = fault.inject().unwrap();
    check_span(span, before_ns);
    // A signal is sent at once and acts a moment later.
    assert!(wait_for(|| world.control().dial(address, SHORT).unwrap() == expected));
    check_everywhere(world, address, expected);
    fault.heal().unwrap();
    check_everywhere(world, address, Outcome::Ok);
}

#[track_caller]
fn check_span(span: Span, before_ns: u64) {
    println!("injected in {:.3} ms", (span.last_ns - span.first_ns) as f64 / 1e6);
    assert!(before_ns <= span.first_ns && span.first_ns <= span.last_ns && span.last_ns <= clock::now_ns());
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn the_standard_layout_comes_and_goes_without_a_trace() {
    assert_eq!(lab::world::lacks(), Vec::<String>::new());
    let links = links_of_the_machine();
    let mut pods: Vec<(String, String)> = Vec::new();
    for number in 0..6 {
        pods.push((format!("client-{number}"), format!("client-node-{}", number / 2)));
        pods.push((format!("emoji-{number}"), format!("backend-node-{}", number / 2)));
        pods.push((format!("other-{number}"), format!("backend-node-{}", number / 2)));
    }
    pods.extend(["gateway", "west-0", "west-1"].map(|name| (name.to_owned(), "west-node".to_owned())));
    let nodes =
        ["client-node-0", "client-node-1", "client-node-2", "backend-node-0", "backend-node-1", "backend-node-2"];
    let nodes: Vec<&str> = nodes.into_iter().chain(["west-node"]).collect();
    let pods: Vec<(&str, &str)> = pods.iter().map(|(name, node)| (name.as_str(), node.as_str())).collect();

    let started_ns = clock::now_ns();
    let world = World::create(&mk_layout(&nodes, &pods)).unwrap();
    let created_ns = clock::now_ns();
    assert_eq!(names_of(&world).len(), 7 + 21 + 2);
    assert_eq!(world.node("west-node").unwrap().address(), IpAddr::from([198, 51, 100, 7]));
    let prefix = world.prefix().to_owned();
    let removing_ns = clock::now_ns();
    world.remove().unwrap();
    let removed_ns = clock::now_ns();
    println!(
        "7 nodes and 21 pods: created in {} ms, removed in {} ms",
        (created_ns - started_ns) / 1_000_000,
        (removed_ns - removing_ns) / 1_000_000
    );
    check_gone(&prefix);
    assert_eq!(links, links_of_the_machine());
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn pods_reach_pods_and_cluster_ips_lead_to_ready_endpoints_only() {
    let (world, servers) = mk_small();
    let client = world.pod("client").unwrap();
    let (one, two) = (world.pod("one").unwrap(), world.pod("two").unwrap());
    check_everywhere(&world, at(one), Outcome::Ok);
    check_everywhere(&world, SocketAddr::new(two.address_v6(), PORT), Outcome::Ok);

    let cluster_ip: IpAddr = "203.0.113.10".parse().unwrap();
    let service = SocketAddr::new(cluster_ip, 80);
    world.set_service(cluster_ip, 80, &[at(one), at(two)]).unwrap();
    for _ in 0..40 {
        assert_eq!(dial_from(client.netns(), service, SHORT).unwrap(), Outcome::Ok);
    }
    assert_eq!(dial_from(world.node("north").unwrap().netns(), service, SHORT).unwrap(), Outcome::Ok);
    let wait = || servers.iter().map(|server| server.counts().accepted).sum::<u64>() >= 41 + 6;
    assert!(wait_for(wait), "servers count what they accept");
    // Forty fair draws leave one of two with fewer than 8 once in 30,000 runs.
    servers.iter().for_each(|server| assert!(server.counts().accepted >= 8, "both endpoints get their share"));

    world.set_service(cluster_ip, 80, &[at(one)]).unwrap();
    let before = servers[1].counts().accepted;
    for _ in 0..20 {
        assert_eq!(dial_from(client.netns(), service, SHORT).unwrap(), Outcome::Ok);
    }
    pause(250);
    assert_eq!(servers[1].counts().accepted, before, "an endpoint that is not ready gets nothing");

    world.set_service(cluster_ip, 80, &[]).unwrap();
    for place in [client.netns(), world.node("north").unwrap().netns()] {
        // Linux shows a blocking connect the ICMP only with its second SYN, a second later.
        let outcome = dial_from(place, service, Duration::from_secs(3)).unwrap();
        assert_eq!(outcome, Outcome::REFUSED, "REJECT without endpoints");
    }

    let cluster_ip: IpAddr = "2001:db8:ffff::10".parse().unwrap();
    world.set_service(cluster_ip, 80, &[SocketAddr::new(one.address_v6(), PORT)]).unwrap();
    assert_eq!(dial_from(client.netns(), SocketAddr::new(cluster_ip, 80), SHORT).unwrap(), Outcome::Ok);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_nodes_child_sees_the_node_as_its_machine() {
    let (world, _servers) = mk_small();
    let node = world.node("south").unwrap();
    let mount = mount_point().unwrap();
    let script = format!(
        "stat -c inode:%i {mount}; stat -fc type:%T {mount}; tail -n1 /proc/self/cgroup; ls {mount}/kubepods/besteffort; \
         ip -br -4 addr show eth0; grep -c cgroup2 /proc/self/mountinfo; mkdir /sys/fs/bpf/d; echo netns:$(grep -c /netns/ /proc/self/mountinfo)",
        mount = mount.display()
    );
    let launch = |script: &str| Launch {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("NAME".into(), "value".into())],
        log: "look".into(),
    };
    let child = node.spawn(&launch(&script)).unwrap();
    assert!(child.wait(READY).unwrap().is_some(), "it ends");
    let said = std::fs::read_to_string(child.log()).unwrap();
    println!("{said}");
    assert!(said.contains(&format!("inode:{}", node.cgroup().inode().unwrap())), "the root is the node's directory");
    assert!(said.contains("type:cgroup2fs") || said.contains("type:UNKNOWN (0x63677270)"));
    assert!(said.contains("0::/agent"), "its own cgroup is a child of the root");
    assert!(said.contains("poduid-one") && said.contains("poduid-two") && !said.contains("poduid-client"));
    assert!(said.contains("198.51.100.2/24"));
    assert!(said.lines().any(|line| line == "1"), "there is one cgroup2 mount only");

    assert!(said.contains("netns:0"), "it keeps no other namespace alive");

    // A second child of the same node finds what the first one pinned; another node does not.
    for (name, expected) in [("south", "found"), ("north", "missing")] {
        let mut look = launch("test -d /sys/fs/bpf/d && echo found || echo missing; echo $NAME");
        look.log = format!("pins-{name}");
        let child = world.node(name).unwrap().spawn(&look).unwrap();
        assert!(child.wait(READY).unwrap().is_some());
        let said = std::fs::read_to_string(child.log()).unwrap();
        assert_eq!(said, format!("{expected}\nvalue\n"), "{name}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn faults_of_programs_look_as_they_should_from_everywhere() {
    let (world, servers) = mk_small();
    let one = world.pod("one").unwrap();
    let first = || vec![servers[0].clone()];
    check_fault(&world, &mut Refused(first()), at(one), Outcome::REFUSED);
    let pid = servers[0].pid();
    check_fault(&world, &mut Killed(first()), at(one), Outcome::REFUSED);
    assert_ne!(pid, servers[0].pid(), "another process");
    check_fault(&world, &mut Terminated(first()), at(one), Outcome::REFUSED);
    check_fault(&world, &mut Frozen(first()), at(one), Outcome::NoAnswer);
    check_everywhere(&world, at(world.pod("two").unwrap()), Outcome::Ok);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_hang_drops_handshakes_once_its_backlog_is_full() {
    let (world, servers) = mk_small();
    let one = world.pod("one").unwrap();
    let mut hang = Hang(vec![servers[0].clone()]);
    let before_ns = clock::now_ns();
    hang.inject().unwrap();
    assert_eq!(hang.first_drop_ns(), None);
    let filling: Vec<_> = (0..24)
        .map(|_| {
            let (netns, address) = (world.control().netns().clone(), at(one));
            std::thread::spawn(move || dial_from(&netns, address, SHORT).unwrap())
        })
        .collect();
    let outcomes: Vec<Outcome> = filling.into_iter().map(|thread| thread.join().unwrap()).collect();
    let waiting = outcomes.iter().filter(|outcome| **outcome == Outcome::NoAnswer).count();
    assert!(outcomes.contains(&Outcome::NoHandshake), "{outcomes:?}");
    assert!((16..=18).contains(&waiting), "a backlog of 16 holds 17: {outcomes:?}");
    let dropped_ns = hang.first_drop_ns().unwrap();
    assert!(before_ns < dropped_ns && dropped_ns < clock::now_ns());
    hang.heal().unwrap();
    check_everywhere(&world, at(one), Outcome::Ok);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn faults_of_the_path_look_as_they_should_from_everywhere() {
    let (world, _servers) = mk_small();
    let (one, two) = (world.pod("one").unwrap(), world.pod("two").unwrap());
    let (north, south) = (world.node("north").unwrap(), world.node("south").unwrap());
    let unreachable = Outcome::Errno(113);
    check_fault(&world, &mut Filter::blackhole(&[one]), at(one), Outcome::NoHandshake);
    check_fault(&world, &mut Filter::refuse_some(&[one], 1000), at(one), Outcome::REFUSED);

    let mut fault = Filter::unreachable(&[south], &[one]);
    fault.inject().unwrap();
    let long = Duration::from_secs(3);
    assert_eq!(dial_from(world.pod("client").unwrap().netns(), at(one), long).unwrap(), unreachable);
    assert_eq!(dial_from(south.netns(), at(one), long).unwrap(), unreachable);
    assert_eq!(dial_from(south.netns(), at(two), SHORT).unwrap(), Outcome::Ok);
    fault.heal().unwrap();
    check_everywhere(&world, at(one), Outcome::Ok);

    let mut fault = Filter::cut_path(&[north], &[at(one)]);
    fault.inject().unwrap();
    assert_eq!(dial_from(world.pod("client").unwrap().netns(), at(one), SHORT).unwrap(), Outcome::NoHandshake);
    assert_eq!(dial_from(world.pod("client").unwrap().netns(), at(two), SHORT).unwrap(), Outcome::Ok);
    assert_eq!(world.control().dial(at(one), SHORT).unwrap(), Outcome::Ok, "only the one node's path is cut");
    fault.heal().unwrap();

    // The endpoint's own node: its pods and itself are cut off, who comes by the cable is not.
    let mut fault = Filter::cut_path(&[south], &[at(one)]);
    fault.inject().unwrap();
    assert_eq!(dial_from(south.netns(), at(one), SHORT).unwrap(), Outcome::NoHandshake);
    assert_eq!(dial_from(two.netns(), at(one), SHORT).unwrap(), Outcome::NoHandshake);
    assert_eq!(dial_from(world.pod("client").unwrap().netns(), at(one), SHORT).unwrap(), Outcome::Ok);
    fault.heal().unwrap();

    let mut fault = Filter::refuse_some(&[one, two], 300);
    fault.inject().unwrap();
    let refused = (0..200).filter(|_| world.control().dial(at(one), SHORT).unwrap() == Outcome::REFUSED).count();
    // Six deviations of a fair draw of 200 at 30 %.
    assert!((21..=99).contains(&refused), "{refused} of 200 refused at 30 %");
    fault.heal().unwrap();
    check_everywhere(&world, at(one), Outcome::Ok);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn faults_of_nodes_look_as_they_should() {
    let (world, _servers) = mk_small();
    let one = world.pod("one").unwrap();
    let (client, south) = (world.pod("client").unwrap(), world.node("south").unwrap());
    check_fault(&world, &mut Stalled::new(&[south]), at(one), Outcome::NoAnswer);

    let mut fault = Unplugged::new(&world, &[south]);
    let before_ns = clock::now_ns();
    check_span(fault.inject().unwrap(), before_ns);
    assert_eq!(dial_from(client.netns(), at(one), SHORT).unwrap(), Outcome::NoHandshake);
    assert_eq!(dial_from(south.netns(), at(one), SHORT).unwrap(), Outcome::Ok, "inside, everything goes on");
    fault.heal().unwrap();
    assert!(wait_for(|| dial_from(client.netns(), at(one), SHORT).unwrap() == Outcome::Ok));
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_client_records_what_its_connections_met() {
    let (world, servers) = mk_small();
    let (client, one) = (world.pod("client").unwrap(), world.pod("one").unwrap());
    let records = Records::new();
    let spec = ClientSpec {
        target: Target::Address { address: at(one), answers: [(b'o', "east".to_owned())].into() },
        rate: 0.0,
        seed: 1,
        timeout_ms: DEFAULT_TIMEOUT_MS,
    };
    let child = client.spawn(&PodProgram::Client(spec), &records).unwrap();
    child.wait_ready(READY).unwrap();
    let began_ns = clock::now_ns();
    child.order(Order::Rate { per_second: 400.0 }).unwrap();
    pause(1000);
    let span = Refused(vec![servers[0].clone()]).inject().unwrap();
    pause(500);
    child.order(Order::Rate { per_second: 0.0 }).unwrap();
    assert!(wait_for(|| child.order(Order::Flush).unwrap().outstanding == 0));

    let (all, after) = (records.since(began_ns), records.since(span.last_ns));
    println!("{all:?}\n{after:?}");
    assert!(all.complete && (450..=750).contains(&all.sent), "600 expected of a Poisson stream: {all:?}");
    assert!(after.sent > 100 && after.failed == after.sent);
    assert_eq!(after.by_outcome["ECONNREFUSED"], after.sent);
    assert!(all.first_failure_ns.unwrap() >= span.first_ns);
    assert!(records.last_start_to("east", u64::MAX).unwrap() <= span.last_ns);
    let ok = all.sent - all.failed;
    assert!(wait_for(|| servers[0].counts().answered == ok), "server and client agree on {ok}");

    let mut extra = ExtraLoop { client: child.clone(), address: at(one), per_second: 500.0 };
    extra.inject().unwrap();
    pause(400);
    extra.heal().unwrap();
    child.order(Order::Flush).unwrap();
    assert_eq!(records.since(began_ns).sent, all.sent, "the extra loop counts in no figure");
    let totals = &records.totals()["client"];
    let looped: u64 =
        totals.by_leaf_and_outcome.iter().filter(|(key, _)| key.0 == "(extra loop)").map(|(_, n)| n).sum();
    assert!((100..=300).contains(&looped), "200 expected: {looped}");
    assert_eq!(totals.lost, 0);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_panic_leaves_nothing_behind() {
    let mut prefix = String::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let (world, _servers) = mk_small();
        prefix = world.prefix().to_owned();
        assert!(!names_of(&world).is_empty());
        panic!("on purpose");
    }));
    assert!(outcome.is_err());
    check_gone(&prefix);
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_world_goes_in_the_middle_of_its_faults() {
    let (world, servers) = mk_small();
    let prefix = world.prefix().to_owned();
    let (north, south) = (world.node("north").unwrap(), world.node("south").unwrap());
    let mut faults: Vec<Box<dyn Fault>> = vec![
        Box::new(Frozen(servers.clone())),
        Box::new(Stalled::new(&[south])),
        Box::new(Unplugged::new(&world, &[north])),
        Box::new(Filter::blackhole(&[world.pod("one").unwrap()])),
    ];
    for fault in &mut faults {
        fault.inject().unwrap();
    }
    world.remove().unwrap();
    check_gone(&prefix);
    assert!(servers.iter().all(|server| !server.is_running()));
}

/// The other half of the next test: it is started there, in a program of its own, with this word among its arguments.
const HOLD: &str = "hold-a-world-until-killed";

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_world_that_waits_for_its_end() {
    if std::env::args().any(|arg| arg == HOLD) {
        let (world, _servers) = mk_small();
        println!("prefix {}", world.prefix());
        pause(60_000);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_sweep_removes_the_worlds_of_the_dead_and_no_others() {
    use std::io::{BufRead, BufReader};
    let (living, _servers) = mk_small();
    let mut lab = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--nocapture", "--exact", "a_world_that_waits_for_its_end", "--skip", HOLD])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(lab.stdout.take().unwrap()).lines().map_while(Result::ok);
    let prefix = lines.filter_map(|line| Some(line.split_once("prefix ")?.1.to_owned())).next().unwrap();
    let cgroup = mount_point().unwrap().join(&prefix);
    assert!(cgroup.exists());
    assert!(!World::sweep_stale().unwrap().contains(&prefix), "it lives");
    assert!(cgroup.exists());
    lab.kill().unwrap();
    lab.wait().unwrap();
    let empty = || std::fs::read_to_string(cgroup.join("cgroup.events")).unwrap().contains("populated 0");
    assert!(wait_for(empty), "children die with their lab");
    assert!(World::sweep_stale().unwrap().contains(&prefix), "it is dead");
    check_gone(&prefix);
    check_everywhere(&living, at(living.pod("one").unwrap()), Outcome::Ok);
}

/// A parked thread may wake early, for instance by the end of an earlier scoped thread.
pub(crate) fn pause(millis: u64) {
    let until_ns = clock::now_ns() + millis * 1_000_000;
    while let Some(left_ns) = until_ns.checked_sub(clock::now_ns()) {
        std::thread::park_timeout(Duration::from_nanos(left_ns.max(1)));
    }
}

fn wait_for(mut done: impl FnMut() -> bool) -> bool {
    (0..200).any(|_| {
        let yes = done();
        if !yes {
            pause(10);
        }
        yes
    })
}
