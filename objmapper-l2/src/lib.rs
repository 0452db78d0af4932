//! The shared second level of a cache: records in objmapper, found, validated, revalidated, outlawed and published.
//!
//! A *record* is a response: its body as the first bytes of an objmapper object, and behind it a tail that says what it
//! is (`RECORD.md`). Several caches that use one store and one *prefix* share their records:
//!
//! * [`L2::find`] looks for what answers a request: a [`Hit`], a [`Stale`] record to revalidate, or a [`Miss`] with its
//!   reason. Of several that miss at once one is given the [`Ticket`] to fetch, the others wait for what it publishes.
//! * A [`Ticket`] publishes what was fetched ([`Ticket::writer`], [`Ticket::seal`], [`Ticket::renew`]), or says that there
//!   is nothing to share ([`Ticket::refuse`]); dropped, the next one who waits is given it.
//! * [`L2::purge`] and [`L2::announce_ban`] outlaw: nothing older than they are is found by anybody from then on, and no
//!   response that was asked for before them is published after them.
//!
//! Nothing here is needed to answer a request. Whatever goes wrong is a miss or an [`Outcome`] that says why, ends by a
//! deadline, and is counted ([`Counters`]).
//!
//! Times are seconds since 1970 as `f64`, as varnishd's own; durations that travel with a record are seconds as `f32`.

mod bans;
mod bytes;
mod config;
mod core;
mod counters;
mod draft;
mod find;
mod finding;
mod freshness;
mod head;
mod hit;
mod key;
mod never_stored;
mod outage;
mod outcome;
mod publish;
mod purge;
mod reading;
mod record;
#[cfg(test)]
mod record_tests;
mod regex;
mod request;
mod space;
mod stored;
mod ticket;
mod v01;
mod validation;
mod vary;
mod writing;

pub use config::{Config, Connect, Log, Notice};
pub use counters::Counters;
pub use finding::{Finding, Miss, MissReason, Stale};
pub use head::{BodySum, Head, Headers, Summer};
pub use hit::{Hit, RecordFile};
pub use key::Key;
pub use never_stored::{is_hop_by_hop, is_never_stored};
pub use outage::Outage;
pub use outcome::Outcome;
pub use regex::{Regex, Regexes};
pub use request::{Adopts, Lookup, RequestView};
pub use space::{L2, OpenError, State};
pub use ticket::{Sealed, SealedOutcome, Ticket, Writer};
pub use validation::unshareable;
