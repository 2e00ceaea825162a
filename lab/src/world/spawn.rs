//! Child programs of a world. In: a place (namespaces, cgroup) and a program. Out: a child that dies with the lab. The
//! entering is done by the system's own tools, so that no unsafe code is needed; what the program says goes to a log.

use std::fs::{File, OpenOptions};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use super::clock;

/// Moves itself into the cgroup `$1`, then becomes the rest of its arguments.
const ENTER: &str = r#"echo 0 > "$1/cgroup.procs" && shift && exec "$@""#;

/// Makes `$1` the root of a private cgroup namespace and of a fresh cgroup2 mount over `$2`, gives the node its own BPF
/// file system, lets go of the machine's named network namespaces (a copied mount would keep one alive after its world),
/// leaves the root for a child cgroup (a populated root could not be told from one of its children), and stays as the
/// node's first process, so that the namespaces outlive the agents that enter them.
const NODE: &str = r#"echo 0 > "$1/cgroup.procs" && exec unshare --cgroup --mount --propagation private sh -c '
umount -l "$0" && mount -t cgroup2 cgroup2 "$0" || exit 1
mount -t bpf bpf /sys/fs/bpf 2>/dev/null
umount -R -l /run/netns 2>/dev/null
mkdir -p "$0/init" && echo 0 > "$0/init/cgroup.procs" && echo ready && exec setpriv --pdeathsig KILL sleep infinity
' "$2""#;

/// Jobs waiting for the spawning thread; each caller waits for its own, so more than the callers never queue.
const QUEUE: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// Starts all children from one thread that lives as long as the world: the kernel's parent-death signal follows the
/// thread that forked, not the program (prctl(2), PR_SET_PDEATHSIG).
#[derive(Debug)]
pub(crate) struct Spawner {
    jobs: Mutex<Option<SyncSender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Spawner {
    pub(crate) fn start() -> Result<Spawner> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let thread = std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || queue.iter().for_each(|job| job()))
            .context("cannot start the spawning thread")?;
        Ok(Spawner { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn spawn(&self, mut command: Command) -> Result<Child> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (answer, result) = sync_channel(1);
        let job: Job = Box::new(move || {
            // The receiver waits below and cannot be gone.
            answer.send(command.spawn()).ok();
        });
        jobs.context("the world is gone")?.send(job).map_err(|_| anyhow!("the spawning thread is gone"))?;
        let child = result.recv().context("the spawning thread died")?;
        child.context("cannot start a child program")
    }

    /// Ends the thread; children that are still there die with it.
    pub(crate) fn stop(&self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            thread.join().ok();
        }
    }
}

/// A program to start in a node or in the control namespace.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// An absolute path.
    pub program: PathBuf,
    /// Its arguments, without the program's own name.
    pub args: Vec<String>,
    /// Set on top of the lab's own environment.
    pub env: Vec<(String, String)>,
    /// Name of the log below [`super::World::run_dir`], without `.log`; output and errors are appended.
    pub log: String,
}

/// Where a child goes.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// The network namespace only.
    Netns(PathBuf),
    /// Network, mount and cgroup namespace of a node's first process.
    NodeOf(i32),
}

/// A child's command line: enter `cgroup` and `place`, die with the lab, then become `program`.
pub(crate) fn command(place: &Place, cgroup: &Path, program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(ENTER).arg("sh").arg(cgroup).arg("nsenter");
    match place {
        Place::Netns(path) => {
            let mut net = std::ffi::OsString::from("--net=");
            net.push(path);
            command.arg(net);
        }
        Place::NodeOf(pid) => {
            command.args(["--target", &pid.to_string(), "--net", "--mount", "--cgroup"]);
        }
    }
    command.args(["--", "setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
    // A terminal's Ctrl-C goes to its whole process group; the lab decides alone when its children end.
    command.process_group(0).stdin(Stdio::null());
    command
}

/// The first process of a node; its standard output says `ready` when the namespaces are made.
pub(crate) fn node_command(cgroup: &Path, mount_point: &Path, netns: &Path) -> Command {
    let mut net = std::ffi::OsString::from("--net=");
    net.push(netns);
    let mut command = Command::new("nsenter");
    command.arg(net).args(["--", "sh", "-c", NODE, "sh"]).arg(cgroup).arg(mount_point);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// A log below `directory`, appended to.
pub(crate) fn log_file(directory: &Path, name: &str) -> Result<File> {
    let path = log_path(directory, name);
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.with_context(|| format!("cannot open the log {}", path.display()))
}

pub(crate) fn log_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.log"))
}

/// A child that was started, with a handle that several holders share. Killed when the last one drops it.
#[derive(Clone, Debug)]
pub struct NodeChild {
    inner: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    child: Mutex<Child>,
    pid: i32,
    log: PathBuf,
}

impl NodeChild {
    pub(crate) fn new(child: Child, log: PathBuf) -> Result<NodeChild> {
        let pid = i32::try_from(child.id()).context("a process id above 2^31")?;
        Ok(NodeChild { inner: Arc::new(Running { child: Mutex::new(child), pid, log }) })
    }

    /// The process id: entering keeps it, so it is the program's own.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.inner.pid
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.inner.log
    }

    /// Sends a signal. A child that has already ended is no error.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = self.lock();
        if child.try_wait().context("cannot ask for a child's end")?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.inner.pid).context("a process id of zero")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.inner.pid))
    }

    /// The exit status, when it has ended.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        self.lock().try_wait().context("cannot ask for a child's end")
    }

    /// Waits for its end; None when `limit` passed first.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn wait(&self, limit: Duration) -> Result<Option<ExitStatus>> {
        let mut ended = None;
        clock::wait_until(limit, || {
            ended = self.lock().try_wait().ok().flatten();
            ended.is_some()
        });
        Ok(ended)
    }

    /// SIGKILL, then waits.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn kill(&self) -> Result<ExitStatus> {
        let mut child = self.lock();
        child.kill().context("cannot kill a child")?;
        child.wait().context("cannot wait for a killed child")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Child> {
        self.inner.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(self.child.get_mut().unwrap_or_else(PoisonError::into_inner));
    }
}

/// SIGKILL and reaping; an already ended child is fine.
pub(crate) fn end(child: &mut Child) {
    child.kill().ok();
    child.wait().ok();
}

/// Pipes of a child whose standard input and output were asked for.
pub(crate) fn pipes(child: &mut Child) -> Result<(ChildStdin, ChildStdout)> {
    let stdin = child.stdin.take().context("a child without standard input")?;
    let stdout = child.stdout.take().context("a child without standard output")?;
    Ok((stdin, stdout))
}

/// One sentence on how a child ended, for messages.
#[must_use]
pub fn describe_end(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => "it ended in an unknown way".to_owned(),
    }
}
