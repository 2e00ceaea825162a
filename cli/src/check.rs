//! `check --node`: what this kernel and these rights allow an agent. In: the node. Out: a [`Report`].
//!
//! Everything is tried, not looked up in a table of versions: the probe itself is loaded and attached by the agent's own
//! library, and unloaded at once. Nothing stays behind, and nothing is repaired: a hint says what to do.

mod kernel;
mod probe;
mod reach;
mod report;
mod rights;

use clap::Parser as _;
use probe_agent::config::{Args as AgentArgs, Config};
use probe_agent::kernel::{Settings, node_cgroup};

use crate::args::CheckArguments;
pub(crate) use report::Report;
use report::{Category, Check};

/// What loading the probe depends on.
const CGROUPS: &str = "cgroup2 root of this node is visible";

/// The environment holds settings for an agent, such as SPLITSECOND_HOT_CAPACITY, that none would start with.
#[derive(Debug, thiserror::Error)]
#[error("the agent's settings in the environment are wrong: {0}")]
pub(crate) struct SettingsError(String);

/// Checks this node.
///
/// # Errors
///
/// [`SettingsError`]: there is no agent to check for.
pub(crate) fn node(arguments: &CheckArguments) -> Result<Report, SettingsError> {
    let agent = AgentArgs::try_parse_from(["splitsecond-agent", "--once", "--controller=none"])
        .map_err(|error| SettingsError(error.to_string()))
        .and_then(|args| args.check().map_err(|faults| SettingsError(faults.join("; "))))?;
    let Config { hot_capacity, cold_capacity, proxy_uid, cgroup_root, .. } = agent;
    let root = arguments.cgroup_root.clone().or(cgroup_root);
    let cgroup = node_cgroup(root.as_deref());
    let mut categories = vec![kernel::category()];
    categories.push(Category::new("cgroups", vec![cgroups(&cgroup)]));
    let rights = rights::Rights::own();
    categories.push(rights::category(&rights));
    categories.push(match cgroup {
        Ok(node_cgroup) => {
            let settings = Settings { node_cgroup, hot_capacity, cold_capacity, proxy_uid };
            probe::category(&settings, &rights)
        }
        // An agent without its node's cgroup does not attach: it would count other nodes' sockets.
        Err(_) => Category::new("probe", vec![Check::not_tried("probe loads", CGROUPS)]),
    });
    if let Some(controller) = &arguments.controller {
        categories.push(Category::new("controller", vec![reach::check(controller)]));
    }
    Ok(Report::new(categories))
}

fn cgroups(found: &Result<u64, probe_agent::kernel::CgroupError>) -> Check {
    match found {
        Ok(id) => Check::passed(format!("{CGROUPS} (id {id})")),
        Err(error) => Check::failed(
            CGROUPS,
            report::chain(error),
            "name it with --cgroup-root; a container needs the host's /sys/fs/cgroup as a hostPath volume",
        ),
    }
}
