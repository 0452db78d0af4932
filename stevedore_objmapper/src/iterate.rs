//! The body, on its way out.
//!
//! Whoever receives bytes without OBJ_ITER_FLUSH may keep their address until the object is dereferenced (HTTP/1
//! queues it for `writev`). Only a piece in heap of a settled body is that stable; everything else is sent with
//! OBJ_ITER_FLUSH, after which nobody keeps the address.
//!
//! A file may fail while it is read. What filters look at is therefore read into a buffer, and never through a mapping, where
//! an I/O error is SIGBUS. A mapping is used where only the kernel looks (HTTP/1 without a filter), and a delivery whose filter
//! sends from files is told which file the bytes are in; if nobody else looks at them, it is given addresses that only stand
//! for them, and nothing is mapped ([`crate::spans`]).
//!
//! A body that cannot be read leaves the cache, and its delivery ends as one that is not whole.

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ptr::null;

use objmapper_engine::engine::Engine;
use objmapper_engine::span::{FileSpan, MappedSpan, NoSpan, Part, Span};
use varnishd::cast::checked_objcore;
use varnishd_sys::bindings::{BOS_FAILED, BOS_FINISHED, OBJ_ITER_END, OBJ_ITER_FLUSH, OC_F_FAILED, ObjWaitExtend};
use varnishd_sys::functions::{HSH_DerefBoc, HSH_Kill, HSH_RefBoc};
use varnishd_sys::obj_methods::ObjIterateFn;
use varnishd_sys::{boc, objcore, worker};

use crate::BOUNDARY;
use crate::delivery::Delivery;
use crate::object::{Object, object_of};
use crate::read_buffer::ReadBuffer;
use crate::spans::{Handing, Handover, largest_folio};

/// A final iteration gives back what was read in steps of this.
const FINAL_STEP: u64 = 1 << 20;

/// Why a body was not handed out to its end, besides the consumer's own will.
enum Failure {
    /// It cannot be read, now or ever: its object leaves the cache.
    Lost(io::Error),
    /// There are no descriptors, or no memory.
    NotNow(io::Error),
    /// There is no more of it: the fetch has failed.
    Incomplete,
}

impl From<NoSpan> for Failure {
    fn from(why: NoSpan) -> Failure {
        match why {
            NoSpan::Lost(error) => Failure::Lost(error),
            NoSpan::NotNow(error) => Failure::NotNow(error),
            NoSpan::End => Failure::Incomplete,
        }
    }
}

/// Where the bytes go.
struct Sink {
    func: ObjIterateFn,
    priv_: *mut c_void,
    finished: bool,
    handover: Handover,
    /// Where bytes of files are read to; none until they are.
    buffer: Option<ReadBuffer>,
}

impl Sink {
    /// The bytes from `offset` on.
    fn part(&self, engine: &Engine, object: &Object, offset: u64) -> Result<Part, NoSpan> {
        match self.handover {
            Handover::Kernel => object.body.part_for_kernel(engine, offset),
            Handover::Bytes | Handover::Both(_) | Handover::Spans(..) => object.body.part(engine, offset),
        }
    }

    /// Hands out the first bytes of a part, at most `most`, with the flags that `flags` has for so many. Returns how many, and the
    /// consumer's result.
    fn send_part(&mut self, part: &Part, most: u64, flags: impl Fn(u64) -> c_uint) -> Result<(u64, c_int), Failure> {
        let len = part.len().min(most);
        match (part, self.handover) {
            (Part::Addressable(span), _) => Ok((len, self.send_there(flags(len), span, len))),
            (Part::Mapped(span), _) => Ok((len, self.send_mapped(flags(len), span, len)?)),
            (Part::InFile(file), Handover::Spans(how, nowhere)) => {
                let len = len.min(nowhere.len() as u64);
                let handing = Handing::out(nowhere.start().cast(), len as usize, file, how);
                let result = self.send(flags(len), nowhere.start(), len as usize);
                handing.end().map_err(Failure::Lost)?;
                Ok((len, result))
            }
            (Part::InFile(file), _) => self.send_read(file, len, flags),
        }
    }

    fn send_there(&mut self, flags: c_uint, span: &Span, len: u64) -> c_int {
        // Nowhere in anybody's file: whatever an outer iteration (ESI) hands out, it is found there only by address.
        let _handing = (flags & OBJ_ITER_FLUSH != 0).then(Handing::nothing);
        self.send(flags, span.ptr.as_ptr().cast_const().cast(), len as usize)
    }

    fn send_mapped(&mut self, flags: c_uint, span: &MappedSpan, len: u64) -> Result<c_int, Failure> {
        let _handing = Handing::nothing();
        let ptr = span.ptr().cast();
        span.lend(|| self.send(flags, ptr, len as usize), |result| *result < 0).map_err(Failure::Lost)
    }

    /// Reads bytes of a file, and hands them out.
    fn send_read(&mut self, file: &FileSpan, len: u64, flags: impl Fn(u64) -> c_uint) -> Result<(u64, c_int), Failure> {
        let mut buffer = self.buffer.take().unwrap_or_else(ReadBuffer::take);
        let want = buffer.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        let read = file.read(&mut buffer[..want])?;
        let handing = match self.handover {
            Handover::Both(how) => Handing::out(buffer.as_ptr(), read, file, how),
            _ => Handing::nothing(),
        };
        let result = self.send(flags(read as u64) | OBJ_ITER_FLUSH, buffer.as_ptr().cast(), read);
        handing.end().map_err(Failure::Lost)?;
        self.buffer = Some(buffer);
        Ok((read as u64, result))
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
}

pub(crate) unsafe extern "C" fn objiterator(
    wrk: *mut worker,
    oc: *mut objcore,
    priv_: *mut c_void,
    func: Option<ObjIterateFn>,
    is_final: c_int,
) -> c_int {
    BOUNDARY.fallible("objiterator", -1, || {
        let Some(func) = func else { return -1 };
        // SAFETY: varnishd's objcore of ours, referenced by the caller.
        let (engine, object) = unsafe { object_of(oc) };
        // SAFETY: varnishd's own arguments, in its thread.
        let delivery = unsafe { Delivery::of(func, priv_) };
        let handover = delivery.map_or(Handover::Bytes, |delivery| Handover::of(engine, delivery));
        let mut sink = Sink { func, priv_, finished: false, handover, buffer: None };
        let is_final = is_final != 0;
        // SAFETY: as above.
        let boc = unsafe { HSH_RefBoc(oc) };
        let result = if boc.is_null() {
            // SAFETY: as above.
            unsafe { cached(oc, engine, object, &mut sink, is_final) }
        } else {
            // SAFETY: `boc` is referenced until HSH_DerefBoc below.
            unsafe { followed(wrk, oc, boc, engine, object, &mut sink, is_final) }
        };
        let result = result.unwrap_or_else(|failure| {
            match &failure {
                Failure::Lost(error) => {
                    object.body.lose(engine, error);
                    // SAFETY: the caller's reference to the objcore.
                    unsafe { HSH_Kill(oc) };
                }
                Failure::NotNow(error) => engine.not_now(error),
                Failure::Incomplete => {}
            }
            if let Some(delivery) = delivery {
                match failure {
                    Failure::Lost(_) | Failure::NotNow(_) => delivery.abort(),
                    Failure::Incomplete => delivery.fail(),
                }
            }
            -1
        });
        if !boc.is_null() {
            // SAFETY: the reference of HSH_RefBoc above.
            unsafe { HSH_DerefBoc(wrk, oc) };
        }
        result
    })
}

/// The body does not come in any more.
///
/// # Safety
/// `oc` must be varnishd's objcore of `object`, referenced by the caller.
unsafe fn cached(
    oc: *const objcore,
    engine: &Engine,
    object: &Object,
    sink: &mut Sink,
    is_final: bool,
) -> Result<c_int, Failure> {
    // The boc of a fetch that has failed is gone too. HSH_Fail sets the flag before that, under the mutex under which the boc was
    // looked for.
    // SAFETY: by contract; another flag in the same word may be set meanwhile, hence a volatile read.
    let flags = unsafe { (&raw const (*checked_objcore(oc)).flags).read_volatile() };
    if u32::from(flags) & OC_F_FAILED != 0 || object.body.len() != object.length() {
        return Err(Failure::Incomplete);
    }
    let mut offset = 0;
    loop {
        let part = match sink.part(engine, object, offset) {
            Ok(part) => part,
            // Empty.
            Err(NoSpan::End) if object.body.is_empty() => return Ok(0),
            // Such as what was freed.
            Err(why) => return Err(why.into()),
        };
        let total = part.total();
        let flush = if is_final || !part.is_stable() { OBJ_ITER_FLUSH } else { 0 };
        let most = if is_final { FINAL_STEP } else { u64::MAX };
        let (len, result) = sink.send_part(&part, most, |len| flush | end_flag(offset + len, total))?;
        offset += len;
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
) -> Result<c_int, Failure> {
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
            return Err(Failure::Incomplete);
        }
        if there <= offset {
            break 0;
        }
        let end = |offset| if state == BOS_FINISHED { end_flag(offset, there) } else { 0 };
        let part = sink.part(engine, object, offset)?;
        let most = (there - offset).min(if is_final { FINAL_STEP } else { u64::MAX });
        let (len, result) = sink.send_part(&part, most, |len| OBJ_ITER_FLUSH | end(offset + len))?;
        offset += len;
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
