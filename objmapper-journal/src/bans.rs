//! The log of bans: each a length, a checksum, and bytes that only the caller understands; in the order in which they came.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::directory::Directory;

pub(crate) const NAME: &str = "bans";
const NEW: &str = "bans.new";
/// The longest log that is read.
const MAX_LOG: u64 = 256 << 20;
/// The log should be replaced when it has so many bytes more than it had after it was replaced last, and twice as many.
const REPLACED_AFTER: u64 = 1 << 20;
/// Length and checksum.
const HEAD_LEN: usize = 12;

/// One ban, as it was given to [`Journal::append_ban`](crate::Journal::append_ban).
pub type BanRecord = Vec<u8>;

struct State {
    file: File,
    len: u64,
    /// Its length after it was replaced last.
    compact: u64,
}

/// The open log.
pub(crate) struct BanLog {
    state: Mutex<State>,
}

fn frame(ban: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(&u32::try_from(ban.len()).unwrap_or(u32::MAX).to_le_bytes());
    into.extend_from_slice(&xxh3_64(ban).to_le_bytes());
    into.extend_from_slice(ban);
}

impl BanLog {
    pub(crate) fn create(directory: &Directory) -> io::Result<BanLog> {
        Ok(BanLog::of(directory.create(NAME)?, 0))
    }

    fn of(file: File, len: u64) -> BanLog {
        BanLog { state: Mutex::new(State { file, len, compact: len }) }
    }

    /// Opens the log and reads all of it. `None` if it is missing or damaged anywhere.
    pub(crate) fn open(directory: &Directory) -> io::Result<Option<(BanLog, Vec<BanRecord>)>> {
        let Some(file) = directory.file(NAME)? else { return Ok(None) };
        let len = file.metadata()?.len();
        if len > MAX_LOG {
            return Ok(None);
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let Some(bans) = parse(&bytes) else { return Ok(None) };
        Ok(Some((BanLog::of(file, len), bans)))
    }

    /// Appends one ban. Returns true if the log should be replaced by one without those that are of no more use.
    pub(crate) fn append(&self, ban: &[u8]) -> io::Result<bool> {
        let mut framed = Vec::with_capacity(HEAD_LEN + ban.len());
        frame(ban, &mut framed);
        let mut state = self.state.lock();
        state.file.write_all_at(&framed, state.len)?;
        state.len += framed.len() as u64;
        Ok(state.len > state.compact.saturating_mul(2).max(state.compact.saturating_add(REPLACED_AFTER)))
    }

    /// Replaces the log by these bans.
    pub(crate) fn replace<'a>(
        &self,
        directory: &Directory,
        bans: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let mut framed = Vec::new();
        bans.into_iter().for_each(|ban| frame(ban, &mut framed));
        let mut state = self.state.lock();
        let file = directory.create(NEW)?;
        file.write_all_at(&framed, 0)?;
        directory.rename(NEW, NAME)?;
        let len = framed.len() as u64;
        *state = State { file, len, compact: len };
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Option<Vec<BanRecord>> {
    let mut bans = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let (check, after) = after.split_first_chunk::<8>()?;
        let ban = after.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
        if xxh3_64(ban) != u64::from_le_bytes(*check) {
            return None;
        }
        bans.push(ban.to_vec());
        rest = &after[ban.len()..];
    }
    Some(bans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_are_what_they_were_and_a_cut_log_is_damaged() {
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for ban in [&b"one"[..], b"", b"three"] {
            frame(ban, &mut bytes);
            ends.push(bytes.len());
        }
        assert_eq!(parse(&bytes), Some(vec![b"one".to_vec(), Vec::new(), b"three".to_vec()]));
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]).is_some(), ends.contains(&cut), "cut at {cut}");
        }
    }
}
