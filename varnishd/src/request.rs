//! A client's request (Varnish: `struct req`), about to be delivered or to be fetched for.

use std::marker::PhantomData;
use std::ptr::{NonNull, eq};

use varnishd_sys::bindings::req;
use varnishd_sys::http1::HTTP1_transport;

use crate::cast::has_magic;
use crate::http::View;
use crate::objcore::{Objcore, ObjcoreId};
use crate::parameters;
use crate::text::bytes;

/// The calling thread's request, for `'a`.
#[derive(Clone, Copy)]
pub struct ClientRequest<'a>(NonNull<req>, PhantomData<&'a req>);

impl<'a> ClientRequest<'a> {
    /// Returns the request at an address; `None` if there is none.
    ///
    /// # Safety
    /// `req` must be null or the calling thread's own for `'a`.
    pub(crate) unsafe fn new(req: *mut req) -> Option<ClientRequest<'a>> {
        // SAFETY: by contract.
        unsafe { has_magic(req).then(|| ClientRequest(NonNull::new_unchecked(req), PhantomData)) }
    }

    pub(crate) fn as_ptr(self) -> *mut req {
        self.0.as_ptr()
    }

    /// Returns the request's head.
    pub fn head(self) -> View<'a> {
        // SAFETY: the calling thread's own request.
        unsafe { View::new((*self.as_ptr()).http) }
    }

    /// Returns the request's head as it was received, whatever VCL has changed since.
    pub fn received(self) -> View<'a> {
        // SAFETY: as in `head`; VCL changes another head, and this one stays for the length of the request.
        unsafe { View::new((*self.as_ptr()).http0) }
    }

    /// Returns the digest that vcl_hash made. Before it has run this is another request's.
    pub fn digest(self) -> &'a [u8; 32] {
        // SAFETY: as in `head`.
        unsafe { &(*self.as_ptr()).digest }
    }

    /// Returns the id of the request's object: in vcl_miss the one that is to be fetched.
    pub fn object_id(self) -> ObjcoreId {
        // SAFETY: as in `head`; the address only.
        ObjcoreId::of(unsafe { (*self.as_ptr()).objcore }.cast_const().cast())
    }

    /// Returns true if the response has a body, by what varnishd itself decides it later (`cnt_transmit` in cache_req_fsm.c).
    fn has_body(self) -> bool {
        // SAFETY: as in `head`; the request as it was received is there from the beginning, the response is null or a head.
        let (method, response) =
            unsafe { (View::new((*self.as_ptr()).http0).method(), (*self.as_ptr()).resp.as_ref()) };
        let status = response.map_or(0, |response| response.status % 1000);
        method != b"HEAD" && status >= 200 && status != 204 && status != 304
    }

    /// Returns the object whose body the response has. Called when the request is about to be delivered.
    pub fn delivered_object(self) -> Option<Objcore<'a>> {
        // SAFETY: as in `head`; a request holds a reference to its object.
        unsafe {
            let oc = (*self.as_ptr()).objcore;
            (!oc.is_null() && self.has_body()).then(|| Objcore::new(oc))
        }
    }

    /// Returns true if the response is a part of another one (ESI).
    pub fn is_included(self) -> bool {
        // SAFETY: as in `head`.
        unsafe { (*self.as_ptr()).esi_level > 0 }
    }

    /// Returns true if the client speaks HTTP/1.
    pub fn is_http1(self) -> bool {
        // SAFETY: as in `head`; only addresses are compared.
        unsafe { eq((*self.as_ptr()).transport, &raw const HTTP1_transport) }
    }

    /// Returns true if the object is still being fetched. Known when filters are initialised.
    pub fn is_streaming(self) -> bool {
        // SAFETY: as in `head`.
        unsafe { !(*self.as_ptr()).boc.is_null() }
    }

    /// Returns the session's `idle_send_timeout`, in seconds: VCL's, or the parameter (cache/cache.h, SESS_TMO); at least a millisecond,
    /// as varnishd tells the socket, and infinite without a limit. A change of the parameter takes effect on sockets of later
    /// connections only.
    pub fn idle_send_timeout(self) -> f64 {
        // SAFETY: as in `head`: a request has a session.
        let own = unsafe { (*(*self.as_ptr()).sp).idle_send_timeout };
        if own.is_nan() { parameters::idle_send_timeout() } else { own }.max(1e-3)
    }

    /// Returns the list of delivery filters that VCL has chosen (`resp.filters`); `None` if varnishd is to choose.
    pub fn filter_list(self) -> Option<&'a [u8]> {
        // SAFETY: as in `head`; the list is NUL-terminated, in the workspace or static.
        unsafe {
            let list = (*self.as_ptr()).vdp_filter_list;
            (!list.is_null()).then(|| bytes(list))
        }
    }
}
