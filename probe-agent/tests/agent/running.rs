//! The agent's binary as a child process, with its admin server. The child dies with this.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) struct Running {
    child: Child,
    admin: SocketAddr,
}

impl Running {
    /// Starts it with an admin port that was free a moment ago.
    pub(crate) fn start(arguments: &[String]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("binds");
        let admin = free.local_addr().expect("has an address");
        drop(free);
        // To measure a release build with the same tests.
        let binary = std::env::var_os("SPLITSECOND_AGENT");
        let binary = binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_splitsecond-agent").into());
        let child = Command::new(binary)
            .args(["--node", "n1", "--admin-addr", &admin.to_string()])
            .args(arguments)
            .env_remove("KUBECONFIG")
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        Self { child, admin }
    }

    /// Status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = self.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        (head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body.to_owned())
    }

    pub(crate) async fn state(&self) -> Value {
        serde_json::from_str(&self.get("/state").await.1).expect("JSON")
    }

    /// One figure of /metrics, by its name and labels.
    pub(crate) async fn figure(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await.1;
        let start = format!("splitsecond_agent_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(start.as_str()));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and waits.
    pub(crate) async fn terminate(mut self) -> (ExitStatus, String) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("is there");
        for _ in 0..300 {
            if let Some(status) = self.child.try_wait().expect("can be waited for") {
                let mut log = String::new();
                self.child.stderr.take().expect("piped").read_to_string(&mut log).expect("reads");
                return (status, log);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("still running 3 s after SIGTERM");
    }

    async fn connect(&self) -> TcpStream {
        for _ in 0..500 {
            if let Ok(stream) = TcpStream::connect(self.admin).await {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("admin server is not there after 5 s");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
