//! Flags and their environment twins in, one checked [`Config`] out, or every fault at once. Pure.
//!
//! The values are taken as text and checked together, so that an operator sees all that is wrong in one go. Nothing is
//! opened or resolved here.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use clap::builder::BoolishValueParser;
use probe_common::abi::HOT_LIMIT;

use crate::kernel::PROXY_UID;
use crate::resolve::ObjectName;

/// Room for the destinations of a few hundred splits: 2.5 MiB of kernel memory per possible CPU.
const HOT_CAPACITY: &str = "2048";

/// Room for every destination of a large cluster (50,000): about 8 MiB of kernel memory with the hash of all of them.
const COLD_CAPACITY: &str = "65536";

/// The most cold destinations that are sensible: beyond it the hash alone takes more than 100 MiB.
const COLD_LIMIT: u32 = 1 << 20;

/// Splitsecond's node agent: counts in the kernel which TCP connections of this node fail, and tells its controllers.
#[derive(Clone, Debug, Parser)]
#[command(name = "splitsecond-agent", version, max_term_width = 110)]
pub struct Args {
    /// Name of the Kubernetes node that this agent speaks for.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", default_value = "")]
    pub node: String,

    /// Where /live, /ready, /metrics and /state are served.
    #[arg(long, env = "SPLITSECOND_ADMIN_ADDR", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9910")]
    pub admin_addr: String,

    /// A controller to report to, as address and port; may be given several times. "none" for no controller at all: the
    /// agent then only counts. Left out, controllers are found through --controller-service.
    #[arg(long, env = "SPLITSECOND_CONTROLLER", value_name = "ADDRESS:PORT|none", value_delimiter = ',')]
    pub controller: Vec<String>,

    /// The headless Service whose EndpointSlices name the controllers, as namespace/name.
    #[arg(
        long,
        env = "SPLITSECOND_CONTROLLER_SERVICE",
        value_name = "NAMESPACE/NAME",
        default_value = "splitsecond/splitsecond-controller"
    )]
    pub controller_service: String,

    /// Port of the controllers in those EndpointSlices, as number or name.
    #[arg(long, env = "SPLITSECOND_CONTROLLER_PORT", value_name = "PORT", default_value = "9443")]
    pub controller_port: String,

    /// Speak to controllers without TLS although they are not on loopback. Whoever is on the way can then read the
    /// counts and send requests for checks: for laboratories, and for networks that encrypt.
    #[arg(long, env = "SPLITSECOND_INSECURE_CONTROLLER", value_parser = BoolishValueParser::new())]
    pub insecure_controller: bool,

    /// Kubeconfig file of the cluster. Left out, KUBECONFIG is used, then the Pod's service account.
    #[arg(long, env = "SPLITSECOND_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Root of this node's cgroup2 file system: sockets of cgroups below it are counted. Left out, the cgroup2 mount of
    /// /proc/self/mountinfo is used, which in a container is the node's only with a host path mount.
    #[arg(long, env = "SPLITSECOND_CGROUP_ROOT", value_name = "DIRECTORY")]
    pub cgroup_root: Option<PathBuf>,

    /// Destinations of splits that can be counted at the same time (per CPU and by age), 1 to 4096. Each takes 1.2 KiB
    /// of kernel memory per possible CPU; one whose split went away takes its place for 3 more minutes.
    #[arg(long, env = "SPLITSECOND_HOT_CAPACITY", value_name = "COUNT", default_value = HOT_CAPACITY)]
    pub hot_capacity: String,

    /// All other destinations (Services' addresses and endpoints) that can be counted, 1 to 1048576.
    #[arg(long, env = "SPLITSECOND_COLD_CAPACITY", value_name = "COUNT", default_value = COLD_CAPACITY)]
    pub cold_capacity: String,

    /// User that the mesh's proxies run as, 1 to 4294967295, as the node numbers it. What others in a pod with such a proxy
    /// dial is not counted: it ends at that proxy. 4294967295 is nobody, for a cluster without a mesh.
    #[arg(long, env = "SPLITSECOND_PROXY_UID", value_name = "UID", default_value_t = PROXY_UID.to_string())]
    pub proxy_uid: String,

    /// What to log: error, warn, info, debug, trace, or directives such as info,probe_agent=debug.
    #[arg(long, env = "SPLITSECOND_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// How to log: plain or json.
    #[arg(long, env = "SPLITSECOND_LOG_FORMAT", value_name = "FORMAT", default_value = "plain")]
    pub log_format: String,

    /// Load and attach the probe, print what this node can do, and exit: 0, or 69 when it cannot count.
    #[arg(long)]
    pub once: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Whom to report to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Controllers {
    /// Nobody.
    None,
    /// These.
    Fixed(Vec<SocketAddr>),
    /// The endpoints of a Service.
    Service {
        /// Which.
        name: ObjectName,
        /// Number or name of the port.
        port: String,
    },
}

/// Everything the agent was told, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The Kubernetes node.
    pub node: String,
    /// Where the admin server listens.
    pub admin: SocketAddr,
    /// Whom to report to.
    pub controllers: Controllers,
    /// Whether controllers beyond loopback may be spoken to without TLS.
    pub insecure_controller: bool,
    /// Kubeconfig, if one was named.
    pub kubeconfig: Option<PathBuf>,
    /// Root of the node's cgroup2 file system, if one was named.
    pub cgroup_root: Option<PathBuf>,
    /// Destinations of splits.
    pub hot_capacity: u32,
    /// Other destinations.
    pub cold_capacity: u32,
    /// The user that the mesh's proxies run as.
    pub proxy_uid: u32,
    /// Filter directives for the log.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Whether to try the probe and exit.
    pub once: bool,
}

impl Args {
    /// Checks everything.
    ///
    /// # Errors
    ///
    /// Every fault, one line each.
    pub fn check(self) -> Result<Config, Vec<String>> {
        let mut faults = Vec::new();
        let mut fault = |text: String| faults.push(text);
        if self.node.is_empty() && !self.once {
            fault("--node (or NODE_NAME) is missing: which node does this agent speak for?".to_owned());
        }
        let admin = address("--admin-addr", &self.admin_addr, &mut fault);
        let controllers = self.controllers(&mut fault);
        let hot_capacity = count("--hot-capacity", &self.hot_capacity, HOT_LIMIT, &mut fault);
        let cold_capacity = count("--cold-capacity", &self.cold_capacity, COLD_LIMIT, &mut fault);
        let proxy_uid = count("--proxy-uid", &self.proxy_uid, u32::MAX, &mut fault);
        if let Err(error) = self.log_level.parse::<tracing_subscriber::EnvFilter>() {
            fault(format!("--log-level {:?}: {error}", self.log_level));
        }
        let log_format = match self.log_format.as_str() {
            "json" => LogFormat::Json,
            "plain" => LogFormat::Plain,
            other => {
                fault(format!("--log-format {other:?}: must be plain or json"));
                LogFormat::Plain
            }
        };
        let (Some(admin), Some(controllers)) = (admin, controllers) else { return Err(faults) };
        if !faults.is_empty() {
            return Err(faults);
        }
        let Self { node, insecure_controller, kubeconfig, cgroup_root, log_level, once, .. } = self;
        Ok(Config {
            node,
            admin,
            controllers,
            insecure_controller,
            kubeconfig,
            cgroup_root,
            hot_capacity,
            cold_capacity,
            proxy_uid,
            log_level,
            log_format,
            once,
        })
    }

    fn controllers(&self, fault: &mut impl FnMut(String)) -> Option<Controllers> {
        if self.controller.is_empty() {
            return self.controller_service(fault);
        }
        if self.controller.iter().any(|text| text == "none") {
            if self.controller.len() > 1 {
                fault("--controller none excludes every other --controller".to_owned());
            }
            return Some(Controllers::None);
        }
        let mut fixed = Vec::new();
        for text in &self.controller {
            let Some(controller) = address("--controller", text, fault) else { continue };
            if !controller.ip().is_loopback() && !self.insecure_controller {
                fault(format!(
                    "--controller {text}: there is no TLS to controllers yet; --insecure-controller speaks without it"
                ));
            }
            if !fixed.contains(&controller) {
                fixed.push(controller);
            }
        }
        Some(Controllers::Fixed(fixed))
    }

    fn controller_service(&self, fault: &mut impl FnMut(String)) -> Option<Controllers> {
        let parts = self.controller_service.split_once('/');
        let parts = parts.filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'));
        let Some((namespace, name)) = parts else {
            fault(format!("--controller-service {:?}: must be namespace/name", self.controller_service));
            return None;
        };
        if self.controller_port.is_empty() {
            fault("--controller-port is empty: must be a number or a name".to_owned());
        }
        let name = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
        Some(Controllers::Service { name, port: self.controller_port.clone() })
    }
}

fn address(flag: &str, text: &str, fault: &mut impl FnMut(String)) -> Option<SocketAddr> {
    let parsed = text.parse();
    if parsed.is_err() {
        fault(format!("{flag} {text:?}: must be an IP address and a port, such as 127.0.0.1:9443 or [::1]:9443"));
    }
    parsed.ok()
}

fn count(flag: &str, text: &str, limit: u32, fault: &mut impl FnMut(String)) -> u32 {
    match text.parse() {
        Ok(count) if (1..=limit).contains(&count) => count,
        _ => {
            fault(format!("{flag} {text:?}: must be a number from 1 to {limit}"));
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str]) -> Result<Config, Vec<String>> {
        let program = ["splitsecond-agent", "--node", "n1"];
        Args::try_parse_from(program.iter().chain(arguments)).expect("parses").check()
    }

    #[test]
    fn the_defaults_are_sound() {
        let config = check(&[]).expect("sound");
        assert_eq!((config.hot_capacity, config.cold_capacity, config.proxy_uid), (2048, 65536, 2102));
        assert_eq!(config.admin, "0.0.0.0:9910".parse().expect("an address"));
        let name = ObjectName { namespace: "splitsecond".into(), name: "splitsecond-controller".into() };
        assert_eq!(config.controllers, Controllers::Service { name, port: "9443".into() });
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let faults = check(&[
            "--admin-addr=here",
            "--controller=localhost:1",
            "--controller=198.51.100.1:9443",
            "--hot-capacity=4097",
            "--cold-capacity=many",
            "--proxy-uid=0",
            "--log-format=xml",
            "--log-level=a=b=c",
        ])
        .expect_err("faulty");
        let flags: Vec<_> = faults.iter().map(|fault| fault.split(' ').next().unwrap_or_default()).collect();
        let expected = [
            "--admin-addr",
            "--controller",
            "--controller",
            "--hot-capacity",
            "--cold-capacity",
            "--proxy-uid",
            "--log-level",
            "--log-format",
        ];
        assert_eq!(flags, expected, "{faults:#?}");
    }

    #[test]
    fn a_node_is_needed_except_to_try_the_probe() {
        let parse = |arguments: &[&str]| Args::try_parse_from(["splitsecond-agent"].iter().chain(arguments));
        // NODE_NAME may be set where the tests run.
        let mut args = parse(&["--once"]).expect("parses");
        args.node.clear();
        assert!(args.clone().check().is_ok());
        args.once = false;
        assert!(args.check().expect_err("no node")[0].starts_with("--node"));
    }

    #[test]
    fn controllers_beyond_loopback_need_a_word_for_it() {
        assert!(check(&["--controller", "127.0.0.1:1", "--controller", "[::1]:1"]).is_ok());
        assert!(check(&["--controller", "198.51.100.1:1"]).is_err());
        let config = check(&["--insecure-controller", "--controller", "198.51.100.1:1,198.51.100.1:1"]).expect("sound");
        assert_eq!(config.controllers, Controllers::Fixed(vec!["198.51.100.1:1".parse().expect("an address")]));
    }

    #[test]
    fn none_means_no_controller() {
        assert_eq!(check(&["--controller", "none"]).expect("sound").controllers, Controllers::None);
        assert!(check(&["--controller", "none", "--controller", "127.0.0.1:1"]).is_err());
    }
}
