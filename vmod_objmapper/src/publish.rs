//! The end of a fetch: what it brought is published, or others are told that there is nothing to share.

use std::ffi::{c_int, c_uint, c_void};
use std::rc::Rc;

use objmapper_abi::{Bytes, Publication};
use objmapper_records::{Head, Hit, Outage, Outcome, Ticket, Writer};
use varnishd::cast::busyobj_of;
use varnishd::http::View;
use varnishd::vsl;
use varnishd_sys::bindings::{
    BOS_FINISHED, OC_F_FAILED, OF_ESIPROC, ObjGetLen, ObjIterate, VTIM_real, busyobj, vrt_ctx, vsl_log,
};
use varnishd_sys::functions::HSH_Kill;

use crate::BOUNDARY;
use crate::engine::{self, Storage};
use crate::filter::Serving;
use crate::object;
use crate::om::Om;
use crate::pending::{self, Pending, is_error};
use crate::request::Request;

/// What is to be done when the fetch is over.
pub(crate) enum Work {
    Nothing,
    /// The origin was asked.
    Miss(Rc<Pending>),
    /// A record was served; with a ticket: as the origin confirmed it (304).
    Serving(Rc<Serving>),
}

impl Work {
    /// What is pending for the response, if it is of ours.
    pub(crate) fn pending(&self) -> Option<&Pending> {
        match self {
            Work::Nothing => None,
            Work::Miss(pending) => Some(pending),
            Work::Serving(serving) => Some(&serving.pending),
        }
    }
}

/// Settles what the directors of a task have begun.
///
/// # Safety
/// `ctx` must be that of the task's end, in its thread.
pub(crate) unsafe fn settle(ctx: &vrt_ctx, works: impl Iterator<Item = Work>) {
    // SAFETY: by contract.
    let bo = unsafe { busyobj_of(ctx) };
    for work in works {
        if bo.is_null() {
            continue;
        }
        let Some(pending) = work.pending() else { continue };
        let end = End { bo, pending, om: pending.om() };
        match (pending.take_ticket(), &work) {
            (Some(ticket), Work::Serving(serving)) => end.renewed(ticket, &serving.hit),
            (Some(ticket), _) => match pending.confirms() {
                Some(hit) => end.renewed(ticket, hit),
                None => end.miss(ticket),
            },
            (None, Work::Serving(serving)) => {
                // An earlier try's response is not the object.
                if pending.is_accepted() && end.complete() && !serving.hit.still_valid(&end.om.l2, &end.client()) {
                    end.kill("invalidated meanwhile");
                }
            }
            (None, _) => {}
        }
    }
}

/// What an object is to others.
enum Verdict {
    /// They may have it.
    Publish(Head),
    /// Nobody but its own request may have it, or VCL does not want it: others need not wait for such a one.
    Refuse(&'static str),
    /// The fetch has failed: the next one shall try.
    Failed,
}

struct End<'a> {
    bo: *mut busyobj,
    pending: &'a Pending,
    om: &'a Om,
}

impl End<'_> {
    fn log(&self) -> *mut vsl_log {
        vsl::of_fetch(self.bo)
    }

    fn say(&self, text: impl std::fmt::Display) {
        // SAFETY: this thread's log.
        unsafe { vsl::decision(self.log(), &format!("{} {text}", self.om.name)) };
    }

    fn request(&self) -> Request<'_> {
        // SAFETY: the fetch's own request, which nobody changes any more.
        Request(unsafe { View::new((*self.bo).bereq) })
    }

    /// What the client asked.
    fn client(&self) -> Request<'_> {
        // SAFETY: as above.
        Request(unsafe { View::new((*self.bo).bereq0) })
    }

    /// Whether the object is complete.
    fn complete(&self) -> bool {
        // SAFETY: the fetch's own object, whose boc it holds a reference to until the task has ended.
        unsafe {
            let boc = (*(*self.bo).fetch_objcore).boc;
            !boc.is_null() && (*boc).state == BOS_FINISHED
        }
    }

    /// Takes the object out of varnishd's cache.
    fn kill(&self, why: &str) {
        self.say(format_args!("killed: {why}"));
        // SAFETY: the fetch holds a reference to its object, and no lock.
        unsafe { HSH_Kill((*self.bo).fetch_objcore) };
    }

    fn verdict(&self, ticket: &Ticket) -> Verdict {
        // SAFETY: the fetch's own object, whose failure does not change any more.
        let flags = unsafe { u32::from((&raw const (*(*self.bo).fetch_objcore).flags).read_volatile()) };
        if !self.complete() || flags & OC_F_FAILED != 0 || !self.pending.is_accepted() {
            return Verdict::Failed;
        }
        // SAFETY: the fetch's own busyobj.
        if let Some(why) = unsafe { self.pending.uncacheable(self.bo) } {
            return Verdict::Refuse(why);
        }
        // SAFETY: the fetch has ended well.
        let Some(head) = (unsafe { object::head(self.bo) }) else { return Verdict::Refuse("head too large") };
        // SAFETY: VTIM_real only reads the clock.
        if is_error(head.status) && ticket.replaces_graced(unsafe { VTIM_real() }) {
            return Verdict::Refuse("an error, and the stale record is in grace");
        }
        match head.unshareable() {
            Some(why) => Verdict::Refuse(why),
            None => Verdict::Publish(head),
        }
    }

    fn refuse(&self, ticket: Ticket, why: &str) {
        // SAFETY: the fetch's own response.
        let status = unsafe { View::new((*self.bo).beresp) }.status();
        pending::refuse(self.om, ticket, status, why, self.log());
    }

    fn miss(&self, ticket: Ticket) {
        match self.verdict(&ticket) {
            Verdict::Failed => {
                self.say("not published: the fetch has failed");
                ticket.give_up();
            }
            Verdict::Refuse(why) => self.refuse(ticket, why),
            Verdict::Publish(head) => {
                // SAFETY: the fetch's own object, which is complete.
                let len = unsafe { ObjGetLen((*self.bo).wrk, (*self.bo).fetch_objcore) };
                let outcome = self.publish_object(ticket, head, len);
                self.tell(outcome, len);
            }
        }
    }

    fn renewed(&self, ticket: Ticket, hit: &Hit) {
        match self.verdict(&ticket) {
            Verdict::Failed => ticket.give_up(),
            Verdict::Refuse(why) => self.refuse(ticket, why),
            Verdict::Publish(head) => {
                // The record's body stays as it is, whatever this varnishd's filters have made of it; what was parsed for ESI
                // here, as the 304 or VCL asked for it, is to be parsed everywhere.
                let record = &hit.head;
                let flags = record.flags | (head.flags & OF_ESIPROC as u8);
                let head = Head { gzip_bits: record.gzip_bits, flags, ..head };
                let outcome = ticket.renew(hit, &head, self.om.counters());
                self.tell(outcome, 0);
            }
        }
    }

    fn tell(&self, outcome: Outcome, len: u64) {
        match outcome {
            Outcome::Published => self.say(format_args!("published {len} bytes")),
            Outcome::Conflict => self.kill("purged or banned meanwhile"),
            other => self.say(format_args!("not published: {other:?}")),
        }
    }

    fn publish_object(&self, ticket: Ticket, head: Head, len: u64) -> Outcome {
        let (counters, request) = (self.om.counters(), self.request());
        // SAFETY: the fetch's own object.
        let stv = unsafe { (*(*self.bo).fetch_objcore).stobj[0].stevedore }.cast::<c_void>();
        let same_store =
            Storage::at(stv).and_then(Storage::instance).is_some_and(|i| len > 0 && Some(i) == self.om.l2.instance());
        let ticket = match engine::table() {
            Some(table) if same_store => {
                let sealed = match ticket.seal(head.clone(), &request, len, None, counters) {
                    Ok(sealed) => sealed,
                    Err(outcome) => return outcome,
                };
                let uri = sealed.uri.as_bytes();
                let publication = Publication {
                    uri: Bytes { ptr: uri.as_ptr(), len: uri.len() },
                    tail: Bytes { ptr: sealed.tail.as_ptr(), len: sealed.tail.len() },
                    expires: sealed.expires_ms,
                    shard: sealed.shard,
                    fence: sealed.fence,
                };
                // SAFETY: the object is complete, in its fetch's thread, with its boc referenced; what the publication
                // points to lives during the call.
                let published = unsafe { (table.publish)((*self.bo).fetch_objcore.cast(), &raw const publication) };
                match sealed.settle(published, counters) {
                    Ok(outcome) => return outcome,
                    Err(ticket) => ticket,
                }
            }
            _ => ticket,
        };
        self.copy(ticket, head, len)
    }

    /// Publishes a copy of what was stored.
    fn copy(&self, ticket: Ticket, head: Head, len: u64) -> Outcome {
        let counters = self.om.counters();
        let writer = match ticket.writer(head, &self.request(), Some(len), counters) {
            Ok(writer) => writer,
            Err(outcome) => return outcome,
        };
        let mut copy = Copying { writer, written: 0 };
        if len > 0 {
            // SAFETY: the fetch's own object; `copy` outlives the call, which alone uses it meanwhile.
            let stopped = unsafe {
                let (wrk, oc) = ((*self.bo).wrk, (*self.bo).fetch_objcore);
                ObjIterate(wrk, oc, (&raw mut copy).cast(), Some(write), 0)
            };
            if stopped != 0 || copy.written != len {
                // The storage could not give all of the body, unless the writer has failed before.
                copy.writer.fail(Outage::Io);
            }
        }
        copy.writer.finish(counters)
    }
}

struct Copying {
    writer: Writer,
    written: u64,
}

unsafe extern "C" fn write(priv_: *mut c_void, _flush: c_uint, ptr: *const c_void, len: isize) -> c_int {
    BOUNDARY.fallible("publish", 1, || {
        // SAFETY: what `copy` gave to ObjIterate.
        let Some(copy) = (unsafe { priv_.cast::<Copying>().as_mut() }) else { return 1 };
        let Ok(len @ 1..) = usize::try_from(len) else { return 0 };
        // SAFETY: bytes of the object's body, which nobody writes any more.
        let bytes = unsafe { std::slice::from_raw_parts(ptr.cast::<u8>(), len) };
        match copy.writer.write(bytes) {
            Ok(()) => {
                copy.written += len as u64;
                0
            }
            Err(_) => 1,
        }
    })
}
