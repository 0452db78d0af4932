//! The board: counters that a store shares with its clients through memory, and fences.
//!
//! EXTENSIONS.md of `objmapper-proto` specifies the layout. The file is mapped only if it is a memfd of a board's size that is
//! sealed against a change of its size, so that no access raises SIGBUS. Every access is an atomic operation of 8 bytes.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;
use nix::sys::uio::pread;
use objmapper_proto::ObjUri;
use objmapper_proto::ext::board::{
    AT_ID, AT_SHARDS, AT_SLOTS, AT_VERSION, HEADER_LEN, MAGIC, SHARDS, SIZE, SLOTS, VERSION, Word, slot_of,
};
use objmapper_proto::ext::{Fence, Token};
// nix has no futex.
use rustix::thread::{Timespec, futex};

use crate::error::{Error, Result};

/// Seals that a board must have. Without them another process could shorten the file under the mapping. Only a memfd has seals:
/// its pages cannot fail to be read, and a hole that a peer punches reads as zeros.
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// The mapped board of a store. Every method is a few instructions, without a call to the store.
///
/// A board belongs to one run of the server. The caller takes [`Session::board`](crate::Session::board) of the session that
/// [`Client::session`](crate::Client::session) returns, each time anew. Counters begin
/// at random values, so that a [`Fence`] of another run does not match.
pub struct Board {
    map: MmapRaw,
    id: Token,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Board {
    /// Maps the board's descriptor of ATTACH. Fails unless the file has exactly a board's size, has [`SEALS`], and begins with a
    /// board's header.
    pub(crate) fn map(fd: &OwnedFd) -> Result<Self> {
        let refused = || Error::io("the store's board")(Errno::EINVAL);
        let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map_err(Error::io("seals of the store's board"))?;
        let sealed = SealFlag::from_bits_retain(seals);
        // In this order: the size of a sealed file does not change.
        let size = fstat(fd).map_err(Error::io("fstat"))?.st_size;
        if !sealed.contains(SEALS) || size != SIZE as i64 {
            return Err(refused());
        }
        let mut header = [0; HEADER_LEN];
        let read = pread(fd, &mut header, 0).map_err(Error::io("pread"))?;
        let number = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let numbers = [number(AT_VERSION), number(AT_SHARDS), number(AT_SLOTS)];
        if read != HEADER_LEN || header[..MAGIC.len()] != MAGIC || numbers != [VERSION, SHARDS, SLOTS] {
            return Err(refused());
        }
        let mut id = Token::default();
        id.0.copy_from_slice(&header[AT_ID..AT_ID + 16]);
        let map = MmapOptions::new().len(SIZE).map_raw(fd.as_fd().as_raw_fd());
        let map = map.map_err(|e| Error::Io { what: "mmap", errno: e.raw_os_error().unwrap_or_default() })?;
        Ok(Self { map, id })
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        let at = word.offset();
        debug_assert!(at.is_multiple_of(8) && at + 8 <= SIZE);
        // SAFETY: `map` is SIZE bytes, readable and writable, page-aligned, and lives as long as `self`, from which
        // the reference borrows. The file is sealed at SIZE bytes (checked before it was mapped), so that
        // no access raises SIGBUS. `Word::offset` is a multiple of 8 and at most SIZE - 8 for every number in
        // it (its unit tests), so that the word is aligned and inside. All references to this memory are
        // atomics of 8 bytes; other processes change it, and every value is valid.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }

    /// Returns the board's random id, which differs after a restart of the server.
    #[must_use]
    pub fn id(&self) -> Token {
        self.id
    }

    /// Returns the fence of a URI with its current value. The caller takes it before it sends the request to the origin whose
    /// response it will commit.
    #[must_use]
    pub fn fence(&self, uri: &ObjUri<'_>) -> Fence {
        let shard = Fence::shard_of(uri);
        Fence { shard, value: self.word(Word::Fence(shard)).load(SeqCst) }
    }

    /// Returns true if a fence has not moved: none of its URIs has been deleted since it was taken.
    #[must_use]
    pub fn is_current(&self, fence: Fence) -> bool {
        self.word(Word::Fence(fence.shard)).load(SeqCst) == fence.value
    }

    /// Returns the slot of a part of the name space, by its prefix.
    #[must_use]
    pub fn slot(prefix: &[u8]) -> u32 {
        slot_of(prefix)
    }

    /// Returns the number of bans announced in a slot.
    #[must_use]
    pub fn announced(&self, slot: u32) -> u64 {
        self.word(Word::Announced(slot)).load(SeqCst)
    }

    /// Returns the number of bans of a slot that are in the log. The caller reads it before [`Self::announced`]: the two are then
    /// equal only if no ban was pending in between.
    #[must_use]
    pub fn recorded(&self, slot: u32) -> u64 {
        self.word(Word::Recorded(slot)).load(SeqCst)
    }

    /// Announces a ban: from now on readers wait until it is recorded. Returns the number of announced bans.
    pub fn announce(&self, slot: u32) -> u64 {
        self.word(Word::Announced(slot)).fetch_add(1, SeqCst).wrapping_add(1)
    }

    /// Waits until the number of recorded bans is another one than `seen`. Returns after `timeout` at the latest, and may
    /// return earlier for no reason.
    pub fn wait_recorded(&self, slot: u32, seen: u64, timeout: Duration) {
        let recorded = self.word(Word::Recorded(slot));
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        if recorded.load(SeqCst) == seen {
            // Whatever it returns, the caller looks at the board again.
            let _ = futex::wait(low_half(recorded), futex::Flags::empty(), seen as u32, Some(&timeout));
        }
    }

    /// Changes the number of recorded bans, and wakes the processes that wait for that: counts bans that are in the log, or
    /// marks bans that were announced and never recorded as recorded. Returns false, and changes nothing, if another process has
    /// recorded or healed since `seen_recorded` was read. The caller must have made sure that no older object is used any more.
    pub fn heal(&self, slot: u32, seen_recorded: u64, seen_announced: u64) -> bool {
        let recorded = self.word(Word::Recorded(slot));
        let changed = recorded.compare_exchange(seen_recorded, seen_announced, SeqCst, SeqCst).is_ok();
        if changed {
            // It fails for an invalid address only.
            let _ = futex::wake(low_half(recorded), futex::Flags::empty(), i32::MAX as u32);
        }
        changed
    }
}

/// Returns the half of a word that changes with each addition: what the kernel compares and wakes by.
fn low_half(word: &AtomicU64) -> &AtomicU32 {
    let at = if cfg!(target_endian = "big") { 1 } else { 0 };
    // SAFETY: half of the word, aligned for it, for as long as the word is borrowed. It is only given to the kernel, which
    // reads it as other processes change it: no access of half a word is made by this program.
    unsafe { AtomicU32::from_ptr(word.as_ptr().cast::<u32>().add(at)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::uio::pwrite;
    use nix::unistd::ftruncate;

    fn image() -> Vec<u8> {
        let mut image = vec![0; SIZE];
        image[..MAGIC.len()].copy_from_slice(&MAGIC);
        for (at, value) in [(AT_VERSION, VERSION), (AT_SHARDS, SHARDS), (AT_SLOTS, SLOTS)] {
            image[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        image[AT_ID] = 7;
        image
    }

    fn memfd(image: &[u8], size: usize, seals: SealFlag) -> OwnedFd {
        let fd = memfd_create("board", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&fd, size as i64).unwrap();
        assert_eq!(pwrite(&fd, &image[..size.min(image.len())], 0).unwrap(), size.min(image.len()));
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        fd
    }

    #[test]
    fn only_what_is_a_board_and_sealed_is_mapped() {
        let good = memfd(&image(), SIZE, SEALS);
        assert_eq!(Board::map(&good).unwrap().id().0[0], 7);
        for seals in [SealFlag::empty(), SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_GROW] {
            assert!(Board::map(&memfd(&image(), SIZE, seals)).is_err(), "{seals:?}");
        }
        for size in [0, SIZE - 1, SIZE + 4096] {
            assert!(Board::map(&memfd(&image(), size, SEALS)).is_err(), "{size} bytes");
        }
        for at in [0, AT_VERSION, AT_SHARDS, AT_SLOTS] {
            let mut other = image();
            other[at] ^= 1;
            assert!(Board::map(&memfd(&other, SIZE, SEALS)).is_err(), "byte {at}");
        }
        let file = tempfile::tempfile().unwrap();
        assert!(Board::map(&file.into()).is_err(), "a file has no seals");
    }

    #[test]
    fn a_peer_can_neither_shrink_a_board_nor_have_it_fault() {
        use nix::fcntl::{FallocateFlags, fallocate};
        let fd = memfd(&image(), SIZE, SEALS);
        let board = Board::map(&fd).unwrap();
        assert_eq!(ftruncate(&fd, 0), Err(Errno::EPERM));
        assert!(fallocate(&fd, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096).is_err());
        board.announce(3);
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&fd, punch, 0, SIZE as i64).unwrap();
        assert_eq!((board.announced(3), board.announce(3)), (0, 1));
    }

    #[test]
    fn a_change_wakes_other_mappings() {
        let fd = memfd(&image(), SIZE, SEALS);
        let (a, b) = (Board::map(&fd).unwrap(), Board::map(&fd).unwrap());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let began = std::time::Instant::now();
                while b.recorded(3) == 0 {
                    b.wait_recorded(3, 0, Duration::from_secs(60));
                }
                began.elapsed()
            });
            while !waits.is_finished() && a.recorded(3) == 0 {
                std::thread::yield_now();
                assert!(a.heal(3, 0, 1));
            }
            assert!(waits.join().unwrap() < Duration::from_secs(50));
        });
        // Changed already: no wait.
        b.wait_recorded(3, 0, Duration::from_secs(60));
    }

    #[test]
    fn two_mappings_are_one_board() {
        let fd = memfd(&image(), SIZE, SEALS);
        let (a, b) = (Board::map(&fd).unwrap(), Board::map(&fd).unwrap());
        assert_eq!((a.announce(3), b.announced(3), b.recorded(3)), (1, 1, 0));
        assert_eq!((b.announce(3), b.heal(3, 0, 2), a.recorded(3)), (2, true, 2));
        assert_eq!((a.announced(4), a.recorded(4)), (0, 0), "another slot");
        assert_eq!(a.announce(3), 3);
        assert!(!b.heal(3, 1, 3), "recorded since");
        assert!(b.heal(3, 2, 3) && a.recorded(3) == 3);
        let uri = ObjUri::parse(b"/a").unwrap();
        let fence = a.fence(&uri);
        assert!(b.is_current(fence));
        b.word(Word::Fence(fence.shard)).fetch_add(1, SeqCst);
        assert!(!a.is_current(fence));
        assert_ne!(a.fence(&uri), fence);
        // A slot or shard beyond the last is another one, never memory beyond the board.
        assert!(a.announced(u32::MAX) == 0 && !a.is_current(Fence { shard: u32::MAX, value: 1 }));
    }
}
