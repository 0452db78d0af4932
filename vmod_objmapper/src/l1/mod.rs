//! varnishd's own cache, as far as invalidation is concerned: what this varnishd or another one has invalidated in the shared level
//! is invalidated here, in objects of every storage.
//!
//! ```text
//! VCL: purge(), purge_tags() ──► the log ──► answered          another cache appends to the log
//!            │                                                                │
//!            └──────────► this cache (`invalidate`)  ◄── `follower` thread ◄──┘
//!                              │            ▲
//!        key: a look-up by digest           │ tag: `tagged`, an index kept by news of objects
//! ```
//!
//! An invalidation goes into the log first: what is fetched after an object has left this cache is then not what it was.
//!
//! | what | how |
//! |---|---|
//! | ban | a ban of varnishd's, which the listener of bans does not announce again |
//! | key | varnishd's own purge of a digest; for a record under a URI of its own, by the index |
//! | tag | by the index |
//! | all | a ban of what is older than the entry |
//!
//! A fetch that is under way when its key or a tag of its response is purged: `recent` has what was purged since the fetch
//! began, and the object is invalidated as it comes into the cache.

mod follower;
pub(crate) mod in_flight;
pub(crate) mod logs;
mod tagged;

use std::sync::{LazyLock, OnceLock};

use objmapper_records::Origin;
use objmapper_tags::{Counters, Effect, Index, Names, Recent};
use varnishd::counters::Segment;
use varnishd::purge::purge_digest;
use varnishd::worker::Worker;

pub(crate) use tagged::Tagging;

use crate::engine;

static NAMES: LazyLock<Names> = LazyLock::new(Names::default);
static INDEX: LazyLock<Index> = LazyLock::new(Index::default);
static RECENT: LazyLock<Recent> = LazyLock::new(Recent::default);

/// The counters of this process. Made as the first director is, and never removed.
fn counters() -> &'static Counters {
    static COUNTERS: OnceLock<Segment<Counters>> = OnceLock::new();
    COUNTERS.get_or_init(|| Segment::new(c"OBJM_L1", c"follow"))
}

/// Names this process in what its second levels append to their logs.
pub(crate) fn origin() -> Result<Origin, String> {
    static ORIGIN: OnceLock<Origin> = OnceLock::new();
    if let Some(origin) = ORIGIN.get() {
        return Ok(*origin);
    }
    let origin = Origin::random().map_err(|outage| format!("no random bytes from the system: {outage}"))?;
    Ok(*ORIGIN.get_or_init(|| origin))
}

/// Starts what this module needs: called in varnishd's CLI thread, as a director is made.
pub(crate) fn start() {
    counters();
    follower::start();
}

/// Bans what a storage has loaded of an earlier process, if there is such: called when a director begins to follow a store that other
/// processes use.
pub(crate) fn follow_anew() {
    if engine::has_reloaded() {
        follower::ban_reloaded();
    }
}

fn effect(soft: bool) -> Effect {
    if soft { Effect::Soft } else { Effect::Hard }
}

/// Invalidates the objects of a key: that of a request, or of a record's URI. Returns their number.
pub(crate) fn purge_key(worker: Worker<'_>, digest: &[u8; 32], soft: bool) -> u64 {
    let name = NAMES.digest(digest);
    RECENT.add(name, effect(soft));
    let hits = u64::from(purge_digest(worker, digest, soft)) + tagged::invalidate(worker, name, effect(soft));
    Counters::add(&counters().c_objects_by_key, hits);
    hits
}

/// Invalidates the objects with a tag. Returns their number.
pub(crate) fn purge_tag(worker: Worker<'_>, tag: &[u8], soft: bool) -> u64 {
    let name = NAMES.tag(tag);
    RECENT.add(name, effect(soft));
    let hits = tagged::invalidate(worker, name, effect(soft));
    Counters::add(&counters().c_objects_by_tag, hits);
    hits
}
