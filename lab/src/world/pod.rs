//! A program in a pod, as the lab holds it. In: what to run, orders. Out: replies, counts; a client's records go to a
//! [`Records`]. The handle outlives the process: the same program can be started again in its place.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{ORDER_LIMIT, Pod, spawn};
use crate::load::records::{Feed, Records};
use crate::load::wire::{Conversations, Counts, Done, Message, Order, PodProgram, Request};

/// Replies that nobody fetched are forgotten beyond this many.
const REPLIES_KEPT: usize = 64;
/// Malformed lines kept for error messages.
const COMPLAINTS_KEPT: usize = 4;

/// A program in a pod. A clone is the same program; it is killed when the last one is dropped.
#[derive(Clone, Debug)]
pub struct PodChild {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pod: Pod,
    container: Container,
    spec: String,
    records: Records,
    running: Mutex<Running>,
}

/// One process of the program.
#[derive(Debug)]
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    board: Arc<Board>,
    reader: Option<JoinHandle<()>>,
    next_seq: u64,
}

/// What the process said, and a bell for those who wait.
#[derive(Debug, Default)]
struct Board {
    said: Mutex<Said>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    ready_ns: Option<u64>,
    replies: BTreeMap<u64, Result<Done, String>>,
    counts: Counts,
    conversations: Conversations,
    overflowed_ns: Option<u64>,
    complaints: VecDeque<String>,
    silent: bool,
}

/// Which of a pod's containers a program is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Container {
    /// The only one, in the pod's own cgroup.
    Only,
    /// One beside others, in a cgroup of this name below the pod's, as the kubelet lays containers out.
    Named(&'static str),
}

/// An order on its way.
#[derive(Debug)]
pub struct Pending {
    seq: u64,
    pod: String,
    board: Arc<Board>,
}

impl Pod {
    /// Starts a program in the pod. Returns at once; [`PodChild::wait_ready`] tells when it listens or sends.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(&self, program: &PodProgram, records: &Records) -> Result<PodChild> {
        self.spawn_container(Container::Only, program, records)
    }

    pub(crate) fn spawn_container(
        &self,
        container: Container,
        program: &PodProgram,
        records: &Records,
    ) -> Result<PodChild> {
        let spec = serde_json::to_string(program).context("a pod's program cannot be written as JSON")?;
        let running = Running::start(self, &container, &spec, records)?;
        let (pod, records) = (self.clone(), records.clone());
        Ok(PodChild { inner: Arc::new(Inner { pod, container, spec, records, running: Mutex::new(running) }) })
    }
}

impl PodChild {
    /// Where it runs.
    #[must_use]
    pub fn pod(&self) -> &Pod {
        &self.inner.pod
    }

    /// Of the running process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.lock().child.id()
    }

    /// Waits until it listens, or until a client's caches are complete.
    ///
    /// # Errors
    /// It ended, or `limit` passed.
    pub fn wait_ready(&self, limit: Duration) -> Result<u64> {
        let board = self.lock().board.clone();
        let ready = board.wait(limit, |said| said.ready_ns);
        ready.with_context(|| format!("the program in pod {} is not ready after {limit:?}", self.inner.pod.name()))
    }

    /// Sends an order and does not wait.
    ///
    /// # Errors
    /// The process is gone.
    pub fn send(&self, order: Order) -> Result<Pending> {
        let mut running = self.lock();
        running.next_seq += 1;
        let seq = running.next_seq;
        let mut line = serde_json::to_vec(&Request { seq, order }).context("an order cannot be written as JSON")?;
        line.push(b'\n');
        let stdin = running.stdin.as_mut().context("the program's input was closed")?;
        let name = self.inner.pod.name();
        stdin.write_all(&line).with_context(|| format!("the program in pod {name} does not take orders"))?;
        Ok(Pending { seq, pod: name.to_owned(), board: running.board.clone() })
    }

    /// Sends an order and waits until it was carried out.
    ///
    /// # Errors
    /// The process is gone, or it could not.
    pub fn order(&self, order: Order) -> Result<Done> {
        self.send(order)?.wait()
    }

    /// A client's conversations, at most 20 ms old.
    #[must_use]
    pub fn conversations(&self) -> Conversations {
        self.lock().board.lock().conversations
    }

    /// A server's or a proxy's truth, at most 100 ms old.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().board.lock().counts
    }

    /// After `stop-accepting`: when the kernel dropped the first SYN, once that was seen.
    #[must_use]
    pub fn overflowed_ns(&self) -> Option<u64> {
        self.lock().board.lock().overflowed_ns
    }

    /// Sends a signal; a process that has ended is no error.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut running = self.lock();
        if running.child.try_wait().context("cannot ask for a child's end")?.is_some() {
            return Ok(());
        }
        let raw = i32::try_from(running.child.id()).context("a process id above 2^31")?;
        let pid = Pid::from_raw(raw).context("a process id of zero")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {raw}"))
    }

    /// Waits for the process' end.
    ///
    /// # Errors
    /// `limit` passed.
    pub fn wait_end(&self, limit: Duration) -> Result<ExitStatus> {
        let mut ended = None;
        super::clock::wait_until(limit, || {
            ended = self.lock().child.try_wait().ok().flatten();
            ended.is_some()
        });
        ended.with_context(|| format!("the program in pod {} did not end in {limit:?}", self.inner.pod.name()))
    }

    /// True while the process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.lock().child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Ends the process, if it still runs, and starts the same program in its place. Does not wait until it is ready.
    ///
    /// # Errors
    /// It could not be started.
    pub fn restart(&self) -> Result<()> {
        let mut running = self.lock();
        running.stop();
        let Inner { pod, container, spec, records, .. } = &*self.inner;
        *running = Running::start(pod, container, spec, records)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// Waits until the order was carried out, five seconds at most.
    ///
    /// # Errors
    /// The program could not, ended, or said nothing in time.
    pub fn wait(self) -> Result<Done> {
        let seq = self.seq;
        let reply = self.board.wait(ORDER_LIMIT, |said| said.replies.remove(&seq));
        match reply.with_context(|| format!("the program in pod {} did not carry out an order", self.pod))? {
            Ok(done) => Ok(done),
            Err(error) => bail!("the program in pod {} could not carry out an order: {error}", self.pod),
        }
    }
}

impl Running {
    fn start(pod: &Pod, container: &Container, spec: &str, records: &Records) -> Result<Running> {
        let (cgroup, log) = match container {
            Container::Only => (pod.cgroup().clone(), pod.name().to_owned()),
            Container::Named(name) => (pod.cgroup().child(name)?, format!("{}-{name}", pod.name())),
        };
        let mut child = pod.shared.launch_pod(pod, &cgroup, spec, &log)?;
        let (stdin, stdout) = spawn::pipes(&mut child)?;
        let board = Arc::new(Board::default());
        let (theirs, feed) = (board.clone(), records.feed(pod.name()));
        let reader = std::thread::Builder::new()
            .name(format!("from {}", pod.name()))
            .spawn(move || theirs.listen(stdout, &feed))
            .context("cannot start a reading thread")?;
        Ok(Running { child, stdin: Some(stdin), board, reader: Some(reader), next_seq: 0 })
    }

    fn stop(&mut self) {
        self.stdin.take();
        spawn::end(&mut self.child);
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Board {
    /// Reads until the process closes its output, which is its end.
    fn listen(&self, stdout: ChildStdout, feed: &Feed) {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(message) => self.hear(message, feed),
                Err(error) => self.complain(format!("{error}: {line}")),
            }
        }
        self.lock().silent = true;
        self.bell.notify_all();
    }

    fn hear(&self, message: Message, feed: &Feed) {
        match message {
            Message::Records { rows } => return feed.rows(&rows),
            Message::Leaf { index, name } => return feed.leaf(index, &name),
            Message::Lost { records } => return feed.lost(records),
            Message::Counts(counts) => {
                self.lock().counts = counts;
                return;
            }
            Message::Conversations(conversations) => {
                self.lock().conversations = conversations;
                return;
            }
            Message::Ready { at_ns } => self.lock().ready_ns = Some(at_ns),
            Message::Overflowed { after_ns } => self.lock().overflowed_ns = Some(after_ns),
            Message::Done { seq, done } => self.reply(seq, Ok(done)),
            Message::Failed { seq, error } => self.reply(seq, Err(error)),
        }
        self.bell.notify_all();
    }

    fn reply(&self, seq: u64, reply: Result<Done, String>) {
        let mut said = self.lock();
        if said.replies.len() >= REPLIES_KEPT {
            said.replies.pop_first();
        }
        said.replies.insert(seq, reply);
    }

    fn complain(&self, complaint: String) {
        let mut said = self.lock();
        if said.complaints.len() < COMPLAINTS_KEPT {
            said.complaints.push_back(complaint);
        }
    }

    fn wait<T>(&self, limit: Duration, mut look: impl FnMut(&mut Said) -> Option<T>) -> Result<T> {
        let mut found = None;
        let (said, _) = self
            .bell
            .wait_timeout_while(self.lock(), limit, |said| {
                found = look(said);
                found.is_none() && !said.silent
            })
            .unwrap_or_else(PoisonError::into_inner);
        let why = if said.silent { "it ended" } else { "it said nothing" };
        let complaints: Vec<&str> = said.complaints.iter().map(String::as_str).collect();
        found.ok_or_else(|| anyhow!("{why} {}", complaints.join("; ")))
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
