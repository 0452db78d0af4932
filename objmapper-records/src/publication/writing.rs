//! Writing to the store: small objects in one step, and bytes to a draft's file.

use objmapper_client::{CommitOptions, Found, ObjUri, Status};
use rustix::io::Errno;

use crate::core::Core;
use crate::outage::Outage;

impl Core {
    /// Publishes a small object. `None`: a condition in `options` (fence, `if_version`) does not hold.
    pub(crate) fn put(&self, uri: &ObjUri<'_>, bytes: &[u8], options: CommitOptions) -> Result<Option<Found>, Outage> {
        let mut object = self.client.create(bytes.len() as u64, None, None).map_err(|why| Outage::from(&why))?;
        {
            let file = object.take_fd().ok_or(Outage::Protocol)?;
            write_all_at(&file, bytes, 0)?;
        }
        match object.commit(uri, bytes.len() as u64, options) {
            Ok(found) => Ok(Some(found)),
            Err(why) if why.status() == Some(Status::Conflict) => Ok(None),
            Err(why) => Err(Outage::from(&why)),
        }
    }
}

/// Writes all of `bytes` at an offset.
pub(crate) fn write_all_at(file: impl std::os::fd::AsFd, mut bytes: &[u8], mut offset: u64) -> Result<(), Outage> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&file, bytes, offset) {
            Ok(0) => return Err(Outage::Full),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Outage::from(&std::io::Error::from(errno))),
        }
    }
    Ok(())
}
