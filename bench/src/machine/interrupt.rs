//! Ctrl-C and SIGTERM end the run in order: what was started is stopped and what was set is set back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Takes the first SIGINT or SIGTERM as a wish; a second one ends the process at once.
pub fn install() -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the first signal finds the flag down, and only then raises it.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&ASKED)).context("signals")?;
        signal_hook::flag::register(signal, Arc::clone(&ASKED)).context("signals")?;
    }
    Ok(())
}

/// Whether the user wants the end.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// An error once the user wants the end.
pub fn check() -> Result<()> {
    if asked() {
        bail!("interrupted");
    }
    Ok(())
}
