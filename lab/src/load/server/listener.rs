//! A listener that can be taken away, put back and left unattended. In: orders. Out: streams. Shared by servers,
//! gateways and proxies.

use std::future::pending;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::load::wire::Order;

/// One port at every address of the pod.
pub(crate) struct Listener {
    port: u16,
    backlog: i32,
    socket: Option<TcpListener>,
    accepting: bool,
}

impl Listener {
    pub(crate) fn start(port: u16, backlog: i32) -> Result<Listener> {
        Ok(Listener { port, backlog, socket: Some(listen(port, backlog)?), accepting: true })
    }

    /// The next connection; never, while there is no listener or it is left unattended.
    pub(crate) async fn accept(&self) -> TcpStream {
        let Some(socket) = self.socket.as_ref().filter(|_| self.accepting) else {
            return pending().await;
        };
        loop {
            // An error here belongs to a connection that was reset while it waited; the next one is fine.
            if let Ok((stream, _)) = socket.accept().await {
                return stream;
            }
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn carry_out(&mut self, order: &Order) -> Result<()> {
        match order {
            Order::StopListening => self.socket = None,
            Order::Listen => {
                if self.socket.is_none() {
                    self.socket = Some(listen(self.port, self.backlog)?);
                }
                self.accepting = true;
            }
            Order::StopAccepting { backlog } => {
                self.accepting = false;
                self.resize(*backlog)?;
            }
            Order::Accept => {
                self.resize(self.backlog)?;
                self.accepting = true;
            }
            Order::Mirror { .. }
            | Order::Rate { .. }
            | Order::Loop { .. }
            | Order::Converse { .. }
            | Order::ResetConversations
            | Order::Flush => bail!("a listener cannot carry out {order:?}"),
        }
        Ok(())
    }

    /// listen(2) on a listening socket only changes its backlog.
    fn resize(&self, backlog: i32) -> Result<()> {
        let socket = self.socket.as_ref().context("there is no listener")?;
        rustix::net::listen(socket, backlog).context("cannot change the backlog")
    }
}

/// Both families on one socket, as most servers listen; IPv4 alone where the machine has no IPv6.
fn listen(port: u16, backlog: i32) -> Result<TcpListener> {
    let (socket, address) = match TcpSocket::new_v6() {
        Ok(socket) => (socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
        Err(_) => {
            let socket = TcpSocket::new_v4().context("cannot make a socket")?;
            (socket, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
    };
    socket.set_reuseaddr(true).context("cannot allow the port's reuse")?;
    socket.bind(address).with_context(|| format!("cannot bind port {port}"))?;
    let backlog = u32::try_from(backlog).context("a negative backlog")?;
    socket.listen(backlog).with_context(|| format!("cannot listen on port {port}"))
}
