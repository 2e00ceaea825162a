//! Named network namespaces, as `ip netns` keeps them. In: a name. Out: a thread's work done inside. Creation and
//! removal are batches of `ip`, because one process for forty namespaces is forty times cheaper than forty.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::tool;

/// Where `ip netns` keeps the mounts that hold namespaces alive.
const DIRECTORY: &str = "/run/netns";

/// One network namespace by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn named(name: String) -> Netns {
        Netns { name }
    }

    /// As `ip netns list` prints it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path for `nsenter --net=`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. Sockets that it returns stay inside;
    /// children that it starts start inside.
    ///
    /// # Errors
    /// The namespace is gone, may not be entered, or `work` panicked.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("cannot open the namespace {}", path.display()))?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<T, rustix::io::Errno>(work())
            });
            let entered = inside.join().map_err(|_| anyhow!("the work inside {} panicked", self.name))?;
            entered.with_context(|| format!("cannot enter the namespace {}", self.name))
        })
    }
}

/// Removes namespaces by name. A veth pair goes with the first of its two.
pub(crate) fn remove(names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let script: String = names.iter().map(|name| format!("netns del {name}\n")).collect();
    tool::run("ip", &["-force", "-batch", "-"], &script)
}

/// Names of the namespaces that start with `prefix`.
pub(crate) fn list(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}
