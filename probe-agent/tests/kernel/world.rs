//! A client, a node that forwards, and a server, as network namespaces of this test alone, with cgroups to scope by.
//!
//! `client --veth-- node --veth-- server`. What the node does to packets depends on the address they go to. Everything
//! is named after this process and removed when the world is dropped, also by a panic.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use probe_agent::kernel::{self, PROXY_UID, Probe, Settings};
use probe_common::abi::{DestinationKey, DestinationValue, Hot, Loss, late_slots_for, slot_of};

use crate::client::Client;
use crate::client::{INBOUND, OUTBOUND};

/// Answers one byte to each byte.
pub const ANSWERING: u16 = 8001;
/// Reads a byte, then resets the connection.
pub const RESETTING: u16 = 8002;
/// Answers a byte, then resets the connection.
pub const ANSWERING_THEN_RESETTING: u16 = 8003;
/// Nothing listens there.
pub const REFUSING: u16 = 8099;

/// Names another object than the embedded one: to compare two without building twice.
const OBJECT: &str = "SPLITSECOND_TEST_OBJECT";

pub const SERVER: &str = "198.18.1.2";
pub const SERVER6: &str = "2001:db8:2::2";
/// The node answers with ICMP port-unreachable, as kube-proxy does for a Service without endpoints.
pub const REJECTED: &str = "203.0.113.10";
pub const REJECTED6: &str = "2001:db8:3::10";
/// The node drops what goes there.
pub const DROPPED: &str = "203.0.113.20";
pub const DROPPED6: &str = "2001:db8:3::20";

/// The time-out of the destinations under test: detection's 25 ms.
pub const LATE_NS: u64 = 25_000_000;

/// One world at a time: two CPUs, and tests that look at milliseconds.
static TURN: Mutex<()> = Mutex::new(());
static WORLDS: AtomicU32 = AtomicU32::new(0);

pub struct World {
    clients: Vec<PathBuf>,
    spaces: Vec<String>,
    cgroup: PathBuf,
    stop: Arc<AtomicBool>,
    listeners: Vec<JoinHandle<()>>,
    _turn: MutexGuard<'static, ()>,
}

/// The network namespaces of a world.
#[derive(Clone, Copy, Debug)]
pub enum Space {
    Client,
    Node,
    Server,
    /// See [`World::add_second_pod`].
    Second,
}

/// Lets the kernel measure programs for as long as this lives.
pub struct Measured {
    before: String,
}

const BPF_STATS: &str = "kernel/bpf_stats_enabled";

impl Measured {
    pub fn begin() -> Self {
        let before = fs::read_to_string(Path::new("/proc/sys").join(BPF_STATS)).expect("is readable");
        set(BPF_STATS, "1");
        Self { before: before.trim().to_owned() }
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        set(BPF_STATS, &self.before);
    }
}

impl World {
    pub fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("ssk{}x{}", std::process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup_root().join(&name);
        let spaces = ["c", "n", "s"].map(|role| format!("{name}{role}"));
        let mut world = Self {
            clients: Vec::new(),
            spaces: spaces.to_vec(),
            cgroup: cgroup.clone(),
            stop: Arc::default(),
            listeners: Vec::new(),
            _turn: turn,
        };
        fs::create_dir(&cgroup).expect("the cgroup2 tree is writable");
        world.wire();
        world.forbid();
        for (port, reply, reset) in
            [(ANSWERING, true, false), (RESETTING, false, true), (ANSWERING_THEN_RESETTING, true, true)]
        {
            world.listen(port, reply, reset);
        }
        // Neighbours find each other now, and not within the first connect that is timed.
        in_space(&spaces[0], || {
            for address in [SERVER, SERVER6] {
                drop(TcpStream::connect_timeout(&at(address, ANSWERING), Duration::from_secs(5)).expect("is reached"));
            }
        });
        world
    }

    fn wire(&self) {
        let [client, node, server] = [&self.spaces[0], &self.spaces[1], &self.spaces[2]];
        for space in &self.spaces {
            run(&format!("ip netns add {space}"));
            run(&format!("ip -n {space} link set lo up"));
        }
        run(&format!("ip -n {client} link add eth0 type veth peer name c0 netns {node}"));
        run(&format!("ip -n {server} link add eth0 type veth peer name s0 netns {node}"));
        for (space, link, address, address6) in [
            (client, "eth0", "198.51.100.2/24", "2001:db8:1::2/64"),
            (node, "c0", "198.51.100.1/24", "2001:db8:1::1/64"),
            (node, "s0", "198.18.1.1/24", "2001:db8:2::1/64"),
            (server, "eth0", "198.18.1.2/24", "2001:db8:2::2/64"),
        ] {
            run(&format!("ip -n {space} addr add {address} dev {link}"));
            run(&format!("ip -n {space} addr add {address6} dev {link} nodad"));
            run(&format!("ip -n {space} link set {link} up"));
        }
        for (space, gateway, gateway6) in
            [(client, "198.51.100.1", "2001:db8:1::1"), (server, "198.18.1.1", "2001:db8:2::1")]
        {
            run(&format!("ip -n {space} route add default via {gateway}"));
            run(&format!("ip -n {space} -6 route add default via {gateway6}"));
        }
        // The node knows a way to the forbidden addresses: what happens to them is decided by its rules.
        run(&format!("ip -n {node} route add 203.0.113.0/24 via 198.18.1.2"));
        run(&format!("ip -n {node} -6 route add 2001:db8:3::/64 via 2001:db8:2::2"));
        in_space(node, || {
            set("net/ipv4/ip_forward", "1");
            set("net/ipv6/conf/all/forwarding", "1");
            // The limits (per peer, and for all together) hide failures: they hold for no kind of message.
            set("net/ipv4/icmp_ratemask", "0");
            set("net/ipv6/icmp/ratelimit", "0");
        });
        in_space(client, || {
            set("net/ipv4/ip_local_port_range", "10000 60999");
            // A load of many connections from one address to one port must not run out of ports.
            set("net/ipv4/tcp_tw_reuse", "1");
        });
    }

    fn forbid(&self) {
        let node = &self.spaces[1];
        for (program, reject, drop) in [("iptables", REJECTED, DROPPED), ("ip6tables", REJECTED6, DROPPED6)] {
            run(&format!("ip netns exec {node} {program} -A FORWARD -d {reject} -p tcp -j REJECT"));
            run(&format!("ip netns exec {node} {program} -A FORWARD -d {drop} -p tcp -j DROP"));
        }
    }

    /// Serves IPv4 and IPv6 until the world ends. One connection at a time: the tests' exchanges are short.
    fn listen(&mut self, port: u16, reply: bool, reset: bool) {
        let (stop, space) = (Arc::clone(&self.stop), self.spaces[2].clone());
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        self.listeners.push(std::thread::spawn(move || {
            enter_space(&space);
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("the port is free in there");
            ready.send(()).expect("the world waits");
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                serve(stream, reply, reset);
            }
        }));
        is_ready.recv().expect("the listener came up");
    }

    /// Drops what goes to that port of the server, until [`Self::heal`].
    pub fn cut(&self, port: u16) {
        self.forward("-I", port);
    }

    pub fn heal(&self, port: u16) {
        self.forward("-D", port);
    }

    fn forward(&self, change: &str, port: u16) {
        let node = &self.spaces[1];
        run(&format!("ip netns exec {node} iptables {change} FORWARD -d {SERVER} -p tcp --dport {port} -j DROP"));
    }

    /// A client in a pod of the node: a cgroup below the node's.
    pub fn client(&mut self) -> Client {
        self.client_in("node/pod")
    }

    /// A client in that cgroup of this world.
    pub fn client_in(&mut self, cgroup: &str) -> Client {
        let path = self.cgroup(cgroup);
        if !self.clients.contains(&path) {
            self.clients.push(path.clone());
        }
        Client::spawn(&self.spaces[0], &path, 0)
    }

    /// A process of that user in one of this world's network namespaces, in that cgroup.
    pub fn process(&mut self, space: Space, cgroup: &str, user: u32) -> Client {
        let path = self.cgroup(cgroup);
        if !self.clients.contains(&path) {
            self.clients.push(path.clone());
        }
        Client::spawn(&self.spaces[space as usize], &path, user)
    }

    /// One more pod beside the client's, from the node's other link.
    pub fn add_second_pod(&mut self) {
        let (space, node) = (format!("{}d", self.spaces[1]), self.spaces[1].clone());
        self.spaces.push(space.clone());
        run(&format!("ip netns add {space}"));
        run(&format!("ip -n {space} link set lo up"));
        run(&format!("ip -n {space} link add eth0 type veth peer name d0 netns {node}"));
        for (space, link, address) in [(&space, "eth0", "198.18.2.2/24"), (&node, "d0", "198.18.2.1/24")] {
            run(&format!("ip -n {space} addr add {address} dev {link}"));
            run(&format!("ip -n {space} link set {link} up"));
        }
        run(&format!("ip -n {space} route add default via 198.18.2.1"));
    }

    /// Redirects what is dialled in and into the namespace to a proxy of that user, as a mesh's init container does.
    pub fn redirect(&self, space: Space, user: u32) {
        let space = &self.spaces[space as usize];
        for program in ["iptables", "ip6tables"] {
            for rule in [
                format!("PREROUTING -p tcp -j REDIRECT --to-ports {INBOUND}"),
                format!("OUTPUT -m owner --uid-owner {user} -j RETURN"),
                "OUTPUT -o lo -j RETURN".to_owned(),
                format!("OUTPUT -p tcp -j REDIRECT --to-ports {OUTBOUND}"),
            ] {
                run(&format!("ip netns exec {space} {program} -t nat -A {rule}"));
            }
        }
    }

    /// Drops whatever goes to the server's node, or no longer.
    pub fn cut_node(&self, is_cut: bool) {
        let (node, change) = (&self.spaces[1], if is_cut { "-I" } else { "-D" });
        run(&format!("ip netns exec {node} iptables {change} FORWARD -d {SERVER} -j DROP"));
    }

    /// Takes the server's pod away, link and addresses.
    pub fn remove_server(&self) {
        run(&format!("ip -n {} link del s0", self.spaces[1]));
    }

    /// That cgroup of this world, made if it is not there.
    fn cgroup(&self, name: &str) -> PathBuf {
        let path = self.cgroup.join(name);
        fs::create_dir_all(&path).expect("the cgroup2 tree is writable");
        path
    }

    /// A probe for the node.
    pub fn probe(&self) -> Counter {
        self.probe_of("node")
    }

    /// A probe for the node whose root is that cgroup of this world.
    pub fn probe_of(&self, cgroup: &str) -> Counter {
        self.probe_for(cgroup, PROXY_UID)
    }

    /// The same, with another user for the mesh's proxies.
    pub fn probe_for(&self, cgroup: &str, proxy_uid: u32) -> Counter {
        let node_cgroup = kernel::node_cgroup(Some(&self.cgroup(cgroup))).expect("is a cgroup");
        let settings = Settings { node_cgroup, hot_capacity: HOT_CAPACITY, cold_capacity: 16, proxy_uid };
        let loaded = match std::env::var_os(OBJECT) {
            Some(path) => Probe::load_object(&fs::read(path).expect("the object is readable"), &settings),
            None => Probe::load(&settings),
        };
        match loaded {
            Ok(probe) => Counter { probe },
            Err(error) => panic!("{error}: {error:?}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let server = self.spaces[2].clone();
        let wake = std::thread::spawn(move || {
            if try_enter_space(&server).is_ok() {
                for port in [ANSWERING, RESETTING, ANSWERING_THEN_RESETTING] {
                    drop(TcpStream::connect((Ipv6Addr::LOCALHOST, port)));
                }
            }
        });
        drop(wake.join());
        for listener in self.listeners.drain(..) {
            drop(listener.join());
        }
        for space in &self.spaces {
            drop(Command::new("ip").args(["netns", "del", space]).output());
        }
        remove_cgroups(&self.cgroup);
    }
}

pub const HOT_CAPACITY: u32 = 8;

/// A probe, with the questions that tests ask.
pub struct Counter {
    pub probe: Probe,
}

impl Counter {
    /// Counts `address:port` at a hot index.
    pub fn count(&mut self, index: u32, address: &str, port: u16) {
        self.assign(index, 1, address, port);
    }

    /// Counts the four destinations of the mixed load at hot indices 0 to 3.
    pub fn count_load(&mut self) {
        let destinations = [(SERVER, ANSWERING), (SERVER, REFUSING), (REJECTED, ANSWERING), (DROPPED, ANSWERING)];
        for (index, (address, port)) in (0..).zip(destinations) {
            self.count(index, address, port);
        }
    }

    pub fn loss(&self, loss: Loss) -> u64 {
        self.probe.losses().expect("are readable")[loss as usize]
    }

    pub fn assign(&mut self, index: u32, generation: u32, address: &str, port: u16) {
        let value = DestinationValue { index, generation, late_slots: late_slots_for(LATE_NS) };
        self.probe.assign(&destination(address, port), &value).expect("there is room");
    }

    /// The sum over CPUs.
    pub fn sum(&self, index: u32) -> Sum {
        let now = slot_of(kernel::now_ns());
        let values = self.probe.hot(index).expect("is readable");
        Sum::of(&values, now)
    }

    /// Waits until `wanted` holds; fails with the last sum when it does not within a second.
    #[track_caller]
    pub fn wait(&self, index: u32, wanted: impl Fn(&Sum) -> bool) -> Sum {
        for _ in 0..1000 {
            let sum = self.sum(index);
            if wanted(&sum) {
                return sum;
            }
            pause_ms(1);
        }
        panic!("did not come: {:?} losses {:?}", self.sum(index), self.probe.losses());
    }
}

/// Counters of a destination over all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub attempts: u64,
    pub established: u64,
    pub established_late: u64,
    pub cancelled: u64,
    pub cancelled_late: u64,
    pub failed: [u64; 4],
    pub failed_late: [u64; 4],
    pub flows_answered: u64,
    pub outstanding: i64,
    pub outstanding_late: i64,
}

impl Sum {
    fn of(values: &[Hot], now: u32) -> Self {
        let mut sum = Self::default();
        for value in values {
            sum.attempts += value.attempts;
            sum.established += value.established;
            sum.established_late += value.established_late;
            sum.cancelled += value.cancelled;
            sum.cancelled_late += value.cancelled_late;
            for cause in 0..sum.failed.len() {
                sum.failed[cause] += value.failed[cause];
                sum.failed_late[cause] += value.failed_late[cause];
            }
            sum.flows_answered += value.flows_answered;
            sum.outstanding += value.outstanding();
            sum.outstanding_late += value.outstanding_late(now, late_slots_for(LATE_NS));
        }
        sum
    }

    /// Attempts that ended, one way or another.
    pub fn ended(&self) -> u64 {
        let resets = self.failed[3] + self.failed_late[3];
        self.established
            + self.established_late
            + self.cancelled
            + self.cancelled_late
            + self.failed.iter().chain(&self.failed_late).sum::<u64>()
            - resets
    }
}

pub fn destination(address: &str, port: u16) -> DestinationKey {
    let address = match address.parse().expect("is an address") {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    DestinationKey { address: address.octets(), port, protocol: 6, kind: DestinationKey::ORDINARY }
}

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("is an address"), port)
}

#[expect(clippy::disallowed_methods, reason = "tests against a real kernel wait for real time")]
pub fn pause_ms(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Moves the calling thread into a network namespace; fails the test when there is none.
pub fn enter_space(space: &str) {
    try_enter_space(space).expect("the namespace is there");
}

fn try_enter_space(space: &str) -> std::io::Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let namespace = OwnedFd::from(fs::File::open(format!("/run/netns/{space}"))?);
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Runs `action` on a thread of its own in the namespace.
fn in_space(space: &str, action: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                enter_space(space);
                action();
            })
            .join()
            .expect("the settings of a namespace can be written");
    });
}

fn set(name: &str, value: &str) {
    fs::write(Path::new("/proc/sys").join(name), value).expect(name);
}

fn serve(stream: std::io::Result<TcpStream>, reply: bool, reset: bool) {
    let Ok(mut stream) = stream else { return };
    let limit = Some(Duration::from_secs(2));
    stream.set_read_timeout(limit).expect("is not zero");
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        if reply && stream.write_all(&byte).is_err() {
            return;
        }
        if reset {
            // Let the answer arrive: a reset overtakes what is queued.
            pause_ms(5);
            let lingering = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
            lingering.expect("is a socket");
            return;
        }
    }
}

/// Runs a command of words without quotes; fails the test with what it said.
fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("has a name")).args(words).output().expect("is installed");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The cgroup2 tree of this machine.
fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("is readable");
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup2 is mounted");
    PathBuf::from(line.split(' ').nth(4).expect("has a mount point"))
}

/// Removes a tree of cgroups, the innermost first; waits for processes that are ending.
fn remove_cgroups(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    for _ in 0..200 {
        if fs::remove_dir(root).is_ok() {
            return;
        }
        pause_ms(5);
    }
}
