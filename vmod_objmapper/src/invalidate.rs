//! What VCL invalidates: in the log first, for all caches, then in this one.
//!
//! The log's answer comes first, because what is fetched once an object has left this cache must not be what was invalidated. This
//! cache is purged whatever the answer is.

use objmapper_records::{Key, split_tags};
use varnishd::context::Context;
use varnishd::worker::Worker;

use crate::director::Director;
use crate::l1;

/// Tags of one call, at most: each is an entry in the log.
const MAX_TAGS: usize = 1024;

/// Purges a key: the record, and the objects of its digest. Returns false if the store did not confirm.
///
/// # Safety
/// `ctx` must be varnishd's, of a client request or a fetch.
pub(crate) unsafe fn key(ctx: Context<'_>, director: &Director, key: &Key, soft: bool) -> bool {
    let kind = if soft { "purged softly" } else { "purged" };
    let (purged, text) = match director.l2.purge(key, soft, director.counters()) {
        Ok(true) => (true, kind.to_owned()),
        Ok(false) => (true, format!("{kind} (absent)")),
        Err(outage) => (false, format!("not purged: {outage}")),
    };
    // SAFETY: used in this call only.
    if let Some(worker) = unsafe { Worker::current() } {
        l1::purge_key(worker, &key.digest(), soft);
    }
    ctx.log().decision(&format!("{} {text} {}", director.name, key.text().escape_ascii()));
    purged
}

/// Purges tags, divided by white space or commas. Returns the number of objects here that they have invalidated, and -1 if a store
/// did not confirm.
///
/// # Errors
/// There is no director that knows tags, or there are too many tags.
///
/// # Safety
/// As for [`key`].
pub(crate) unsafe fn tags<'a>(
    ctx: Context<'_>,
    directors: impl Iterator<Item = &'a Director>,
    text: &[u8],
    soft: bool,
) -> Result<i64, String> {
    let mut tags: Vec<&[u8]> = split_tags(text).collect();
    tags.sort_unstable();
    tags.dedup();
    if tags.len() > MAX_TAGS {
        return Err(format!("{} tags, at most {MAX_TAGS} are possible: purge them in several calls", tags.len()));
    }
    let mut confirmed = true;
    let mut known = false;
    for director in directors.filter(|director| !director.arguments.tags.is_empty()) {
        known = true;
        if tags.is_empty() {
            continue;
        }
        let said = match director.l2.purge_tags(&tags, soft, director.counters()) {
            Ok(()) => format!("{} tags purged", tags.len()),
            Err(outage) => {
                confirmed = false;
                format!("{} tags not purged: {outage}", tags.len())
            }
        };
        ctx.log().decision(&format!("{} {said}", director.name));
    }
    if !known {
        return Err("this VCL has no director with tags: make one by objmapper.director(), with tags = \"xkey\" or another header"
            .to_owned());
    }
    // SAFETY: used in this call only.
    let Some(worker) = (unsafe { Worker::current() }) else { return Err("there is no request here".to_owned()) };
    let hits: u64 = tags.iter().map(|tag| l1::purge_tag(worker, tag, soft)).sum();
    Ok(if confirmed { i64::try_from(hits).unwrap_or(i64::MAX) } else { -1 })
}
