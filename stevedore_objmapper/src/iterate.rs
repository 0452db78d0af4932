//! The body, on its way out.
//!
//! Whoever receives bytes without OBJ_ITER_FLUSH may keep their address until the object is dereferenced (HTTP/1
//! queues it for `writev`). Only a piece in heap of a settled body is that stable; everything else is sent with
//! OBJ_ITER_FLUSH, after which nobody keeps the address.
//!
//! A delivery whose filter sends from files is told which file the bytes are in; if nobody else looks at them, it is given
//! addresses that only stand for them, and nothing is mapped ([`crate::spans`]).

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null;

use objmapper_engine::engine::Engine;
use objmapper_engine::span::{FileSpan, NoSpan, Span};
use varnish_stevedore_sys::bindings::{BOS_FAILED, BOS_FINISHED, OBJ_ITER_END, OBJ_ITER_FLUSH, ObjWaitExtend};
use varnish_stevedore_sys::functions::{HSH_DerefBoc, HSH_Kill, HSH_RefBoc};
use varnish_stevedore_sys::obj_methods::ObjIterateFn;
use varnish_stevedore_sys::{boc, objcore, worker};

use crate::boundary::fallible;
use crate::object::{Object, object_of};
use crate::spans::{Handing, Handover, largest_folio};

/// A final iteration gives back what was read in steps of this.
const FINAL_STEP: usize = 1 << 20;
/// What has no address is read in pieces of this.
const READ_STEP: usize = 128 << 10;

/// Where the bytes go.
struct Sink {
    func: ObjIterateFn,
    priv_: *mut c_void,
    finished: bool,
    handover: Handover,
    /// Where bytes are read to that have no address; empty until they are.
    scratch: Vec<u8>,
}

/// Bytes of a body that can be handed out.
enum Bytes {
    /// At an address, and perhaps also part of a file.
    There(Span, Option<FileSpan>),
    /// Part of a file.
    InFile(FileSpan),
}

impl Bytes {
    fn len(&self) -> usize {
        match self {
            Bytes::There(span, _) => span.len,
            Bytes::InFile(span) => usize::try_from(span.len).unwrap_or(usize::MAX),
        }
    }

    fn total(&self) -> u64 {
        match self {
            Bytes::There(span, _) => span.total,
            Bytes::InFile(span) => span.total,
        }
    }

    fn is_stable(&self) -> bool {
        matches!(self, Bytes::There(span, _) if span.is_stable())
    }
}

impl Sink {
    /// The bytes from `offset` on.
    fn bytes(&self, engine: &Engine, object: &Object, offset: u64) -> Result<Bytes, NoSpan> {
        match self.handover {
            Handover::Bytes => Ok(Bytes::There(object.body.span(engine, offset)?, None)),
            Handover::Both(_) => {
                let span = object.body.span(engine, offset)?;
                let file = if span.is_stable() { None } else { object.body.file_span(engine, offset)? };
                Ok(Bytes::There(span, file))
            }
            Handover::Spans(_, nowhere) => match object.body.file_span(engine, offset)? {
                Some(span) => Ok(Bytes::InFile(FileSpan { len: span.len.min(nowhere.len() as u64), ..span })),
                None => Ok(Bytes::There(object.body.span(engine, offset)?, None)),
            },
        }
    }

    /// Hands out the first `len` of them. `Err`: they are lost.
    fn send_bytes(&mut self, flags: c_uint, bytes: &Bytes, len: usize) -> Result<c_int, Lost> {
        match (bytes, self.handover) {
            (Bytes::There(span, Some(file)), Handover::Both(how) | Handover::Spans(how, _)) => {
                let _handing = Handing::out(span.ptr.as_ptr(), len.min(file.len as usize), file, how);
                Ok(self.send_span(flags, span, len))
            }
            (Bytes::InFile(file), Handover::Spans(how, nowhere)) => {
                let result = {
                    let _handing = Handing::out(nowhere.start().cast(), len, file, how);
                    self.send(flags, nowhere.start(), len)
                };
                if result < 0 && file.is_lost() { Err(Lost) } else { Ok(result) }
            }
            // Nowhere in anybody's file: whatever an outer iteration (ESI) hands out, it is found there only by address.
            (Bytes::There(span, _), _) if span.is_stable() => Ok(self.send_span(flags, span, len)),
            (Bytes::There(span, _), _) => {
                let _handing = Handing::nothing();
                Ok(self.send_span(flags, span, len))
            }
            (Bytes::InFile(_), _) => Ok(-1),
        }
    }

    /// Gives back what may be when `offset` bytes were handed out.
    fn done_with(&self, engine: &Engine, object: &Object, offset: u64) {
        let unit = if self.handover.may_send_pages() { largest_folio() } else { 1 };
        object.body.give_back(engine, offset / unit * unit, unit);
    }

    fn send(&mut self, flags: c_uint, ptr: *const c_void, len: usize) -> c_int {
        self.finished |= flags & OBJ_ITER_END != 0;
        // SAFETY: varnishd's function with its argument, called on the thread that it asked us to iterate on. The
        // bytes stay readable during the call, and beyond it if OBJ_ITER_FLUSH is not among the flags (see above).
        unsafe { (self.func)(self.priv_, flags, ptr, len as isize) }
    }

    fn send_span(&mut self, flags: c_uint, span: &Span, len: usize) -> c_int {
        self.send(flags, span.ptr.as_ptr().cast_const().cast(), len)
    }
}

pub(crate) unsafe extern "C" fn objiterator(
    wrk: *mut worker,
    oc: *mut objcore,
    priv_: *mut c_void,
    func: Option<ObjIterateFn>,
    is_final: c_int,
) -> c_int {
    fallible("objiterator", -1, || {
        let Some(func) = func else { return -1 };
        // SAFETY: varnishd's objcore of ours, referenced by the caller.
        let (engine, object) = unsafe { object_of(oc) };
        let handover = Handover::of(engine, func, priv_);
        let mut sink = Sink { func, priv_, finished: false, handover, scratch: Vec::new() };
        let is_final = is_final != 0;
        // SAFETY: as above.
        let boc = unsafe { HSH_RefBoc(oc) };
        let result = if boc.is_null() {
            cached(engine, object, &mut sink, is_final)
        } else {
            // SAFETY: `boc` is referenced until HSH_DerefBoc below.
            unsafe { followed(wrk, oc, boc, engine, object, &mut sink, is_final) }
        };
        if !boc.is_null() {
            // SAFETY: the reference of HSH_RefBoc above.
            unsafe { HSH_DerefBoc(wrk, oc) };
        }
        if matches!(result, Err(Lost)) {
            object.body.count_loss(engine);
            // SAFETY: the caller's reference to the objcore.
            unsafe { HSH_Kill(oc) };
        }
        result.unwrap_or(-1)
    })
}

/// The body is gone.
struct Lost;

/// The body is complete.
fn cached(engine: &Engine, object: &Object, sink: &mut Sink, is_final: bool) -> Result<c_int, Lost> {
    let mut offset = 0;
    loop {
        let (len, total, result) = match sink.bytes(engine, object, offset) {
            Ok(bytes) => {
                let len = if is_final { bytes.len().min(FINAL_STEP) } else { bytes.len() };
                let flush = if is_final || !bytes.is_stable() { OBJ_ITER_FLUSH } else { 0 };
                let end = end_flag(offset + len as u64, bytes.total());
                (len, bytes.total(), sink.send_bytes(flush | end, &bytes, len)?)
            }
            Err(NoSpan::Unmapped) => {
                let total = object.body.len();
                let (len, result) =
                    read(engine, object, sink, offset, total, |end| end_flag(end, total)).ok_or(Lost)?;
                (len, total, result)
            }
            // Empty, or freed.
            Err(NoSpan::End) if offset == 0 && object.body.is_empty() => return Ok(0),
            Err(NoSpan::End | NoSpan::NotNow(_)) => return Ok(-1),
            Err(NoSpan::Lost(_)) => return Err(Lost),
        };
        offset += len as u64;
        if is_final {
            sink.done_with(engine, object, if result == 0 { offset } else { total });
        }
        if result != 0 || offset >= total {
            return Ok(result);
        }
    }
}

fn end_flag(offset: u64, total: u64) -> c_uint {
    if offset == total { OBJ_ITER_END } else { 0 }
}

/// Sends bytes that have no address, before `to`, by reading them, with the flag that `end` has for the offset of their
/// end. Returns how many, and what became of it.
fn read(
    engine: &Engine,
    object: &Object,
    sink: &mut Sink,
    offset: u64,
    to: u64,
    end: impl FnOnce(u64) -> c_uint,
) -> Option<(usize, c_int)> {
    let mut buffer = std::mem::take(&mut sink.scratch);
    let want = READ_STEP.min(usize::try_from(to - offset).unwrap_or(READ_STEP));
    if buffer.len() < want {
        buffer.resize(want, 0);
    }
    let sent = match object.body.read_at(engine, &mut buffer[..want], offset) {
        Ok(len) if len > 0 => {
            let flags = OBJ_ITER_FLUSH | end(offset + len as u64);
            Some((len, sink.send(flags, buffer.as_ptr().cast(), len)))
        }
        _ => None,
    };
    sink.scratch = buffer;
    sent
}

/// The body still comes in.
///
/// # Safety
/// `wrk` and `oc` are varnishd's, and the calling thread holds a reference to `boc`, the objcore's boc.
unsafe fn followed(
    wrk: *mut worker,
    oc: *mut objcore,
    boc: *mut boc,
    engine: &Engine,
    object: &Object,
    sink: &mut Sink,
    is_final: bool,
) -> Result<c_int, Lost> {
    // SAFETY: referenced by contract; only ever grows, and 0 just means that the headers may go ahead.
    if unsafe { (&raw const (*boc).fetched_so_far).read_volatile() } == 0 {
        let result = sink.send(OBJ_ITER_FLUSH, null(), 0);
        if result != 0 {
            return Ok(result);
        }
    }
    let follower = object.body.follow();
    let mut offset = 0;
    let result = loop {
        let mut state = 0;
        // SAFETY: by contract; no lock of ours is held while it waits.
        let there = unsafe { ObjWaitExtend(wrk, oc, offset, &raw mut state) };
        if state == BOS_FAILED {
            break -1;
        }
        if there <= offset {
            break 0;
        }
        let end = |offset| if state == BOS_FINISHED { end_flag(offset, there) } else { 0 };
        let (len, result) = match sink.bytes(engine, object, offset) {
            Ok(bytes) => {
                let len =
                    bytes.len().min((there - offset) as usize).min(if is_final { FINAL_STEP } else { usize::MAX });
                (len, sink.send_bytes(OBJ_ITER_FLUSH | end(offset + len as u64), &bytes, len)?)
            }
            Err(NoSpan::Unmapped) => match read(engine, object, sink, offset, there, end) {
                Some(sent) => sent,
                None => break -1,
            },
            Err(_) => break -1,
        };
        offset += len as u64;
        if is_final {
            sink.done_with(engine, object, offset);
        }
        // Everything was handed out with OBJ_ITER_FLUSH.
        follower.reached(offset);
        if result != 0 {
            break result;
        }
    };
    if sink.finished {
        return Ok(result);
    }
    let at_end = sink.send(OBJ_ITER_END, null(), 0);
    Ok(if result == 0 { at_end } else { result })
}
