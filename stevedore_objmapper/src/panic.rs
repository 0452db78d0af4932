//! The lines about an object of ours in varnishd's panic message. The object may be absent or damaged: nothing is assumed of it but
//! what its magic number says.

use varnishd::raw::{RawObjcore, RawText};
use varnishd::text;

use crate::BOUNDARY;
use crate::object::object_for_panic;

/// Describes the object of `oc`.
pub(crate) unsafe extern "C" fn panic(to: *mut RawText, oc: *const RawObjcore) {
    BOUNDARY.fallible("panic", (), || {
        // SAFETY: varnishd's objcore; `object_for_panic` assumes nothing about what it points to.
        let described = match unsafe { object_for_panic(oc) } {
            None => "objmapper = no object,\n".to_owned(),
            Some(object) => {
                let body = object.body.describe();
                let len = body.len.map_or("busy".to_owned(), |len| len.to_string());
                let kept_in = match body {
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
                    "objmapper = {object:p} {{{}head = {}, body = {{len = {len}, in = {kept_in}}}}},\n",
                    if object.kept.is_reloaded() { "of an earlier process, " } else { "" },
                    object.head_size()
                )
            }
        };
        // SAFETY: varnishd's own text.
        unsafe { text::append(to, &described) };
    });
}
