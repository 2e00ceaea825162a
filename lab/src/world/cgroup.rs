//! The cgroup2 side of a world: a node is a directory, a pod a directory below it. In: paths. Out: directories that can
//! be frozen, killed and removed with all that is in them. It never looks at a controller: the lab only needs the tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::clock;

/// How long the kernel may take to end killed processes; reaping hundreds takes some milliseconds.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How long a node may take to freeze or thaw; a task in an uninterruptible call delays it.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);

/// One directory below the cgroup2 mount.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup` on a pure machine, `/sys/fs/cgroup/unified` on a hybrid one.
///
/// # Errors
/// No such mount.
pub fn mount_point() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    mount_point_in(&text).context("no cgroup2 file system is mounted")
}

/// proc_pid_mountinfo(5): the mount point is the fifth field, the type the first one after the lone hyphen.
fn mount_point_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_cgroup2 = after.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

impl Cgroup {
    /// Makes the directory and its parents.
    pub(crate) fn create(path: PathBuf) -> Result<Cgroup> {
        fs::create_dir_all(&path).with_context(|| format!("cannot create the cgroup {}", path.display()))?;
        Ok(Cgroup { path })
    }

    pub(crate) fn at(path: PathBuf) -> Cgroup {
        Cgroup { path }
    }

    /// A directory below this one, made where it is missing.
    pub(crate) fn child(&self, name: &str) -> Result<Cgroup> {
        Cgroup::create(self.path.join(name))
    }

    /// The directory, as seen from the lab.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup's id in the kernel: the directory's inode.
    ///
    /// # Errors
    /// The directory is gone.
    pub fn inode(&self) -> Result<u64> {
        let stat = rustix::fs::stat(&self.path).with_context(|| format!("cannot stat {}", self.path.display()))?;
        Ok(stat.st_ino)
    }

    /// Processes of this cgroup and of all below it.
    ///
    /// # Errors
    /// The directory is gone.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for directory in self.tree()? {
            let text = fs::read_to_string(directory.join("cgroup.procs"))
                .with_context(|| format!("cannot read the processes of {}", directory.display()))?;
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        Ok(pids)
    }

    /// Stops every task of the cgroup at once and waits until the kernel says so.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    /// Lets every task of the cgroup go on.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        if clock::wait_until(FREEZE_LIMIT, || self.event(wanted)) {
            return Ok(());
        }
        bail!("{} did not become {wanted} within {FREEZE_LIMIT:?}", self.path.display())
    }

    /// SIGKILL for every process of the cgroup and of all below it, then waits until none is left.
    pub(crate) fn kill(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        self.write("cgroup.kill", "1")?;
        if clock::wait_until(KILL_LIMIT, || self.event("populated 0") || !self.path.exists()) {
            return Ok(());
        }
        bail!("processes of {} survived SIGKILL for {KILL_LIMIT:?}", self.path.display())
    }

    /// Removes the directory and all below it; they must be empty of processes.
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let mut directories = self.tree()?;
        directories.reverse();
        for directory in directories {
            // A killed task leaves its cgroup a moment after it stops to count as populating it.
            let gone = clock::wait_until(KILL_LIMIT, || fs::remove_dir(&directory).is_ok() || !directory.exists());
            if !gone {
                bail!("cannot remove the cgroup {}", directory.display());
            }
        }
        Ok(())
    }

    /// Parents before children.
    fn tree(&self) -> Result<Vec<PathBuf>> {
        let mut found = vec![self.path.clone()];
        let mut next = 0;
        while let Some(directory) = found.get(next).cloned() {
            next += 1;
            let entries = fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    fn event(&self, wanted: &str) -> bool {
        fs::read_to_string(self.path.join("cgroup.events")).is_ok_and(|text| text.lines().any(|line| line == wanted))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_found_on_pure_and_hybrid_machines() {
        let pure = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount_point_in(pure), Some(PathBuf::from("/sys/fs/cgroup")));
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point_in(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point_in("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }
}
