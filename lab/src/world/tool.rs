//! Runs the system's own tools (`ip`, `nft`). In: arguments and a script for standard input. Out: success, or an error
//! that quotes the tool. Nothing is parsed from their output.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};

/// Runs a tool to its end in the calling thread's network namespace.
pub(crate) fn run(name: &str, args: &[&str], script: &str) -> Result<()> {
    let failed = || format!("{name} {} with the script:\n{script}", args.join(" "));
    let mut child = Command::new(name)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdin = child.stdin.take().context("the tool has no standard input")?;
    // A tool that stops reading early says why on its other output.
    let written = { stdin }.write_all(script.as_bytes());
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(anyhow!("{name} failed ({}): {said}", output.status)).with_context(failed);
    }
    written.with_context(failed)
}

/// True when the tool can be started at all.
pub(crate) fn exists(name: &str) -> bool {
    let tried =
        Command::new(name).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    !matches!(tried, Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}
