//! What a try of a fetch owes to the store: its ticket, and when that ends.
//!
//! All of it is the fetch's own thread's, shared by its filters and its task.
//!
//! ```text
//! the backend has answered ─► vcl_backend_response ─► filters opened ─► body ─► filters closed ─► the task ends
//!                              error, retry, abandon      │                          │                  │
//!                              close the filters          │ uncacheable: refused     │                  │
//!                                                         │                          │ no object: given │
//!                                                         │                          │ to the next one  │
//!                                                         │                          │                  │ published, renewed,
//!                                                         │                          │                  │ refused or given up
//! ```
//!
//! A response that turns out to be uncacheable ends its ticket before its body comes, however long that takes.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use objmapper_records::{Headers, Hit, OriginHead, Ticket};
use varnishd::fetch::Busyobj;
use varnishd::vsl::Log;

use crate::director::Director;

/// A response that has been made for a try, and is still to be published, or not.
pub(crate) struct PendingPublish {
    director: NonNull<Director>,
    ticket: Cell<Option<Ticket>>,
    /// Set by `.publish()`.
    publish: Cell<Option<bool>>,
    accepted: Cell<bool>,
    confirms: Option<Hit>,
    /// The response's head before VCL saw it.
    origin: RefCell<Option<OriginHead>>,
}

impl PendingPublish {
    pub(crate) fn new(director: &Director, ticket: Option<Ticket>) -> PendingPublish {
        let (publish, accepted) = (Cell::new(None), Cell::new(false));
        PendingPublish {
            director: NonNull::from(director),
            ticket: Cell::new(ticket),
            publish,
            accepted,
            confirms: None,
            origin: RefCell::default(),
        }
    }

    /// Returns one for a 304 that varnishd takes for an object of its own, and that confirms this record, too.
    pub(crate) fn confirming(director: &Director, ticket: Option<Ticket>, hit: Hit) -> PendingPublish {
        PendingPublish { confirms: Some(hit), ..PendingPublish::new(director, ticket) }
    }

    /// Returns the record that the response, a 304, confirms.
    pub(crate) fn confirms(&self) -> Option<&Hit> {
        self.confirms.as_ref()
    }

    /// Returns true if and only if the response may still be published.
    pub(crate) fn has_ticket(&self) -> bool {
        let ticket = self.ticket.take();
        let has = ticket.is_some();
        self.ticket.set(ticket);
        has
    }

    /// Notes the response's head, which VCL has not seen yet.
    pub(crate) fn set_origin(&self, origin: Option<OriginHead>) {
        *self.origin.borrow_mut() = origin;
    }

    /// Takes the noted head.
    pub(crate) fn take_origin(&self) -> Option<OriginHead> {
        self.origin.borrow_mut().take()
    }

    pub(crate) fn director(&self) -> &Director {
        // SAFETY: a director lives as long as its VCL, which the fetch holds a reference to.
        unsafe { Director::checked(self.director.as_ptr()) }
    }

    pub(crate) fn set_publish(&self, publish: bool) {
        self.publish.set(Some(publish));
    }

    /// Returns true if the response has become the fetch's object.
    pub(crate) fn is_accepted(&self) -> bool {
        self.accepted.get()
    }

    /// Takes the ticket, if it has not ended yet.
    pub(crate) fn take_ticket(&self) -> Option<Ticket> {
        self.ticket.take()
    }

    /// Gives the ticket to the next look-up that waits for it.
    pub(crate) fn give_up(&self, why: &str, log: Log<'_>) {
        if let Some(ticket) = self.ticket.take() {
            log_not_published(self.director(), why, log);
            ticket.give_up();
        }
    }

    /// Notes that the filters are closed: the response is the fetch's object, or will never be.
    pub(crate) fn closed(&self, is_object: bool, log: Log<'_>) {
        self.accepted.set(is_object);
        if !is_object {
            self.give_up("the response has not become an object", log);
        }
    }

    /// Ends the ticket of a response that is known to be uncacheable. Called after vcl_backend_response, with the filters open or being
    /// opened.
    pub(crate) fn refuse_uncacheable(&self, bo: Busyobj<'_>) {
        let Some(ticket) = self.ticket.take() else { return };
        let response = bo.response();
        let unshareable = || {
            let mut headers = Headers::default();
            let complete = response.lines().all(|line| headers.push(line));
            if complete { objmapper_records::unshareable(response.status(), &headers) } else { Some("head too large") }
        };
        match self.uncacheable(bo).or_else(unshareable) {
            Some(why) => refuse(self.director(), ticket, response.status(), why, bo.log()),
            None => self.ticket.set(Some(ticket)),
        }
    }

    /// Returns why the response is not published, if VCL or varnishd have decided so. Called after vcl_backend_response.
    pub(crate) fn uncacheable(&self, bo: Busyobj<'_>) -> Option<&'static str> {
        match () {
            () if bo.object().is_uncacheable() => Some("uncacheable"),
            () if !self.publish.get().unwrap_or(self.director().arguments.publish) => Some("publish is off"),
            () => None,
        }
    }
}

/// Ends a ticket: a response with this status is not shared. After an error of the backend's a stale record stays.
pub(crate) fn refuse(director: &Director, ticket: Ticket, status: u16, why: &str, log: Log<'_>) {
    log_not_published(director, why, log);
    let (retry, counters) = (director.arguments.uncacheable, director.counters());
    if is_error(status) {
        ticket.refuse_error(retry, counters);
    } else {
        ticket.refuse(retry, counters);
    }
}

/// Returns true for a status that says that the backend has failed (RFC 9110, section 15.6).
pub(crate) fn is_error(status: u16) -> bool {
    status >= 500
}

fn log_not_published(director: &Director, why: &str, log: Log<'_>) {
    log.decision(&format!("{} not published: {why}", director.name));
}
