//! Client of objmapper object stores.
//!
//! An objmapper server answers a URI with an open file descriptor over a Unix socket. This crate speaks V1, V2
//! and the extensions (look up without creating, create privately, commit, delete, list, leases, batches),
//! blocking, from many threads at once over few connections.
//!
//! * [`Client`]: connects in the background, [reports its state](Client::state), and reconnects by itself.
//!   While the store is down every call fails at once; every other call ends by its deadline.
//! * [`Client::lookup`], [`Client::create`] and [`PrivateObject::commit`], [`Client::delete`],
//!   [`Client::list`], [`Client::lease`], [`Client::release`]: the extensions.
//! * [`Client::pipeline`] and [`Client::batch`]: many operations for one round trip.
//! * [`Client::get_or_create`]: what a v0.1 peer offers.
//! * [`Session`]: the store's tier directories, from which bodies are opened without a round trip, and its
//!   [`Board`], whose [`Fence`]s keep what was fetched before a delete from being published after it.
//! * [`Cache`], [`UriSpace`]: helpers for callers that keep many bodies.
//!
//! Bodies are read and written by system calls (`pread`, `sendfile`, `splice`, `pwrite`): this crate maps no body. A page of a file
//! that cannot be had, because the disk fails, a hole finds a full tmpfs, or another process has shortened the file, is an error
//! code for a system call. For a program that touches a mapping it is SIGBUS. The [`Board`] is mapped: it is memory, sealed in its size.
//!
//! Errors say whether a call [may be repeated](Error::is_retryable). They are counted by kind: [`Outage`].
//!
//! Descriptors are [`OwnedFd`](std::os::fd::OwnedFd)s and close-on-exec; those that no reply announced are
//! closed, and the connection that brought them is dropped.

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

mod answer;
mod batch;
mod board;
mod cache;
mod client;
mod config;
mod connection;
mod counters;
mod deferred;
mod deferred_worker;
mod error;
mod handshake;
mod lease;
mod objects;
mod outage;
mod pace;
mod pipeline;
mod pool;
mod private;
mod session;
mod slot;
mod socket;
mod state;
mod uri;
mod v01;

pub use batch::{Batch, BatchOutcome};
pub use board::Board;
pub use cache::Cache;
pub use client::Client;
pub use config::{Config, Connector, Protocol};
pub use counters::Snapshot;
pub use error::{Error, OpName, ProtocolError, Result};
pub use lease::{Lease, Leased};
pub use objects::{Found, List, Page};
pub use objmapper_log::{LeftOut, RateLimited};
pub use objmapper_proto::ext::{BodyPath, Entry, EntryFlags, Fence, IfVersion, Op, Stat, Tier, TierStat, Token, Want};
pub use objmapper_proto::{ObjUri, Status, UriError};
pub use outage::{Outage, Published};
pub use pipeline::{Pending, Pipeline};
pub use private::{CommitOptions, PrivateObject};
pub use session::{Session, TierDirectory};
pub use state::{ConnectionState, Event, Version};
pub use uri::UriSpace;
pub use v01::{V01Object, V01Tier};
