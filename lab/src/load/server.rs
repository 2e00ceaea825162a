//! A backend's endpoint: answers each byte with a byte. In: orders that make it sick. Out: its own count of what it
//! accepted and answered. It knows nothing of Services.

mod listener;
mod overflow;

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

pub(crate) use self::listener::Listener;
use self::overflow::OverflowWatch;
use super::control;
use super::wire::{Counts, Message, Order, Request, ServerSpec};

/// Connections served at once; at 10,000 a second and a millisecond each there are ten. More wait in the backlog.
const MAX_CONNECTIONS: usize = 8192;
/// A peer that says nothing for so long is forgotten; long-lived connections of the drills say something each 100 ms.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// How old [`Counts`] may get.
const COUNTS_EVERY: Duration = Duration::from_millis(100);
/// How late the first dropped SYN may be seen. A look costs about 30 us, so this is 1.5 % of a processor while hanging.
const OVERFLOW_EVERY: Duration = Duration::from_millis(2);

/// Serves until standard input ends.
///
/// # Errors
/// The port cannot be listened on, or the lab does not read any more.
pub async fn run(spec: ServerSpec) -> Result<()> {
    let mut server = Server::new(spec)?;
    let mut requests = control::requests()?;
    let mut counts_tick = interval(COUNTS_EVERY);
    counts_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut overflow_tick = interval(OVERFLOW_EVERY);
    overflow_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    control::say_ready()?;
    loop {
        tokio::select! {
            biased;
            request = requests.recv() => match request {
                Some(request) => server.carry_out(request)?,
                None => return Ok(()),
            },
            Some(answered) = server.connections.join_next() => {
                server.counts.answered += u64::from(answered.unwrap_or(false));
            }
            stream = server.listener.accept(), if server.connections.len() < MAX_CONNECTIONS => server.take(stream),
            _ = overflow_tick.tick(), if server.overflow.is_some() => server.look_for_overflow()?,
            _ = counts_tick.tick() => server.say_counts()?,
        }
    }
}

struct Server {
    answer: u8,
    listener: Listener,
    connections: JoinSet<bool>,
    /// Changed by each order to reset conversations.
    resets: watch::Sender<()>,
    counts: Counts,
    said: Counts,
    overflow: Option<OverflowWatch>,
}

impl Server {
    fn new(spec: ServerSpec) -> Result<Server> {
        Ok(Server {
            answer: spec.answer,
            listener: Listener::start(spec.port, spec.backlog)?,
            connections: JoinSet::new(),
            resets: watch::Sender::new(()),
            counts: Counts::default(),
            said: Counts::default(),
            overflow: None,
        })
    }

    fn carry_out(&mut self, request: Request) -> Result<()> {
        let outstanding = self.connections.len();
        // The counter's last value before the backlog shrinks: whatever is dropped later is dropped by the order.
        let watch = matches!(request.order, Order::StopAccepting { .. }).then(OverflowWatch::start);
        self.overflow = watch.transpose()?;
        control::carry_out(request.seq, outstanding, || match &request.order {
            Order::ResetConversations => {
                self.resets.send_replace(());
                Ok(())
            }
            order => self.listener.carry_out(order),
        })
    }

    fn take(&mut self, stream: TcpStream) {
        self.counts.accepted += 1;
        self.connections.spawn(serve(stream, self.answer, self.resets.subscribe()));
    }

    fn look_for_overflow(&mut self) -> Result<()> {
        let Some(watch) = &mut self.overflow else { return Ok(()) };
        if let Some(after_ns) = watch.look()? {
            self.overflow = None;
            control::say(&Message::Overflowed { after_ns })?;
        }
        Ok(())
    }

    fn say_counts(&mut self) -> Result<()> {
        if self.counts == self.said {
            return Ok(());
        }
        self.said = self.counts;
        control::say(&Message::Counts(self.counts))
    }
}

/// Answers until the peer closes or an order resets the conversation; true when there was at least one answer.
async fn serve(mut stream: TcpStream, answer: u8, mut resets: watch::Receiver<()>) -> bool {
    let mut answered = 0_u64;
    loop {
        tokio::select! {
            biased;
            // The load's connections exchange one byte and end: they are no conversations.
            Ok(()) = resets.changed(), if answered > 1 => {
                // Closing without lingering is what makes the kernel send RST (socket(7), SO_LINGER).
                stream.set_zero_linger().ok();
                return true;
            }
            went_on = answer_one(&mut stream, answer) => {
                if !went_on {
                    return answered > 0;
                }
                answered += 1;
            }
        }
    }
}

/// Answers until the peer closes; true when there was at least one answer.
pub(crate) async fn answer_all(mut stream: TcpStream, answer: u8) -> bool {
    let mut answered = false;
    while answer_one(&mut stream, answer).await {
        answered = true;
    }
    answered
}

/// A byte for a byte; false when there was none to answer.
async fn answer_one(stream: &mut TcpStream, answer: u8) -> bool {
    let mut byte = [0];
    matches!(timeout(IDLE_LIMIT, stream.read(&mut byte)).await, Ok(Ok(1))) && stream.write_all(&[answer]).await.is_ok()
}
