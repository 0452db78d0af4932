//! The memory tier's file system, and the ways to make it.

mod mount;
mod tmpfs;
mod userns;

pub use mount::{MemoryMount, MountKind, ShmDirectory};
pub use tmpfs::MountAccess;
