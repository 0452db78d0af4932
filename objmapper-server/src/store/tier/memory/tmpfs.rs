//! A detached tmpfs (`fsopen(2)`, `fsmount(2)`): it is in no mount table and reachable only through its descriptor. The kernel
//! frees it and its memory with the last descriptor and mapping. So the size of `/dev/shm` is no limit, and a killed process
//! leaves nothing. nix has none of these calls, hence rustix.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

/// The option `huge` of the mount. `within_size` uses huge pages only where they
/// lie wholly inside the file, so that accounting by pages stays exact. The README has measurements.
pub(crate) const HUGE: &std::ffi::CStr = c"within_size";

/// The users that may create files in the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountAccess {
    /// Only the user that made the mount: for a store that sends its directory to peers.
    Owner,
    /// Every user that has the descriptor: for a mount that is made before the process drops root,
    /// and whose descriptor never leaves the process.
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
        // writer runs ahead of its reservation, must not make another writer fail. A client that
        // ignores its reservation altogether reaches this bound.
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
    // No limit on the number of files: the tier's account charges at least a page for each.
    fsconfig_set_string(context, c"nr_inodes", c"0")?;
    // A kernel without huge pages refuses the option; the mount then uses small pages.
    let _ = fsconfig_set_string(context, c"huge", HUGE);
    fsconfig_create(context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
