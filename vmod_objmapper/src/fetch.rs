//! A fetch: looked up, and then answered from a record or by the real backend.
//!
//! ```text
//! bypassed ─────────────────────────────────────────────► ask
//! look_up ─┬─ hit ──► serve
//!          ├─ stale ─ ask, with the record's conditions ─► 304: serve, renewed │ a response: asked │ none: serve, in grace
//!          └─ miss ── ask ─► asked: the ticket ends with the fetch
//! ```

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use objmapper_records::{Adopts, Counters, Finding, Hit, Key, Lookup, Stale, Ticket};
use varnishd::clock;
use varnishd::context::Context;
use varnishd::fetch::{Busyobj, Conditions};
use varnishd::header::Header;
use varnishd::http::View;
use varnishd::object::address_of;

use crate::director::Director;
use crate::engine::{self, Storage};
use crate::filter::{OBSERVER, SOURCE, Serving};
use crate::head;
use crate::l1;
use crate::pending::PendingPublish;
use crate::publish::Answer;
use crate::request::Request;
use crate::transaction::{self, LookedUp, Status, TaskState};
use crate::wishes::{self, Wish};

/// Smaller bodies are read and verified before they are used, also where they could be adopted.
const ADOPT_FROM: u64 = 64 << 10;

/// Seconds by which the age of one response may differ between a record and an object: Age is a whole number.
const SAME_ORIGIN: f64 = 1.0;

/// The header of a fetch by which another varnishd of the same store and prefix recognizes it ([`L2::is_fetch`]).
///
/// [`L2::is_fetch`]: objmapper_records::L2::is_fetch
pub(crate) const FETCH_HEADER: Header = Header::new(c"\x10Objmapper-Fetch:");

/// Makes a response. Returns false if the fetch has failed.
///
/// # Safety
/// `ctx` must be what varnishd called the director with.
pub(crate) unsafe fn get_response(ctx: Context<'_>, director: &Director) -> bool {
    let Some(bo) = ctx.fetch() else { return false };
    // SAFETY: not lent again by the call.
    let begun = unsafe { transaction::with(ctx, director, |state| (state.asking, state.uri.clone())) };
    let name = &director.name;
    let error = match begun {
        Ok((false, _)) if director.inner().is_null() => {
            format!("director {name} has no backend: call {name}.set_backend() in vcl_init")
        }
        Ok((false, uri)) => {
            let uri_digest = uri.as_deref().map(|uri| director.l2.key_from_text(uri).digest());
            l1::in_flight::begin(address_of(bo.object()), bo.digest(), uri_digest);
            let fetch = Fetch { ctx, bo, director };
            fetch.unsign();
            if let Some(why) = fetch.bypass_reason() {
                Counters::add(&director.counters().c_bypassed, 1);
                fetch.set_status(Status::Bypass, why);
                return fetch.ask();
            }
            return fetch.look_up(uri.as_deref());
        }
        Ok((true, _)) => format!("director {name} leads back to itself"),
        Err(why) => why,
    };
    bo.log().fetch_error(&error);
    false
}

/// Returns the key of a fetch.
pub(crate) fn key(director: &Director, bo: Busyobj<'_>, uri: Option<&[u8]>) -> Key {
    match uri {
        Some(uri) => director.l2.key_from_text(uri),
        None => key_of(director, bo.client_request(), Some(bo.digest())),
    }
}

/// Returns the key of a request, with the digest that vcl_hash made, if it has run.
pub(crate) fn key_of(director: &Director, request: View<'_>, digest: Option<&[u8; 32]>) -> Key {
    director.l2.key(request.header(b"Host"), request.url(), digest)
}

/// Returns the bodies that the storage engine can adopt.
fn adopts() -> Option<Adopts> {
    let instance = Storage::default_one().and_then(Storage::instance);
    instance.map(|instance| Adopts { instance, from: ADOPT_FROM, is_unreadable: engine::is_unreadable })
}

/// Returns the conditions by which a record is confirmed.
fn conditions_of(hit: &Hit) -> Conditions {
    Conditions {
        none_match: hit.head.headers.get(b"ETag").map(<[u8]>::to_vec),
        modified_since: hit.head.last_modified().map(<[u8]>::to_vec),
    }
}

struct Fetch<'a> {
    ctx: Context<'a>,
    bo: Busyobj<'a>,
    director: &'a Director,
}

impl Fetch<'_> {
    fn with_state<T>(&self, call: impl FnOnce(&mut TaskState) -> T) -> Option<T> {
        // SAFETY: no call of ours lends it again.
        unsafe { transaction::with(self.ctx, self.director, call) }.ok()
    }

    /// Sets the status, and logs it.
    fn set_status(&self, status: Status, what: impl std::fmt::Display) {
        self.with_state(|state| state.status = Some(status));
        self.bo.log().decision(&format!("{} {} {what}", self.director.name, status.text().to_string_lossy()));
    }

    /// Returns why this fetch bypasses the shared cache, if it does.
    fn bypass_reason(&self) -> Option<&'static str> {
        let request = self.bo.request();
        match () {
            () if self.bo.is_uncacheable() || self.bo.object().is_private() => Some("pass"),
            () if self.bo.has_request_body() => Some("request body"),
            () if request.method() != b"GET" => Some("method"),
            () if request.header(b"Authorization").is_some() => Some("Authorization"),
            () if request.header(b"Range").is_some() => Some("Range"),
            () => None,
        }
    }

    /// Says to a backend that shares our records that this is our fetch, for which it is not to wait. Without room for
    /// that it may wait.
    fn sign(&self) {
        let request = self.bo.request();
        let Some(host) = request.header(b"Host") else { return };
        let Some(token) = self.director.l2.sign_fetch(host, request.url(), clock::now()) else { return };
        // SAFETY: no view is in use.
        unsafe { self.bo.set_request_header(FETCH_HEADER, token.as_bytes()) };
    }

    /// Takes away what the client's request, or another director of the task, has said so of itself.
    fn unsign(&self) {
        // SAFETY: no view is in use.
        unsafe { self.bo.unset_request_header(FETCH_HEADER) };
    }

    /// Has varnishd ask the real backend. Returns false if there is no response.
    fn ask(&self) -> bool {
        self.with_state(|state| state.asking = true);
        // SAFETY: varnishd has called us for the response; our director keeps a reference to its backend.
        let answered = unsafe { self.bo.ask(self.director.inner()) };
        self.with_state(|state| state.asking = false);
        self.unsign();
        answered
    }

    /// Has varnishd ask the real backend, after a look-up. Returns false if there is no response.
    fn ask_signed(&self) -> bool {
        self.sign();
        self.ask()
    }

    /// Returns how long to wait for another fetch of the record.
    fn wait(&self, looked_up: &LookedUp) -> Duration {
        // Requests for what is known to be uncacheable are not made to wait for one another.
        if self.bo.is_hit_for_miss() || wishes::is_requested(self.bo.object().id(), Wish::IgnoreBusy) {
            return Duration::ZERO;
        }
        // SAFETY: no call of ours lends the state again.
        if unsafe { transaction::is_asked_for(self.ctx, self.director, looked_up) } {
            return Duration::ZERO;
        }
        self.with_state(|state| state.wait).flatten().unwrap_or(self.director.arguments.wait)
    }

    fn look_up(&self, uri: Option<&[u8]>) -> bool {
        let (director, arguments) = (self.director, &self.director.arguments);
        let key = key(director, self.bo, uri);
        let looked_up = (director.l2.instance(), key.text().to_vec());
        let wait = self.wait(&looked_up);
        self.with_state(|state| state.looked_up = Some(looked_up));
        let finding = director.l2.find(
            &Lookup {
                key: &key,
                request: &Request(self.bo.request()),
                client: &Request(self.bo.client_request()),
                wait,
                token: self.bo.client_request().header(FETCH_HEADER.name()),
                hold: arguments.hold,
                now: clock::now(),
                refresh: wishes::is_requested(self.bo.object().id(), Wish::Refresh),
                adopts: adopts(),
            },
            director.counters(),
        );
        let text = key.text().escape_ascii().to_string();
        match finding {
            Finding::Hit(hit) => match self.serve(hit, None, None) {
                Ok(()) => {
                    self.set_status(Status::Hit, &text);
                    true
                }
                Err(why) => {
                    self.restart();
                    self.miss(None, why, &text)
                }
            },
            Finding::Stale(stale) => self.stale(stale, &text),
            Finding::Miss(miss) => self.miss(miss.ticket, &miss.why.to_string(), &text),
        }
    }

    fn miss(&self, ticket: Option<Ticket>, why: &str, text: &str) -> bool {
        self.set_status(Status::Miss, format_args!("{text} ({why})"));
        let answered = self.ask_signed();
        self.asked(answered, PendingPublish::new(self.director, ticket))
    }

    /// The origin has answered, or has not.
    fn asked(&self, answered: bool, pending: PendingPublish) -> bool {
        if !answered {
            self.with_state(|state| state.status = Some(Status::Error));
            return false;
        }
        if pending.has_ticket() && pending.confirms().is_none() {
            pending.set_origin(head::of_origin(self.bo, SystemTime::now()));
        }
        let pending = Rc::new(pending);
        // varnishd has set the filters of this response up; ours comes after its own source. The response is good without us.
        let Ok(entry) = self.bo.push_filter(&OBSERVER) else {
            pending.give_up("no room for a filter: raise workspace_backend", self.bo.log());
            return true;
        };
        // SAFETY: the filter's own type.
        unsafe { entry.set_value(&pending) };
        self.with_state(|state| state.answer = Answer::Backend(pending));
        true
    }

    /// Answers from a record. `renewed`: the age of the origin's 304 that has just confirmed it.
    fn serve(&self, hit: Hit, ticket: Option<Ticket>, renewed: Option<u64>) -> Result<(), &'static str> {
        let age = renewed.unwrap_or_else(|| hit.age(clock::now()).ceil().clamp(0.0, 1e12) as u64);
        let pending = PendingPublish::new(self.director, ticket);
        let serving = Rc::new(Serving::new(pending, hit, renewed.is_some()));
        // SAFETY: varnishd has called us for the response, and there is none; the filter's own type.
        unsafe { head::respond(self.bo, &serving.hit, age, &SOURCE)?.set_value(&serving) };
        self.with_state(|state| state.answer = Answer::Record(serving));
        Ok(())
    }

    /// Begins the response anew, with us as its director.
    fn restart(&self) {
        // SAFETY: varnishd has called us for the response; the director lives as long as its VCL.
        unsafe { self.bo.restart_response(self.director.as_backend()) };
    }

    fn stale(&self, stale: Stale, text: &str) -> bool {
        let Stale { hit, ticket } = stale;
        let before = if hit.has_validator() { self.make_conditional(&hit) } else { None };
        let answered = self.ask_signed();
        let conditional = before.is_some();
        let own = before.as_ref().is_some_and(|before| self.is_own_object(&hit, before));
        if let Some(before) = before {
            // What a retry sends is not for this record.
            // SAFETY: no view is in use.
            unsafe { self.bo.set_conditions(&before) };
        }
        let confirmed = answered && conditional && self.bo.response().status() == 304;
        if answered && !confirmed {
            Counters::add(&self.director.counters().c_misses, 1);
            self.set_status(Status::Miss, format_args!("{text} (stale)"));
            return self.asked(answered, PendingPublish::new(self.director, ticket));
        }
        if confirmed && own {
            Counters::add(&self.director.counters().c_revalidated, 1);
            self.set_status(Status::Revalidated, text);
            let mut hit = hit;
            // varnishd makes the stored head itself. A head that is too large is refused when it is published.
            let refreshed = head::refreshed(&hit.head, self.bo.response(), SystemTime::now());
            hit.head.origin = refreshed.and_then(|head| head.origin);
            return self.asked(answered, PendingPublish::confirming(self.director, ticket, hit));
        }
        if !answered && !hit.in_grace(clock::now()) {
            self.set_status(Status::Error, format_args!("{text} (stale, beyond its grace)"));
            return false;
        }
        let mut hit = hit;
        let mut renewed = None;
        if confirmed {
            let answer = self.bo.response();
            renewed = Some(answer.header(b"Age").map_or(0, head::seconds));
            match head::refreshed(&hit.head, answer, SystemTime::now()) {
                Some(head) => hit.head = head,
                None => {
                    self.restart();
                    self.set_status(Status::Error, format_args!("{text} (the origin's 304 is too large)"));
                    return false;
                }
            }
        }
        self.restart();
        let ticket = renewed.and(ticket);
        match self.serve(hit, ticket, renewed) {
            Ok(()) if renewed.is_some() => {
                Counters::add(&self.director.counters().c_revalidated, 1);
                self.set_status(Status::Revalidated, text);
                true
            }
            Ok(()) => {
                Counters::add(&self.director.counters().c_stale, 1);
                self.set_status(Status::Stale, text);
                true
            }
            Err(why) => {
                self.restart();
                self.set_status(Status::Error, format_args!("{text} ({why})"));
                false
            }
        }
    }

    /// Returns true if a 304 confirms a stale object of varnishd's own as much as the record: it was asked for by the same validators,
    /// and was as new. Then varnishd's own 304 logic makes of it what it makes of any (`beresp.was_304`), by a copy of the
    /// object's body. A body that can be adopted is not copied.
    fn is_own_object(&self, hit: &Hit, conditions: &Conditions) -> bool {
        let len = hit.record.body_len();
        if adopts().is_some_and(|adopts| adopts.instance == hit.record.instance() && len >= adopts.from) {
            return false;
        }
        self.bo.revalidated_object().is_some_and(|own| {
            (own.origin - hit.head.t_origin).abs() <= SAME_ORIGIN && *conditions == conditions_of(hit)
        })
    }

    /// Asks for the record's validators in place of those of a stale object of varnishd's, which it returns; `None` if there was
    /// no room.
    fn make_conditional(&self, hit: &Hit) -> Option<Conditions> {
        let before = self.bo.conditions();
        // SAFETY: no view is in use.
        unsafe {
            if self.bo.set_conditions(&conditions_of(hit)) {
                return Some(before);
            }
            self.bo.set_conditions(&before);
        }
        None
    }
}
