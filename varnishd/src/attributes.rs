//! The attributes of an object (Varnish: `include/tbl/obj_attr.h`).
//!
//! An attribute is of fixed size, or variable: written once, by the fetch, before the object is found.

use varnishd_sys::attr;
use varnishd_sys::bindings::{OF_CHGCE, OF_ESIPROC, OF_GZIPED, ObjGetAttr, ObjSetAttr};

use crate::objcore::Objcore;
use crate::raw::RawAttribute;
use crate::worker::Worker;

/// Bytes of the gzip attribute: four big-endian u64, positions in bits.
pub const GZIP_BITS_SIZE: usize = attr::GZIPBITS_SIZE;

/// Flags of a body, as they are in the object's attribute.
pub mod body_flags {
    use super::{OF_CHGCE, OF_ESIPROC, OF_GZIPED};

    /// The body is a gzip file.
    pub const GZIPPED: u8 = OF_GZIPED as u8;
    /// The body's coding is another than the origin's: a strong ETag was made weak.
    pub const RECODED: u8 = OF_CHGCE as u8;
    /// The body was parsed for ESI.
    pub const ESI: u8 = OF_ESIPROC as u8;
    /// All flags that describe the body alone.
    pub const ALL: u8 = GZIPPED | RECODED | ESI;
}

/// A part of a fixed layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed {
    /// Where it begins.
    pub offset: usize,
    /// Its bytes.
    pub size: usize,
}

impl Fixed {
    const fn first(size: usize) -> Fixed {
        Fixed { offset: 0, size }
    }

    const fn then(self, size: usize) -> Fixed {
        Fixed { offset: self.offset + self.size, size }
    }
}

/// The length of the body, a big-endian u64: the first of the fixed attributes.
pub const LENGTH: Fixed = Fixed::first(attr::LEN_SIZE);
const VXID: Fixed = LENGTH.then(attr::VXID_SIZE);
const LAST_MODIFIED: Fixed = VXID.then(attr::LASTMODIFIED_SIZE);
const GZIP_BITS: Fixed = LAST_MODIFIED.then(attr::GZIPBITS_SIZE);
const FLAGS: Fixed = GZIP_BITS.then(attr::FLAGS_SIZE);

/// Bytes of all fixed attributes in the layout of [`Attribute::Fixed`].
pub const FIXED_SIZE: usize = (FLAGS.offset + FLAGS.size).next_multiple_of(8);

/// An attribute, by what a storage must do for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// Of fixed size, at this place.
    Fixed(Fixed),
    /// The key of Vary: variable.
    Vary,
    /// The head: variable.
    Headers,
    /// What the ESI parser made: variable, and set when the body is complete.
    EsiData,
}

impl Attribute {
    /// Returns the attribute of a number; `None` for one that is not in the table.
    #[inline]
    pub fn of(number: RawAttribute) -> Option<Attribute> {
        Some(match number {
            attr::OA_LEN => Attribute::Fixed(LENGTH),
            attr::OA_VXID => Attribute::Fixed(VXID),
            attr::OA_LASTMODIFIED => Attribute::Fixed(LAST_MODIFIED),
            attr::OA_GZIPBITS => Attribute::Fixed(GZIP_BITS),
            attr::OA_FLAGS => Attribute::Fixed(FLAGS),
            attr::OA_VARY => Attribute::Vary,
            attr::OA_HEADERS => Attribute::Headers,
            attr::OA_ESIDATA => Attribute::EsiData,
            _ => return None,
        })
    }
}

/// Returns an attribute's bytes. They stay where they are as long as the object.
fn get<'a>(oc: Objcore<'a>, wrk: Worker<'_>, number: RawAttribute) -> Option<&'a [u8]> {
    let mut len = 0;
    // SAFETY: a referenced object; the bytes are as many as the storage says.
    unsafe {
        let found = ObjGetAttr(wrk.as_ptr(), oc.as_ptr(), number as _, &raw mut len);
        (!found.is_null()).then(|| std::slice::from_raw_parts(found.cast::<u8>(), usize::try_from(len).unwrap_or(0)))
    }
}

/// Returns an object's flags that describe its body (see [`body_flags`]).
pub fn flags(oc: Objcore<'_>, wrk: Worker<'_>) -> u8 {
    get(oc, wrk, attr::OA_FLAGS)
        .filter(|flags| flags.len() == attr::FLAGS_SIZE)
        .map_or(0, |flags| flags[0] & body_flags::ALL)
}

/// Returns an object's gzip attribute, if its body is a gzip file.
pub fn gzip_bits(oc: Objcore<'_>, wrk: Worker<'_>) -> Option<[u8; GZIP_BITS_SIZE]> {
    if flags(oc, wrk) & body_flags::GZIPPED == 0 {
        return None;
    }
    get(oc, wrk, attr::OA_GZIPBITS)?.try_into().ok()
}

/// Sets an object's gzip attribute. Returns false if the storage has no room for it.
///
/// # Safety
/// The calling thread must be the fetch of the object, which is not complete.
pub unsafe fn set_gzip_bits(oc: Objcore<'_>, wrk: Worker<'_>, bits: &[u8; GZIP_BITS_SIZE]) -> bool {
    // SAFETY: by contract; the bytes are copied.
    let set = unsafe {
        ObjSetAttr(wrk.as_ptr(), oc.as_ptr(), attr::OA_GZIPBITS as _, bits.len() as isize, bits.as_ptr().cast())
    };
    !set.is_null()
}
