//! A meshed pod: an application, a proxy beside it, and a packet filter that turns the pod's connections to the proxy,
//! as Linkerd's init container sets it up. In: a pod and a program. Out: two programs that can be broken apart. What
//! the proxy does with a connection is [`crate::load::proxy`]'s business.
//!
//! ```text
//!   client ── :8080 ──> prerouting REDIRECT ──> proxy :4143 ── own address :8080 (lo) ──> application
//!   application ── anywhere ──> output REDIRECT ──> proxy :4140 ── as dialled ──> anywhere
//! ```

use std::time::Duration;

use anyhow::Result;

use super::netns::Netns;
use super::pod::Container;
use super::{Pod, PodChild, tool};
use crate::load::records::Records;
use crate::load::wire::{DEFAULT_BACKLOG, PodProgram, ProxySpec};

/// Linkerd's proxy runs as this user (`proxyUID` of its chart).
pub const PROXY_UID: u32 = 2102;
/// Linkerd's proxy takes what comes to the pod here (`ports.inbound` of its chart).
pub const INBOUND_PORT: u16 = 4143;
/// And here what the application dials (`ports.outbound` of its chart).
pub const OUTBOUND_PORT: u16 = 4140;

/// Inbound ports that stay the proxy's own: control and admin (`proxyInit.ignoreInboundPorts` of the chart, with the
/// proxy's own control and admin ports).
const UNTOUCHED: &str = "4190, 4191";
/// The packet filter's table.
const TABLE: &str = "mesh";

/// The programs of a meshed pod. Dropping it ends them and takes the redirection away.
#[derive(Debug)]
pub struct Meshed {
    /// Answers behind the proxy.
    pub application: PodChild,
    /// Stands before it.
    pub proxy: PodChild,
    _redirection: Redirection,
}

impl Meshed {
    /// Waits until both listen.
    ///
    /// # Errors
    /// One ended, or `limit` passed.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        self.application.wait_ready(limit)?;
        self.proxy.wait_ready(limit)?;
        Ok(())
    }
}

impl Pod {
    /// Starts an application and its proxy, each in a container of its own, behind the redirection. Returns at once;
    /// [`Meshed::wait_ready`] tells when both listen.
    ///
    /// # Errors
    /// The redirection cannot be made, or a program not be started.
    pub fn spawn_meshed(&self, application: &PodProgram, records: &Records) -> Result<Meshed> {
        let redirection = Redirection::make(self.netns())?;
        let proxy = PodProgram::Proxy(ProxySpec {
            uid: PROXY_UID,
            inbound_port: INBOUND_PORT,
            outbound_port: OUTBOUND_PORT,
            backlog: DEFAULT_BACKLOG,
        });
        Ok(Meshed {
            application: self.spawn_container(Container::Named("application"), application, records)?,
            proxy: self.spawn_container(Container::Named("linkerd-proxy"), &proxy, records)?,
            _redirection: redirection,
        })
    }
}

/// The packet filter's part, for as long as it is held.
#[derive(Debug)]
struct Redirection {
    netns: Netns,
}

impl Redirection {
    fn make(netns: &Netns) -> Result<Redirection> {
        netns.within(|| tool::run("nft", &["-f", "-"], &script()))??;
        Ok(Redirection { netns: netns.clone() })
    }
}

impl Drop for Redirection {
    fn drop(&mut self) {
        // The world may be gone already, and the namespace with it.
        let script = format!("delete table inet {TABLE}\n");
        self.netns.within(|| tool::run("nft", &["-f", "-"], &script)).ok();
    }
}

/// As linkerd-init's chains `PROXY_INIT_REDIRECT` and `PROXY_INIT_OUTPUT`: the proxy's own connections and those that
/// stay in the pod pass. A connection over `lo` meets the output chain alone: its translation, or that there is none, is
/// settled by the time it arrives.
fn script() -> String {
    format!(
        "table inet {TABLE}\n\
         delete table inet {TABLE}\n\
         table inet {TABLE} {{\n\
         \x20 chain inbound {{\n    type nat hook prerouting priority dstnat; policy accept;\n\
         \x20   tcp dport {{ {UNTOUCHED} }} return\n\
         \x20   meta l4proto tcp redirect to :{INBOUND_PORT}\n  }}\n\
         \x20 chain outbound {{\n    type nat hook output priority -100; policy accept;\n\
         \x20   meta skuid {PROXY_UID} return\n\
         \x20   oifname \"lo\" return\n\
         \x20   meta l4proto tcp redirect to :{OUTBOUND_PORT}\n  }}\n\
         }}\n"
    )
}
