//! Fetch filters: the source of a record's body, and one that only observes that a response becomes an object.
//!
//! [`SOURCE`]: [`source_init`] runs after vcl_backend_response and before the object is allocated; it bounds the object's lifetime and
//! has the storage engine adopt the record, if it can. [`source_pull`] then delivers the body: nothing but counts where the record is
//! adopted, else copied bytes, verified at the end. [`source_fini`] ends the ticket if there is no object.
//!
//! [`OBSERVER`] stands in front of the backend's own source, lets itself be bypassed, and does the same at the end.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;

use objmapper_abi::{Adoption, Bytes, Record};
use objmapper_records::{Counters, Hit, Summer};
use varnishd::attributes::{self, body_flags};
use varnishd::boundary::Constant;
use varnishd::context::Context;
use varnishd::esi::{self, Parser};
use varnishd::fetch::Busyobj;
use varnishd::fetch_filters::{self, BYPASSED, END, ERROR, Entry, Filters, OK};
use varnishd::objcore::Lifetime;
use varnishd::raw::{FetchFilter, FetchStatus, RawContext, RawFilterEntry, RawFilters};

use crate::BOUNDARY;
use crate::director::Director;
use crate::engine::{self, Storage};
use crate::pending::PendingPublish;
use crate::request::Request;

/// A record that is being served.
pub(crate) struct Serving {
    pub(crate) pending: PendingPublish,
    pub(crate) hit: Hit,
    /// The origin has just confirmed it: its lifetime is what VCL makes of the new head.
    pub(crate) renewed: bool,
    /// Bytes of the body that the object has.
    offset: Cell<u64>,
    /// The storage engine was told to adopt it.
    announced: Cell<bool>,
    /// The object's gzip attribute is still to be set.
    gzip: Cell<bool>,
    sum: RefCell<Option<Summer>>,
}

impl Serving {
    pub(crate) fn new(pending: PendingPublish, hit: Hit, renewed: bool) -> Serving {
        // What has been read already is verified.
        let sum = (hit.record.bytes().is_none() && hit.record.sum().is_some()).then(Summer::new);
        Serving {
            pending,
            hit,
            renewed,
            offset: Cell::new(0),
            announced: Cell::new(false),
            gzip: Cell::new(false),
            sum: RefCell::new(sum),
        }
    }

    fn director(&self) -> &Director {
        self.pending.director()
    }
}

/// The filter that is the source of a record's body. It works on a [`Serving`].
// SAFETY: varnishd only reads a filter.
pub(crate) static SOURCE: Constant<FetchFilter> =
    unsafe { Constant::new(fetch_filters::filter(c"objmapper", source_init, Some(source_pull), source_fini)) };
/// The filter that observes what becomes of the backend's response. It works on a [`PendingPublish`].
// SAFETY: varnishd only reads a filter.
pub(crate) static OBSERVER: Constant<FetchFilter> =
    unsafe { Constant::new(fetch_filters::filter(c"objmapper", observer_init, None, observer_fini)) };

/// The fetch, the filters and our entry of a call by varnishd.
struct Call<'a> {
    bo: Busyobj<'a>,
    filters: Filters<'a>,
    entry: Entry<'a>,
}

impl<'a> Call<'a> {
    /// # Safety
    /// The arguments must be what varnishd called a filter's init with.
    unsafe fn of_init(ctx: *const RawContext, vc: *mut RawFilters, entry: *mut RawFilterEntry) -> Option<Call<'a>> {
        // SAFETY: by contract.
        unsafe { Some(Call { bo: Context::new(ctx).fetch()?, filters: Filters::new(vc), entry: Entry::new(entry)? }) }
    }
}

unsafe extern "C" fn observer_init(
    ctx: *const RawContext,
    vc: *mut RawFilters,
    entry: *mut RawFilterEntry,
) -> FetchStatus {
    BOUNDARY.fallible("observer_init", BYPASSED, || {
        // SAFETY: varnishd's own arguments, in the fetch thread, after vcl_backend_response; our filter's entry.
        unsafe {
            if let Some(call) = Call::of_init(ctx, vc, entry)
                && let Some(pending) = call.entry.value::<PendingPublish>()
            {
                pending.refuse_uncacheable(call.bo);
            }
        }
        BYPASSED
    })
}

unsafe extern "C" fn observer_fini(vc: *mut RawFilters, entry: *mut RawFilterEntry) {
    BOUNDARY.fallible("observer_fini", (), || {
        // SAFETY: varnishd's own arguments, and our filter's entry, which is closed.
        let (filters, pending) =
            unsafe { (Filters::new(vc), Entry::new(entry).and_then(|entry| entry.take_value::<PendingPublish>())) };
        if let Some(pending) = pending {
            pending.closed(filters.have_made_object(), filters.log());
        }
    });
}

/// Runs after vcl_backend_response, before the object is allocated.
unsafe extern "C" fn source_init(
    ctx: *const RawContext,
    vc: *mut RawFilters,
    entry: *mut RawFilterEntry,
) -> FetchStatus {
    BOUNDARY.fallible("source_init", ERROR, || {
        // SAFETY: varnishd's own arguments, in the fetch thread.
        let Some(call) = (unsafe { Call::of_init(ctx, vc, entry) }) else { return ERROR };
        // SAFETY: our filter's entry.
        let Some(serving) = (unsafe { call.entry.value::<Serving>() }) else { return ERROR };
        // SAFETY: the object is not allocated yet.
        unsafe { bound_lifetime(call.bo, serving) };
        serving.pending.refuse_uncacheable(call.bo);
        // SAFETY: in the init of the source.
        unsafe {
            if !parse_esi(&call, serving) {
                return ERROR;
            }
            // VCL has worked on the origin's head, and the filters that coded the body are not run again.
            call.bo.describe_coding(serving.hit.head.flags);
            if keep_gzip(&call, serving) && !call.bo.is_uncacheable() {
                adopt(&call, serving);
            }
        }
        OK
    })
}

/// Bounds the object's lifetime by that of its record. An object of a record that was invalidated meanwhile answers the request that
/// asked before that, and no other.
///
/// # Safety
/// Called before the object is allocated.
unsafe fn bound_lifetime(bo: Busyobj<'_>, serving: &Serving) {
    let (head, director) = (&serving.hit.head, serving.director());
    if !serving.hit.still_valid(&director.l2, &Request(bo.client_request())) {
        bo.log().decision(&format!("{} invalidated meanwhile", director.name));
        serving.pending.give_up("invalidated meanwhile", bo.log());
        // SAFETY: by contract.
        unsafe { bo.set_lifetime(Lifetime { ttl: 0.0, grace: 0.0, keep: 0.0, ..bo.object().lifetime() }) };
        return;
    }
    if serving.renewed || bo.is_uncacheable() {
        return;
    }
    let own = bo.object().lifetime();
    let end = (own.origin + f64::from(own.ttl)).min(head.t_origin + f64::from(head.ttl));
    let origin = own.origin.min(head.t_origin);
    let ttl = ((end - origin) as f32).min(head.ttl.max(0.0));
    // SAFETY: by contract.
    unsafe { bo.set_lifetime(Lifetime { origin, ttl, ..own }) };
}

/// Has the body of a record that was parsed for ESI parsed again. Returns false if it cannot be.
///
/// # Safety
/// Called in [`source_init`].
unsafe fn parse_esi(call: &Call<'_>, serving: &Serving) -> bool {
    if !esi::is_esi(serving.hit.head.flags) || serving.hit.record.body_len() == 0 {
        return true;
    }
    // These two are the filters that the director pushes.
    let is_ours = |entry: Entry<'_>| entry.is_of(&SOURCE) || entry.is_of(&OBSERVER);
    // SAFETY: by contract.
    let parser = unsafe { esi::ensure_parser(call.bo, call.filters, is_ours) };
    let why = match parser {
        Parser::Present => return true,
        Parser::Unwanted => "ESI instructions stay as they are: beresp.filters has no filter for them",
        Parser::NoRoom => "ESI instructions cannot be parsed: raise workspace_backend",
    };
    call.bo.log().decision(&format!("{} {why}", serving.director().name));
    parser == Parser::Unwanted
}

/// Takes the gzip check of a record off that was checked when it was published. Returns true if every filter that is left passes
/// on what it reads where it was read to.
///
/// # Safety
/// Called in [`source_init`].
unsafe fn keep_gzip(call: &Call<'_>, serving: &Serving) -> bool {
    let filters = call.filters;
    // An ETag that was weakened because of it stays weak after varnishd's own 304.
    filters.add_body_flags(serving.hit.head.flags & body_flags::RECODED);
    let mut in_place = true;
    for entry in filters.entries_before(call.entry) {
        let name = entry.name();
        if name == b"testgunzip" && serving.hit.head.gzip_bits.is_some() && entry.is_before(call.entry) {
            // SAFETY: by contract: ours is the last entry of the list.
            unsafe { filters.remove(entry) };
            filters.add_body_flags(body_flags::GZIPPED);
            serving.gzip.set(true);
        } else if !matches!(name, b"testgunzip" | b"esi") {
            in_place = false;
        }
    }
    in_place
}

/// Has the storage engine make the record the object's body, if it can.
///
/// # Safety
/// Called before the object is allocated.
unsafe fn adopt(call: &Call<'_>, serving: &Serving) {
    let (director, record) = (serving.director(), &serving.hit.record);
    let storage = Storage::at(call.bo.storage().cast());
    let (Some(table), Some(storage)) = (engine::table(), storage) else { return };
    if record.body_len() == 0 || storage.instance() != Some(record.instance()) {
        return;
    }
    let uri = record.uri().as_bytes();
    let announced = Record {
        instance: record.instance(),
        uri: Bytes { ptr: uri.as_ptr(), len: uri.len() },
        object: record.entry().object,
        body_len: record.body_len(),
        file_len: record.entry().length,
    };
    // SAFETY: by contract, in the fetch; all that the record points to lives during the call.
    let adoption = unsafe { (table.adopt)(storage.address(), call.filters.object().address(), &raw const announced) };
    match adoption {
        Adoption::Adopted => serving.announced.set(true),
        Adoption::Elsewhere | Adoption::Small => {}
        Adoption::Gone | Adoption::Outage(_) => {
            if let Adoption::Outage(outage) = adoption {
                director.counters().outage(outage);
            }
            call.bo.log().decision(&format!("{} copies: {adoption:?}", director.name));
        }
    }
}

unsafe extern "C" fn source_pull(
    vc: *mut RawFilters,
    entry: *mut RawFilterEntry,
    ptr: *mut c_void,
    len: *mut isize,
) -> FetchStatus {
    BOUNDARY.fallible("source_pull", ERROR, || {
        // SAFETY: varnishd's own arguments, with room for `*len` bytes.
        let (filters, pulled) = unsafe {
            let filters = Filters::new(vc);
            let serving = Entry::new(entry).and_then(|entry| entry.value::<Serving>());
            let room = usize::try_from(*len).unwrap_or(0);
            let pulled = serving
                .ok_or_else(|| "no record".to_owned())
                .and_then(|serving| serving.pull(filters, ptr.cast(), room));
            (filters, pulled)
        };
        let (done, status) = match pulled {
            Ok((done, status)) => (done, status),
            Err(why) => (0, filters.error(&why)),
        };
        // SAFETY: the caller's own variable.
        unsafe { *len = isize::try_from(done).unwrap_or(0) };
        status
    })
}

impl Serving {
    /// Delivers the next bytes of the body: how many, and whether there are more.
    ///
    /// # Safety
    /// `filters` must be of the fetch, whose object is allocated, and `ptr` room that varnishd had from its storage.
    unsafe fn pull(&self, filters: Filters<'_>, ptr: *mut u8, room: usize) -> Result<(usize, FetchStatus), String> {
        let (director, record, offset) = (self.director(), &self.hit.record, self.offset.get());
        if self.gzip.replace(false)
            && let Some(bits) = &self.hit.head.gzip_bits
            // SAFETY: by contract, in the fetch.
            && !unsafe { attributes::set_gzip_bits(filters.object(), filters.worker(), bits) }
        {
            return Err("no room for the gzip attribute".to_owned());
        }
        let want = usize::try_from(record.body_len() - offset).unwrap_or(usize::MAX).min(room);
        let mut done = 0;
        if self.announced.get()
            && let Some(table) = engine::table()
        {
            // SAFETY: by contract.
            done = unsafe { (table.adopted)(filters.object().address(), ptr, want) };
            if done > 0 {
                if offset == 0 {
                    Counters::add(&director.counters().c_adopted, 1);
                }
                Counters::add(&director.counters().b_adopted, done as u64);
            }
        }
        if done == 0 && want > 0 {
            // SAFETY: by contract: no other thread reads or writes the room; it is written below before it is read.
            let room = unsafe {
                ptr.write_bytes(0, want);
                std::slice::from_raw_parts_mut(ptr, want)
            };
            done = self.copy(room, offset)?;
        }
        let offset = offset + done as u64;
        self.offset.set(offset);
        if offset < record.body_len() {
            return Ok((done, OK));
        }
        if !self.announced.get()
            && let (Some(sum), Some(wanted)) = (self.sum.borrow().as_ref(), record.sum())
            && sum.sum() != wanted
        {
            director.l2.discard(record, "checksum of the body", director.counters());
            return Err("record is damaged".to_owned());
        }
        Ok((done, END))
    }

    /// Copies bytes of the body from `offset` on.
    fn copy(&self, room: &mut [u8], offset: u64) -> Result<usize, String> {
        let (director, record) = (self.director(), &self.hit.record);
        let done = match record.bytes() {
            Some(bytes) => {
                let start = usize::try_from(offset).unwrap_or(bytes.len()).min(bytes.len());
                let piece = &bytes[start..(start + room.len()).min(bytes.len())];
                room[..piece.len()].copy_from_slice(piece);
                piece.len()
            }
            None => record.read_at(room, offset).map_err(|outage| {
                director.l2.discard(record, "file: it cannot be read", director.counters());
                format!("record cannot be read: {outage}")
            })?,
        };
        if done == 0 {
            return Err("record is shorter than it was".to_owned());
        }
        if let Some(sum) = self.sum.borrow_mut().as_mut() {
            sum.update(&room[..done]);
        }
        Counters::add(&director.counters().b_copied, done as u64);
        Ok(done)
    }
}

unsafe extern "C" fn source_fini(vc: *mut RawFilters, entry: *mut RawFilterEntry) {
    BOUNDARY.fallible("source_fini", (), || {
        // SAFETY: varnishd's own arguments, and our filter's entry, which is closed.
        let (filters, serving) =
            unsafe { (Filters::new(vc), Entry::new(entry).and_then(|entry| entry.take_value::<Serving>())) };
        let Some(serving) = serving else { return };
        serving.pending.closed(filters.have_made_object(), filters.log());
        if serving.announced.get()
            && let Some(table) = engine::table()
        {
            // SAFETY: the engine's functions may be called by any thread; what an object has taken is not cancelled.
            unsafe { (table.cancel_adoption)() };
        }
    });
}
