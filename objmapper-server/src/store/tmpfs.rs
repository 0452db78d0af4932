//! A detached tmpfs: it is in no mount table, nobody can reach it but through its descriptor, and it is gone, with its memory,
//! when the last descriptor and mapping of it are (`fsopen(2)`, `fsmount(2)`). So the size of `/dev/shm` is not our limit, and
//! a killed process leaves nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

/// How tmpfs allocates memory for our bodies: `huge=within_size` takes huge pages only where they
/// lie wholly inside the file, so accounting by pages stays exact. Measured: see the README.
pub(crate) const HUGE: &std::ffi::CStr = c"within_size";

/// Who may create files in the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountAccess {
    /// Only the user who made the mount. For a store whose directory is handed to peers.
    Owner,
    /// Any user who has the descriptor. For a mount that is made before the process gives up root,
    /// and that never leaves it.
    AnyUser,
}

/// The mount's options, ready for a forked child that must not allocate.
pub(super) struct Options {
    pub(super) size: std::ffi::CString,
    pub(super) mode: &'static std::ffi::CStr,
}

impl Options {
    pub(super) fn new(limit: u64, access: MountAccess) -> Self {
        // Room above the limit: deleted files that a reader still sends, or a private object whose
        // writer runs ahead of its reservation, must not make an honest writer fail. A client that
        // ignores its reservation altogether meets this bound.
        let size = limit.saturating_add((limit / 8).max(16 << 20)).min(i64::MAX as u64);
        // Digits have no NUL, so the default (an unlimited size) is never used.
        let size = std::ffi::CString::new(size.to_string()).unwrap_or_default();
        let mode = match access {
            MountAccess::Owner => c"0755",
            MountAccess::AnyUser => c"0777",
        };
        Options { size, mode }
    }
}

/// Makes the mount. Allocates nothing: the user-namespace helper calls it after `fork`.
pub(super) fn detached_tmpfs(options: &Options) -> io::Result<OwnedFd> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    fsconfig_set_string(context, c"size", options.size.as_c_str())?;
    fsconfig_set_string(context, c"mode", options.mode)?;
    // No limit on the number of files: the byte limit is ours.
    fsconfig_set_string(context, c"nr_inodes", c"0")?;
    // A kernel without huge pages refuses the option; small pages then do.
    let _ = fsconfig_set_string(context, c"huge", HUGE);
    fsconfig_create(context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
