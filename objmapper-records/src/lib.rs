//! The shared second level of a cache: records in objmapper are found, validated, revalidated, invalidated and
//! published.
//!
//! A *record* is a response: its body as the first bytes of an objmapper object, and behind it a tail that describes it
//! (`RECORD.md`). Several caches that use one store and one *prefix* share their records:
//!
//! * [`L2::find`] looks up what answers a request: a [`Hit`], a [`Stale`] record to revalidate, or a [`Miss`] with its
//!   reason. Of several misses at once one is granted the [`Ticket`] to fetch; the other look-ups wait for what it
//!   publishes.
//! * A [`Ticket`] publishes a response ([`Ticket::writer`], [`Ticket::seal`], [`Ticket::renew`]), or reports that it
//!   cannot be shared ([`Ticket::refuse`]). If it is dropped, the next waiting look-up is granted it.
//! * [`L2::purge`], [`L2::purge_tags`] and [`L2::announce_ban`] invalidate: from their return on no cache finds an older
//!   record that they match, and no response that was requested before a purge is published. They are entries of a log,
//!   and a [`Follower`] is given those of other instances.
//!
//! No part of this is needed to answer a request. A failure is a miss or an [`Outcome`] with its reason, comes by a
//! deadline, and is counted ([`Counters`]).
//!
//! Times are seconds since 1970 as `f64`, as varnishd's own; durations that are part of a record are seconds as `f32`.

mod config;
mod core;
mod counters;
mod inspection;
mod invalidation;
mod l2;
mod lookup;
mod outage;
mod publication;
mod record;
mod regex;
mod store;
mod v01;

pub use config::{Config, Connect, Log, Notice};
pub use counters::Counters;
pub use inspection::{Contents, InspectError, Inspector, Judgement, Object, Response, Selector, Standing, Variants};
pub use invalidation::entry::{Entry, Follower, Invalidation, Origin};
pub use invalidation::tags::split_tags;
pub use l2::{L2, OpenError, State};
pub use lookup::finding::{Finding, Miss, MissReason, Stale};
pub use lookup::hit::{Hit, RecordFile};
pub use lookup::request::{Adopts, Lookup, RequestView};
pub use lookup::validation::unshareable;
pub use objmapper_ban::{Ban, DurationOf, NumberOper, Subject, Test, TextOper};
pub use objmapper_client::Published;
pub use outage::Outage;
pub use publication::outcome::Outcome;
pub use publication::ticket::{Sealed, Ticket, Writer};
pub use record::head::{BodySum, Head, Headers, Summer};
pub use record::key::Key;
pub use record::never_stored::{is_hop_by_hop, is_never_stored};
pub use record::origin::OriginHead;
pub use regex::{Regex, Regexes};
