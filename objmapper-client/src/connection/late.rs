//! Answers whose caller has gone: what they give is given back.
//!
//! | the answer | what is done |
//! |---|---|
//! | comes late, gives a lease or a private object | these are given back in the background, by their numbers |
//! | comes late, reports a pin | the connection is failed before the answer counts as read: the store takes the pin back |
//! | is never read, because the connection is lost | LOST tells the store how many answers were read, and it takes back what later ones gave |
//! | was read, and its caller does not take it | given back in the background; the pins that it asked for are released |

use objmapper_proto::ext::Want;
use objmapper_proto::{Status, ext};

use super::{Connection, Ticket};
use crate::answer::{Answer, Body, Expect};
use crate::deferred::Item;
use crate::socket::Ready;

impl Connection {
    /// Returns the item for LOST, if the store has numbered this lost connection: it takes back what unread replies gave.
    pub(crate) fn unread(&self) -> Option<Item> {
        let connection = self.number?;
        let table = self.table.lock();
        table.dead.is_some().then_some(Item::Lost { connection, read: table.read })
    }

    /// Drops the caller's interest in an answer. What it gives, or has given, is given back; of its pins those that
    /// `wants` asked for.
    pub(crate) fn forget(&self, ticket: &Ticket, wants: &[Want]) {
        let answer = ticket.slot.take_or_abandon();
        if !ticket.slot.is_done()
            && let Some(owner) = self.owner.upgrade()
        {
            owner.gave_up();
        }
        if let Some(Ok(answer)) = answer {
            self.give_back(ticket.slot.expect, &answer);
            for (at, object) in answer.pinned(ticket.slot.expect) {
                if wants.get(at).is_some_and(|want| want.pin) {
                    self.unclaimed(Item::Release(object));
                }
            }
        }
    }

    /// Returns true if an answer is outstanding whose caller has gone. The store holds what it gives until it is read.
    pub(crate) fn awaits_late(&self) -> bool {
        self.table.lock().inflight.values().any(|slot| slot.is_abandoned())
    }

    /// Reads and delivers what has arrived, unless a caller is reading.
    pub(crate) fn read_late(&self) {
        {
            let mut table = self.table.lock();
            if table.dead.is_some() || table.leading {
                return;
            }
            table.leading = true;
        }
        // After an error all slots have been completed with it.
        while matches!(self.read(None), Ok(Ready::Yes)) {}
        let mut table = self.table.lock();
        table.leading = false;
        self.promote_next(&mut table);
    }

    /// Gives back what a late answer gave; otherwise the store would hold it, unused, until the session ends.
    pub(super) fn give_back(&self, expect: Expect, answer: &Answer) {
        let (Expect::Ext(op), Status::Ok, Body::Payload(payload)) = (expect, answer.status, &answer.body) else {
            return;
        };
        match ext::Reply::parse(op, payload) {
            Ok(ext::Reply::Created { handle, .. }) => self.unclaimed(Item::Abort(handle)),
            Ok(ext::Reply::Lease(ext::LeaseOutcome::Granted { lease })) => {
                self.unclaimed(Item::Unlease { lease, refuse: 0 });
            }
            _ => {}
        }
    }

    fn unclaimed(&self, item: Item) {
        if let Some(owner) = self.owner.upgrade() {
            owner.unclaimed(self, item);
        }
    }
}
