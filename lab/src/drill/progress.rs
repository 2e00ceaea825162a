//! What people see while a drill runs. In: lines, and what is being waited for. Out: lines on standard error; where that
//! is a terminal, also a last line that changes. Standard output is the table's alone. Neither ends the drill when nobody
//! reads it any more, as `println!` would.

use std::io::{self, IsTerminal as _, Write as _};

/// Writes to standard error.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    terminal: bool,
}

/// Back to the line's begin, and the line empty (ECMA-48, EL).
const CLEAR: &str = "\r\x1b[2K";

/// A changing line that wraps could not be cleared.
const WIDTH: usize = 100;

impl Progress {
    /// To whatever standard error is.
    #[must_use]
    pub fn to_stderr() -> Self {
        Self { terminal: io::stderr().is_terminal() }
    }

    /// Standard output: the table, and what a kept cluster is good for.
    pub fn print(self, text: &str) {
        writeln!(io::stdout(), "{text}").ok();
    }

    /// A line that stays.
    pub fn line(self, text: &str) {
        let clear = if self.terminal { CLEAR } else { "" };
        // Nobody left to read it is no reason to stop.
        writeln!(io::stderr(), "{clear}{text}").ok();
    }

    /// What is being waited for; the next call replaces it.
    pub fn now(self, text: &str) {
        if self.terminal {
            let text: String = text.chars().take(WIDTH).collect();
            write!(io::stderr(), "{CLEAR}      {text}").ok();
        }
    }
}
