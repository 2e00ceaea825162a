//! A mesh's proxy in a pod: a redirecting TCP proxy that stands for Linkerd's. In: connections that the pod's packet
//! filter ([`crate::world::mesh`]) turned to it. Out: the same bytes at the address that was dialled. Inbound it reads
//! the first byte before it dials its application, as protocol detection does, so that a client is connected before
//! anybody knows whether the application lives. It does not look at the bytes, balance, or encrypt.
//!
//! It gives up root at its start and runs as the proxy's uid, by which the packet filter and the probe know it.

mod application;
mod reconnect;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid, getrlimit, set_parent_process_death_signal, setrlimit};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::application::Application;
use super::control;
use super::server::Listener;
use super::wire::{Counts, Message, ProxySpec, Request};

/// Connections carried at once, each with two sockets; more wait in the backlog.
const MAX_CONNECTIONS: usize = 4096;
/// Linkerd waits ten seconds for the first bytes (`DEFAULT_INBOUND_DETECT_TIMEOUT`); nothing in a drill is silent so long.
const DETECT_LIMIT: Duration = Duration::from_secs(10);
/// Linkerd's outbound connect timeout (`outboundConnectTimeout` of its chart).
const OUTBOUND_CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// A carried connection ends after this at the latest: longer than a drill's, and still an end.
const CARRY_LIMIT: Duration = Duration::from_secs(600);
/// Per direction; with all connections in use 32 MiB.
const BUFFER: usize = 4096;
/// Descriptors for all of them, the listeners and the runtime: more than the usual soft limit of 1,024.
const DESCRIPTORS: u64 = 2 * MAX_CONNECTIONS as u64 + 64;
/// How old [`Counts`] may get.
const COUNTS_EVERY: Duration = Duration::from_millis(100);

/// Becomes the proxy's user. Call it while the program has one thread: the kernel keeps a uid per thread, and later ones
/// inherit it.
///
/// # Errors
/// The program was not started as root.
pub(crate) fn become_proxy(uid: u32) -> Result<()> {
    let allowed = getrlimit(Resource::Nofile);
    if allowed.current.is_some_and(|soft| soft < DESCRIPTORS) {
        let wanted =
            Rlimit { current: Some(allowed.maximum.map_or(DESCRIPTORS, |hard| hard.min(DESCRIPTORS))), ..allowed };
        setrlimit(Resource::Nofile, wanted).context("cannot raise the limit of descriptors")?;
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_groups(&[]).context("cannot leave root's groups")?;
    set_thread_res_gid(group, group, group).context("cannot take the proxy's group")?;
    set_thread_res_uid(user, user, user).context("cannot take the proxy's uid")?;
    // The kernel forgets the parent-death signal when a uid changes (prctl(2), PR_SET_PDEATHSIG).
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot tie the proxy to the lab")
}

/// Carries connections until standard input ends.
///
/// # Errors
/// A port cannot be listened on, or the lab does not read any more.
pub async fn run(spec: ProxySpec) -> Result<()> {
    LocalSet::new().run_until(carry_all(spec)).await
}

async fn carry_all(spec: ProxySpec) -> Result<()> {
    let mut inbound = Listener::start(spec.inbound_port, spec.backlog)?;
    let outbound = Listener::start(spec.outbound_port, spec.backlog)?;
    let application = Rc::new(Application::default());
    let mut carried: JoinSet<bool> = JoinSet::new();
    let (mut counts, mut said) = (Counts::default(), Counts::default());
    let mut counts_tick = interval(COUNTS_EVERY);
    counts_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut requests = control::requests()?;
    control::say_ready()?;
    loop {
        let has_room = carried.len() < MAX_CONNECTIONS;
        tokio::select! {
            biased;
            request = requests.recv() => match request {
                Some(Request { seq, order }) => {
                    control::carry_out(seq, carried.len(), || inbound.carry_out(&order))?;
                }
                None => return Ok(()),
            },
            Some(ended) = carried.join_next() => counts.answered += u64::from(ended.unwrap_or(false)),
            client = inbound.accept(), if has_room => {
                counts.accepted += 1;
                carried.spawn_local(carry_inbound(client, application.clone()));
            }
            client = outbound.accept(), if has_room => {
                counts.accepted += 1;
                carried.spawn_local(carry_outbound(client));
            }
            _ = counts_tick.tick() => if counts != said {
                said = counts;
                control::say(&Message::Counts(counts))?;
            },
        }
    }
}

/// True when the application was reached. Whoever waits in vain is closed without a byte.
async fn carry_inbound(mut client: TcpStream, application: Rc<Application>) -> bool {
    let Ok(dialled) = original_destination(&client) else { return false };
    let mut first = [0];
    let Ok(Ok(1)) = timeout(DETECT_LIMIT, client.read(&mut first)).await else { return false };
    let Some(mut server) = application.reach(dialled).await else { return false };
    if server.write_all(&first).await.is_err() {
        return false;
    }
    carry(client, server).await;
    true
}

/// True when the destination was reached.
async fn carry_outbound(client: TcpStream) -> bool {
    let Ok(dialled) = original_destination(&client) else { return false };
    let Ok(Ok(server)) = timeout(OUTBOUND_CONNECT_LIMIT, TcpStream::connect(dialled)).await else { return false };
    carry(client, server).await;
    true
}

async fn carry(mut client: TcpStream, mut server: TcpStream) {
    timeout(CARRY_LIMIT, copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER)).await.ok();
}

/// Where the client dialled before the packet filter turned its connection to the proxy. A connection that was dialled
/// to the proxy itself has no other destination, and would be carried round for ever.
fn original_destination(client: &TcpStream) -> Result<SocketAddr> {
    let own = unmapped(client.local_addr().context("an accepted connection without an address")?);
    let dialled = match own {
        SocketAddr::V4(_) => rustix::net::sockopt::ip_original_dst(client).map(SocketAddr::V4),
        SocketAddr::V6(_) => rustix::net::sockopt::ipv6_original_dst(client).map(SocketAddr::V6),
    };
    let dialled = dialled.context("the kernel knows no original destination")?;
    if dialled == own {
        bail!("dialled directly: {own}");
    }
    Ok(dialled)
}

/// One listener serves both families, so that IPv4 addresses arrive mapped.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
