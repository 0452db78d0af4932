//! What varnishd sees of us: the tables, and the function that runs when the library is loaded.
//!
//! varnishd loads a `-E` library in the child, as the master's user, before it configures the storages
//! (`mgt/mgt_child.c`: `vext_load`, `STV_Init`, then the jail).

use std::ffi::{CString, c_char};
use std::ptr::{null, null_mut};

use varnishd::boundary::infallible;
use varnishd_sys::functions::{LRU_Touch, STV_Register};
use varnishd_sys::obj_methods::ObjMethods;
use varnishd_sys::stevedore::{STEVEDORE_MAGIC, Stevedore, TailqEntry};
use varnishd_sys::version;

use crate::{bans, buffer, fetch, iterate, logger, object, panic, storage};

/// For tests: registers the engine a second time under this name (`default` makes it the storage of whoever names none).
const REGISTER_AS: &str = "OBJMAPPER_REGISTER_AS";

// A branch of Varnish may have slots that another has not.
#[allow(clippy::needless_update)]
pub(crate) static METHODS: ObjMethods = ObjMethods {
    // Required.
    objfree: Some(object::objfree),
    objiterator: Some(iterate::objiterator),
    objgetspace: Some(fetch::objgetspace),
    objextend: Some(fetch::objextend),
    objgetattr: Some(object::objgetattr),
    objsetattr: Some(object::objsetattr),
    // Optional.
    objtrimstore: Some(fetch::objtrimstore),
    objbocdone: Some(fetch::objbocdone),
    objslim: Some(object::objslim),
    objtouch: Some(LRU_Touch),
    objsetstate: None,
    ..ObjMethods::NONE
};

static STEVEDORE: Stevedore = Stevedore {
    magic: STEVEDORE_MAGIC,
    name: c"objmapper".as_ptr(),
    init: Some(storage::init),
    open: Some(storage::open),
    close: Some(storage::close),
    allocobj: Some(object::allocobj),
    baninfo: Some(bans::baninfo),
    banexport: None,
    panic: Some(panic::panic),
    allocbuf: Some(buffer::allocbuf),
    freebuf: Some(buffer::freebuf),
    sml_alloc: None,
    sml_free: None,
    sml_getobj: None,
    methods: &raw const METHODS,
    lru: null_mut(),
    var_free_space: Some(storage::free_space),
    var_used_space: Some(storage::used_space),
    var_happy: Some(storage::happy),
    priv_: null_mut(),
    list: TailqEntry { next: null_mut(), prev: null_mut() },
    av: null_mut(),
    ident: null(),
    vclname: null(),
};

#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = loaded;

extern "C" fn loaded() {
    infallible("loading", || {
        if let Err(mismatch) = version::check() {
            storage::refuse(&mismatch.to_string());
        }
        logger::install();
        register(null());
        if let Some(name) = std::env::var_os(REGISTER_AS) {
            match CString::new(name.into_encoded_bytes()) {
                Ok(name) => register(name.into_raw()),
                Err(_) => storage::refuse("OBJMAPPER_REGISTER_AS has a NUL byte"),
            }
        }
    });
}

fn register(altname: *const c_char) {
    // SAFETY: STV_Register (storage/mgt_stevedore.c) copies the structure; the strings and tables that it points to
    // are statics, and `altname` is null or leaked. varnishd never unloads the library.
    unsafe { STV_Register(&raw const STEVEDORE, altname) };
}
