//! One connection that many threads share.
//!
//! There is no reader thread. Of the threads that wait for an answer one is the *leader*: it reads for all,
//! hands each answer to its [`Slot`], and when its own has come it makes another waiting thread the leader.
//! So a lone caller reads its own answer without a thread switch, and many callers share one read.
//! Writing is combined in the same way: a thread that finds another one writing leaves its bytes with that thread.
//!
//! Lock order: `table`, then a slot's own lock; `inbox` (the leader's) and `out` are never held with `table`
//! wanted, except that the leader takes `table` while it holds `inbox`.

mod dispatch;
mod late;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use objmapper_proto::EncodeError;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::answer::{Answer, Expect};
use crate::counters::Counters;
use crate::deferred::Item;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::slot::{Slot, Woken};
use crate::socket::{Fds, Inbox, Ready, Socket};
use crate::state::Version;

/// Bytes that gather before they are sent without a call of [`Connection::flush`].
const MAX_GATHERED: usize = 16 * 1024;

/// The pool's side of a connection: callbacks about its loss and its late answers.
pub(crate) trait Owner: Send + Sync {
    fn lost(&self, connection: &Connection, why: &Error);

    /// Called for what an answer gave to a caller that has gone.
    fn unclaimed(&self, connection: &Connection, item: Item);

    /// Called when a caller has gone before its answer came: the answer must still be read, see [`Connection::awaits_late`].
    fn gave_up(&self);

    /// Returns true if the client is ending: no connection and no session is needed any more.
    fn is_ending(&self) -> bool;
}

/// The outstanding requests, and the thread that reads.
#[derive(Debug, Default)]
struct Table {
    inflight: HashMap<u32, Arc<Slot>>,
    next_id: u32,
    leading: bool,
    sleeping: usize,
    room_wanted: usize,
    /// Number of extension replies that were delivered to callers, which keep what the replies gave.
    read: u64,
    dead: Option<Error>,
}

/// Bytes to send, and whether a thread is sending.
#[derive(Debug, Default)]
struct Out {
    buf: Vec<u8>,
    spare: Vec<u8>,
    sending: bool,
}

/// A connection after negotiation and ATTACH.
pub(crate) struct Connection {
    socket: Socket,
    pub(crate) version: Version,
    /// The session; `None` without extensions.
    pub(crate) session: Option<Arc<Session>>,
    /// The store's number for it, if it has one.
    number: Option<u64>,
    depth: usize,
    table: Mutex<Table>,
    /// With `table`: signalled when the pipeline has room, or no thread leads.
    room: Condvar,
    inbox: Mutex<Inbox>,
    out: Mutex<Out>,
    /// Grows with every read, which tells a slow peer from a stalled one.
    reads: AtomicU64,
    alive: AtomicBool,
    /// True once a call was answered on it.
    answered: AtomicBool,
    load: AtomicU64,
    counters: Arc<Counters>,
    owner: Weak<dyn Owner>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("version", &self.version).field("depth", &self.depth).finish_non_exhaustive()
    }
}

/// A request that is submitted and not yet answered.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) slot: Arc<Slot>,
    reads_before: u64,
}

impl Connection {
    /// Returns the session's number; 0 with a peer without sessions.
    pub(crate) fn session_id(&self) -> u64 {
        self.session.as_ref().map_or(0, |s| s.id)
    }

    pub(crate) fn new(
        socket: Socket,
        inbox: Inbox,
        version: Version,
        (session, number): (Option<Arc<Session>>, Option<u64>),
        depth: usize,
        counters: Arc<Counters>,
        owner: Weak<dyn Owner>,
    ) -> Self {
        Self {
            socket,
            version,
            session,
            number,
            depth: depth.max(1),
            table: Mutex::default(),
            room: Condvar::new(),
            inbox: Mutex::new(inbox),
            out: Mutex::default(),
            reads: AtomicU64::new(0),
            alive: AtomicBool::new(true),
            answered: AtomicBool::new(false),
            load: AtomicU64::new(0),
            counters,
            owner,
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Returns true if a call was answered on it.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Returns the number of outstanding requests, for the choice of a connection.
    pub(crate) fn load(&self) -> u64 {
        self.load.load(Ordering::Relaxed)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Queues a request, which `encode` writes with the id that it gets. The request is sent when enough bytes have
    /// gathered, or by [`Self::flush`] or [`Self::wait`]. Waits while the pipeline is full.
    pub(crate) fn submit(
        &self,
        expect: Expect,
        deadline: Instant,
        encode: impl FnOnce(u32, &mut Vec<u8>) -> Result<(), EncodeError>,
    ) -> Result<Ticket> {
        let slot = self.enter(expect, deadline)?;
        let reads_before = self.reads.load(Ordering::Relaxed);
        let gathered = {
            let mut out = self.out.lock();
            encode(slot.id, &mut out.buf).map(|()| out.buf.len())
        };
        match gathered {
            Ok(n) => {
                Counters::add(&self.counters.requests, 1);
                if n >= MAX_GATHERED {
                    self.flush(deadline)?;
                }
                Ok(Ticket { slot, reads_before })
            }
            Err(e) => {
                let mut table = self.table.lock();
                table.inflight.remove(&slot.id);
                self.slot_removed(&mut table);
                Err(e.into())
            }
        }
    }

    /// Enters a slot into the table. Waits for room.
    fn enter(&self, expect: Expect, deadline: Instant) -> Result<Arc<Slot>> {
        let mut table = self.table.lock();
        loop {
            if let Some(why) = &table.dead {
                return Err(why.clone());
            }
            if table.inflight.len() < self.depth {
                // This thread may have been woken to lead and has found room instead: the waiting threads still need a leader.
                self.promote_next(&mut table);
                break;
            }
            drop(table);
            // The requests that fill the pipeline may not have been sent yet.
            self.flush(deadline)?;
            table = self.table.lock();
            if table.dead.is_some() || table.inflight.len() < self.depth {
                continue;
            }
            if table.leading {
                table.room_wanted += 1;
                let timed_out = self.room.wait_until(&mut table, deadline).timed_out();
                table.room_wanted -= 1;
                if timed_out && table.inflight.len() >= self.depth && table.dead.is_none() {
                    self.promote_next(&mut table);
                    return Err(Error::Timeout { what: "room in the pipeline" });
                }
            } else {
                table.leading = true;
                drop(table);
                let ready = self.read(Some(deadline));
                table = self.table.lock();
                table.leading = false;
                self.promote_next(&mut table);
                if ready? == Ready::TimedOut {
                    return Err(Error::Timeout { what: "room in the pipeline" });
                }
            }
        }
        // At most `depth` ids are taken, so this ends soon.
        let id = loop {
            table.next_id = table.next_id.wrapping_add(1);
            if !table.inflight.contains_key(&table.next_id) {
                break table.next_id;
            }
        };
        let slot = Slot::new(id, expect);
        table.inflight.insert(id, Arc::clone(&slot));
        self.load.store(table.inflight.len() as u64, Ordering::Relaxed);
        Ok(slot)
    }

    /// Wakes threads that wait for room, after a slot was removed from the table.
    fn slot_removed(&self, table: &mut MutexGuard<'_, Table>) {
        self.load.store(table.inflight.len() as u64, Ordering::Relaxed);
        if table.room_wanted > 0 {
            self.room.notify_one();
        }
    }

    /// Sends the gathered bytes, unless another thread is sending: it sends them too.
    pub(crate) fn flush(&self, deadline: Instant) -> Result<()> {
        let mut out = self.out.lock();
        if out.sending || out.buf.is_empty() {
            return Ok(());
        }
        out.sending = true;
        loop {
            let spare = std::mem::take(&mut out.spare);
            let mut buf = std::mem::replace(&mut out.buf, spare);
            drop(out);
            let sent = self.send_all(&buf, deadline);
            buf.clear();
            if buf.capacity() > 4 * MAX_GATHERED {
                buf = Vec::new();
            }
            out = self.out.lock();
            out.spare = buf;
            if let Err(why) = sent {
                out.sending = false;
                drop(out);
                self.fail(&why);
                return Err(why);
            }
            if out.buf.is_empty() {
                out.sending = false;
                return Ok(());
            }
        }
    }

    /// Sends all of `bytes`. While the peer does not read, its answers are read, because it may wait for that.
    fn send_all(&self, mut bytes: &[u8], deadline: Instant) -> Result<()> {
        loop {
            bytes = &bytes[self.socket.send(bytes)?..];
            if bytes.is_empty() {
                return Ok(());
            }
            let lead = {
                let mut table = self.table.lock();
                if let Some(why) = &table.dead {
                    return Err(why.clone());
                }
                !std::mem::replace(&mut table.leading, true)
            };
            let ready = self.socket.wait_writable(lead, deadline);
            if lead {
                let read = self.read(None);
                let mut table = self.table.lock();
                table.leading = false;
                self.promote_next(&mut table);
                drop(table);
                read?;
            }
            if ready? == Ready::TimedOut {
                // A part of a frame may be sent: no other frame can follow it.
                return Err(Error::Timeout { what: "the store to take a request" });
            }
        }
    }

    /// Waits for the answer.
    pub(crate) fn wait(&self, ticket: &Ticket, deadline: Instant) -> Result<Answer> {
        let slot = &*ticket.slot;
        if !slot.is_done() {
            // An error reaches the slot too.
            let _ = self.flush(deadline);
            self.drive(slot, deadline);
        }
        match slot.take_or_abandon() {
            Some(answer) => answer,
            None => {
                Counters::add(&self.counters.timeouts, 1);
                let timeout = Error::Timeout { what: "an answer" };
                // Without ids, which identify a late answer, or without any read since the
                // request was sent, the connection is of no more use.
                if self.version != Version::Extended || self.reads.load(Ordering::Relaxed) == ticket.reads_before {
                    self.fail(&timeout);
                } else if let Some(owner) = self.owner.upgrade() {
                    owner.gave_up();
                }
                Err(timeout)
            }
        }
    }

    /// Leads, or sleeps while another leads, until the slot is done or the deadline has passed.
    fn drive(&self, slot: &Slot, deadline: Instant) {
        loop {
            {
                let mut table = self.table.lock();
                if slot.is_done() {
                    return;
                }
                if table.leading {
                    table.sleeping += 1;
                    slot.set_waiting(true);
                } else {
                    table.leading = true;
                    drop(table);
                    self.lead(slot, deadline);
                    let mut table = self.table.lock();
                    table.leading = false;
                    self.promote_next(&mut table);
                    return;
                }
            }
            let woken = slot.sleep(deadline);
            let mut table = self.table.lock();
            slot.set_waiting(false);
            table.sleeping -= 1;
            if woken == Woken::Promoted {
                continue;
            }
            if slot.unused_promotion() {
                self.promote_next(&mut table);
            }
            return;
        }
    }

    /// Reads until the slot is done, which it also is when the connection is lost, or until the deadline.
    fn lead(&self, slot: &Slot, deadline: Instant) {
        while !slot.is_done() {
            match self.read(Some(deadline)) {
                Ok(Ready::Yes) => {}
                Ok(Ready::TimedOut) => return,
                Err(_) => {
                    // Another thread may have failed the connection, and is about to complete this slot with the reason.
                    slot.sleep(deadline);
                    return;
                }
            }
        }
    }

    /// Makes another waiting thread the leader: while a thread waits, one must lead.
    fn promote_next(&self, table: &mut MutexGuard<'_, Table>) {
        if table.leading || table.dead.is_some() {
            return;
        }
        if table.sleeping > 0
            && let Some(slot) = table.inflight.values().find(|s| s.is_waiting())
        {
            // The next resigning leader must choose another thread.
            slot.set_waiting(false);
            slot.promote();
            return;
        }
        if table.room_wanted > 0 {
            self.room.notify_one();
        }
    }

    /// Reads what the peer sent before it closed its end, then fails the connection. Called by the keeper.
    pub(crate) fn peer_closed(&self) {
        {
            let mut table = self.table.lock();
            if table.dead.is_some() || table.leading {
                // The leader notices it by its own read.
                return;
            }
            table.leading = true;
        }
        let end = loop {
            match self.read(None) {
                Ok(Ready::Yes) => {}
                Ok(Ready::TimedOut) => break Error::Closed,
                Err(why) => break why,
            }
        };
        self.table.lock().leading = false;
        self.fail(&end);
    }

    /// Reads once and delivers the complete answers. The caller is the leader. After an error, all slots have been completed with
    /// it.
    fn read(&self, deadline: Option<Instant>) -> Result<Ready> {
        let mut inbox = self.inbox.lock();
        let before = inbox.fds_received;
        let result = self.hand_out(&mut inbox).and_then(|needed| {
            let ready = inbox.fill(&self.socket, needed, deadline)?;
            if ready == Ready::Yes {
                self.reads.fetch_add(1, Ordering::Relaxed);
                Counters::add(&self.counters.fds, inbox.fds_received - before);
                self.hand_out(&mut inbox)?;
            }
            Ok(ready)
        });
        drop(inbox);
        if let Err(why) = &result {
            self.fail(why);
        }
        result
    }

    /// Fails the connection: completes all slots with the reason. Only the first call has an effect.
    pub(crate) fn fail(&self, why: &Error) {
        let waiting = {
            let mut table = self.table.lock();
            if table.dead.is_some() {
                return;
            }
            table.dead = Some(why.clone());
            self.alive.store(false, Ordering::Release);
            self.room.notify_all();
            self.load.store(0, Ordering::Relaxed);
            std::mem::take(&mut table.inflight)
        };
        self.socket.shut_down();
        if let Some(owner) = self.owner.upgrade() {
            // Before the callers wake, so that the state which they read then is up to date.
            owner.lost(self, why);
        }
        for slot in waiting.values() {
            slot.complete(Err(why.clone()));
        }
    }

    /// Takes the descriptors of the first reply, and its bytes, out of the input of a connection that has no requests yet.
    pub(crate) fn first_reply_fds(inbox: &mut Inbox, used: usize, nfds: usize) -> Result<Fds> {
        inbox.take(used, if nfds > 0 { std::slice::from_ref(&nfds) } else { &[] })
    }
}
