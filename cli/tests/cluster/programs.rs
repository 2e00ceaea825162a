//! The release agent and controller, as the drill builds them: so that a run of everything builds them once.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Longer than anything here takes, so that a test that hangs says where.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where they are.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The path of `splitsecond-agent` or `splitsecond-controller`.
pub(crate) fn path(name: &str) -> PathBuf {
    FOLDER.get_or_init(build).join(name)
}

fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.current_dir(root).args(["build", "--release", "--locked", "--quiet"]);
    let status = cargo.args(["-p", "probe-agent", "-p", "controller", "-p", "lab"]).status().unwrap();
    assert!(status.success(), "the release programs cannot be built");
    // Cargo marks its target folder with a tag file; this program was built into it.
    let own = std::env::current_exe().unwrap();
    own.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file()).unwrap().join("release")
}

/// A program with these arguments, without settings of the machine's own.
pub(crate) fn command(program: &Path, arguments: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("SPLITSECOND_") || name == "KUBECONFIG") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs it to its end.
pub(crate) async fn ended(mut command: Command) -> Ended {
    let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The operator's command, run to its end.
pub(crate) async fn splitsecond(arguments: &[&str]) -> Ended {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    ended(command(Path::new(env!("CARGO_BIN_EXE_splitsecond")), &arguments)).await
}

/// Waits until it is so.
pub(crate) async fn until(reached: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(PATIENCE, waiting).await.is_err() {
        panic!("{}", otherwise());
    }
}
