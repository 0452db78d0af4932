//! The filters of a fetch (Varnish: `struct vfp_ctx`): a list from the one that writes to storage, which is pulled first, to
//! the source of the body.
//!
//! VFP_Open (`cache/cache_fetch_proc.c`) opens the filters from the list's end to its beginning and takes the one before
//! after an init has returned, so that an init may remove entries before its own and push others: those were not opened yet
//! and have nothing to give back.

use std::ffi::CStr;
use std::ptr::{eq, null_mut};

use varnishd_sys::bindings::{vfp_ctx, vfp_entry};

/// The entries of a list, from its beginning. The one that was returned last may be removed.
///
/// # Safety
/// `vc` must be that of the calling thread's fetch, and stay as it is but for such removals as long as the iterator is used.
#[inline]
pub unsafe fn entries(vc: *const vfp_ctx) -> impl Iterator<Item = *mut vfp_entry> {
    // SAFETY: by contract.
    let mut next = unsafe { (*vc).vfp.vtqh_first };
    std::iter::from_fn(move || {
        let entry = next;
        if entry.is_null() {
            return None;
        }
        // SAFETY: by contract: an entry of the list, in the fetch's workspace.
        next = unsafe { (*entry).list.vtqe_next };
        Some(entry)
    })
}

/// The name of an entry's filter.
///
/// # Safety
/// `entry` must be of a list of the calling thread's fetch.
pub unsafe fn name<'a>(entry: *const vfp_entry) -> &'a [u8] {
    // SAFETY: by contract; a filter and its name are statics of varnishd's or of a VMOD's.
    unsafe { CStr::from_ptr((*(*entry).vfp).name) }.to_bytes()
}

/// Removes an entry that was not opened yet, as VTAILQ_REMOVE does.
///
/// # Safety
/// `entry` must be of the list of `vc`, which must be the calling thread's, in the init of an entry behind `entry`.
pub unsafe fn remove(vc: *mut vfp_ctx, entry: *mut vfp_entry) {
    // SAFETY: by contract: `prev` is the `next` of the entry before this one, or the list's `first`.
    unsafe {
        let (next, prev) = ((*entry).list.vtqe_next, (*entry).list.vtqe_prev);
        *prev = next;
        if next.is_null() {
            (*vc).vfp.vtqh_last = prev;
        } else {
            (*next).list.vtqe_prev = prev;
        }
        if eq((*vc).vfp_nxt, entry) {
            (*vc).vfp_nxt = next;
        }
        (*entry).list.vtqe_next = null_mut();
    }
}
