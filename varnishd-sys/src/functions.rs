//! Functions that varnishd exports but whose headers it does not install.

use core::ffi::{c_char, c_int, c_uint, c_void};

use crate::ban::Ban;
use crate::bindings::{boc, objcore, req, vtim_dur, vtim_real, worker};
use crate::objhead::ObjHead;
use crate::stevedore::{Lru, Stevedore};

unsafe extern "C" {
    /// Registers a stevedore (Varnish: `storage/mgt_stevedore.c`). The structure is copied, the name is not.
    pub fn STV_Register(stv: *const Stevedore, altname: *const c_char);

    /// Goes through the storages of this process, the transient one included: from null to the first, from one to the next
    /// (Varnish: `storage/stevedore.c`). 0: there is no further one.
    pub fn STV__iter(stv: *mut *mut Stevedore) -> c_int;

    /// A new, empty list (Varnish: `storage/storage_lru.c`, as all `LRU_*`).
    pub fn LRU_Alloc() -> *mut Lru;
    /// Puts a cached object at the list's end. The object must have no boc.
    pub fn LRU_Add(oc: *mut objcore, now: vtim_real);
    /// Takes an object off its list.
    pub fn LRU_Remove(oc: *mut objcore);
    /// Evicts the oldest object that is not in use; 0: there is none, or the worker's `nuke_limit` is reached.
    pub fn LRU_NukeOne(wrk: *mut worker, lru: *mut Lru) -> c_int;
    /// Moves a used object to the list's end, now and then.
    pub fn LRU_Touch(wrk: *mut worker, oc: *mut objcore, now: vtim_real);

    /// A reference to the boc while the object is being fetched, else NULL (Varnish: `cache/cache_hash.c`).
    pub fn HSH_RefBoc(oc: *const objcore) -> *mut boc;
    /// Gives it back; may call `objbocdone`.
    pub fn HSH_DerefBoc(wrk: *mut worker, oc: *mut objcore);
    /// Makes an object unavailable to look-ups and has the expiry thread drop it.
    pub fn HSH_Kill(oc: *mut objcore);

    /// Takes a reference to an object that has one already.
    pub fn HSH_Ref(oc: *mut objcore);
    /// Finds the objhead of a request, and what is to be done. With `hash_always_miss` it is made if there is none, gets a
    /// new, busy objcore, and `HSH_MISS` (0) is returned: of the request nothing else is then looked at but its worker, head,
    /// digest, and that it waits for nothing.
    pub fn HSH_Lookup(req: *mut req, found: *mut *mut objcore, busy: *mut *mut objcore) -> c_uint;
    /// Purges the objects of an objhead, but for busy ones: all durations 0 takes them away; else each duration that is
    /// not NaN is reduced. Returns their number. The worker's `aws` is used.
    pub fn HSH_Purge(
        wrk: *mut worker,
        oh: *mut ObjHead,
        now: vtim_real,
        ttl: vtim_dur,
        grace: vtim_dur,
        keep: vtim_dur,
    ) -> c_uint;

    /// Makes an objcore that is busy, with a boc and without references (Varnish: `cache/cache_obj.c`).
    pub fn ObjNew(wrk: *const worker) -> *mut objcore;
    /// Enters an object of an earlier process, to which there is one reference, at the head of the list of its digest, tested by
    /// `ban` and all older ones, and hands it to the expiry thread. In Varnish 7.7 it must be busy, later it must not.
    pub fn HSH_Insert(wrk: *mut worker, digest: *const c_void, oc: *mut objcore, ban: *mut Ban);

    /// Puts specs of bans, one after the other, into the list at the places that their times say (Varnish:
    /// `cache/cache_ban.c`). In the CLI thread; a spec that is none, or of the future, is asserted at some time.
    pub fn BAN_Reload(specs: *const u8, len: c_uint);

    /// Adds a worker's counters to the global ones, and clears them (Varnish: `cache/cache_pool.c`).
    pub fn Pool_Sumstat(wrk: *const worker);
}
