//! Mount table in, id of the node's cgroup out.
//!
//! The kernel gives a cgroup's directory its id as inode number, so that the root that this process sees names the node
//! even inside a private cgroup namespace, as in kind: there the visible root is the node's own directory of the global
//! tree.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::CgroupError;

/// `CGROUP2_SUPER_MAGIC`: <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/magic.h>.
const CGROUP2: u64 = 0x6367_7270;

/// See [`super::node_cgroup`].
pub(super) fn root_id(explicit: Option<&Path>) -> Result<u64, CgroupError> {
    let path = match explicit {
        Some(path) => path.to_owned(),
        None => {
            let mounts = fs::read("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
            mount_point(&mounts).ok_or(CgroupError::NotMounted)?
        }
    };
    let failed = |source| CgroupError::Root { path: path.clone(), source };
    let system = rustix::fs::statfs(&path).map_err(|errno| failed(errno.into()))?;
    if system.f_type as u64 != CGROUP2 {
        return Err(CgroupError::NotCgroup2 { path });
    }
    Ok(fs::metadata(&path).map_err(failed)?.ino())
}

/// Where the table of `proc_pid_mountinfo(5)` mounts cgroup2: the last mount of a whole tree, since a later one covers an
/// earlier one, else the last of a part.
fn mount_point(table: &[u8]) -> Option<PathBuf> {
    let mut part = None;
    let mut whole = None;
    for line in table.split(|&byte| byte == b'\n') {
        let fields: Vec<_> = line.split(|&byte| byte == b' ').collect();
        // After six fixed fields come optional ones, up to a single hyphen; the type follows.
        let kind = fields.iter().skip(6).skip_while(|field| **field != b"-").nth(1);
        if kind != Some(&b"cgroup2".as_slice()) {
            continue;
        }
        let place = if fields[3] == b"/" { &mut whole } else { &mut part };
        *place = Some(PathBuf::from(OsString::from_vec(unescaped(fields[4]))));
    }
    whole.or(part)
}

/// The table writes blanks and backslashes as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                plain.push(value);
                rest = &tail[3..];
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(table: &str, expected: Option<&str>) {
        assert_eq!(mount_point(table.as_bytes()), expected.map(PathBuf::from));
    }

    #[test]
    fn the_unified_hierarchy_is_found_beside_version_one() {
        check(
            "30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
             31 24 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 master:3 - cgroup2 cgroup2 rw\n",
            Some("/sys/fs/cgroup/unified"),
        );
    }

    #[test]
    fn a_whole_tree_is_preferred_to_a_part_and_a_later_mount_to_an_earlier_one() {
        check(
            "1 0 0:27 / /one rw - cgroup2 none rw\n\
             2 0 0:27 / /a\\040b rw - cgroup2 none rw\n\
             3 0 0:27 /kubepods /part rw - cgroup2 none rw\n",
            Some("/a b"),
        );
    }

    #[test]
    fn a_machine_without_it_has_none() {
        check("1 0 0:5 / /proc rw - proc proc rw\n\n", None);
        check("", None);
    }

    #[test]
    fn a_directory_of_another_file_system_is_refused() {
        assert!(matches!(root_id(Some(Path::new("/proc"))), Err(CgroupError::NotCgroup2 { .. })));
    }
}
