//! The body, on its way out.
//!
//! A consumer of bytes without [`Flags::FLUSH`] may keep their address until the object is dereferenced (HTTP/1
//! queues it for `writev`). Only a piece in heap of a settled body is that stable; everything else is sent with
//! [`Flags::FLUSH`], after which no address is kept.
//!
//! A file may fail while it is read. Bytes that filters look at are therefore read into a buffer, and never through a mapping, where
//! an I/O error is SIGBUS. A mapping is used where only the kernel looks (HTTP/1 without a filter), and a delivery whose filter
//! sends from files is told which file the bytes are in; if no other filter looks at them, it is given addresses that only stand
//! for them, and nothing is mapped ([`crate::spans`]).
//!
//! A body that cannot be read leaves the cache, and its delivery ends as one that is not whole.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr::null;

use objmapper_abi::DeliveryMode;
use objmapper_engine::engine::Engine;
use objmapper_engine::span::{FileSpan, MappedSpan, NoSpan, Part, Span};
use varnishd::iteration::{Consumer, FetchFailed, Flags, Following};
use varnishd::objcore::Objcore;
use varnishd::raw::{RawConsumer, RawObjcore, RawWorker};
use varnishd::worker::Worker;

use crate::BOUNDARY;
use crate::object::{Object, object_of};
use crate::read_buffer::ReadBuffer;
use crate::spans::{Route, SpanGuard, largest_folio};

/// A final iteration gives back what was read in steps of this.
const FINAL_STEP: u64 = 1 << 20;

/// The reasons for which a body is not passed on to its end, besides the consumer's own.
enum Failure {
    /// It cannot be read, now or ever: its object leaves the cache.
    Lost(io::Error),
    /// There are no descriptors, or no memory.
    NotNow(io::Error),
    /// There is no more of it: the fetch has failed.
    Incomplete,
}

impl From<FetchFailed> for Failure {
    fn from(_: FetchFailed) -> Failure {
        Failure::Incomplete
    }
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

/// The consumer of the bytes, and how they are passed on to it.
struct Sink {
    consumer: Consumer,
    /// The last piece was passed on as such.
    finished: bool,
    route: Route,
    /// Bytes of files are read into it; none until they are.
    buffer: Option<ReadBuffer>,
}

impl Sink {
    /// Returns the bytes from `offset` on.
    fn part(&self, engine: &Engine, object: &Object, offset: u64) -> Result<Part, NoSpan> {
        match self.route.mode {
            DeliveryMode::Kernel => object.body.part_for_kernel(engine, offset),
            DeliveryMode::Bytes | DeliveryMode::Both | DeliveryMode::Spans => object.body.part(engine, offset),
        }
    }

    /// Passes on the first bytes of a part, at most `most`, with the flags that `flags` has for so many. Returns how many, and the
    /// consumer's result.
    fn send_part(&mut self, part: &Part, most: u64, flags: impl Fn(u64) -> Flags) -> Result<(u64, c_int), Failure> {
        let len = part.len().min(most);
        match (part, self.route.placeholder()) {
            (Part::Addressable(span), _) => Ok((len, self.send_memory(flags(len), span, len))),
            (Part::Mapped(span), _) => Ok((len, self.send_mapped(flags(len), span, len)?)),
            (Part::InFile(file), Some(placeholder)) => {
                let len = len.min(placeholder.len() as u64);
                let guard = SpanGuard::new(placeholder.start().cast(), len as usize, file, self.route.how);
                let result = self.send(flags(len), placeholder.start(), len as usize);
                guard.end().map_err(Failure::Lost)?;
                Ok((len, result))
            }
            (Part::InFile(file), None) => self.send_read(file, len, flags),
        }
    }

    fn send_memory(&mut self, flags: Flags, span: &Span, len: u64) -> c_int {
        // Whatever an outer iteration (ESI) passes on, these bytes are in no file: they are found there only by address.
        let _guard = flags.contains(Flags::FLUSH).then(SpanGuard::without_file);
        self.send(flags, span.ptr.as_ptr().cast_const().cast(), len as usize)
    }

    fn send_mapped(&mut self, flags: Flags, span: &MappedSpan, len: u64) -> Result<c_int, Failure> {
        let _guard = SpanGuard::without_file();
        let ptr = span.ptr().cast();
        span.lend(|| self.send(flags, ptr, len as usize), |result| *result < 0).map_err(Failure::Lost)
    }

    /// Reads bytes of a file, and passes them on.
    fn send_read(&mut self, file: &FileSpan, len: u64, flags: impl Fn(u64) -> Flags) -> Result<(u64, c_int), Failure> {
        let mut buffer = self.buffer.take().unwrap_or_else(ReadBuffer::take);
        let want = buffer.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        let read = file.read(&mut buffer[..want])?;
        let guard = if self.route.may_send_pages() {
            SpanGuard::new(buffer.as_ptr(), read, file, self.route.how)
        } else {
            SpanGuard::without_file()
        };
        let result = self.send(flags(read as u64) | Flags::FLUSH, buffer.as_ptr().cast(), read);
        guard.end().map_err(Failure::Lost)?;
        self.buffer = Some(buffer);
        Ok((read as u64, result))
    }

    /// Gives back what may be when `offset` bytes were passed on.
    fn done_with(&self, engine: &Engine, object: &Object, offset: u64) {
        let unit = if self.route.may_send_pages() { largest_folio() } else { 1 };
        object.body.give_back(engine, offset / unit * unit, unit);
    }

    fn send(&mut self, flags: Flags, ptr: *const c_void, len: usize) -> c_int {
        self.finished |= flags.contains(Flags::END);
        // SAFETY: the bytes stay readable during the call, and beyond it without FLUSH (see above); those of a placeholder are
        // not read.
        unsafe { self.consumer.consume(flags, ptr, len) }
    }
}

/// Passes an object's body on to a consumer.
pub(crate) unsafe extern "C" fn objiterator(
    wrk: *mut RawWorker,
    oc: *mut RawObjcore,
    private: *mut c_void,
    func: Option<RawConsumer>,
    is_final: c_int,
) -> c_int {
    BOUNDARY.fallible("objiterator", -1, || {
        let Some(func) = func else { return -1 };
        // SAFETY: varnishd's own arguments, in its thread; the object is referenced by the caller.
        let (oc, wrk, consumer) = unsafe { (Objcore::new(oc), Worker::new(wrk), Consumer::new(func, private)) };
        // SAFETY: as above, and ours.
        let (engine, object) = unsafe { object_of(oc) };
        let delivery = consumer.delivery();
        let route = delivery.map_or(Route::BYTES, |delivery| Route::of(engine, delivery));
        let mut sink = Sink { consumer, finished: false, route, buffer: None };
        let is_final = is_final != 0;
        // Referenced until the outcome is known to the delivery.
        let following = Following::begin(oc, wrk);
        let result = match &following {
            None => cached(oc, engine, object, &mut sink, is_final),
            Some(following) => followed(following, engine, object, &mut sink, is_final),
        };
        result.unwrap_or_else(|failure| {
            match &failure {
                Failure::Lost(error) => {
                    object.body.lose(engine, error);
                    oc.kill();
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
        })
    })
}

/// Passes on a body that does not come in any more.
fn cached(
    oc: Objcore<'_>,
    engine: &Engine,
    object: &Object,
    sink: &mut Sink,
    is_final: bool,
) -> Result<c_int, Failure> {
    // The boc of a fetch that has failed is gone too. varnishd sets the flag before that, under the mutex under which the boc was
    // looked for.
    if oc.has_failed() || object.body.len() != object.length() {
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
        let flush = Flags::FLUSH.only_if(is_final || !part.is_stable());
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

fn end_flag(offset: u64, total: u64) -> Flags {
    Flags::END.only_if(offset == total)
}

/// Passes on a body that still comes in.
fn followed(
    following: &Following<'_>,
    engine: &Engine,
    object: &Object,
    sink: &mut Sink,
    is_final: bool,
) -> Result<c_int, Failure> {
    // Nothing yet: the headers may go ahead.
    if !following.has_bytes() {
        let result = sink.send(Flags::FLUSH, null(), 0);
        if result != 0 {
            return Ok(result);
        }
    }
    let follower = object.body.follow();
    let mut offset = 0;
    let result = loop {
        // No lock of ours is held while it waits.
        let progress = following.wait(offset)?;
        if progress.len <= offset {
            break 0;
        }
        let end = |offset| end_flag(offset, progress.len).only_if(progress.is_complete);
        let part = sink.part(engine, object, offset)?;
        let most = (progress.len - offset).min(if is_final { FINAL_STEP } else { u64::MAX });
        let (len, result) = sink.send_part(&part, most, |len| Flags::FLUSH | end(offset + len))?;
        offset += len;
        if is_final {
            sink.done_with(engine, object, offset);
        }
        // Everything was passed on with FLUSH.
        follower.reached(offset);
        if result != 0 {
            break result;
        }
    };
    if sink.finished {
        return Ok(result);
    }
    let at_end = sink.send(Flags::END, null(), 0);
    Ok(if result == 0 { at_end } else { result })
}
