//! What varnishd's panic message says of an object of ours.

use std::ffi::CString;

use varnishd_sys::bindings::VSB_printf;
use varnishd_sys::{objcore, vsb};

use crate::BOUNDARY;
use crate::object::object_for_panic;

pub(crate) unsafe extern "C" fn panic(vsb: *mut vsb, oc: *const objcore) {
    BOUNDARY.fallible("panic", (), || {
        // SAFETY: varnishd's objcore; `object_for_panic` assumes nothing about what it points to.
        let text = match unsafe { object_for_panic(oc) } {
            None => "objmapper = no object,\n".to_owned(),
            Some(object) => {
                let body = object.body.describe();
                let len = body.len.map_or("busy".to_owned(), |len| len.to_string());
                let place = match body {
                    _ if body.object.is_some() => {
                        format!("objmapper object {:016x}", body.object.unwrap_or_default())
                    }
                    _ if body.in_draft && body.heap_pieces > 0 => {
                        format!("draft and heap ({} pieces)", body.heap_pieces)
                    }
                    _ if body.in_draft => "draft".to_owned(),
                    _ if body.heap_pieces > 0 => format!("heap ({} pieces)", body.heap_pieces),
                    _ => "nowhere".to_owned(),
                };
                format!(
                    "objmapper = {object:p} {{head = {}, body = {{len = {len}, in = {place}}}}},\n",
                    object.head_size()
                )
            }
        };
        let text = CString::new(text).unwrap_or_default();
        // SAFETY: varnishd's vsb; a format that takes one NUL-terminated string.
        unsafe { VSB_printf(vsb, c"%s".as_ptr(), text.as_ptr()) };
    });
}
