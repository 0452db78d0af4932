//! A fetch (Varnish: `struct busyobj`, `cache/cache_fetch.c`), as its director sees it: what is asked for, by whom it is answered, and
//! the object that comes of it.
//!
//! ```text
//! director asked ─► response made ─► vcl_backend_response ─► filters opened, object allocated ─► body ─► filters closed ─► task ends
//!        ▲                                  │
//!        └────────── return (retry) ────────┘
//! ```
//!
//! All of it is the calling thread's alone, but for the object, which is found by other threads once it is allocated and streamed.

use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};

use varnishd_sys::bindings::{
    DIR_S_HDRS, DIR_S_NULL, HTTP_Setup, OF_IMSCAND, ObjCheckFlag, SLT_BerespMethod, VDI_Finish, VDI_GetHdr,
    VDI_Http1Pipe, VFP_Close, VFP_Push, VFP_Setup, VRT_Assign_Backend, busyobj, http_SetHeader, http_Unset, vfp_entry,
};
use varnishd_sys::branch::{if_modified_since, if_none_match};

use crate::boundary::Constant;
use crate::cast::has_magic;
use crate::context::Context;
use crate::fetch_filters::Entry;
use crate::http::{self, View};
use crate::objcore::{Lifetime, Objcore};
use crate::raw::{Backend, CloseReason, FetchFilter, RawStorage};
use crate::vsl::Log;
use crate::worker::Worker;
use crate::workspace::Workspace;

/// What a filter takes of the workspace, and some alignment.
const FILTER_ROOM: usize = size_of::<vfp_entry>() + 64;

/// The calling thread's fetch, for `'a`.
#[derive(Clone, Copy)]
pub struct Busyobj<'a>(NonNull<busyobj>, PhantomData<&'a busyobj>);

/// The conditions of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// The value of If-None-Match.
    pub none_match: Option<Vec<u8>>,
    /// The value of If-Modified-Since.
    pub modified_since: Option<Vec<u8>>,
}

/// The workspace has no room for a filter.
#[derive(Debug, Clone, Copy)]
pub struct NoRoom;

impl<'a> Busyobj<'a> {
    /// Returns the fetch at an address; `None` if there is none.
    ///
    /// # Safety
    /// `bo` must be null or the calling thread's own for `'a`.
    pub(crate) unsafe fn new(bo: *mut busyobj) -> Option<Busyobj<'a>> {
        // SAFETY: by contract.
        unsafe { has_magic(bo).then(|| Busyobj(NonNull::new_unchecked(bo), PhantomData)) }
    }

    pub(crate) fn as_ptr(self) -> *mut busyobj {
        self.0.as_ptr()
    }

    // What is asked for.

    /// Returns the request as VCL has made it.
    pub fn request(self) -> View<'a> {
        // SAFETY: the calling thread's fetch. What changes the head says that no view may be used afterwards.
        unsafe { View::new((*self.as_ptr()).bereq) }
    }

    /// Returns the client's request as it was when the fetch began. It does not change.
    pub fn client_request(self) -> View<'a> {
        // SAFETY: the calling thread's fetch.
        unsafe { View::new((*self.as_ptr()).bereq0) }
    }

    /// Returns the digest that vcl_hash made.
    pub fn digest(self) -> &'a [u8; 32] {
        // SAFETY: the calling thread's fetch; it does not change.
        unsafe { &(*self.as_ptr()).digest }
    }

    /// Returns the number of tries before this one (`bereq.retries`).
    pub fn retries(self) -> u32 {
        // SAFETY: the calling thread's fetch.
        unsafe { (*self.as_ptr()).retries }
    }

    /// Returns true if the request has a body.
    pub fn has_request_body(self) -> bool {
        // SAFETY: the calling thread's fetch.
        unsafe { !(*self.as_ptr()).req.is_null() || !(*self.as_ptr()).bereq_body.is_null() }
    }

    /// Returns true if the response is for one request only, as VCL or varnishd have decided (`bereq.uncacheable`,
    /// `beresp.uncacheable`).
    pub fn is_uncacheable(self) -> bool {
        // SAFETY: the calling thread's fetch.
        unsafe { (*self.as_ptr()).uncacheable() != 0 }
    }

    /// Returns true if the request has found a mark that its responses are uncacheable (`bereq.is_hitmiss`).
    pub fn is_hit_for_miss(self) -> bool {
        // SAFETY: the calling thread's fetch.
        unsafe { (*self.as_ptr()).is_hitmiss() != 0 }
    }

    /// Returns the request's conditions.
    pub fn conditions(self) -> Conditions {
        let request = self.request();
        Conditions {
            none_match: request.header(b"If-None-Match").map(<[u8]>::to_vec),
            modified_since: request.header(b"If-Modified-Since").map(<[u8]>::to_vec),
        }
    }

    /// Replaces the request's conditions. Returns true if there was room for all of them.
    ///
    /// # Safety
    /// No view of the request that was made before may be used afterwards.
    pub unsafe fn set_conditions(self, conditions: &Conditions) -> bool {
        let workspace = self.workspace();
        let mut complete = true;
        // SAFETY: by contract; the calling thread's request and workspace; the names are constants of varnishd's.
        unsafe {
            let bereq = (*self.as_ptr()).bereq;
            http_Unset(bereq, if_none_match());
            http_Unset(bereq, if_modified_since());
            let lines = [
                (&b"If-None-Match: "[..], &conditions.none_match),
                (b"If-Modified-Since: ", &conditions.modified_since),
            ];
            for (name, value) in lines.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
                let line = [name, &value[..]].concat();
                if line.len() + 16 > workspace.free_room() || View::new(bereq).lines().count() >= http::max_lines(bereq)
                {
                    complete = false;
                } else if let Some(line) = workspace.copy(&line) {
                    http_SetHeader(bereq, line);
                }
            }
        }
        complete
    }

    // By whom it is answered.

    /// Has varnishd treat `director` as the one of the fetch, for the time of `call`.
    ///
    /// # Safety
    /// `director` must live until `call` returns: neither director's reference is touched.
    unsafe fn with_director<T>(self, director: Backend, call: impl FnOnce(*mut busyobj) -> T) -> T {
        let bo = self.as_ptr();
        // SAFETY: the calling thread's fetch; the director by contract.
        unsafe {
            let own = std::mem::replace(&mut (*bo).director_req, director);
            let value = call(bo);
            (*bo).director_req = own;
            value
        }
    }

    /// Has varnishd get a response from another director or backend. Returns false if there is none.
    ///
    /// # Safety
    /// Called when varnishd has asked a director of ours for the response; `director` must live for as long as this call.
    pub unsafe fn ask(self, director: Backend) -> bool {
        // SAFETY: by contract.
        unsafe { self.with_director(director, |bo| VDI_GetHdr(bo)) == 0 }
    }

    /// Has varnishd pass a connection through to another director or backend.
    ///
    /// # Safety
    /// Called when varnishd has asked a director of ours for that, with its context; `director` must live for as long as this call.
    pub unsafe fn pipe(self, ctx: Context<'_>, director: Backend) -> CloseReason {
        // SAFETY: by contract.
        unsafe { self.with_director(director, |bo| VDI_Http1Pipe((*ctx.as_ptr()).req, bo)) }
    }

    /// Gives up the response that the fetch has and begins another one, of which `director` is the director.
    ///
    /// # Safety
    /// Called between the call of a director's callback and its return: VCL has not seen a response yet. `director` must
    /// live at least as long as the fetch. No view of the response that was made before may be used afterwards.
    pub unsafe fn restart_response(self, director: Backend) {
        let bo = self.as_ptr();
        // SAFETY: by contract; as varnishd begins a fetch itself.
        unsafe {
            if (*bo).director_state != DIR_S_NULL && !(*bo).htc.is_null() {
                (*bo).acct.beresp_bodybytes += VFP_Close((*bo).vfc);
                VDI_Finish(bo);
            } else {
                VFP_Close((*bo).vfc);
            }
            VFP_Setup((*bo).vfc, (*bo).wrk);
            (*(*bo).vfc).oc = (*bo).fetch_objcore;
            (*(*bo).vfc).resp = (*bo).beresp;
            (*(*bo).vfc).req = (*bo).bereq;
            (*bo).htc = null_mut();
            HTTP_Setup((*bo).beresp, self.workspace().as_ptr(), self.log().as_ptr(), SLT_BerespMethod);
            VRT_Assign_Backend(&raw mut (*bo).director_resp, director);
            (*bo).director_state = DIR_S_HDRS;
        }
    }

    /// Takes the connection off the fetch, which is memory of the workspace with nothing behind it.
    ///
    /// # Safety
    /// The connection must be the one of [`crate::response::respond`].
    pub unsafe fn clear_connection(self) {
        // SAFETY: by contract.
        unsafe { (*self.as_ptr()).htc = null_mut() };
    }

    // The response and its filters.

    /// Returns the response.
    pub fn response(self) -> View<'a> {
        // SAFETY: the calling thread's fetch. What changes the head says that no view may be used afterwards.
        unsafe { View::new((*self.as_ptr()).beresp) }
    }

    /// Has the response's body parsed for ESI (`beresp.do_esi`).
    pub fn set_esi(self) {
        // SAFETY: the calling thread's fetch.
        unsafe { (*self.as_ptr()).set_do_esi(1) };
    }

    /// Pushes a filter behind those that are there. A push that fails would fail the response: none is tried without room.
    ///
    /// # Errors
    /// There is no room.
    pub fn push_filter(self, filter: &'static Constant<FetchFilter>) -> Result<Entry<'a>, NoRoom> {
        if self.workspace().free_room() < FILTER_ROOM {
            return Err(NoRoom);
        }
        // SAFETY: the calling thread's fetch; the filter is static.
        unsafe { Entry::new(VFP_Push((*self.as_ptr()).vfc, filter.address())) }.ok_or(NoRoom)
    }

    // The object.

    /// Returns the object that the fetch is for.
    pub fn object(self) -> Objcore<'a> {
        // SAFETY: the calling thread's fetch, which holds a reference to its object.
        unsafe { Objcore::new((*self.as_ptr()).fetch_objcore) }
    }

    /// Returns true if the object is complete: the fetch has ended well, and its task not yet.
    pub fn is_complete(self) -> bool {
        // SAFETY: this thread is the fetch.
        unsafe { self.object().is_complete() }
    }

    /// Sets the object's times.
    ///
    /// # Safety
    /// Called before the object is allocated: in the fetch alone.
    pub unsafe fn set_lifetime(self, lifetime: Lifetime) {
        // SAFETY: by contract.
        unsafe { self.object().set_lifetime(lifetime) };
    }

    /// Returns the storage that the object will be in.
    pub fn storage(self) -> *const RawStorage {
        // SAFETY: the calling thread's fetch.
        unsafe { (*self.as_ptr()).storage }.cast()
    }

    /// Returns the times of the stale object that varnishd's own revalidation would renew by a 304, if there is one.
    pub fn revalidated_object(self) -> Option<Lifetime> {
        // SAFETY: the fetch holds a reference to the stale object.
        unsafe {
            let stale = (*self.as_ptr()).stale_oc;
            if stale.is_null() {
                return None;
            }
            let stale = Objcore::new(stale);
            let is_candidate = ObjCheckFlag(self.worker().as_ptr(), stale.as_ptr(), OF_IMSCAND) != 0;
            (!stale.has_boc() && !stale.has_failed() && is_candidate).then(|| stale.lifetime())
        }
    }

    // Of the task.

    /// Returns the fetch's worker.
    pub fn worker(self) -> Worker<'a> {
        // SAFETY: the calling thread's fetch.
        unsafe { Worker::new((*self.as_ptr()).wrk) }
    }

    /// Returns the log of the fetch.
    pub fn log(self) -> Log<'a> {
        // SAFETY: the calling thread's fetch.
        unsafe { Log::new((&raw mut (*self.as_ptr()).vsl).cast()) }
    }

    /// Returns the workspace of the fetch.
    pub fn workspace(self) -> Workspace<'a> {
        // SAFETY: the calling thread's fetch.
        unsafe { Workspace::new((&raw mut (*self.as_ptr()).ws).cast()) }
    }
}
