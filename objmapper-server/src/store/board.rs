//! The board: counters in shared memory, among them the fences, which keep what was fetched before a
//! delete from being published after it. EXTENSIONS.md of the crate `objmapper-proto` defines it.
//!
//! A commit with a fence holds the fence's gate for reading from its check until it is visible. A delete holds the gate for
//! writing while it moves the fence. So the delete finds the commit's object, or the commit fails. Clients map the same memory
//! and may write to it; the store reads and writes it by atomic operations only.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use objmapper_proto::ext::Fence;
use objmapper_proto::ext::board::{AT_ID, AT_SHARDS, AT_SLOTS, AT_VERSION, MAGIC, SHARDS, SIZE, SLOTS, VERSION, Word};
use parking_lot::{RwLock, RwLockReadGuard};

use super::StoreError;

/// Locks that order commits with deletes; each serves several fences.
const GATES: usize = 64;

/// A store's board.
#[derive(Debug)]
pub(crate) struct Board {
    fd: OwnedFd,
    map: MmapRaw,
    gates: [RwLock<()>; GATES],
}

impl Board {
    /// Makes a board whose counters begin at random values, so that a value that a client remembers of a former board does not
    /// match on this one.
    pub(crate) fn new() -> Result<Self, StoreError> {
        let image = image()?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let made = || -> io::Result<(OwnedFd, MmapRaw)> {
            let fd = memfd_create("objmapper-board", flags)?;
            let file = File::from(fd);
            file.set_len(SIZE as u64)?;
            file.write_all_at(&image, 0)?;
            let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
            let map = MmapOptions::new().len(SIZE).map_raw(file.as_raw_fd())?;
            Ok((file.into(), map))
        };
        let (fd, map) = made().map_err(StoreError::io("making the board"))?;
        Ok(Board { fd, map, gates: std::array::from_fn(|_| RwLock::new(())) })
    }

    /// Returns the board's descriptor, which ATTACH sends.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn fence(&self, shard: u32) -> &AtomicU64 {
        let at = Word::Fence(shard).offset();
        debug_assert!(at.is_multiple_of(8) && at + 8 <= SIZE);
        // SAFETY: `map` is SIZE bytes, readable and writable, page-aligned, and lives as long as
        // `self`, from which the reference borrows; the file is sealed at SIZE bytes, so that no access
        // raises SIGBUS. `Word::offset` is a multiple of 8 and at most SIZE - 8 for every number (its unit
        // tests), so the word is aligned and inside. Every value is valid. Processes that map the board change it by atomic
        // operations of 8 bytes only, and this crate makes no other reference to its memory.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }

    fn gate(&self, shard: u32) -> &RwLock<()> {
        &self.gates[shard as usize % GATES]
    }

    /// Returns the fence of a URI with its value now.
    pub(crate) fn fence_of(&self, uri: &[u8]) -> Fence {
        let shard = Fence::shard_of_bytes(uri);
        Fence { shard, value: self.fence(shard).load(SeqCst) }
    }

    /// Returns the gate's read lock if the fence still has the value that the committer saw, else `None`. A delete that moves the
    /// fence waits until the lock is dropped; the caller drops it when the commit is visible.
    pub(crate) fn pass(&self, fence: Fence) -> Option<RwLockReadGuard<'_, ()>> {
        let guard = self.gate(fence.shard).read();
        (self.fence(fence.shard).load(SeqCst) == fence.value).then_some(guard)
    }

    /// Moves the fence of a URI. Commits that passed the fence are visible when this returns; later ones fail.
    pub(crate) fn advance(&self, uri: &[u8]) {
        let shard = Fence::shard_of_bytes(uri);
        let _exclusive = self.gate(shard).write();
        self.fence(shard).fetch_add(1, SeqCst);
    }
}

/// Returns the bytes of a new board.
fn image() -> Result<Vec<u8>, StoreError> {
    let mut image = vec![0; SIZE];
    image[..MAGIC.len()].copy_from_slice(&MAGIC);
    for (at, value) in [(AT_VERSION, VERSION), (AT_SHARDS, SHARDS), (AT_SLOTS, SLOTS)] {
        image[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let random = |bytes: &mut [u8]| {
        getrandom::fill(bytes).map_err(|e| StoreError::io("random numbers")(io::Error::other(e.to_string())))
    };
    random(&mut image[AT_ID..AT_ID + 16])?;
    random(&mut image[Word::Fence(0).offset()..])?;
    for slot in 0..SLOTS {
        let mut value = [0; 8];
        random(&mut value)?;
        // The two are equal: no announced ban is unrecorded.
        for word in [Word::Announced(slot), Word::Recorded(slot)] {
            image[word.offset()..word.offset() + 8].copy_from_slice(&value);
        }
    }
    Ok(image)
}
