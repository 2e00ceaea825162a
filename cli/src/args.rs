//! The command line. In: words. Out: what is asked for. Pure.
//!
//! The command may be installed as a plugin of kubectl or of Linkerd: the name that it is called by changes what its usage
//! text calls it, and nothing else.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where a forwarded controller answers.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";

/// Splitsecond's command for operators.
#[derive(Debug, Parser)]
#[command(name = "splitsecond", version, max_term_width = 110)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) task: Task,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Tries what an agent needs of a node: run it there, with the agent's rights.
    ///
    /// Loads and attaches the probe for a moment and unloads it again; it counts nothing and changes nothing. Exit code 0
    /// when an agent can count here (warnings do not matter), 1 when it cannot, 2 for wrong usage.
    Check(CheckArguments),
    /// Shows every split that the controller drives: its state, where the traffic goes, and what holds it.
    Status(Source),
    /// Shows why one split stands as it stands: evidence per node and endpoint, thresholds, guards, last transitions.
    Explain(ExplainArguments),
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// Check this node: its kernel, its cgroups, and this process' rights.
    #[arg(long)]
    pub(crate) node: bool,
    /// Root of the node's cgroup2 file system; left out, the cgroup2 mount of /proc/self/mountinfo is used.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) cgroup_root: Option<PathBuf>,
    /// Also see whether a controller takes connections from here, such as 198.51.100.7:9443.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) controller: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArguments {
    /// Which split.
    #[arg(value_name = "NAMESPACE/NAME")]
    pub(crate) split: String,
    /// Whom to ask, and how to print.
    #[command(flatten)]
    pub(crate) source: Source,
}

/// Whom to ask, and how to print.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// The controller's admin server. In a cluster, forward it first: kubectl --namespace splitsecond port-forward
    /// deployment/splitsecond-controller 8080
    #[arg(long, value_name = "ADDRESS:PORT", default_value = DEFAULT_ADDRESS)]
    pub(crate) address: String,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[value(alias = "text")]
    Table,
    /// For programs.
    Json,
}

/// What the usage text calls the command, by the name that it was started as: a plugin is typed with a blank.
pub(crate) fn typed_name(program: Option<&OsStr>) -> &'static str {
    let name = program.map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
    match name {
        Some("kubectl-splitsecond") => "kubectl splitsecond",
        Some("linkerd-splitsecond") => "linkerd splitsecond",
        _ => "splitsecond",
    }
}

/// Namespace and name of `text`, when it is a pair of them.
pub(crate) fn object_name(text: &str) -> Option<(&str, &str)> {
    let (namespace, name) = text.split_once('/')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains('/')).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_plugin_is_called_as_it_is_typed() {
        let check = |program: &str, typed| assert_eq!(typed_name(Some(OsStr::new(program))), typed);
        check("/usr/local/bin/kubectl-splitsecond", "kubectl splitsecond");
        check("linkerd-splitsecond", "linkerd splitsecond");
        check("/opt/splitsecond", "splitsecond");
        assert_eq!(typed_name(None), "splitsecond");
    }

    #[test]
    fn an_object_is_a_namespace_and_a_name() {
        assert_eq!(object_name("demo/web"), Some(("demo", "web")));
        for wrong in ["web", "demo/", "/web", "a/b/c", ""] {
            assert_eq!(object_name(wrong), None, "{wrong:?}");
        }
    }
}
