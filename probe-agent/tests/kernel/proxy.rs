//! A mesh's proxy in a pod, as small as it can be, and the application behind it: real sockets, redirected by the kernel.
//!
//! As Linkerd's, it listens for what the application dials and for what dials the application, asks the kernel whom a
//! connection was meant for, waits for the first bytes before it dials (to tell which protocol is spoken), and dials as
//! its own user, whom the rules let pass. Unlike it, it speaks no protocol: when it cannot dial, it resets.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};

/// Where the rules send what the application dials: Linkerd's port.
pub const OUTBOUND: u16 = 4140;
/// Where the rules send what dials the application: Linkerd's port.
pub const INBOUND: u16 = 4143;

/// Linkerd's outbound connect time-out.
const DIAL_LIMIT: Duration = Duration::from_secs(1);

/// How long a peer may say nothing: longer than any test's exchange.
const TALK_LIMIT: Duration = Duration::from_secs(5);

/// Begins to proxy for a pod of these addresses. Returns once it listens.
pub fn start(pod: [IpAddr; 2]) {
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let outbound = loopback.map(|address| SocketAddr::new(address, OUTBOUND));
    let inbound = pod.map(|address| SocketAddr::new(address, INBOUND));
    for address in outbound.into_iter().chain(inbound) {
        listen(address, relay);
    }
}

/// Begins to answer a byte with a byte. Returns once it listens.
pub fn serve(port: u16) {
    listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), |mut stream| {
        stream.set_read_timeout(Some(TALK_LIMIT))?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        Ok(())
    });
}

fn listen(address: SocketAddr, serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) {
    let listener = TcpListener::bind(address).expect("the port is free in there");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            // A peer that goes away in the middle is what many of the tests are about.
            std::thread::spawn(move || serve(stream).ok());
        }
    });
}

/// Dials whom the connection was meant for, and passes bytes on both ways until either side ends.
fn relay(near: TcpStream) -> io::Result<()> {
    near.set_read_timeout(Some(TALK_LIMIT))?;
    let to = match near.local_addr()? {
        SocketAddr::V4(_) => SocketAddr::V4(ip_original_dst(&near)?),
        SocketAddr::V6(_) => SocketAddr::V6(ipv6_original_dst(&near)?),
    };
    near.peek(&mut [0])?;
    // What was only looked at is unread, so that closing resets.
    let far = TcpStream::connect_timeout(&to, DIAL_LIMIT)?;
    let (mut from_near, mut to_far) = (near.try_clone()?, far.try_clone()?);
    let forth = std::thread::spawn(move || {
        let ended = io::copy(&mut from_near, &mut to_far).and_then(|_| to_far.shutdown(Shutdown::Write));
        ended.ok();
    });
    let (mut from_far, mut to_near) = (far, near);
    let ended = io::copy(&mut from_far, &mut to_near);
    to_near.shutdown(Shutdown::Write).ok();
    drop(forth.join());
    ended.map(drop)
}
