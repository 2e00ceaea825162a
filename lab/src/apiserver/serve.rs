//! Listeners and connections: a listening socket comes in, served connections are the effect, and an outage on
//! request. No request is looked at here.
//!
//! An outage is what a client sees when an API server dies: connections break and new ones are refused. The listening
//! socket itself is kept, shut down and later made to listen again, because it may belong to a network namespace in
//! which this task could not bind another.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::io::Errno;
use rustix::net::Shutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{ApiServer, http};

/// Connections waiting to be accepted, as tokio sets it for new listeners.
const BACKLOG: i32 = 1024;
/// Connections per listener. Every client of a drill holds one per watch; a hundred times that is a leak, not a load.
const CONNECTION_LIMIT: usize = 4096;
/// Streams per HTTP/2 connection: each watch is one, and hyper's default of 200 would silently delay the next.
const STREAM_LIMIT: u32 = 1024;
/// How long to wait after an accept that failed for lack of descriptors, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Serves one listener until the future is dropped.
pub(crate) async fn run(server: &ApiServer, listener: TcpListener) -> io::Result<()> {
    let listener = listener.into_std()?;
    let address = listener.local_addr()?;
    let mut faults = server.faults();
    let _listening_loop = server.count_loop();
    loop {
        if faults.wait_for(|faults| faults.serving).await.is_err() {
            return Ok(());
        }
        listen_again(&listener, address)?;
        // A second descriptor of the same socket: dropping it takes the socket out of the reactor, which must not see
        // the shutdown.
        let accepting = TcpListener::from_std(listener.try_clone()?)?;
        let mut connections = JoinSet::new();
        {
            let _listening = server.count_listening();
            tokio::select! {
                () = accept(server, &accepting, &mut connections) => {}
                _ = faults.wait_for(|faults| !faults.serving) => {}
            }
            drop(accepting);
            rustix::net::shutdown(&listener, Shutdown::Both)?;
            connections.shutdown().await;
        }
    }
}

/// Makes a socket listen that was shut down. An address chosen by the kernel is lost by the shutdown and taken again.
fn listen_again(listener: &StdListener, address: SocketAddr) -> io::Result<()> {
    match rustix::net::bind(listener, &address) {
        // It still has its address.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::net::listen(listener, BACKLOG).map_err(io::Error::from)
}

async fn accept(server: &ApiServer, listener: &TcpListener, connections: &mut JoinSet<()>) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTION_LIMIT => {
                    connections.spawn(connection(server.clone(), stream));
                }
                Ok((_, peer)) => tracing::warn!(%peer, "Connection refused, too many"),
                Err(error) => {
                    tracing::warn!(%error, "Connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            // Finished connections are collected as they end.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves HTTP/1.1 and HTTP/2 with prior knowledge on one connection.
async fn connection(server: ApiServer, stream: TcpStream) {
    // A watch event is one small segment and must not wait for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "Connection ended before it was served");
        return;
    }
    let service = service_fn(move |request| http::answer(server.clone(), request));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAM_LIMIT);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error, "Connection ended");
    }
}
