//! The tables that varnishd sees, and the function that runs when the library is loaded.
//!
//! varnishd loads a `-E` library in the child, as the manager's user, before it configures the storages
//! (Varnish: `mgt/mgt_child.c`). The library is never unloaded.

use std::ffi::{CStr, CString};

use varnishd::boundary::{Constant, infallible};
use varnishd::raw::RawStorage;
use varnishd::storage::{ObjectCallbacks, ObjectMethods, StorageCallbacks, check_release};

use crate::{bans, buffer, fetch, iterate, logger, object, panic, storage};

/// For tests: registers the engine a second time under this name (`default` makes it the storage of a VCL that names none).
const REGISTER_AS: &str = "OBJMAPPER_REGISTER_AS";

/// The methods of our objects. Their address tells a storage of ours from another.
// SAFETY: varnishd only reads the table.
pub(crate) static METHODS: Constant<ObjectMethods> = unsafe {
    Constant::new(
        ObjectCallbacks {
            free: object::objfree,
            iterate: iterate::objiterator,
            get_space: fetch::objgetspace,
            extend: fetch::objextend,
            get_attribute: object::objgetattr,
            set_attribute: object::objsetattr,
            trim: fetch::objtrimstore,
            boc_done: fetch::objbocdone,
            slim: object::objslim,
        }
        .table(),
    )
};

static ENGINE: RawStorage = StorageCallbacks {
    init: storage::init,
    open: storage::open,
    close: storage::close,
    allocate: object::allocobj,
    ban: bans::on_ban,
    all_bans: bans::on_all_bans,
    panic: panic::panic,
    allocate_buffer: buffer::allocbuf,
    free_buffer: buffer::freebuf,
    free_space: storage::free_space,
    used_space: storage::used_space,
    happy: storage::happy,
}
.table(c"objmapper", &METHODS);

#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = loaded;

extern "C" fn loaded() {
    infallible("loading", || {
        if let Err(mismatch) = check_release() {
            storage::refuse(&mismatch);
        }
        logger::install();
        varnishd::storage::register(&ENGINE, None);
        if let Some(name) = std::env::var_os(REGISTER_AS) {
            match CString::new(name.into_encoded_bytes()) {
                Ok(name) => {
                    let name: &'static CStr = Box::leak(name.into_boxed_c_str());
                    varnishd::storage::register(&ENGINE, Some(name));
                }
                Err(_) => storage::refuse("OBJMAPPER_REGISTER_AS has a NUL byte"),
            }
        }
    });
}
