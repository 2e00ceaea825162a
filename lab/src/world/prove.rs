//! Looks from a place that no agent watches. In: an address. Out: what one dial of it met. Used to prove that a fault
//! is there; the load never goes this way.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;

use super::Control;
use super::netns::Netns;
use crate::load::outcome::Outcome;

impl Control {
    /// Connects, sends a byte, waits for a byte: each for at most `limit`.
    ///
    /// # Errors
    /// The control namespace is gone.
    pub fn dial(&self, address: SocketAddr, limit: Duration) -> Result<Outcome> {
        dial_from(self.netns(), address, limit)
    }
}

/// The same from any namespace.
///
/// # Errors
/// The namespace is gone.
pub fn dial_from(netns: &Netns, address: SocketAddr, limit: Duration) -> Result<Outcome> {
    netns.within(|| dial(address, limit))
}

fn dial(address: SocketAddr, limit: Duration) -> Outcome {
    let mut stream = match TcpStream::connect_timeout(&address, limit) {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut && error.raw_os_error().is_none() => {
            return Outcome::NoHandshake;
        }
        Err(error) => return Outcome::of_error(&error),
    };
    let mut byte = [0];
    let exchanged = stream
        .set_read_timeout(Some(limit))
        .and_then(|()| stream.write_all(&byte))
        .and_then(|()| stream.read(&mut byte));
    match exchanged {
        Ok(1) => Outcome::Ok,
        Ok(_) => Outcome::Ended,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Outcome::NoAnswer,
        Err(error) => Outcome::of_error(&error),
    }
}
