//! Bans of this varnishd, from the CLI and from VCL, are announced to every second level at the moment at which they take
//! effect, which is before the CLI or VCL is answered.
//!
//! varnishd calls its storages for new bans: the storage engine passes the call on. Where no storage is ours,
//! [`varnishd::bans::listen`] has varnishd's first storage called in our place.

use std::sync::OnceLock;

use objmapper_abi::Bytes;
use objmapper_records::{Ban, L2};
use varnishd::ban_commit::is_adding;
use varnishd::bans::{self, List};

use crate::BOUNDARY;
use crate::engine::{self, Storage};

/// The listener for bans.
static LISTENER: OnceLock<fn(&Ban)> = OnceLock::new();

/// Has `listener` called for every new ban, with varnishd's ban mutex held. The first one stays. Called in
/// varnishd's CLI thread, as VCL is loaded.
pub(crate) fn listen(listener: fn(&Ban)) -> Result<(), String> {
    static LISTENING: OnceLock<()> = OnceLock::new();
    if LISTENING.get().is_some() {
        return Ok(());
    }
    let _ = LISTENER.set(listener);
    match (engine::table(), Storage::default_one()) {
        // SAFETY: `on_ban` stays loaded (the library is linked with -z nodelete), and neither blocks nor calls varnishd.
        (Some(table), Some(_)) => unsafe { (table.on_ban)(Some(on_ban)) },
        // No storage of ours: the engine would not be called either.
        _ => bans::listen(announce)?,
    }
    let _ = LISTENING.set(());
    Ok(())
}

unsafe extern "C" fn on_ban(spec: Bytes) {
    // SAFETY: a ban's spec is lent for the call.
    if let Some(spec) = unsafe { bans::spec(spec.ptr, spec.len) } {
        announce(spec);
    }
}

fn announce(spec: &[u8]) {
    BOUNDARY.fallible("on_ban", (), || {
        // A ban of another cache is in the log already.
        if is_adding() {
            return;
        }
        if let (Some(listener), Some(ban)) = (LISTENER.get(), bans::ban(spec)) {
            listener(&ban);
        }
    });
}

/// Announces to `l2` the bans that are there already. A ban that comes in at the same time may be announced twice, which is
/// harmless.
pub(crate) fn announce_present(l2: &L2) {
    let list = List::lock();
    for spec in list.pending() {
        if let Some(ban) = bans::ban(spec) {
            l2.announce_ban(&ban);
        }
    }
}
