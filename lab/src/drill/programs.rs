//! The programs under drill: where they are, and the flags that they are started with. In: paths and addresses. Out:
//! command lines made of documented flags only; nothing tells a program that it is in a drill. Pure but for looking
//! whether the files are there.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::drill::policy::Policy;
use crate::drill::shape::INGEST_PORT;
use crate::world::Launch;

/// Where the controller answers /ready and /state.
pub const CONTROLLER_ADMIN_PORT: u16 = 8080;

/// The nodes' network: the only one from which the controller takes reports without TLS.
const NODE_NETWORK: &str = "198.51.100.0/24";

/// The agent's and the controller's program.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `splitsecond-agent`.
    pub agent: PathBuf,
    /// `splitsecond-controller`.
    pub controller: PathBuf,
    /// Flags of the controller beside addresses and policy: a drill enforces, since the shipped manifests only observe.
    pub controller_flags: Vec<String>,
}

impl Programs {
    /// Those named, or else those beside this program.
    ///
    /// # Errors
    ///
    /// One sentence for each that is not there.
    pub fn find(agent: Option<&Path>, controller: Option<&Path>) -> Result<Self, Vec<String>> {
        let own = std::env::current_exe().unwrap_or_default();
        let beside = |name: &str| own.with_file_name(name);
        let programs = Self {
            agent: agent.map_or_else(|| beside("splitsecond-agent"), Path::to_owned),
            controller: controller.map_or_else(|| beside("splitsecond-controller"), Path::to_owned),
            controller_flags: ["--mode", "enforce"].map(str::to_owned).into(),
        };
        let lacks: Vec<String> = [&programs.agent, &programs.controller]
            .into_iter()
            .filter(|path| !path.is_file())
            .map(|path| format!("There is no program {}: `cargo xtask drill` builds it.", path.display()))
            .collect();
        if lacks.is_empty() { programs.absolute().map_err(|error| vec![format!("{error:#}")]) } else { Err(lacks) }
    }

    /// A program is started from another directory than this one's.
    fn absolute(self) -> Result<Self> {
        let whole = |path: PathBuf| path.canonicalize().with_context(|| format!("cannot find {}", path.display()));
        Ok(Self { agent: whole(self.agent)?, controller: whole(self.controller)?, ..self })
    }

    /// The agent of a node.
    #[must_use]
    pub fn agent(&self, node: &str, kubeconfig: &Path) -> Launch {
        let args = [
            "--node".to_owned(),
            node.to_owned(),
            "--kubeconfig".to_owned(),
            kubeconfig.display().to_string(),
            // There is no TLS yet: h2c to another address than loopback has to be asked for.
            "--insecure-controller".to_owned(),
        ];
        Launch { program: self.agent.clone(), args: args.into(), env: Vec::new(), log: format!("agent-{node}") }
    }

    /// The controller of a run.
    #[must_use]
    pub fn controller(&self, address: IpAddr, kubeconfig: &Path, policy: &Policy, log: &str) -> Launch {
        let mut args = vec![
            "--kubeconfig".to_owned(),
            kubeconfig.display().to_string(),
            "--ingest-addr".to_owned(),
            SocketAddr::new(address, INGEST_PORT).to_string(),
            "--insecure-ingest-from".to_owned(),
            NODE_NETWORK.to_owned(),
            "--admin-addr".to_owned(),
            SocketAddr::new(address, CONTROLLER_ADMIN_PORT).to_string(),
        ];
        args.extend(policy.flags());
        args.extend(self.controller_flags.iter().cloned());
        Launch { program: self.controller.clone(), args, env: Vec::new(), log: log.to_owned() }
    }
}

/// A command line as a person would type it.
#[must_use]
pub fn printed(launch: &Launch) -> String {
    let mut line = launch.program.display().to_string();
    for arg in &launch.args {
        line.push(' ');
        line.push_str(arg);
    }
    line
}
