//! Whether a controller takes connections from here. In: its address. Out: a check. IO.
//!
//! HTTP/2's greeting is exchanged and no more: whoever says Hello is an agent, and this is none.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use super::report::Check;

/// How long each step may take: an agent's stream that takes longer to begin is of no use.
const PATIENCE: Duration = Duration::from_secs(3);

/// The client's connection preface (RFC 9113, 3.4) and an empty SETTINGS frame (6.5).
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame's head (RFC 9113, 4.1): three bytes of length, then the type.
const FRAME_HEAD_BYTES: usize = 9;

/// The type of a SETTINGS frame, with which a server begins.
const SETTINGS: u8 = 4;

/// Why not.
#[derive(Debug, thiserror::Error)]
enum ReachError {
    #[error("{0:?} is not an address and a port, or its name is unknown")]
    Address(String),
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    #[error("the connection was taken and ended without a word")]
    SentAway,
    #[error("no answer: {0}")]
    Answer(#[source] io::Error),
    #[error("what answers does not speak HTTP/2 as a controller's ingest does")]
    Other,
}

impl ReachError {
    const fn hint(&self) -> &'static str {
        match self {
            Self::Address(_) => "write it as 198.51.100.7:9443, or NAME:9443",
            Self::Connect(_) => {
                "does the controller run, with --ingest-addr on this address (not on loopback)? does a network policy forbid it?"
            }
            Self::SentAway => {
                "is it ingest (port 9443) and no admin server? then name this node's network in the controller's \
                 --insecure-ingest-from"
            }
            Self::Answer(_) | Self::Other => "ingest is on port 9443; 8080 and 9910 are admin servers",
        }
    }
}

/// Greets the controller.
pub(super) fn check(controller: &str) -> Check {
    let description = format!("controller takes connections from here ({controller})");
    match greet(controller) {
        Ok(()) => Check::passed(description),
        Err(error) => Check::failed(description, error.to_string(), error.hint()),
    }
}

fn greet(controller: &str) -> Result<(), ReachError> {
    let unknown = || ReachError::Address(controller.to_owned());
    let address = controller.to_socket_addrs().ok().and_then(|mut all| all.next()).ok_or_else(unknown)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(ReachError::Connect)?;
    let limits = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    limits.map_err(ReachError::Answer)?;
    stream.write_all(GREETING).map_err(ended)?;
    let mut head = [0; FRAME_HEAD_BYTES];
    stream.read_exact(&mut head).map_err(ended)?;
    if head[3] == SETTINGS { Ok(()) } else { Err(ReachError::Other) }
}

/// An address that is not allowed is sent away before a byte is read.
fn ended(error: io::Error) -> ReachError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            ReachError::SentAway
        }
        _ => ReachError::Answer(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What a server that does this is found to be.
    fn greeted(serve: impl FnOnce(TcpStream) + Send + 'static) -> Result<(), ReachError> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("has one").to_string();
        let server = std::thread::spawn(move || serve(listener.accept().expect("comes").0));
        let found = greet(&address);
        server.join().expect("served");
        found
    }

    #[test]
    fn a_server_that_settles_is_a_controller() {
        let found = greeted(|mut stream| {
            let mut greeting = vec![0; GREETING.len()];
            stream.read_exact(&mut greeting).expect("is greeted");
            assert_eq!(greeting, GREETING);
            stream.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).expect("answers");
        });
        assert!(found.is_ok(), "{found:?}");
    }

    #[test]
    fn one_that_hangs_up_does_not_want_us() {
        assert!(matches!(greeted(drop), Err(ReachError::SentAway)));
    }

    #[test]
    fn an_admin_server_is_told_from_ingest() {
        let found = greeted(|mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("answers"));
        assert!(matches!(found, Err(ReachError::Other | ReachError::SentAway)), "{found:?}");
        assert!(matches!(greet("nonsense"), Err(ReachError::Address(_))));
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("an address");
        assert!(matches!(greet(&free.to_string()), Err(ReachError::Connect(_))));
    }
}
