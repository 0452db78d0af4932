//! A fetch: looked up, and then answered from a record or by the real backend.

use std::ffi::c_int;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use objmapper_records::{Adopts, Counters, Finding, Hit, Key, Lookup, MissReason, Stale, Ticket};
use sha2::{Digest, Sha256};
use varnishd::cast::busyobj_of;
use varnishd::fetch::{reset, with_director};
use varnishd::http::{self, View};
use varnishd::vsl;
use varnishd::workspace;
use varnishd_sys::bindings::{
    OC_F_FAILED, OC_F_PRIVATE, OF_IMSCAND, ObjCheckFlag, VDI_GetHdr, VFP_Push, VTIM_real, busyobj, http_SetHeader,
    http_Unset, vfp_entry, vrt_ctx,
};
use varnishd_sys::branch::{if_modified_since, if_none_match};

use crate::engine::{self, Storage};
use crate::filter::{self, SOURCE, Serving, WITNESS};
use crate::om::Om;
use crate::pending::Pending;
use crate::publish::Work;
use crate::request::Request;
use crate::transaction::{self, Status, Turn};
use crate::{object, refresh};

/// Smaller bodies are read and verified before they are used, also where they could be adopted.
const ADOPT_FROM: u64 = 64 << 10;

/// Seconds by which the age of one response may differ between a record and an object: Age is a whole number.
const SAME_ORIGIN: f64 = 1.0;

/// What the filter that sees a response's end takes of the workspace, and some alignment.
const WITNESS_ROOM: usize = size_of::<vfp_entry>() + 64;

/// Answers `VDI_GetHdr`.
///
/// # Safety
/// `ctx` must be the calling thread's, of a fetch.
pub(crate) unsafe fn gethdrs(ctx: &vrt_ctx, om: &Om) -> c_int {
    // SAFETY: by contract.
    let bo = unsafe { busyobj_of(ctx) };
    // SAFETY: by contract.
    let begun = unsafe { transaction::with(ctx, om, |turn| (turn.asking, turn.uri.clone())) };
    let uri = match begun {
        Ok((false, uri)) => uri,
        Ok((true, _)) => {
            let text = format!("director {} leads back to itself", om.name);
            // SAFETY: this thread's log.
            unsafe { vsl::fetch_error(vsl::of_fetch(bo), &text) };
            return -1;
        }
        Err(why) => {
            // SAFETY: this thread's log.
            unsafe { vsl::fetch_error(vsl::of_fetch(bo), &why) };
            return -1;
        }
    };
    if om.inner().is_null() {
        let text = format!("director {} has no backend: call {}.set_backend() in vcl_init", om.name, om.name);
        // SAFETY: this thread's log.
        unsafe { vsl::fetch_error(vsl::of_fetch(bo), &text) };
        return -1;
    }
    let fetch = Fetch { ctx, bo, om };
    if let Some(why) = fetch.bypass() {
        Counters::add(&om.counters().c_bypassed, 1);
        fetch.say(Status::Bypass, why);
        return fetch.ask();
    }
    fetch.look_up(uri.as_deref())
}

/// The key of a fetch.
pub(crate) fn key(om: &Om, bo: *mut busyobj, uri: Option<&[u8]>) -> Key {
    match uri {
        Some(uri) => om.l2.key_from_text(uri),
        // SAFETY: the fetch's own heads; bereq0 is what the client's request was when the fetch began, and nobody changes it.
        None => unsafe { key_of(om, View::new((*bo).bereq0), Some(&(*bo).digest)) },
    }
}

/// The key of a request, with the digest that vcl_hash made, if it has run.
pub(crate) fn key_of(om: &Om, request: View<'_>, digest: Option<&[u8; 32]>) -> Key {
    let host = request.header(b"Host");
    // As the builtin vcl_hash does it: each string is followed by a NUL byte (VRT_hashdata).
    let mut builtin = Sha256::new();
    builtin.update(request.url());
    builtin.update([0]);
    builtin.update(host.unwrap_or_default());
    builtin.update([0]);
    let builtin = builtin.finalize();
    let own = digest.filter(|digest| host.is_none() || builtin[..] != digest[..]);
    om.l2.key(host.unwrap_or_default(), request.url(), own.map(|digest| &digest[..]))
}

/// Bodies that the storage engine can adopt.
fn adopts() -> Option<Adopts> {
    let instance = Storage::default_one().and_then(Storage::instance);
    instance.map(|instance| Adopts { instance, from: ADOPT_FROM, is_unreadable: engine::is_unreadable })
}

struct Fetch<'a> {
    ctx: &'a vrt_ctx,
    bo: *mut busyobj,
    om: &'a Om,
}

impl Fetch<'_> {
    fn request(&self) -> View<'_> {
        // SAFETY: the fetch's own request, which we do not change while it is looked at.
        unsafe { View::new((*self.bo).bereq) }
    }

    fn turn<T>(&self, call: impl FnOnce(&mut Turn) -> T) -> Option<T> {
        // SAFETY: the calling thread's fetch; no call of ours comes by here again.
        unsafe { transaction::with(self.ctx, self.om, call) }.ok()
    }

    /// Sets the status, and logs it.
    fn say(&self, status: Status, what: impl std::fmt::Display) {
        self.turn(|turn| turn.status = Some(status));
        let text = format!("{} {} {what}", self.om.name, status.text().to_string_lossy());
        // SAFETY: this thread's log.
        unsafe { vsl::decision(vsl::of_fetch(self.bo), &text) };
    }

    /// Why this fetch is none of the second level's business.
    fn bypass(&self) -> Option<&'static str> {
        let request = self.request();
        // SAFETY: the fetch's own state; the flags that are looked at do not change any more.
        let (pass, private, body) = unsafe {
            let flags = u32::from((&raw const (*(*self.bo).fetch_objcore).flags).read_volatile());
            (
                (*self.bo).uncacheable() != 0,
                flags & OC_F_PRIVATE != 0,
                !(*self.bo).req.is_null() || !(*self.bo).bereq_body.is_null(),
            )
        };
        match () {
            () if pass || private => Some("pass"),
            () if body => Some("request body"),
            () if request.method() != b"GET" => Some("method"),
            () if request.header(b"Authorization").is_some() => Some("Authorization"),
            () if request.header(b"Range").is_some() => Some("Range"),
            () => None,
        }
    }

    /// Has varnishd ask the real backend.
    fn ask(&self) -> c_int {
        self.turn(|turn| turn.asking = true);
        // SAFETY: the calling thread's fetch, in which varnishd has called us from VDI_GetHdr; our director keeps a reference to its
        // backend.
        let result = unsafe { with_director(self.bo, self.om.inner(), |bo| VDI_GetHdr(bo)) };
        self.turn(|turn| turn.asking = false);
        result
    }

    fn look_up(&self, uri: Option<&[u8]>) -> c_int {
        let (om, arguments) = (self.om, &self.om.arguments);
        let key = key(om, self.bo, uri);
        // SAFETY: the fetch's own flag.
        let hit_for_miss = unsafe { (*self.bo).is_hitmiss() } != 0;
        // SAFETY: the fetch's own object.
        let refresh = refresh::is_requested(unsafe { (*self.bo).fetch_objcore });
        let finding = om.l2.find(
            &Lookup {
                key: &key,
                request: &Request(self.request()),
                // SAFETY: what the client's request was when the fetch began, which nobody changes.
                client: &Request(unsafe { View::new((*self.bo).bereq0) }),
                // Requests for what is known to be uncacheable are not made to wait for one another.
                wait: if hit_for_miss { Duration::ZERO } else { arguments.wait },
                hold: arguments.hold,
                // SAFETY: VTIM_real only reads the clock.
                now: unsafe { VTIM_real() },
                refresh,
                adopts: adopts(),
            },
            om.counters(),
        );
        let text = key.text().escape_ascii().to_string();
        match finding {
            Finding::Hit(hit) => match self.serve(hit, None, None) {
                Ok(()) => {
                    self.say(Status::Hit, &text);
                    0
                }
                Err(why) => {
                    self.reset();
                    self.miss(None, why, &text)
                }
            },
            Finding::Stale(stale) => self.stale(stale, &text),
            Finding::Miss(miss) => self.miss(miss.ticket, &why(miss.why), &text),
        }
    }

    fn miss(&self, ticket: Option<Ticket>, why: &str, text: &str) -> c_int {
        self.say(Status::Miss, format_args!("{text} ({why})"));
        let result = self.ask();
        self.asked(result, Pending::new(self.om, ticket))
    }

    /// The origin has answered, or has not.
    fn asked(&self, result: c_int, pending: Pending) -> c_int {
        if result != 0 {
            self.turn(|turn| turn.status = Some(Status::Error));
            return result;
        }
        let pending = Rc::new(pending);
        // SAFETY: varnishd has set the filters of this response up; ours comes after its own source. A failed push would fail
        // the response, which is good without us.
        unsafe {
            if workspace::free_room((&raw mut (*self.bo).ws).cast()) < WITNESS_ROOM {
                pending.give_up("no room for a filter: raise workspace_backend", vsl::of_fetch(self.bo));
                return result;
            }
            let entry = VFP_Push((*self.bo).vfc, WITNESS.address());
            if !entry.is_null() {
                filter::charge(entry, &pending);
            }
        }
        self.turn(|turn| turn.work = Work::Miss(pending));
        result
    }

    /// Answers from a record. `renewed`: of which age the origin's 304 was, that has just confirmed it.
    fn serve(&self, hit: Hit, ticket: Option<Ticket>, renewed: Option<u64>) -> Result<(), &'static str> {
        // SAFETY: VTIM_real only reads the clock.
        let age = renewed.unwrap_or_else(|| hit.age(unsafe { VTIM_real() }).ceil().clamp(0.0, 1e12) as u64);
        let serving = Rc::new(Serving::new(Pending::new(self.om, ticket), hit, renewed.is_some()));
        // SAFETY: the calling thread's fetch, with beresp and vfc set up and no connection.
        unsafe {
            let entry = object::respond(self.bo, &serving.hit, age, SOURCE.address())?;
            filter::charge(entry, &serving);
        }
        self.turn(|turn| turn.work = Work::Serving(serving));
        Ok(())
    }

    /// Begins the response anew, with us as its director.
    fn reset(&self) {
        // SAFETY: the calling thread's fetch, between VDI_GetHdr's call and its return; the director lives as long as its VCL.
        unsafe { reset(self.bo, self.om.director()) };
    }

    fn stale(&self, stale: Stale, text: &str) -> c_int {
        let Stale { hit, ticket } = stale;
        let before = if hit.has_validator() { self.make_conditional(&hit) } else { None };
        let result = self.ask();
        let conditional = before.is_some();
        let own = before.as_ref().is_some_and(|before| self.is_own_object(&hit, before));
        if let Some(before) = before {
            // What a retry sends is not for this record.
            self.set_conditional(&before);
        }
        // SAFETY: the fetch's own response, which is complete if there is one.
        let status = if result == 0 { unsafe { View::new((*self.bo).beresp) }.status() } else { 0 };
        if result == 0 && !(status == 304 && conditional) {
            Counters::add(&self.om.counters().c_misses, 1);
            self.say(Status::Miss, format_args!("{text} (stale)"));
            return self.asked(result, Pending::new(self.om, ticket));
        }
        if result == 0 && own {
            Counters::add(&self.om.counters().c_revalidated, 1);
            self.say(Status::Revalidated, text);
            return self.asked(result, Pending::confirming(self.om, ticket, hit));
        }
        // SAFETY: VTIM_real only reads the clock.
        let now = unsafe { VTIM_real() };
        if result != 0 && !hit.in_grace(now) {
            self.say(Status::Error, format_args!("{text} (stale, beyond its grace)"));
            return result;
        }
        let mut hit = hit;
        let mut renewed = None;
        if result == 0 {
            // SAFETY: as above.
            let answer = unsafe { View::new((*self.bo).beresp) };
            renewed = Some(answer.header(b"Age").map_or(0, object::seconds));
            match object::refreshed(&hit.head, answer, SystemTime::now()) {
                Some(head) => hit.head = head,
                None => {
                    self.reset();
                    self.say(Status::Error, format_args!("{text} (the origin's 304 is too large)"));
                    return -1;
                }
            }
        }
        self.reset();
        let ticket = renewed.and(ticket);
        match self.serve(hit, ticket, renewed) {
            Ok(()) if renewed.is_some() => {
                Counters::add(&self.om.counters().c_revalidated, 1);
                self.say(Status::Revalidated, text);
                0
            }
            Ok(()) => {
                Counters::add(&self.om.counters().c_stale, 1);
                self.say(Status::Stale, text);
                0
            }
            Err(why) => {
                self.reset();
                self.say(Status::Error, format_args!("{text} ({why})"));
                -1
            }
        }
    }

    /// Whether a 304 confirms a stale object of varnishd's own as much as the record: it was asked for by the same validators,
    /// and was as new. Then varnishd's own 304 logic makes of it what it makes of any (`beresp.was_304`), by a copy of the
    /// object's body. A body that can be adopted is not copied.
    fn is_own_object(&self, hit: &Hit, condition: &Conditional) -> bool {
        let len = hit.record.body_len();
        if adopts().is_some_and(|adopts| adopts.instance == hit.record.instance() && len >= adopts.from) {
            return false;
        }
        // SAFETY: the fetch holds a reference to the stale object; its flags and boc are read as vbf_stp_condfetch reads them.
        unsafe {
            let oc = (*self.bo).stale_oc;
            !oc.is_null()
                && (*oc).boc.is_null()
                && u32::from((&raw const (*oc).flags).read_volatile()) & OC_F_FAILED == 0
                && ObjCheckFlag((*self.bo).wrk, oc, OF_IMSCAND) != 0
                && ((*oc).t_origin - hit.head.t_origin).abs() <= SAME_ORIGIN
                && *condition == Conditional::of_record(hit)
        }
    }

    /// Asks for the record's validator in place of that of a stale object of varnishd's, which it returns. `None`: there was
    /// no room.
    fn make_conditional(&self, hit: &Hit) -> Option<Conditional> {
        let before = Conditional {
            none_match: self.request().header(b"If-None-Match").map(<[u8]>::to_vec),
            modified_since: self.request().header(b"If-Modified-Since").map(<[u8]>::to_vec),
        };
        if self.set_conditional(&Conditional::of_record(hit)) {
            return Some(before);
        }
        self.set_conditional(&before);
        None
    }

    /// Replaces the request's conditions; whether there was room for all of them.
    fn set_conditional(&self, conditional: &Conditional) -> bool {
        let mut complete = true;
        // SAFETY: the fetch's own request and workspace; the names are constants of varnishd's.
        unsafe {
            let (bereq, ws) = ((*self.bo).bereq, (&raw mut (*self.bo).ws).cast());
            http_Unset(bereq, if_none_match());
            http_Unset(bereq, if_modified_since());
            let lines = [
                (&b"If-None-Match: "[..], &conditional.none_match),
                (b"If-Modified-Since: ", &conditional.modified_since),
            ];
            for (name, value) in lines.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
                let line = [name, &value[..]].concat();
                if line.len() + 16 > workspace::free_room(ws)
                    || View::new(bereq).lines().count() >= http::most_lines(bereq)
                {
                    complete = false;
                } else if let Some(line) = workspace::copy(ws, &line) {
                    http_SetHeader(bereq, line);
                }
            }
        }
        complete
    }
}

/// The conditions of a request.
#[derive(PartialEq)]
struct Conditional {
    none_match: Option<Vec<u8>>,
    modified_since: Option<Vec<u8>>,
}

impl Conditional {
    fn of_record(hit: &Hit) -> Conditional {
        Conditional {
            none_match: hit.head.headers.get(b"ETag").map(<[u8]>::to_vec),
            modified_since: hit.head.last_modified().map(<[u8]>::to_vec),
        }
    }
}

fn why(reason: MissReason) -> String {
    reason.to_string()
}
