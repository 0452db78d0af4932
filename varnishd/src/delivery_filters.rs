//! The filters of a delivery (Varnish: `struct vdp_ctx`): a list from the one that takes the object's bytes to the one that
//! sends them.

use std::ptr::{NonNull, addr_eq};

use varnishd_sys::bindings::{vdp_ctx, vdp_entry};
use varnishd_sys::http1::{V1l, VDP_v1l};

use crate::cast::has_magic;

/// The entry at an address, if there is one.
///
/// # Safety
/// `entry` must be null or an entry of the calling thread's delivery that stays in its list during `'a`.
#[inline]
pub unsafe fn entry<'a>(entry: *const vdp_entry) -> Option<&'a vdp_entry> {
    // SAFETY: by contract.
    unsafe { has_magic(entry).then(|| &*entry) }
}

/// The entries of a list, from its beginning.
///
/// # Safety
/// `vdc` must be that of the calling thread's delivery, whose list does not change during `'a`.
#[inline]
pub unsafe fn entries<'a>(vdc: *const vdp_ctx) -> impl Iterator<Item = &'a vdp_entry> {
    // SAFETY: by contract.
    let mut next = unsafe { (*vdc).vdp.vtqh_first };
    std::iter::from_fn(move || {
        // SAFETY: by contract: an entry of the list, or null.
        let entry = unsafe { entry(next) }?;
        next = entry.list.vtqe_next;
        Some(entry)
    })
}

/// The HTTP/1 line that an entry is, if it is one.
///
/// # Safety
/// `entry` must be one of the calling thread's delivery.
pub unsafe fn line(entry: &vdp_entry) -> Option<NonNull<V1l>> {
    // SAFETY: by contract; the private of VDP_v1l is a V1l.
    unsafe { if addr_eq(entry.vdp, VDP_v1l) { V1l::checked(entry.priv_) } else { None } }
}
