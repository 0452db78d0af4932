//! Bans of an earlier process, in varnishd's list again (Varnish: `cache/cache_ban.c`, `BAN_Reload`).
//!
//! A ban's spec has the compiled form of its regular expressions in it, with pointers of the process that made them. So each spec
//! is decoded, and encoded anew. varnishd asserts what it finds in its list: nothing goes there that is not as it makes it.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use objmapper_ban::{Ban as Decoded, DurationOf, NumberOper, Subject, Test, TextOper};
use varnishd_sys::ban::{BANS_FLAG_COMPLETED, BANS_FLAGS, BANS_HEAD_LEN, BANS_LENGTH, Ban, ban_head};
use varnishd_sys::bindings::{VRE_compile, VRE_export, VRE_free, VTIM_real, vre_t};
use varnishd_sys::functions::BAN_Reload;

use crate::ban_spec;
use crate::bans::{List, spec_of};
use crate::cast::has_magic;

/// The largest spec that varnishd's lengths can express, by far.
const MAX_SPEC: usize = 1 << 24;

/// Why bans cannot be reloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReloaded(pub String);

/// A ban of an earlier process, ready to be reloaded.
struct Prepared {
    time: f64,
    spec: Vec<u8>,
}

/// Bans of an earlier process.
pub struct Bans(Vec<Prepared>);

impl Bans {
    /// Decodes specs in the order in which varnishd told of them, and compiles their regular expressions. Nothing of varnishd's
    /// changes.
    ///
    /// # Errors
    /// A spec is no ban that this varnishd makes, or is of the future.
    pub fn prepare<'a>(specs: impl IntoIterator<Item = &'a [u8]>) -> Result<Bans, NotReloaded> {
        // SAFETY: no conditions.
        let now = unsafe { VTIM_real() };
        let mut prepared: Vec<Prepared> = Vec::new();
        for spec in specs {
            let (time, spec) = prepare(spec)?;
            // Two threads that made a ban at once may have entered them in the other order, or with the same time. varnishd
            // wants the order of the list in the times: the later entry gets the later time, so that an object that was tested by
            // both is tested again, and one that was tested by the earlier entry only is tested by the later.
            let time = match prepared.last() {
                Some(last) if time <= last.time => last.time.next_up(),
                _ => time,
            };
            if time >= now {
                return Err(NotReloaded(format!("it has a ban of the future: {time:.6}, and it is {now:.6} now")));
            }
            prepared.push(Prepared { time, spec: with_time(spec, time) });
        }
        Ok(Bans(prepared))
    }

    /// The time of the newest ban.
    #[must_use]
    pub fn newest(&self) -> Option<f64> {
        self.0.last().map(|ban| ban.time)
    }

    /// The number of bans.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts them into varnishd's list, with a completed one of `oldest`, which stands for those before it.
    ///
    /// # Safety
    /// Called in varnishd's CLI thread, from a storage's `open`, before varnishd has compiled its list of bans.
    pub unsafe fn reload(self, oldest: f64) {
        let placeholder = Prepared { time: oldest, spec: with_time(completed(), oldest) };
        for ban in [placeholder].into_iter().chain(self.0) {
            // A spec is shorter than MAX_SPEC.
            let len = ban.spec.len() as u32;
            // SAFETY: by contract; a spec of varnishd's encoding, which it copies.
            unsafe { BAN_Reload(ban.spec.as_ptr(), len) };
        }
    }
}

/// varnishd's bans by their times, as long as varnishd holds them back for storages that load objects.
pub struct ByTime(Vec<(f64, RawBan)>);

/// A ban in varnishd's list.
#[derive(Clone, Copy)]
pub struct RawBan(pub(crate) NonNull<Ban>);

// SAFETY: bans are freed by the ban lurker only, which does not run before all storages are open.
unsafe impl Send for ByTime {}
// SAFETY: as above; it is only read.
unsafe impl Sync for ByTime {}

impl ByTime {
    /// Reads the list.
    ///
    /// # Safety
    /// Called from a storage's `open`; the value must not outlive that call.
    #[must_use]
    pub unsafe fn read() -> ByTime {
        let _list = List::lock();
        let mut bans = Vec::new();
        // SAFETY: the list is read with its mutex held.
        let mut next: *mut Ban = unsafe { ban_head.first };
        // SAFETY: as above; an element is a ban or null.
        while unsafe { has_magic(next) } {
            // SAFETY: as above.
            let (spec, following) = unsafe { (spec_of(&*next), (*next).list.next) };
            if let (Some(time), Some(ban)) = (time(spec), NonNull::new(next)) {
                bans.push((time, RawBan(ban)));
            }
            next = following;
        }
        // varnishd's list has the newest first.
        bans.reverse();
        ByTime(bans)
    }

    /// The newest ban that is not newer than `time`: an object that was tested by that of `time` is tested by all that matter if
    /// it is tested by those after this one.
    #[must_use]
    pub fn at(&self, time: f64) -> Option<RawBan> {
        let after = self.0.partition_point(|(of, _)| *of <= time);
        after.checked_sub(1).map(|index| self.0[index].1)
    }
}

/// The time in a spec.
#[must_use]
pub fn time(spec: &[u8]) -> Option<f64> {
    let time = f64::from_be_bytes(*spec.first_chunk::<8>()?);
    time.is_finite().then_some(time)
}

fn prepare(spec: &[u8]) -> Result<(f64, Vec<u8>), NotReloaded> {
    let malformed = |why: &str| NotReloaded(format!("it has a ban that this varnishd does not know: {why}"));
    let time = time(spec).ok_or_else(|| malformed("time"))?;
    if spec.len() > MAX_SPEC {
        return Err(malformed("length"));
    }
    match ban_spec::decode(spec) {
        Ok(None) => Ok((time, completed())),
        Ok(Some(ban)) => Ok((time, encode(&ban, spec[BANS_FLAGS])?)),
        Err(why) => Err(malformed(why.0)),
    }
}

/// A ban that needs no look any more.
fn completed() -> Vec<u8> {
    let mut spec = vec![0; BANS_HEAD_LEN];
    spec[BANS_FLAGS] = BANS_FLAG_COMPLETED as u8;
    spec[BANS_LENGTH..BANS_LENGTH + 4].copy_from_slice(&(BANS_HEAD_LEN as u32).to_be_bytes());
    spec
}

fn with_time(mut spec: Vec<u8>, time: f64) -> Vec<u8> {
    spec[..8].copy_from_slice(&time.to_be_bytes());
    spec
}

/// Encodes a ban as varnishd does (Varnish: `cache/cache_ban_build.c`).
fn encode(ban: &Decoded, flags: u8) -> Result<Vec<u8>, NotReloaded> {
    let mut spec = vec![0; BANS_HEAD_LEN];
    spec[BANS_FLAGS] = flags;
    for test in &ban.tests {
        match test {
            Test::Text { subject, oper, text } => {
                spec.push(match subject {
                    Subject::Url => 0x18,
                    Subject::RequestHeader(_) => 0x19,
                    Subject::ObjectHeader(_) => 0x1a,
                    Subject::Status => 0x1b,
                });
                if let Subject::RequestHeader(name) | Subject::ObjectHeader(name) = subject {
                    // The decoder took it from a byte's worth.
                    spec.push(u8::try_from(name.len() + 1).unwrap_or(u8::MAX));
                    spec.extend_from_slice(name);
                    spec.extend_from_slice(b":\0");
                }
                let text = CString::new(text.as_slice()).unwrap_or_default();
                lump(&mut spec, text.to_bytes_with_nul());
                spec.push(match oper {
                    TextOper::Equal => 0x10,
                    TextOper::NotEqual => 0x11,
                    TextOper::Match => 0x12,
                    TextOper::NoMatch => 0x13,
                });
                if matches!(oper, TextOper::Match | TextOper::NoMatch) {
                    lump(&mut spec, &compile(&text)?);
                }
            }
            Test::Number { subject, oper, number } => {
                spec.push(match subject {
                    DurationOf::Ttl => 0x1c,
                    DurationOf::Age => 0x1d,
                    DurationOf::Grace => 0x1e,
                    DurationOf::Keep => 0x1f,
                });
                lump(&mut spec, &number.to_be_bytes());
                spec.push(match oper {
                    NumberOper::Equal => 0x10,
                    NumberOper::NotEqual => 0x11,
                    NumberOper::Greater => 0x14,
                    NumberOper::GreaterOrEqual => 0x15,
                    NumberOper::Less => 0x16,
                    NumberOper::LessOrEqual => 0x17,
                });
            }
        }
    }
    let len = u32::try_from(spec.len()).map_err(|_| NotReloaded("it has a ban that is too long".to_owned()))?;
    spec[BANS_LENGTH..BANS_LENGTH + 4].copy_from_slice(&len.to_be_bytes());
    Ok(spec)
}

/// Appends a lump, aligned as `ban_add_lump()` does.
fn lump(spec: &mut Vec<u8>, bytes: &[u8]) {
    const PADDING: u8 = 0xff;
    while !spec.len().is_multiple_of(align_of::<usize>()) {
        spec.push(PADDING);
    }
    spec.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    spec.extend_from_slice(&[0; 4]);
    spec.extend_from_slice(bytes);
}

/// The compiled form of a regular expression, as varnishd has it in a ban.
fn compile(text: &CStr) -> Result<Vec<u8>, NotReloaded> {
    let (mut code, mut offset) = (0, 0);
    // SAFETY: a NUL-terminated text, and variables for what went wrong.
    let mut compiled: *mut vre_t = unsafe { VRE_compile(text.as_ptr(), 0, &raw mut code, &raw mut offset, 0) };
    if compiled.is_null() {
        return Err(NotReloaded(format!(
            "the regular expression of a ban cannot be compiled: {:?}, error {code} at byte {offset}",
            text.to_string_lossy()
        )));
    }
    let mut len = 0;
    // SAFETY: what VRE_compile returned; VRE_export returns a copy of `len` bytes, or null. Both are freed once.
    unsafe {
        let mut exported = VRE_export(compiled, &raw mut len);
        let bytes = if exported.is_null() {
            Err(NotReloaded("out of memory".to_owned()))
        } else {
            Ok(std::slice::from_raw_parts(exported.cast::<u8>(), len).to_vec())
        };
        if !exported.is_null() {
            VRE_free(&raw mut exported);
        }
        VRE_free(&raw mut compiled);
        bytes
    }
}
