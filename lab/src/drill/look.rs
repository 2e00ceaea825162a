//! One HTTP question to an admin server, asked from inside a network namespace. In: where and what. Out: status and
//! body. The same questions that an operator's `curl` asks: nothing here knows more than /ready and /state tell.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::drill::background::Background;
use crate::world::netns::Netns;

/// An admin server answers from memory; whoever needs longer is not well.
const LIMIT: Duration = Duration::from_secs(2);

/// Asks for `path`.
///
/// # Errors
///
/// Nobody answers in time.
pub fn get(background: &Background, netns: &Netns, address: SocketAddr, path: &str) -> Result<(u16, Bytes)> {
    let stream = netns.within(|| TcpStream::connect_timeout(&address, LIMIT))?;
    let stream = stream.with_context(|| format!("nobody listens on {address}"))?;
    stream.set_nonblocking(true).context("a socket cannot be made non-blocking")?;
    let answer = background.block_on(async { tokio::time::timeout(LIMIT, ask(stream, address, path)).await });
    answer.with_context(|| format!("{address} does not answer {path}"))?
}

/// Asks /ready: the reason if it is not.
///
/// # Errors
///
/// Nobody answers in time.
pub fn ready(background: &Background, netns: &Netns, address: SocketAddr) -> Result<Result<(), String>> {
    let (status, body) = get(background, netns, address, "/ready")?;
    Ok(if status == 200 { Ok(()) } else { Err(String::from_utf8_lossy(&body).trim().to_owned()) })
}

/// Asks /state.
///
/// # Errors
///
/// Nobody answers in time, or not with JSON.
pub fn state(background: &Background, netns: &Netns, address: SocketAddr) -> Result<Value> {
    let (status, body) = get(background, netns, address, "/state")?;
    ensure!(status == 200, "{address} answers /state with {status}");
    serde_json::from_slice(&body).with_context(|| format!("{address} answers /state with something else than JSON"))
}

async fn ask(stream: TcpStream, address: SocketAddr, path: &str) -> Result<(u16, Bytes)> {
    let stream = tokio::net::TcpStream::from_std(stream).context("a socket is not taken by the runtime")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request =
        http::Request::get(path).header(http::header::HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>((status, body))
    };
    // The connection's own future drives the exchange; it ends when the sender is dropped.
    let (answer, _) = tokio::join!(exchange, connection);
    answer.with_context(|| format!("{address} broke off"))
}
