//! Which sockets are this node's: those created in a cgroup at or below the root that the agent sees.
//!
//! Tracepoints see every socket of the machine. On an ordinary node that is the node; where several nodes share a kernel
//! (kind, k3d) each agent must count its own only.

use probe_common::abi::CGROUP_DEPTH;

use crate::{
    offsets::{NODE_CGROUP, O_CGROUP_NODE, O_CGROUP_PARENT, O_NODE_ID, O_STATE_CGROUP},
    socket::Socket,
};

/// The id of the hierarchy's own root: above every socket there is
/// (`kernfs_create_root` in <https://github.com/torvalds/linux/blob/v6.12/fs/kernfs/dir.c> numbers it first, from 1).
const HIERARCHY_ROOT: u64 = 1;

/// Whether the socket belongs to this node. Asked only for sockets whose destination is counted.
#[inline(always)]
pub(crate) fn is_ours(socket: Socket) -> bool {
    let root = NODE_CGROUP.get();
    if root == HIERARCHY_ROOT {
        return true;
    }
    let mut cgroup = socket.cgroup();
    for _ in 0..=CGROUP_DEPTH {
        if cgroup.is_null() {
            return false;
        }
        if O_NODE_ID.load(O_CGROUP_NODE.load(cgroup)) == root {
            return true;
        }
        let parent = O_CGROUP_PARENT.load(cgroup);
        if parent.is_null() {
            return false;
        }
        cgroup = O_STATE_CGROUP.load(parent);
    }
    false
}
