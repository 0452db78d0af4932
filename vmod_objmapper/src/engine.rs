//! The storage engine's table, if varnishd was started with one.
//!
//! It is looked up once, and lives as long as the process: varnishd loads storage engines before any VMOD, and never unloads one.

use std::ffi::c_void;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::{io, ptr};

use objmapper_abi::{Delivery, Engine, Extended, SYMBOL, Store};

use crate::operator;

/// Returns the address of the table's symbol; null without a storage engine.
fn symbol() -> *const Engine {
    // SAFETY: dlsym(3) takes any name.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, SYMBOL.as_ptr()) }.cast::<Engine>()
}

/// Returns the functions for a delivery filter; `None` without an engine that has them.
pub(crate) fn delivery() -> Option<&'static Delivery> {
    static DELIVERY: OnceLock<Option<&'static Delivery>> = OnceLock::new();
    *DELIVERY.get_or_init(|| {
        table()?;
        // SAFETY: it is the table, and usable.
        unsafe { Extended::delivery(symbol()) }
    })
}

/// Returns the table; `None` without one that can be used. varnishd loads storage engines before any VMOD, and never unloads one.
pub(crate) fn table() -> Option<&'static Engine> {
    static TABLE: OnceLock<Option<&'static Engine>> = OnceLock::new();
    *TABLE.get_or_init(|| {
        // SAFETY: the symbol is this table by its name, and what it is is checked below.
        let table = unsafe { symbol().as_ref() }?;
        if !table.usable() {
            operator("(load)", "the storage engine is of another version than this VMOD: nothing is shared with it");
            return None;
        }
        Some(table)
    })
}

/// Returns true if a storage of the engine began with objects of an earlier process.
pub(crate) fn has_reloaded() -> bool {
    // SAFETY: the engine's functions may be called by any thread, and never unwind (objmapper-abi).
    table().is_some_and(|table| unsafe { (table.has_reloaded)() })
}

/// Returns true if the storage engine found the file of this record unreadable.
pub(crate) fn is_unreadable(instance: [u8; 16], object: u64) -> bool {
    // SAFETY: the engine's functions may be called by any thread, and never unwind (objmapper-abi).
    delivery().is_some_and(|delivery| unsafe { (delivery.is_unreadable)(&raw const instance, object) })
}

/// A storage of ours that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Storage(*const c_void);

// SAFETY: a stevedore lives as long as the process, and we only hand its address back to the engine.
unsafe impl Send for Storage {}
// SAFETY: as above.
unsafe impl Sync for Storage {}

impl Storage {
    /// Returns the one whose store directors use that name none.
    pub(crate) fn default_one() -> Option<Storage> {
        // SAFETY: the engine's functions may be called by any thread, and never unwind (objmapper-abi).
        let stv = unsafe { (table()?.default_storage)() };
        (!stv.is_null()).then_some(Storage(stv))
    }

    /// Returns the one at this address, if it is ours.
    pub(crate) fn at(stv: *const c_void) -> Option<Storage> {
        // SAFETY: as above; any address may be asked about.
        let ours = unsafe { (table()?.is_ours)(stv) };
        ours.then_some(Storage(stv))
    }

    /// Returns the address of varnishd's stevedore.
    pub(crate) fn address(self) -> *const c_void {
        self.0
    }

    fn store(self) -> Option<Store> {
        let mut store = Store { instance: [0; 16], socket: objmapper_abi::Bytes { ptr: ptr::dangling(), len: 0 } };
        // SAFETY: as above; the engine fills in `store`.
        unsafe { (table()?.store)(self.0, &raw mut store) }.then_some(store)
    }

    /// Returns the instance of its store; `None` while that was never reached.
    pub(crate) fn instance(self) -> Option<[u8; 16]> {
        self.store().map(|store| store.instance).filter(|instance| *instance != [0; 16])
    }

    /// Returns the socket of its store; `None` for one inside this process.
    pub(crate) fn socket(self) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStrExt;
        let socket = self.store()?.socket;
        if socket.len == 0 {
            return None;
        }
        // SAFETY: the engine keeps the path for as long as the process lives (objmapper-abi).
        let path = unsafe { std::slice::from_raw_parts(socket.ptr, socket.len) };
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(path)))
    }

    /// Returns a new connection to its store inside this process.
    pub(crate) fn connect(self) -> io::Result<OwnedFd> {
        let table = table().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        // SAFETY: as above.
        let fd = unsafe { (table.connect)(self.0) };
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        // SAFETY: a descriptor that the engine hands over to its caller.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
