//! When the kernel first drops a SYN because a backlog is full. In: `/proc/self/net/netstat` of the pod's own network
//! namespace. Out: a time that is early by at most one look and never late.

use std::fs;

use anyhow::{Context, Result};

use crate::world::clock::now_ns;

/// The pod's count of dropped SYNs, looked at again and again.
pub(crate) struct OverflowWatch {
    before: u64,
    last_look_ns: u64,
}

impl OverflowWatch {
    pub(crate) fn start() -> Result<OverflowWatch> {
        let last_look_ns = now_ns();
        Ok(OverflowWatch { before: listen_drops()?, last_look_ns })
    }

    /// The time of the last look that showed nothing, once this one shows a drop.
    pub(crate) fn look(&mut self) -> Result<Option<u64>> {
        let now = now_ns();
        if listen_drops()? > self.before {
            return Ok(Some(self.last_look_ns));
        }
        self.last_look_ns = now;
        Ok(None)
    }
}

fn listen_drops() -> Result<u64> {
    let path = "/proc/self/net/netstat";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    value(&text, "TcpExt:", "ListenDrops").context("the kernel does not count dropped SYNs")
}

/// The file has pairs of lines: names, then numbers.
fn value(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let position = lines.next()?.split_whitespace().position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_name_and_group() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 2 3\nIpExt: ListenDrops\nIpExt: 9\n";
        assert_eq!(value(text, "TcpExt:", "ListenDrops"), Some(3));
        assert_eq!(value(text, "TcpExt:", "Missing"), None);
    }
}
