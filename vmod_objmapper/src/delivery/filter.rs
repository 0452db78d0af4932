//! The delivery filter `objmapper`: sends what is in a file from there ([`super::send`]), and passes everything else on as bytes.
//!
//! Its place is behind all other filters ([`super::placement`]): what they change is not in the file any more, and parts of a
//! body (Range) are found there by their addresses.
//!
//! [`State`] is made by [`init`] in the request's workspace, used by one thread, and taken off by [`fini`], which reports the figures.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr::null_mut;

use objmapper_abi::{BodyLocation, Copied, Delivered, DeliveryMode, How, Span};
use varnishd::boundary::Constant;
use varnishd::context::Context;
use varnishd::delivery::{Delivery, is_end};
use varnishd::delivery_filters::{self, Init};
use varnishd::objcore::Objcore;
use varnishd::raw::{DeliveryAction, DeliveryFilter, RawContext, RawDelivery};
use varnishd::vsl::Line;

use super::send::{self, Failed};
use crate::BOUNDARY;
use crate::engine;

/// Fewer bytes than this are copied: flushing the head by itself and asking the file for its pages costs more.
const MIN_SENT: usize = 16 << 10;

const STATE_MAGIC: u32 = 0x6f62_6476;

/// The filter.
// SAFETY: varnishd only reads a filter.
pub(crate) static SENDER: Constant<DeliveryFilter> =
    unsafe { Constant::new(delivery_filters::filter(c"objmapper", Some(init), Some(bytes), Some(fini))) };

/// The state of one delivery.
#[derive(Clone, Copy)]
struct State {
    magic: u32,
    /// The object, which the request references; for the engine.
    oc: *const c_void,
    /// The mode that the engine was told.
    mode: DeliveryMode,
    /// The reason why every byte of this delivery is copied; `Copied::None` if the filter sends what it can.
    always: Copied,
    /// The body was still being fetched when the delivery began.
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

    /// Returns the figures, with the reason that stands for the most bytes.
    fn delivered(&self) -> Delivered {
        let most = Copied::ALL.into_iter().zip(self.copied).max_by_key(|(_, bytes)| *bytes);
        let why = most.filter(|(_, bytes)| *bytes > 0).map_or(Copied::None, |(why, _)| why);
        Delivered { sent: self.sent, copied: self.copied.iter().sum(), why }
    }
}

/// Has the engine ask for the mode of a delivery before it iterates a body.
pub(crate) fn listen() {
    if let Some(delivery) = engine::delivery() {
        // SAFETY: the engine's functions may be called by any thread; this library is never unloaded.
        unsafe { (delivery.on_iterate)(Some(mode)) };
    }
}

/// Counts with the engine a body in heap, for which the filter does nothing.
pub(super) fn count_heap(delivery: &objmapper_abi::Delivery, oc: Objcore<'_>) {
    let delivered = Delivered { sent: 0, copied: 0, why: Copied::Heap };
    // SAFETY: the caller references the object.
    unsafe { (delivery.delivered)(oc.address(), &raw const delivered) };
}

unsafe extern "C" fn init(ctx: *const RawContext, _vdc: *mut RawDelivery, private: *mut *mut c_void) -> c_int {
    BOUNDARY
        .fallible("objmapper", Init::NotPushed, || {
            // SAFETY: varnishd's own context.
            let ctx = unsafe { Context::new(ctx) };
            let Some(delivery) = engine::delivery() else { return Init::NotPushed };
            let Some(request) = ctx.request() else { return Init::NotPushed };
            let Some(oc) = request.delivered_object() else { return Init::NotPushed };
            // SAFETY: the request references its object.
            let always = match unsafe { (delivery.location)(oc.address()) } {
                BodyLocation::Elsewhere => return Init::NotPushed,
                BodyLocation::Heap => {
                    count_heap(delivery, oc);
                    return Init::NotPushed;
                }
                BodyLocation::Off => Copied::Off,
                BodyLocation::File if request.is_included() => Copied::Filtered,
                BodyLocation::File if !request.is_http1() => Copied::Http2,
                BodyLocation::File => Copied::None,
            };
            let state = State {
                magic: STATE_MAGIC,
                oc: oc.address(),
                mode: DeliveryMode::Bytes,
                always,
                streaming: request.is_streaming(),
                idle: request.idle_send_timeout(),
                sent: 0,
                copied: [0; Copied::COUNT],
            };
            // Without room varnishd sees the overflow.
            let Some(place) = ctx.workspace().place(state) else { return Init::NotPushed };
            // SAFETY: our entry's private.
            unsafe { *private = place.cast() };
            Init::Pushed
        })
        .into()
}

fn reason_text(why: Copied) -> &'static str {
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

/// Returns the mode of a delivery, for the engine.
unsafe extern "C" fn mode(vdc: *const c_void) -> DeliveryMode {
    BOUNDARY.fallible("mode", DeliveryMode::Bytes, || {
        // SAFETY: the engine's promise: the calling thread's delivery, whose list does not change meanwhile.
        let Some(delivery) = (unsafe { Delivery::new(vdc) }) else { return DeliveryMode::Bytes };
        let Some(position) = delivery.position_of(&SENDER) else { return DeliveryMode::Bytes };
        // SAFETY: our entry's private.
        let state = unsafe { state_of(position.private) };
        let (Some(_), Some(state)) = (position.line, state) else { return DeliveryMode::Bytes };
        match (state.always, position.is_first) {
            (Copied::None, true) => state.mode = DeliveryMode::Spans,
            (Copied::None, false) => state.mode = DeliveryMode::Both,
            (_, true) => return DeliveryMode::Kernel,
            (_, false) => return DeliveryMode::Bytes,
        }
        state.mode
    })
}

unsafe extern "C" fn bytes(
    vdc: *mut RawDelivery,
    action: DeliveryAction,
    private: *mut *mut c_void,
    ptr: *const c_void,
    len: isize,
) -> c_int {
    BOUNDARY.fallible("objmapper", -1, || {
        // SAFETY: varnishd's own arguments: this thread's delivery and our entry's private.
        let (Some(delivery), Some(state)) = (unsafe { (Delivery::of_call(vdc), state_of(*private)) }) else {
            return -1;
        };
        // SAFETY: what varnishd called with is passed on as it is.
        let pass = || unsafe { delivery.pass(action, ptr, len) };
        let size = usize::try_from(len).unwrap_or(0);
        if size == 0 {
            return pass();
        }
        if state.always != Copied::None {
            state.add_copied(state.always, size as u64);
            return pass();
        }
        let mut span = Span { fd: -1, how: How::Auto, offset: 0 };
        let in_file = engine::delivery()
            // SAFETY: this thread is in the call that passed it the bytes.
            .is_some_and(|engine| unsafe { (engine.span)(ptr.cast(), size, &raw mut span) });
        if !in_file {
            state.add_copied(copy_reason(delivery, state.streaming), size as u64);
            return pass();
        }
        let piece = Piece { delivery, action, ptr, span, size };
        let line = delivery.next_line().filter(|line| !line.is_chunked());
        let Some(line) = line.filter(|_| size >= MIN_SENT) else {
            let why = if line.is_some() { Copied::Small } else { Copied::Filtered };
            return piece.copy(state, why, 0..size);
        };
        if send::unpace(line, size)
            && let Some(engine) = engine::delivery()
        {
            // SAFETY: the request references the object.
            unsafe { (engine.unpaced)(state.oc) };
        }
        match send::send(line, &span, size, state.idle) {
            Ok(()) => {
                state.sent += size as u64;
                delivery.count_sent(action, size);
                0
            }
            Err(Failed::Broken { sent }) => {
                state.sent += sent as u64;
                delivery.count_sent(action, size);
                -1
            }
            Err(Failed::Unable { sent }) => {
                state.sent += sent as u64;
                piece.copy(state, Copied::Other, sent..size)
            }
            Err(Failed::Unreadable { sent, errno }) => {
                state.sent += sent as u64;
                delivery.count_sent(action, sent);
                unreadable(errno)
            }
        }
    })
}

/// A piece that is a part of a file.
struct Piece<'a> {
    delivery: Delivery<'a>,
    action: DeliveryAction,
    /// Its address, which stands for the bytes, or is theirs.
    ptr: *const c_void,
    span: Span,
    size: usize,
}

impl Piece<'_> {
    /// Passes bytes of the piece on as bytes, for the reason `why`: those of `part`, before which all are sent already.
    fn copy(&self, state: &mut State, why: Copied, part: Range<usize>) -> c_int {
        let Range { start: from, end: size } = part;
        if state.mode != DeliveryMode::Spans && from == 0 {
            state.add_copied(why, size as u64);
            // SAFETY: what varnishd called with, whose bytes are at the address.
            return unsafe { self.delivery.pass(self.action, self.ptr, size as isize) };
        }
        // What was sent is counted with the next entry, but is no call of its own.
        self.delivery.count_part_sent(from);
        let mut result = 0;
        let mut buffer = [0_u8; MIN_SENT];
        let mut at = from;
        while at < size && result == 0 {
            let want = buffer.len().min(size - at);
            let got = match send::read(&self.span, at, &mut buffer[..want]) {
                Ok(got) => got,
                Err(errno) => {
                    result = unreadable(errno as c_int);
                    break;
                }
            };
            at += got;
            state.add_copied(why, got as u64);
            result = self.delivery.pass_flushed(at == size && is_end(self.action), &buffer[..got]);
        }
        self.delivery.set_done(self.size);
        result
    }
}

/// Reports to the engine that the file being passed on cannot be read: the delivery fails, and the object leaves the cache.
fn unreadable(errno: c_int) -> c_int {
    if let Some(engine) = engine::delivery() {
        // SAFETY: any thread may call it; this one is in the call that passed the file on.
        unsafe { (engine.unreadable)(errno) };
    }
    -1
}

/// Returns the reason why bytes are not in a file.
fn copy_reason(delivery: Delivery<'_>, streaming: bool) -> Copied {
    let Some(line) = delivery.next_line() else { return Copied::Filtered };
    let is_first = delivery.position_of(&SENDER).is_none_or(|position| position.is_first);
    match streaming {
        _ if !is_first => Copied::Filtered,
        _ if line.is_chunked() => Copied::Chunked,
        true => Copied::Streaming,
        false => Copied::Heap,
    }
}

unsafe extern "C" fn fini(vdc: *mut RawDelivery, private: *mut *mut c_void) -> c_int {
    BOUNDARY.fallible("objmapper", 0, || {
        // SAFETY: varnishd's own arguments: this thread's delivery and our entry's private.
        let (delivery, state) =
            unsafe { (Delivery::of_call(vdc), state_of(std::mem::replace(&mut *private, null_mut()))) };
        let (Some(delivery), Some(state), Some(engine)) = (delivery, state, engine::delivery()) else { return 0 };
        let delivered = state.delivered();
        let Delivered { sent, copied, why } = delivered;
        if sent + copied == 0 {
            return 0;
        }
        // SAFETY: the request still references its object.
        unsafe { (engine.delivered)(state.oc, &raw const delivered) };
        let mut line = Line::new();
        line.text("objmapper: delivery sent ").number(sent).text(" copied ").number(copied);
        if copied > 0 {
            line.text(": ").text(reason_text(why));
        }
        line.write(delivery.log());
        0
    })
}
