//! What vmodtool.py made of `vmod_objmapper.vcc`: the prototypes of our entry points, with which the build compares our functions, and
//! the table that varnishd reads when it loads the library.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

/// Bindings to `vcc_if.h`.
#[allow(missing_docs, non_camel_case_types, non_upper_case_globals, non_snake_case, unused, unnameable_types)]
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn, unreachable_pub)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/vcc_if.rs"));
}

pub(crate) use generated::{vmod_data, vmod_objmapper_director};

/// Fails the build if one of our functions does not have the type that vmodtool.py declares for it.
macro_rules! same_types {
    ($($name:ident($($arg:tt),*)),* $(,)?) => {
        $(const _: () = {
            let mut _function: unsafe extern "C" fn($($arg),*) -> _ = generated::$name;
            _function = crate::entry::$name;
        };)*
    };
}

same_types! {
    vmod_event(_, _, _),
    vmod_version(_),
    vmod_set_uri_prefix(_, _, _),
    vmod_restore(_, _),
    vmod_status(_, _),
    vmod_purge(_, _, _),
    vmod_purge_tags(_, _, _, _),
    vmod_refresh(_),
    vmod_ignore_busy(_),
    vmod_is_fetch(_, _),
    vmod_deliver(_),
    vmod_director__init(_, _, _, _, _, _, _, _, _, _, _, _, _, _),
    vmod_director__fini(_),
    vmod_director_set_backend(_, _, _),
    vmod_director_backend(_, _),
    vmod_director_set_uri(_, _, _),
    vmod_director_set_wait(_, _, _),
    vmod_director_uri(_, _),
    vmod_director_purge(_, _, _, _),
    vmod_director_publish(_, _, _),
    vmod_director_status(_, _),
}

unsafe extern "C" {
    /// The table in vmodtool.py's C, under the name that build.rs gives it.
    static objmapper_vmod_data: vmod_data;
}

/// Room for the table under the name by which varnishd looks for it.
#[repr(transparent)]
pub(crate) struct Exported(UnsafeCell<MaybeUninit<vmod_data>>);

// SAFETY: it is written once, by `export`, before dlopen(3) returns; from then on it is only read.
unsafe impl Sync for Exported {}

/// The table. Of a Rust cdylib only what Rust defines is exported, so that the C one is copied here.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub(crate) static Vmod_objmapper_Data: Exported = Exported(UnsafeCell::new(MaybeUninit::uninit()));

#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = export;

extern "C" fn export() {
    // SAFETY: the loader calls this once, before either table can be found; `vmod_data` is plain data.
    unsafe { Vmod_objmapper_Data.0.get().cast::<vmod_data>().write(std::ptr::read(&raw const objmapper_vmod_data)) };
}
