//! Files that a v0.1 store hands out: read whole, locked and rewritten.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use objmapper_client::{Error, ObjUri, V01Object, V01Tier};
use rustix::io::Errno;

use crate::core::Core;
use crate::outage::Outage;
use crate::record::{MAX_TAIL, MAX_V01_BODY};
use crate::writing::write_all_at;

/// How often a file that is deleted already is asked for again.
const ROUNDS: usize = 4;

/// The file of a URI, made if there is none.
pub(super) fn get(core: &Core, uri: &ObjUri<'_>) -> Result<V01Object, Outage> {
    let mut outcome = Err(Outage::Io);
    for _ in 0..ROUNDS {
        match core.client.get_or_create(uri, V01Tier::Default) {
            Ok(object) => return Ok(object),
            // Two have made it at once, and we are the loser.
            Err(why @ Error::Unlinked) => outcome = Err(Outage::from(&why)),
            Err(why) if why.status() == Some(objmapper_client::Status::Storage) => outcome = Err(Outage::Io),
            Err(why) => return Err(Outage::from(&why)),
        }
    }
    outcome
}

/// All of a file; of one that is longer than any record, too little to be one.
pub(super) fn read(file: &V01Object) -> Result<Vec<u8>, Outage> {
    let size = rustix::fs::fstat(file).map_err(|_| Outage::Io)?.st_size;
    let size = usize::try_from(size).unwrap_or_default();
    if size > MAX_V01_BODY + MAX_TAIL {
        return Ok(vec![0]);
    }
    let mut bytes = vec![0; size];
    let read = file.read_at(&mut bytes, 0).map_err(|_| Outage::Io)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// All of a URI's file; nothing if it was absent.
pub(super) fn read_uri(core: &Core, uri: &ObjUri<'_>) -> Result<Vec<u8>, Outage> {
    read(&get(core, uri)?)
}

/// A file that nobody else writes.
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
    /// Waits for the lock; `None`: the file is deleted.
    pub(super) fn new(file: &'a V01Object, deadline: Instant) -> Result<Option<Self>, Outage> {
        let mut pause = Duration::from_micros(100);
        loop {
            match set_lock(file, libc::F_WRLCK) {
                Ok(()) => break,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES | nix::errno::Errno::EINTR) => {}
                Err(_) => return Err(Outage::Io),
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Outage::Timeout);
            }
            // There is no waiting for it with a deadline.
            std::thread::sleep(pause.min(deadline - now));
            pause = (pause * 2).min(Duration::from_millis(5));
        }
        let locked = Self(file);
        Ok(locked.is_linked()?.then_some(locked))
    }

    fn is_linked(&self) -> Result<bool, Outage> {
        Ok(rustix::fs::fstat(self.0).map_err(|_| Outage::Io)?.st_nlink > 0)
    }

    pub(super) fn read(&self) -> Result<Vec<u8>, Outage> {
        read(self.0)
    }

    /// Replaces its content. The end comes last, so that no part of it is a record.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), Outage> {
        let full = |errno| if errno == Errno::NOSPC { Outage::Full } else { Outage::Io };
        rustix::fs::ftruncate(self.0, 0).map_err(full)?;
        write_all_at(self.0, bytes, 0).inspect_err(|_| {
            // Whether or not that works, it is no record.
            let _ = rustix::fs::ftruncate(self.0, 0);
        })
    }

    /// Whether this is the file that others get under `uri`, with `len` bytes.
    pub(super) fn is_found(&self, core: &Core, uri: &ObjUri<'_>, len: usize) -> Result<bool, Outage> {
        let found = get(core, uri)?;
        let (ours, theirs) = (rustix::fs::fstat(self.0), rustix::fs::fstat(&found));
        let (ours, theirs) = (ours.map_err(|_| Outage::Io)?, theirs.map_err(|_| Outage::Io)?);
        Ok((ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino) && theirs.st_size == len as i64)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // The store may still have the same open file, so that closing ours would not be enough. If this fails the
        // descriptor is no more, and with it the lock.
        let _ = set_lock(self.0, libc::F_UNLCK);
    }
}
