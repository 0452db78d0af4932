//! The ban log in a v0.1 store: rewritten in place under its lock, read anew each time.

use std::time::Instant;

use super::file::{Locked, get, read};
use crate::config::Notice;
use crate::core::Core;
use crate::invalidation::bans::keeper::{Unknown, random};
use crate::invalidation::bans::log::Log;
use crate::invalidation::bans::spec::Ban;
use crate::outage::Outage;
use crate::record::tail::{Kind, parse_whole, tail};

/// Attempts to change the log while its file is deleted or replaced.
const ROUNDS: usize = 8;

impl Core {
    fn parse_log_v01(&self, bytes: &[u8]) -> Option<Log> {
        let (trailer, head, _) = parse_whole(bytes).ok()?;
        if trailer.kind == Kind::Bans { Log::decode(head, &self.space.prefix()).ok() } else { None }
    }

    /// Returns all bans in the log, those of this process included.
    pub(super) fn current_log_v01(&self, deadline: Instant) -> Result<Log, Unknown> {
        self.bans.wait_own(deadline)?;
        let bytes = read(&get(self, self.bans.uri())?)?;
        match self.parse_log_v01(&bytes) {
            Some(log) => Ok(log),
            // Another process may be writing it: it is read again under the lock.
            None => Ok(self.change_log_v01(deadline, |_| ())?),
        }
    }

    /// Adds bans to the log, which is begun anew if it was lost.
    pub(crate) fn append_v01(&self, bans: &[Ban]) -> Result<(), Outage> {
        let deadline = Instant::now() + self.call_timeout;
        self.change_log_v01(deadline, |log| bans.iter().for_each(|ban| log.append(ban.clone()))).map(|_| ())
    }

    fn change_log_v01(&self, deadline: Instant, change: impl Fn(&mut Log)) -> Result<Log, Outage> {
        let uri = self.bans.uri();
        // A log that was written, and lost before another process could read it, is written again unchanged.
        let mut lost = None;
        for _ in 0..ROUNDS {
            let file = get(self, uri)?;
            let Some(locked) = Locked::new(&file, deadline)? else { continue };
            let former = self.parse_log_v01(&locked.read()?);
            let log = match (former.clone(), lost.take()) {
                (None, Some(log)) => log,
                (there, _) => {
                    let is_new = there.is_none();
                    let mut log =
                        there.map_or_else(|| Ok(Log::new(&self.space.prefix(), random()?)), Ok::<_, Outage>)?;
                    if is_new {
                        (self.log)(&Notice::BansReset("there was no ban log".into()));
                    }
                    change(&mut log);
                    log
                }
            };
            if former.as_ref() == Some(&log) {
                return Ok(log);
            }
            let bytes =
                tail(Kind::Bans, log.encode(), 0, Some(crate::record::head::Summer::new().sum())).ok_or(Outage::Io)?;
            locked.write(&bytes)?;
            if locked.is_found(self, uri, bytes.len())? {
                return Ok(log);
            }
            lost = Some(log);
        }
        Err(Outage::Io)
    }
}
