//! Whether the VMOD can deliver without a copy, found out by asking a real varnishd.

use std::path::Path;

use anyhow::{Context, Result};

use super::varnishd::Varnishd;
use super::{Kind, Server};
use crate::bed::Bed;
use crate::load::fetch;
use crate::target::Target;

/// The header line that every request of the benchmark has, so that all are of one length.
pub fn header(on: bool) -> String {
    format!("X-Bench-Zero-Copy: {}\r\n", u8::from(on))
}

/// Whether a delivery with the filter `objmapper` works. A VMOD without such a filter is an answer; a filter that delivers
/// wrong bytes is an error.
pub fn is_there(bed: &Bed, dir: &Path) -> Result<bool> {
    let varnishd = Varnishd::for_hits(bed, Kind::Memory, true, dir, 64 << 20)?;
    let target = Target { bytes: 1 << 20, id: 1 };
    fetch::verify(varnishd.address(), &header(false), target)?;
    let Err(why) = fetch::verify(varnishd.address(), &header(true), target) else { return Ok(true) };
    let log = varnishd.log("Error")?;
    if log.contains("objmapper' not found") {
        return Ok(false);
    }
    Err(why).context("the delivery filter of the VMOD does not deliver")
}
