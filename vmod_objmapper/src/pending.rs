//! What a try of a fetch owes to the store: its ticket, and when that ends.
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

use std::cell::Cell;
use std::ptr::NonNull;

use objmapper_records::{Headers, Hit, Ticket};
use varnishd::http::View;
use varnishd::vsl;
use varnishd_sys::bindings::{OC_F_HFM, OC_F_HFP, OC_F_PRIVATE, busyobj, vsl_log};

use crate::om::Om;

/// A response that has been made for a try, and what is still to be done about it.
pub(crate) struct Pending {
    om: NonNull<Om>,
    ticket: Cell<Option<Ticket>>,
    /// Set by `.publish()`.
    publish: Cell<Option<bool>>,
    accepted: Cell<bool>,
    confirms: Option<Hit>,
}

impl Pending {
    pub(crate) fn new(om: &Om, ticket: Option<Ticket>) -> Pending {
        let (publish, accepted) = (Cell::new(None), Cell::new(false));
        Pending { om: NonNull::from(om), ticket: Cell::new(ticket), publish, accepted, confirms: None }
    }

    /// Of a 304 that varnishd takes for an object of its own, and that confirms this record, too.
    pub(crate) fn confirming(om: &Om, ticket: Option<Ticket>, hit: Hit) -> Pending {
        Pending { confirms: Some(hit), ..Pending::new(om, ticket) }
    }

    /// The record that the response, a 304, confirms.
    pub(crate) fn confirms(&self) -> Option<&Hit> {
        self.confirms.as_ref()
    }

    pub(crate) fn om(&self) -> &Om {
        // SAFETY: a director lives as long as its VCL, which the fetch holds a reference to.
        unsafe { Om::checked(self.om.as_ptr()) }
    }

    pub(crate) fn set_publish(&self, publish: bool) {
        self.publish.set(Some(publish));
    }

    /// Whether it has become the fetch's object.
    pub(crate) fn is_accepted(&self) -> bool {
        self.accepted.get()
    }

    /// The ticket, if it has not ended yet.
    pub(crate) fn take_ticket(&self) -> Option<Ticket> {
        self.ticket.take()
    }

    /// Gives the ticket to the next caller.
    pub(crate) fn give_up(&self, why: &str, vsl: *mut vsl_log) {
        if let Some(ticket) = self.ticket.take() {
            log(self.om(), &format!("not published: {why}"), vsl);
            ticket.give_up();
        }
    }

    /// The filters are closed: the response is the fetch's object, or will never be.
    pub(crate) fn closed(&self, is_object: bool, vsl: *mut vsl_log) {
        self.accepted.set(is_object);
        if !is_object {
            self.give_up("the response has not become an object", vsl);
        }
    }

    /// Ends the ticket of a response that is known to be uncacheable.
    ///
    /// # Safety
    /// `bo` must be the calling thread's busyobj, after vcl_backend_response, with its filters open or being opened.
    pub(crate) unsafe fn refuse_uncacheable(&self, bo: *mut busyobj) {
        let Some(ticket) = self.ticket.take() else { return };
        // SAFETY: by contract: the response is the thread's own, and is not changed meanwhile.
        let response = unsafe { View::new((*bo).beresp) };
        let unshareable = || {
            let mut headers = Headers::default();
            let complete = response.lines().all(|line| headers.push(line));
            if complete { objmapper_records::unshareable(response.status(), &headers) } else { Some("head too large") }
        };
        // SAFETY: by contract.
        match unsafe { self.uncacheable(bo) }.or_else(unshareable) {
            Some(why) => refuse(self.om(), ticket, response.status(), why, vsl::of_fetch(bo)),
            None => self.ticket.set(Some(ticket)),
        }
    }

    /// Returns why the response is not published, if VCL or varnishd have decided so.
    ///
    /// # Safety
    /// `bo` must be the calling thread's busyobj, after vcl_backend_response.
    pub(crate) unsafe fn uncacheable(&self, bo: *mut busyobj) -> Option<&'static str> {
        // SAFETY: the fetch's own object; the flags that are looked at do not change any more, the times may be changed by a
        // purge at any moment, and any of their values will do.
        let (flags, ttl) = unsafe {
            let oc = (*bo).fetch_objcore;
            (u32::from((&raw const (*oc).flags).read_volatile()), (*oc).ttl)
        };
        match () {
            () if flags & (OC_F_HFM | OC_F_HFP | OC_F_PRIVATE) != 0 || ttl <= 0.0 => Some("uncacheable"),
            () if !self.publish.get().unwrap_or(self.om().arguments.publish) => Some("publish is off"),
            () => None,
        }
    }
}

/// Tells others that a response with this status is not shared. After an error of the backend's a stale record stays.
pub(crate) fn refuse(om: &Om, ticket: Ticket, status: u16, why: &str, vsl: *mut vsl_log) {
    log(om, &format!("not published: {why}"), vsl);
    let (retry, counters) = (om.arguments.uncacheable, om.counters());
    if is_error(status) {
        ticket.refuse_error(retry, counters);
    } else {
        ticket.refuse(retry, counters);
    }
}

/// Whether the backend says that it has failed (RFC 9110, section 15.6).
pub(crate) fn is_error(status: u16) -> bool {
    status >= 500
}

fn log(om: &Om, text: &str, vsl: *mut vsl_log) {
    // SAFETY: the log of the calling thread's transaction, as every caller says.
    unsafe { vsl::decision(vsl, &format!("{} {text}", om.name)) };
}
