//! Runs the system's own tools (`ip`, `nft`). In: arguments and a script for standard input. Out: success, or an error
//! that quotes the tool. Nothing is parsed from their output.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// A tool that was started and waits for the end of its script, so that only its real work lies between
/// [`Armed::fire`] and its effect.
#[derive(Debug)]
pub(crate) struct Armed {
    name: String,
    child: Child,
}

/// Starts a tool in the calling thread's network namespace and hands it `script`, but not yet the script's end.
pub(crate) fn arm(name: &str, args: &[&str], script: &str) -> Result<Armed> {
    let mut child = Command::new(name)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdin = child.stdin.as_mut().context("the tool has no standard input")?;
    stdin.write_all(script.as_bytes()).with_context(|| format!("cannot write to {name}"))?;
    Ok(Armed { name: name.to_owned(), child })
}

impl Armed {
    /// Ends the script; the tool acts now. Does not wait.
    pub(crate) fn fire(&mut self) {
        self.child.stdin.take();
    }

    /// Waits for the tool's end.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.fire();
        let output = self.child.wait_with_output().with_context(|| format!("cannot wait for {}", self.name))?;
        if output.status.success() {
            return Ok(());
        }
        bail!("{} failed ({}): {}", self.name, output.status, String::from_utf8_lossy(&output.stderr).trim())
    }
}

/// Runs a tool to its end in the calling thread's network namespace.
pub(crate) fn run(name: &str, args: &[&str], script: &str) -> Result<()> {
    arm(name, args, script)?.finish().with_context(|| format!("{name} {} with the script:\n{script}", args.join(" ")))
}

/// True when the tool can be started at all.
pub(crate) fn exists(name: &str) -> bool {
    let tried =
        Command::new(name).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    !matches!(tried, Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}
