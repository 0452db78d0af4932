//! Files that a v0.1 store hands out: read whole, locked and rewritten.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use objmapper_client::{Error, ObjUri, V01Object, V01Tier};

use crate::outage::Outage;
use crate::record::file_io::write_all_at;
use crate::record::tail::{MAX_TAIL, MAX_V01_BODY};
use crate::store::Store;

/// Attempts to get a file that is deleted at the same time.
const ROUNDS: usize = 4;

/// Returns the file of a URI; the store creates it if there is none.
pub(super) fn get(store: &Store, uri: &ObjUri<'_>) -> Result<V01Object, Outage> {
    let mut outcome = Err(Outage::Io);
    for _ in 0..ROUNDS {
        match store.client.get_or_create(uri, V01Tier::Default) {
            Ok(object) => return Ok(object),
            // Two clients have created it at once, and this file has been replaced.
            Err(why @ Error::Unlinked) => outcome = Err(Outage::from(&why)),
            Err(why) if why.status() == Some(objmapper_client::Status::Storage) => outcome = Err(Outage::Io),
            Err(why) => return Err(Outage::from(&why)),
        }
    }
    outcome
}

/// Reads all of a file. Of a file that is longer than any record returns one byte, which is no record.
pub(super) fn read(file: &V01Object) -> Result<Vec<u8>, Outage> {
    let size = fstat(file).map_err(|_| Outage::Io)?.st_size;
    let size = usize::try_from(size).unwrap_or_default();
    if size > MAX_V01_BODY + MAX_TAIL {
        return Ok(vec![0]);
    }
    let mut bytes = vec![0; size];
    let read = file.read_at(&mut bytes, 0).map_err(|_| Outage::Io)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Reads all of a URI's file; empty if it was absent.
pub(super) fn read_uri(store: &Store, uri: &ObjUri<'_>) -> Result<Vec<u8>, Outage> {
    read(&get(store, uri)?)
}

/// A file that this process has locked for writing.
pub(super) struct Locked<'a>(&'a V01Object);

/// F_OFD_SETLK of the whole file.
fn set_lock(file: impl AsFd, kind: libc::c_int) -> nix::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(|_| ())
}

impl<'a> Locked<'a> {
    /// Waits for the lock. `None`: the file has been deleted.
    pub(super) fn new(file: &'a V01Object, deadline: Instant) -> Result<Option<Self>, Outage> {
        let mut pause = Duration::from_micros(100);
        loop {
            match set_lock(file, libc::F_WRLCK) {
                Ok(()) => break,
                Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) => {}
                Err(_) => return Err(Outage::Io),
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Outage::Timeout);
            }
            // fcntl(2) has no wait with a deadline, so that the lock is polled.
            std::thread::sleep(pause.min(deadline - now));
            pause = (pause * 2).min(Duration::from_millis(5));
        }
        let locked = Self(file);
        Ok(locked.is_linked()?.then_some(locked))
    }

    fn is_linked(&self) -> Result<bool, Outage> {
        Ok(fstat(self.0).map_err(|_| Outage::Io)?.st_nlink > 0)
    }

    pub(super) fn read(&self) -> Result<Vec<u8>, Outage> {
        read(self.0)
    }

    /// Replaces its content. The trailer is written last, so that no part of a record is taken for one.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), Outage> {
        ftruncate(self.0, 0).map_err(|errno| Outage::from(&std::io::Error::from(errno)))?;
        write_all_at(self.0, bytes, 0).inspect_err(|_| {
            // Whether or not this succeeds, the file is no record.
            let _ = ftruncate(self.0, 0);
        })
    }

    /// Returns true if the store gives this file, with `len` bytes, for `uri`.
    pub(super) fn is_found(&self, store: &Store, uri: &ObjUri<'_>, len: usize) -> Result<bool, Outage> {
        let found = get(store, uri)?;
        let (ours, theirs) = (fstat(self.0), fstat(&found));
        let (ours, theirs) = (ours.map_err(|_| Outage::Io)?, theirs.map_err(|_| Outage::Io)?);
        Ok((ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino) && theirs.st_size == len as i64)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // The store may still hold the same open file description, so that closing this descriptor would not unlock it.
        // If this fails, the descriptor is invalid, and so is the lock.
        let _ = set_lock(self.0, libc::F_UNLCK);
    }
}
