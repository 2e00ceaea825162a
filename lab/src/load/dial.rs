//! One connection: connect, send a byte, get a byte, close. In: an address and a time limit. Out: when it began, how
//! long it took and how it ended.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::outcome::Outcome;
use crate::world::clock::now_ns;

/// What became of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialled {
    /// Just before connect(), raw CLOCK_MONOTONIC.
    pub(crate) start_ns: u64,
    /// Until the byte or the failure.
    pub(crate) elapsed_us: u32,
    pub(crate) outcome: Outcome,
    /// The byte, when it came.
    pub(crate) answer: Option<u8>,
}

/// Dials once. `limit` bounds the handshake and then the answer.
pub(crate) async fn dial(address: SocketAddr, first_byte: u8, limit: Duration) -> Dialled {
    let start_ns = now_ns();
    let result = match connect(address, limit).await {
        Ok(stream) => exchange(stream, first_byte, limit).await,
        Err(outcome) => Err(outcome),
    };
    let elapsed_us = u32::try_from(now_ns().saturating_sub(start_ns) / 1000).unwrap_or(u32::MAX);
    let (outcome, answer) = match result {
        Ok(answer) => (Outcome::Ok, Some(answer)),
        Err(outcome) => (outcome, None),
    };
    Dialled { start_ns, elapsed_us, outcome, answer }
}

/// A handshake, or how it failed.
pub(crate) async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, Outcome> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| Outcome::of_error(&error))?;
    match timeout(limit, socket.connect(address)).await {
        Ok(connected) => connected.map_err(|error| Outcome::of_error(&error)),
        Err(_) => Err(Outcome::NoHandshake),
    }
}

async fn exchange(mut stream: TcpStream, first_byte: u8, limit: Duration) -> Result<u8, Outcome> {
    let mut answer = [0];
    let exchanged = timeout(limit, async {
        stream.write_all(&[first_byte]).await?;
        stream.read(&mut answer).await
    });
    match exchanged.await {
        Ok(Ok(1)) => Ok(answer[0]),
        Ok(Ok(_)) => Err(Outcome::Ended),
        Ok(Err(error)) => Err(Outcome::of_error(&error)),
        Err(_) => Err(Outcome::NoAnswer),
    }
}
