//! The delivery filter (VDP): a body that the storage engine has in a file goes from there to the client's socket, without
//! a copy ([`crate::deliver_send`]). Whatever cannot go that way is passed on as bytes, and counted by reason.
//!
//! Its place is behind all other filters ([`crate::deliver_place`]): what they change is not in the file any more, and parts of a
//! body (Range) are found there by their addresses.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr::{NonNull, null_mut};

use objmapper_abi::{Copied, Delivered, Place, Span, Wish};
use varnishd::boundary::Constant;
use varnishd::cast::{context, has_magic};
use varnishd::delivery_filters;
use varnishd::vsl::Line;
use varnishd_sys::bindings::{
    HTTP_HDR_METHOD, VDP_END, VDP_FLUSH, VDP_bytes, WS_Alloc, cache_param, objcore, req, vdp, vdp_action, vdp_ctx,
    vrt_ctx,
};
use varnishd_sys::branch::delivery_filter;
use varnishd_sys::http1::{HTTP1_transport, V1l, VDP_range};

use crate::BOUNDARY;
use crate::deliver_send::{self, Failed};
use crate::engine;

/// Bytes that are fewer than this are copied: flushing the head by itself and asking the file for its pages costs more.
pub(crate) const LEAST: usize = 16 << 10;

const STATE_MAGIC: u32 = 0x6f62_6476;

/// The filter `objmapper`.
// SAFETY: varnishd only reads a filter.
pub(crate) static SENDER: Constant<vdp> =
    unsafe { Constant::new(delivery_filter(c"objmapper", Some(init), Some(bytes), Some(fini))) };

/// What is known of one delivery; in the request's workspace.
struct State {
    magic: u32,
    oc: *const objcore,
    /// How the engine was told to hand the body out.
    wish: Wish,
    /// Why every byte of this delivery is copied; `Copied::None` if the filter sends what it can.
    always: Copied,
    /// Whether the body was still being fetched when the delivery began.
    streaming: bool,
    /// The `idle_send_timeout` of the client's session, in seconds.
    idle: f64,
    /// Bytes that were sent from the file.
    sent: u64,
    /// Bytes that were copied, by reason.
    copied: [u64; Copied::COUNT],
}

impl State {
    fn add_copied(&mut self, why: Copied, bytes: u64) {
        if let Some(sum) = self.copied.get_mut(why as usize) {
            *sum += bytes;
        }
    }

    /// The outcome, with the reason that stands for the most bytes.
    fn delivered(&self) -> Delivered {
        let most = Copied::ALL.into_iter().zip(self.copied).max_by_key(|(_, bytes)| *bytes);
        let why = most.filter(|(_, bytes)| *bytes > 0).map_or(Copied::None, |(why, _)| why);
        Delivered { sent: self.sent, copied: self.copied.iter().sum(), why }
    }
}

/// Has the engine ask, before it iterates a body, how the delivery's filter wants to be given it.
pub(crate) fn listen() {
    if let Some(delivery) = engine::delivery() {
        // SAFETY: the engine's functions may be called by any thread; this library is never unloaded.
        unsafe { (delivery.on_iterate)(Some(wish)) };
    }
}

/// Does the response have a body? What varnishd decides later (`cnt_transmit` in cache_req_fsm.c) by the same means.
///
/// # Safety
/// `req` must be the calling thread's, about to be delivered.
unsafe fn has_body(req: *const req) -> bool {
    // SAFETY: by contract; the method is there from the beginning, and both ends are in one text.
    let (method, status) = unsafe {
        let method = &*(*(*req).http0).hd.add(HTTP_HDR_METHOD as usize);
        let len = method.e.offset_from(method.b).unsigned_abs();
        (std::slice::from_raw_parts(method.b.cast::<u8>(), len), (*(*req).resp).status % 1000)
    };
    method != b"HEAD" && status >= 200 && status != 204 && status != 304
}

/// The object whose body the response has, if it has one.
///
/// # Safety
/// `req` must be null or the calling thread's, about to be delivered.
pub(crate) unsafe fn body_of(req: *const req) -> Option<*const objcore> {
    // SAFETY: by contract; a request references its object.
    unsafe {
        let there = has_magic(req) && !(*req).objcore.is_null() && has_body(req);
        there.then(|| (*req).objcore.cast_const())
    }
}

unsafe extern "C" fn init(ctx: *const vrt_ctx, _vdc: *mut vdp_ctx, private: *mut *mut c_void) -> c_int {
    /// Not pushed: as without us.
    const NOT_HERE: c_int = 1;
    BOUNDARY.fallible("objmapper", NOT_HERE, || {
        // SAFETY: varnishd's own arguments.
        let ctx = unsafe { context(ctx) };
        let Some(delivery) = engine::delivery() else { return NOT_HERE };
        let req = ctx.req;
        // SAFETY: a context's request is the calling thread's.
        let Some(oc) = (unsafe { body_of(req) }) else { return NOT_HERE };
        // SAFETY: as above.
        let always = unsafe {
            match (delivery.place)(oc.cast()) {
                Place::Elsewhere => return NOT_HERE,
                Place::Heap => {
                    let delivered = Delivered { sent: 0, copied: 0, why: Copied::Heap };
                    (delivery.delivered)(oc.cast(), &raw const delivered);
                    return NOT_HERE;
                }
                Place::Off => Copied::Off,
                Place::File if (*req).esi_level > 0 => Copied::Filtered,
                Place::File if !std::ptr::eq((*req).transport, &raw const HTTP1_transport) => Copied::Http2,
                Place::File => Copied::None,
            }
        };
        // SAFETY: the request's workspace, of this thread.
        let state = unsafe { WS_Alloc(ctx.ws, size_of::<State>() as u32) }.cast::<State>();
        if state.is_null() {
            // varnishd sees the overflow.
            return NOT_HERE;
        }
        // SAFETY: WS_Alloc gives memory of that size, aligned to a pointer; `private` is our entry's. varnishd has set the
        // request's boc, if there is one, before it initialises filters.
        unsafe {
            let streaming = !(*req).boc.is_null();
            let (wish, idle, copied) = (Wish::Bytes, idle_send_timeout(req), [0; Copied::COUNT]);
            state.write(State { magic: STATE_MAGIC, oc, wish, always, streaming, idle, sent: 0, copied });
            *private = state.cast();
        }
        0
    })
}

/// The session's `idle_send_timeout`, in seconds: VCL's, or the parameter (SESS_TMO in cache/cache.h); at least a millisecond, as
/// varnishd tells the socket (VTIM_timeval_sock), and infinite without a limit. A change of the parameter takes effect on sockets of
/// later connections only.
///
/// # Safety
/// `req` must be the calling thread's.
unsafe fn idle_send_timeout(req: *const req) -> f64 {
    // SAFETY: by contract: a request has a session. varnishd sets the pointer to its parameters before it loads a VCL.
    let (own, parameter) = unsafe { ((*(*req).sp).idle_send_timeout, (*cache_param).idle_send_timeout) };
    if own.is_nan() { parameter.max(1e-3) } else { own.max(1e-3) }
}

fn text(why: Copied) -> &'static str {
    match why {
        Copied::None => "",
        Copied::Small => "small pieces",
        Copied::Heap => "in heap",
        Copied::Streaming => "streaming, not in the file yet",
        Copied::Http2 => "HTTP/2",
        Copied::Chunked => "chunked",
        Copied::Filtered => "filtered",
        Copied::Off => "zero_copy=off",
        Copied::Other => "not possible",
    }
}

/// # Safety
/// `private` must be our entry's.
unsafe fn state_of<'a>(private: *mut c_void) -> Option<&'a mut State> {
    // SAFETY: by contract; `init` put it there, and only this delivery's thread uses it, in one of our calls at a time.
    unsafe { private.cast::<State>().as_mut() }.filter(|state| state.magic == STATE_MAGIC)
}

fn is_chunked(line: NonNull<V1l>) -> bool {
    // SAFETY: a line of this thread's delivery (`delivery_filters::line`).
    unsafe { (*line.as_ptr()).ciov < (*line.as_ptr()).siov }
}

/// What the engine asks before it iterates the body of a delivery.
unsafe extern "C" fn wish(vdc: *const c_void) -> Wish {
    BOUNDARY.fallible("wish", Wish::Bytes, || {
        let vdc = vdc.cast::<vdp_ctx>();
        // SAFETY: the engine's promise: the calling thread's delivery, whose list does not change meanwhile.
        unsafe {
            if !has_magic(vdc) {
                return Wish::Bytes;
            }
            let mut alone = true;
            for entry in delivery_filters::entries(vdc) {
                if std::ptr::eq(entry.vdp, SENDER.address()) {
                    let line = delivery_filters::entry(entry.list.vtqe_next)
                        .and_then(|last| delivery_filters::line(last))
                        .filter(|line| !is_chunked(*line));
                    let (Some(_), Some(state)) = (line, state_of(entry.priv_)) else { return Wish::Bytes };
                    if state.always != Copied::None {
                        return if alone { Wish::Kernel } else { Wish::Bytes };
                    }
                    state.wish = if alone { Wish::Spans } else { Wish::Both };
                    return state.wish;
                }
                alone &= std::ptr::eq(entry.vdp, &raw const VDP_range);
            }
        }
        Wish::Bytes
    })
}

unsafe extern "C" fn bytes(
    vdc: *mut vdp_ctx,
    act: vdp_action,
    private: *mut *mut c_void,
    ptr: *const c_void,
    len: isize,
) -> c_int {
    BOUNDARY.fallible("objmapper", -1, || {
        // SAFETY: varnishd's own arguments: this thread's delivery and our entry's private.
        unsafe {
            let Some(state) = state_of(*private) else { return -1 };
            let size = usize::try_from(len).unwrap_or(0);
            if size == 0 {
                return VDP_bytes(vdc, act, ptr, len);
            }
            if state.always != Copied::None {
                state.add_copied(state.always, size as u64);
                return VDP_bytes(vdc, act, ptr, len);
            }
            let mut span = Span { fd: -1, how: objmapper_abi::How::Auto, offset: 0 };
            let in_file = engine::delivery()
                .is_some_and(|delivery| (delivery.span)(ptr.cast(), size, &raw mut span))
                .then_some(span);
            let Some(span) = in_file else {
                state.add_copied(why_not(vdc, state.streaming), size as u64);
                return VDP_bytes(vdc, act, ptr, len);
            };
            let line = delivery_filters::entry((*vdc).nxt)
                .and_then(|next| delivery_filters::line(next))
                .filter(|line| !is_chunked(*line));
            let Some(line) = line.filter(|_| size >= LEAST) else {
                let why = if line.is_some() { Copied::Small } else { Copied::Filtered };
                return copy(vdc, state, why, act, ptr, span, 0..size);
            };
            if deliver_send::unpace(line, size)
                && let Some(delivery) = engine::delivery()
            {
                (delivery.unpaced)(state.oc.cast());
            }
            match deliver_send::send(line, &span, size, state.idle) {
                Ok(()) => {
                    state.sent += size as u64;
                    accounted(vdc, act, size);
                    0
                }
                Err(Failed::Broken { sent }) => {
                    state.sent += sent as u64;
                    accounted(vdc, act, size);
                    -1
                }
                Err(Failed::Unable { sent }) => {
                    state.sent += sent as u64;
                    copy(vdc, state, Copied::Other, act, ptr, span, sent..size)
                }
                Err(Failed::Unreadable { sent, errno }) => {
                    state.sent += sent as u64;
                    accounted(vdc, act, sent);
                    unreadable(errno)
                }
            }
        }
    })
}

/// Counts with the next entry, which did not see them, bytes that went their own way: as VDP_bytes does.
///
/// # Safety
/// `vdc` must be what our filter was called with.
unsafe fn accounted(vdc: *mut vdp_ctx, act: vdp_action, size: usize) {
    // SAFETY: by contract; the next entry is this delivery's, and no other thread touches it.
    unsafe {
        let next = (*vdc).nxt;
        (*next).calls += 1;
        (*next).bytes_in += size as u64;
        if act == VDP_END {
            (*next).end = VDP_END;
        }
        (*vdc).bytes_done = size as u64;
    }
}

/// Passes bytes of a file on as bytes, for the reason `why`: those of `part`, before which all are sent already.
///
/// # Safety
/// `vdc` must be what our filter was called with, `ptr` and `span` what stands for the bytes.
unsafe fn copy(
    vdc: *mut vdp_ctx,
    state: &mut State,
    why: Copied,
    act: vdp_action,
    ptr: *const c_void,
    span: Span,
    part: Range<usize>,
) -> c_int {
    let Range { start: from, end: size } = part;
    // SAFETY: by contract.
    unsafe {
        let mut result = 0;
        if state.wish != Wish::Spans && from == 0 {
            state.add_copied(why, size as u64);
            return VDP_bytes(vdc, act, ptr, size as isize);
        }
        // What was sent is counted with the next entry, but is no call of its own.
        (*(*vdc).nxt).bytes_in += from as u64;
        let mut buffer = [0_u8; LEAST];
        let mut at = from;
        while at < size && result == 0 {
            let want = buffer.len().min(size - at);
            let got = match deliver_send::read(&span, at, &mut buffer[..want]) {
                Ok(got) => got,
                Err(errno) => {
                    result = unreadable(errno);
                    break;
                }
            };
            at += got;
            state.add_copied(why, got as u64);
            let last = at == size;
            let act = if last && act == VDP_END { VDP_END } else { VDP_FLUSH };
            result = VDP_bytes(vdc, act, buffer.as_ptr().cast(), got as isize);
        }
        (*vdc).bytes_done = size as u64;
        result
    }
}

/// Tells the engine that the file being handed out cannot be read: the delivery fails, and the object leaves the cache.
fn unreadable(errno: c_int) -> c_int {
    if let Some(delivery) = engine::delivery() {
        // SAFETY: any thread may call it; this one is in the call that handed the file out.
        unsafe { (delivery.unreadable)(errno) };
    }
    -1
}

/// Why bytes are not in a file.
///
/// # Safety
/// `vdc` must be what our filter was called with.
unsafe fn why_not(vdc: *const vdp_ctx, streaming: bool) -> Copied {
    // SAFETY: by contract.
    unsafe {
        let Some(line) = delivery_filters::entry((*vdc).nxt).and_then(|next| delivery_filters::line(next)) else {
            return Copied::Filtered;
        };
        for entry in delivery_filters::entries(vdc) {
            if std::ptr::eq(entry.vdp, SENDER.address()) {
                break;
            }
            if !std::ptr::eq(entry.vdp, &raw const VDP_range) {
                return Copied::Filtered;
            }
        }
        match streaming {
            _ if is_chunked(line) => Copied::Chunked,
            true => Copied::Streaming,
            false => Copied::Heap,
        }
    }
}

unsafe extern "C" fn fini(vdc: *mut vdp_ctx, private: *mut *mut c_void) -> c_int {
    BOUNDARY.fallible("objmapper", 0, || {
        // SAFETY: varnishd's own arguments: this thread's delivery and our entry's private; the request still
        // references its object. The log is this transaction's.
        unsafe {
            let state = state_of(std::mem::replace(&mut *private, null_mut()));
            let (Some(state), Some(delivery)) = (state, engine::delivery()) else { return 0 };
            let delivered = state.delivered();
            let Delivered { sent, copied, why } = delivered;
            if sent + copied == 0 || !has_magic(state.oc) {
                return 0;
            }
            (delivery.delivered)(state.oc.cast(), &raw const delivered);
            let mut line = Line::new();
            line.text("objmapper: delivery sent ").number(sent).text(" copied ").number(copied);
            if copied > 0 {
                line.text(": ").text(text(why));
            }
            line.log((*vdc).vsl);
        }
        0
    })
}
