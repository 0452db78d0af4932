//! The context of a call by varnishd or VCL (`VRT_CTX`): what it is about, a client's request or a fetch.

use varnishd_sys::bindings::{VCL_MET_HASH, VCL_MET_RECV};

use crate::cast::{busyobj_of, context, has_magic};
use crate::fetch::Busyobj;
use crate::raw::RawContext;
use crate::request::ClientRequest;
use crate::vsl::Log;
use crate::workspace::Workspace;

/// A context, for `'a`, which is the call at most.
#[derive(Clone, Copy)]
pub struct Context<'a>(&'a RawContext);

impl<'a> Context<'a> {
    /// Returns the context that varnishd called with. A pointer to anything else ends the child.
    ///
    /// # Safety
    /// `ctx` must be what varnishd called with, in this thread, and is not used after that call.
    #[inline]
    #[track_caller]
    pub unsafe fn new(ctx: *const RawContext) -> Context<'a> {
        // SAFETY: by contract.
        Context(unsafe { context(ctx) })
    }

    /// Returns the context of [`Context::new`]; `None` if varnishd called with none.
    ///
    /// # Safety
    /// As for [`Context::new`], or null.
    pub(crate) unsafe fn at(ctx: *const RawContext) -> Option<Context<'a>> {
        // SAFETY: by contract.
        unsafe { has_magic(ctx).then(|| Context::new(ctx)) }
    }

    pub(crate) fn as_ptr(self) -> *const RawContext {
        self.0
    }

    /// Returns the fetch that the call is about. In vcl_pipe there is a request, too.
    pub fn fetch(self) -> Option<Busyobj<'a>> {
        // SAFETY: by contract of `new`: the fetch is the calling thread's own.
        unsafe { Busyobj::new(busyobj_of(self.0)) }
    }

    /// Returns the client's request that the call is about.
    pub fn request(self) -> Option<ClientRequest<'a>> {
        // SAFETY: by contract of `new`: the request is the calling thread's own.
        unsafe { ClientRequest::new(self.0.req) }
    }

    /// Returns true unless `vcl_hash` is still to run: before, the digest is that of the connection's last request.
    pub fn is_hashed(self) -> bool {
        self.0.method & (VCL_MET_RECV | VCL_MET_HASH) == 0
    }

    /// Returns the log of the transaction.
    pub fn log(self) -> Log<'a> {
        // SAFETY: by contract of `new`.
        unsafe { Log::new(self.0.vsl) }
    }

    /// Returns the workspace of the transaction.
    pub fn workspace(self) -> Workspace<'a> {
        // SAFETY: by contract of `new`.
        unsafe { Workspace::new(self.0.ws) }
    }
}
