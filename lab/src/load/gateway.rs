//! A multicluster gateway: one address that stands for many Services of the other cluster. In: connections whose first
//! byte names a mirrored Service. Out: the same connection at one of that Service's ready endpoints. It forwards bytes
//! and does not look at them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::control;
use super::server::{Listener, answer_all};
use super::wire::{GatewaySpec, Order, Request};

/// As a server's: more wait in the backlog.
const MAX_CONNECTIONS: usize = 8192;
/// For the first byte and for the way to the endpoint, each; a client gives up after a second.
const DIAL_LIMIT: Duration = Duration::from_secs(1);
/// The drills exchange single bytes.
const BUFFER: usize = 256;

/// Ready endpoints by first byte.
type Mirrors = Arc<[Vec<SocketAddr>]>;

/// Forwards until standard input ends.
///
/// # Errors
/// A port cannot be listened on, or the lab does not read any more.
pub async fn run(spec: GatewaySpec) -> Result<()> {
    let mut listener = Listener::start(spec.port, spec.backlog)?;
    let readiness = Listener::start(spec.ready_port, spec.backlog)?;
    // Shared with the connections under way; an order replaces the whole.
    let mut mirrors: Mirrors = spec.mirrors.into();
    let mut turn: usize = 0;
    let mut connections = JoinSet::new();
    let mut requests = control::requests()?;
    control::say_ready()?;
    loop {
        tokio::select! {
            biased;
            request = requests.recv() => match request {
                Some(request) => carry_out(request, connections.len(), &mut listener, &mut mirrors)?,
                None => return Ok(()),
            },
            Some(_) = connections.join_next() => {}
            stream = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                // Each connection takes the next turn; which mirror it is for shows only with its first byte.
                turn = turn.wrapping_add(1);
                connections.spawn(forward(stream, mirrors.clone(), turn));
            }
            stream = readiness.accept(), if connections.len() < MAX_CONNECTIONS => {
                connections.spawn(async move { answer_all(stream, b'r').await; });
            }
        }
    }
}

fn carry_out(request: Request, outstanding: usize, listener: &mut Listener, mirrors: &mut Mirrors) -> Result<()> {
    control::carry_out(request.seq, outstanding, || match request.order {
        Order::Mirror { index, endpoints } => {
            let mut changed = mirrors.to_vec();
            *changed.get_mut(usize::from(index)).context("no such mirror")? = endpoints;
            *mirrors = changed.into();
            Ok(())
        }
        order => listener.carry_out(&order),
    })
}

/// Closes the client's connection without a byte when the other side cannot be reached.
async fn forward(mut client: TcpStream, mirrors: Mirrors, turn: usize) {
    let mut first = [0];
    let Ok(Ok(1)) = timeout(DIAL_LIMIT, client.read(&mut first)).await else { return };
    let Some(endpoints) = mirrors.get(usize::from(first[0])) else { return };
    let Some(position) = turn.checked_rem(endpoints.len()) else { return };
    let Ok(Ok(mut server)) = timeout(DIAL_LIMIT, TcpStream::connect(endpoints[position])).await else { return };
    if server.write_all(&first).await.is_ok() {
        copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await.ok();
    }
}
