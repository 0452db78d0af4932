//! Publishing in a v0.1 store: whole files, rewritten under their locks.

use std::time::Instant;

use super::file::{Locked, get};
use super::{index_of, kind_of};
use crate::invalidation::index::{Judged, Verdict};
use crate::invalidation::journal::{Unknown, random};
use crate::outage::Outage;
use crate::publication::outcome::Outcome;
use crate::publication::ticket::Ticket;
use crate::record::head::Summer;
use crate::record::stored::Stored;
use crate::record::tail::{Kind, MAX_V01_BODY, parse_whole, tail};
use crate::record::vary::{Index, Spec};

/// Attempts to publish while the file is deleted or replaced.
const ROUNDS: usize = 4;

impl Ticket {
    /// Publishes a body.
    pub(crate) fn publish_v01(&self, stored: &Stored, body: &[u8]) -> Outcome {
        if body.len() > MAX_V01_BODY {
            return Outcome::TooLarge;
        }
        self.write_v01(stored.clone(), body).unwrap_or_else(|outcome| outcome)
    }

    fn write_v01(&self, mut stored: Stored, body: &[u8]) -> Result<Outcome, Outcome> {
        let core = &self.core;
        let deadline = Instant::now() + core.store.call_timeout;
        let log = core.journal.current_v01().map_err(|why| match why {
            Unknown::Pending => Outage::Timeout,
            Unknown::Outage(outage) => outage,
        })?;
        let judged = Judged { mark: &stored.mark, digest: self.key.digest(), tags: &stored.tags };
        if log.judge_purges(judged) != Verdict::Valid {
            return Ok(Outcome::Conflict);
        }
        let mut sum = Summer::new();
        sum.update(body);
        for _ in 0..ROUNDS {
            let at_key = get(&core.store, self.key.uri())?;
            let Some(at_key) = Locked::new(&at_key, deadline)? else { continue };
            let there = at_key.read()?;
            let index = index_of(&there, self.key.text());
            if stored.vary.is_none() && index.is_some() {
                // If the key has an index, a response that does not vary is a variant too.
                stored.vary = Some(Spec::default().key(&NoRequest).map_err(|_| Outcome::Unmatchable)?);
            }
            let Some(vary) = stored.vary.clone() else {
                return write(&at_key, &there, &stored, body, &sum);
            };
            let mut index = match index {
                Some(index) => index,
                None => Index::new(self.key.text(), random()?),
            };
            let changed = index.add_spec_of(&vary);
            let variant = get(&core.store, &core.store.space.uri(&[b"v", &index.variant(&vary)]))?;
            let Some(variant) = Locked::new(&variant, deadline)? else { continue };
            let outcome = write(&variant, &variant.read()?, &stored, body, &sum)?;
            if changed {
                let none = Summer::new().sum();
                at_key.write(&tail(Kind::Vary, index.encode(), 0, Some(none)).ok_or(Outcome::TooLarge)?)?;
            }
            return Ok(outcome);
        }
        Err(Outcome::Outage(Outage::Io))
    }
}

/// A request without headers, for a spec that names none.
struct NoRequest;

impl crate::lookup::request::RequestView for NoRequest {
    fn url(&self) -> &[u8] {
        b""
    }

    fn header(&self, _: &[u8]) -> Option<&[u8]> {
        None
    }
}

/// Replaces the record in a file, unless that is newer.
fn write(file: &Locked<'_>, there: &[u8], stored: &Stored, body: &[u8], sum: &Summer) -> Result<Outcome, Outcome> {
    if kind_of(there) == Some(Kind::Record)
        && let Ok((_, head, _)) = parse_whole(there)
        && let Ok(other) = Stored::decode(head, false)
        && other.text == stored.text
        && other.mark.nonce == stored.mark.nonce
        && (other.mark.seq > stored.mark.seq || other.head.t_origin > stored.head.t_origin)
    {
        return Ok(Outcome::Overtaken);
    }
    let tail = stored.tail(body.len() as u64, Some(sum.sum())).ok_or(Outcome::TooLarge)?;
    file.write(&[body, &tail].concat())?;
    Ok(Outcome::Published)
}
