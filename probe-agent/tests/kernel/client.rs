//! A client process in a pod's network namespace and cgroup, told what to do line by line.
//!
//! It is this test binary again, running [`main`]: a socket belongs to the cgroup of the process that makes it, so a
//! thread of the test would not do. It keeps the truth from its own errnos, which the tests compare with the counts.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use probe_agent::kernel::now_ns;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with},
};

use crate::world::{enter_space, pause_ms};

/// Names the namespace and the cgroup, and says that this process is a client.
const SPACE: &str = "SPLITSECOND_TEST_CLIENT_SPACE";
const CGROUP: &str = "SPLITSECOND_TEST_CLIENT_CGROUP";
const USER: &str = "SPLITSECOND_TEST_CLIENT_USER";

/// What the test binary's harness prints around our answers must not be mistaken for one.
const MARK: &str = "@ ";

/// How one connect went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Went {
    pub errno: i32,
    pub began_ns: u64,
    pub ended_ns: u64,
}

impl Went {
    pub fn took_ms(self) -> u64 {
        (self.ended_ns - self.began_ns) / 1_000_000
    }
}

/// What a client saw of a mixed load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    pub established: u64,
    pub refused: u64,
    pub cancelled: u64,
    pub unreachable: u64,
    pub reset: u64,
    pub answered: u64,
}

impl Truth {
    pub fn attempts(&self) -> u64 {
        self.established + self.refused + self.cancelled + self.unreachable
    }

    pub fn add(&mut self, other: &Self) {
        self.established += other.established;
        self.refused += other.refused;
        self.cancelled += other.cancelled;
        self.unreachable += other.unreachable;
        self.reset += other.reset;
        self.answered += other.answered;
    }

    fn words(self) -> String {
        let Self { established, refused, cancelled, unreachable, reset, answered } = self;
        format!("{established} {refused} {cancelled} {unreachable} {reset} {answered}")
    }
}

/// The test's end of a client.
pub struct Client {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Client {
    pub(crate) fn spawn(space: &str, cgroup: &Path, user: u32) -> Self {
        let binary = std::env::current_exe().expect("this is a binary");
        let mut child = Command::new(binary)
            .args(["--exact", "a_client_process_of_the_other_tests", "--ignored", "--nocapture"])
            .env(SPACE, space)
            .env(CGROUP, cgroup)
            .env(USER, user.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary can be started");
        let (commands, answers) = (child.stdin.take(), child.stdout.take().expect("is piped"));
        let mut client = Self { child, commands, answers: BufReader::new(answers) };
        assert_eq!(client.answer(), "ready");
        client
    }

    /// A blocking connect, then close.
    pub fn block(&mut self, to: SocketAddr) -> Went {
        self.went(&format!("block {to}"))
    }

    /// A blocking connect that the test does not wait for: [`Self::blocked`] does.
    pub fn begin_block(&mut self, to: SocketAddr) {
        self.write(&format!("block {to}"));
    }

    pub fn blocked(&mut self) -> Went {
        went(&self.answer())
    }

    /// A non-blocking connect, waited for up to that long, then close.
    pub fn attempt(&mut self, to: SocketAddr, limit_ms: u64) -> Went {
        self.went(&format!("try {to} {limit_ms}"))
    }

    /// Begins a non-blocking connect on the socket of that name, which is made if there is none.
    pub fn begin(&mut self, name: &str, to: SocketAddr) -> Went {
        self.went(&format!("begin {name} {to}"))
    }

    /// Waits for the end of a begun connect.
    pub fn finish(&mut self, name: &str, limit_ms: u64) -> Went {
        self.went(&format!("finish {name} {limit_ms}"))
    }

    /// Sends a byte, waits for a byte: 1 answered, 0 ended, negative errno.
    pub fn exchange(&mut self, name: &str) -> i64 {
        self.tell(&format!("exchange {name}")).parse().expect("is a number")
    }

    pub fn close(&mut self, name: &str) {
        self.tell(&format!("close {name}"));
    }

    /// Connects and closes that often, one after the other.
    pub fn repeat(&mut self, to: SocketAddr, count: u64) -> Went {
        self.went(&format!("repeat {to} {count}"))
    }

    /// Serves that port of every address from now on: a byte for each byte.
    pub fn serve(&mut self, port: u16) {
        self.tell(&format!("serve {port}"));
    }

    /// Is a mesh's proxy from now on, in a pod of these addresses.
    pub fn stand_between(&mut self, address: &str, address6: &str) {
        self.tell(&format!("proxy {address} {address6}"));
    }

    /// Begins a load of `count` connects; [`Self::truth`] waits for its end.
    pub fn begin_load(&mut self, seed: u64, count: u64) {
        self.write(&format!("load {seed} {count}"));
    }

    pub fn truth(&mut self) -> Truth {
        let answer = self.answer();
        let numbers: Vec<u64> = answer.split(' ').map(|word| word.parse().expect("is a number")).collect();
        let [established, refused, cancelled, unreachable, reset, answered] =
            numbers.try_into().expect("are six numbers");
        Truth { established, refused, cancelled, unreachable, reset, answered }
    }

    fn went(&mut self, command: &str) -> Went {
        went(&self.tell(command))
    }

    fn tell(&mut self, command: &str) -> String {
        self.write(command);
        self.answer()
    }

    fn write(&mut self, command: &str) {
        let commands = self.commands.as_mut().expect("is open until the end");
        writeln!(commands, "{command}").expect("the client lives");
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).expect("is text"), 0, "the client died");
            // The harness prints the test's name without ending the line.
            if let Some(at) = line.find(MARK) {
                return line[at + MARK.len()..].trim_end().to_owned();
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.commands = None;
        drop(self.child.wait());
    }
}

fn went(answer: &str) -> Went {
    let mut numbers = answer.split(' ').map(|word| word.parse::<u64>().expect("is a number"));
    let mut next = || numbers.next().expect("are three numbers");
    Went { errno: next() as i32, began_ns: next(), ended_ns: next() }
}

/// The client's own end: does nothing unless a test started this process for it.
pub fn main() {
    let (Some(space), Some(cgroup)) = (std::env::var_os(SPACE), std::env::var_os(CGROUP)) else { return };
    std::fs::write(Path::new(&cgroup).join("cgroup.procs"), std::process::id().to_string()).expect("may move itself");
    enter_space(&space.to_string_lossy());
    let user = std::env::var_os(USER).and_then(|user| user.to_str()?.parse().ok());
    become_user(user.expect("is a number"));
    println!("\n{MARK}ready");
    let mut sockets = BTreeMap::new();
    for line in std::io::stdin().lines() {
        let line = line.expect("is text");
        println!("{MARK}{}", obey(&line, &mut sockets));
    }
}

fn obey(line: &str, sockets: &mut BTreeMap<String, TcpStream>) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| words[at].parse::<u64>().expect("is a number");
    let address = |at: usize| words[at].parse::<SocketAddr>().expect("is an address");
    let began_ns = now_ns();
    let errno = match words[0] {
        "block" => errno_of(TcpStream::connect(address(1)).map(drop)),
        "try" => {
            let limit = Duration::from_millis(number(2));
            errno_of(TcpStream::connect_timeout(&address(1), limit).map(drop))
        }
        "begin" => {
            let socket = sockets.entry(words[1].to_owned()).or_insert_with(|| fresh(address(2)));
            begin(socket, address(2))
        }
        "finish" => finish(&sockets[words[1]], number(2)),
        "exchange" => return exchange(&sockets[words[1]]).to_string(),
        "close" => {
            drop(sockets.remove(words[1]));
            0
        }
        "repeat" => {
            for _ in 0..number(2) {
                drop(TcpStream::connect(address(1)).expect("the server accepts"));
            }
            0
        }
        "serve" => {
            proxy::serve(number(1) as u16);
            0
        }
        "proxy" => {
            proxy::start([words[1], words[2]].map(|word| word.parse().expect("is an address")));
            0
        }
        "load" => return load(number(1), number(2)).words(),
        other => panic!("no such command: {other}"),
    };
    format!("{errno} {began_ns} {}", now_ns())
}

/// A socket belongs to the user of the thread that makes it; threads that this one starts inherit it.
fn become_user(user: u32) {
    if user != 0 {
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(user)).expect("is root");
    }
}

/// ETIMEDOUT stands for our own patience running out.
fn errno_of(result: std::io::Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(Errno::TIMEDOUT.raw_os_error()),
    }
}

fn fresh(to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP)).expect("sockets are free");
    TcpStream::from(socket)
}

/// A socket whose connect failed says so once more before it can be connected again.
fn begin(socket: &TcpStream, to: SocketAddr) -> i32 {
    match connect(socket, &to) {
        Err(Errno::CONNABORTED) => connect(socket, &to).map_or_else(Errno::raw_os_error, |()| 0),
        Err(errno) => errno.raw_os_error(),
        Ok(()) => 0,
    }
}

/// 0 when connected, the error when it failed, ETIMEDOUT when neither came in time.
fn finish(socket: &TcpStream, limit_ms: u64) -> i32 {
    for _ in 0..=limit_ms {
        if let Some(error) = socket.take_error().expect("is a socket") {
            return error.raw_os_error().unwrap_or(-1);
        }
        if socket.peer_addr().is_ok() {
            return 0;
        }
        pause_ms(1);
    }
    Errno::TIMEDOUT.raw_os_error()
}

fn exchange(mut socket: &TcpStream) -> i64 {
    socket.set_nonblocking(false).expect("is a socket");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("is not zero");
    let mut byte = [7];
    match socket.write_all(&byte).and_then(|()| socket.read(&mut byte)) {
        Ok(read) => read as i64,
        Err(error) => -i64::from(error.raw_os_error().unwrap_or(1)),
    }
}

pub use load::load;
pub use proxy::{INBOUND, OUTBOUND};

#[path = "load.rs"]
mod load;
#[path = "proxy.rs"]
mod proxy;
