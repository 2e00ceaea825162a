//! Standard input and output of a program in a pod. In: lines. Out: requests and messages. When the input ends, the
//! lab is gone and so is the reason to live.

use std::io::{BufRead, Write};

use anyhow::{Context, Result};
use tokio::sync::mpsc::{Receiver, channel};

use super::wire::{Done, Message, Request};
use crate::world::clock::now_ns;

/// Requests read but not yet carried out; the lab waits for replies, so more than a few never queue.
const QUEUE: usize = 16;

/// Requests from standard input, read by a thread that blocks there. The stream ends with the input.
pub(crate) fn requests() -> Result<Receiver<Request>> {
    let (queue, requests) = channel(QUEUE);
    std::thread::Builder::new()
        .name("orders".into())
        .spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(request) => {
                        if queue.blocking_send(request).is_err() {
                            return;
                        }
                    }
                    Err(error) => eprintln!("not an order: {error}: {line}"),
                }
            }
        })
        .context("cannot start the thread that reads orders")?;
    Ok(requests)
}

/// Writes one line. Blocks while the pipe is full: the lab reads all the time, and a program whose lab is frozen has
/// nobody to tell anything.
pub(crate) fn say(message: &Message) -> Result<()> {
    let mut line = serde_json::to_vec(message).context("a message cannot be written as JSON")?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&line).and_then(|()| stdout.flush()).context("the lab does not read any more")
}

/// Tells the lab that listening or sending has begun.
pub(crate) fn say_ready() -> Result<()> {
    say(&Message::Ready { at_ns: now_ns() })
}

/// Times `work` from outside and replies.
pub(crate) fn carry_out(seq: u64, outstanding: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let first_ns = now_ns();
    let worked = work();
    let last_ns = now_ns();
    let outstanding = u32::try_from(outstanding).unwrap_or(u32::MAX);
    match worked {
        Ok(()) => say(&Message::Done { seq, done: Done { first_ns, last_ns, outstanding } }),
        Err(error) => say(&Message::Failed { seq, error: format!("{error:#}") }),
    }
}
