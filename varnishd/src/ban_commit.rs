//! Bans of other caches, added to varnishd's list (Varnish: `cache/cache_ban_build.c`).
//!
//! varnishd tells its storages of each new ban, in the thread that adds it; [`is_adding`] tells a listener that the ban is one of
//! these, which it must not pass on.
//!
//! A ban takes effect when it is added here, later than where it was made. Its tests of `obj.age` and `obj.ttl` mean that moment,
//! so that their numbers are shifted by the difference. What varnishd cannot be told as it is becomes a ban of everything.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char};

use objmapper_ban::{Ban, DurationOf, NumberOper, Subject, Test, TextOper};
use varnishd_sys::bindings::{BAN_Abandon, BAN_AddTest, BAN_Build, BAN_Commit, VTIM_real, ban_proto};

use crate::text::text;

/// varnishd asserts that a header's name with its colon is not longer than 127 bytes.
const MAX_HEADER_NAME: usize = 126;

thread_local! {
    static ADDING: Cell<bool> = const { Cell::new(false) };
}

/// Returns true while the calling thread adds a ban by [`add`].
pub fn is_adding() -> bool {
    ADDING.get()
}

/// How a ban was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// As it is.
    Same,
    /// As a ban of everything, for this reason.
    Widened(String),
}

/// Adds a ban. When it returns, no look-up finds an object that is older than this moment and that the ban matches. No lock may be
/// held.
///
/// # Errors
/// varnishd has no memory, or ends.
pub fn add(ban: &Ban) -> Result<Added, String> {
    // SAFETY: VTIM_real only reads the clock.
    let now = unsafe { VTIM_real() };
    // A clock that was set back has no later moment.
    let late = if ban.time > 0.0 { (now - ban.time).max(0.0) } else { 0.0 };
    let mut why = None;
    if !ban.tests.is_empty() {
        match build(ban, late)? {
            Ok(draft) => return draft.commit().map(|()| Added::Same),
            Err(message) => why = Some(message),
        }
    }
    let mut draft = Draft::new()?;
    draft.test(c"obj.status", c"!=", c"0")?;
    draft.commit()?;
    Ok(why.map_or(Added::Same, Added::Widened))
}

/// The draft of a ban; the inner error says why varnishd cannot be told it.
fn build(ban: &Ban, late: f64) -> Result<Result<Draft, String>, String> {
    let mut draft = Draft::new()?;
    for test in &ban.tests {
        let (field, oper, argument) = match test {
            Test::Text { subject, oper, text } => (field(subject), text_oper(*oper), CString::new(&text[..]).ok()),
            Test::Number { subject, oper, number } => {
                let number = duration(*subject, *oper, *number, late);
                (Some(duration_field(*subject).to_owned()), number_oper(*oper), CString::new(number).ok())
            }
        };
        let (Some(field), Some(argument)) = (field, argument) else {
            return Ok(Err("a header's name or a text that varnishd does not take".to_owned()));
        };
        if let Err(message) = draft.test(&field, oper, &argument) {
            return Ok(Err(message));
        }
    }
    Ok(Ok(draft))
}

fn field(subject: &Subject) -> Option<CString> {
    let header = |prefix: &[u8], name: &[u8]| {
        let fits = (1..=MAX_HEADER_NAME).contains(&name.len()) && !name.contains(&b':');
        if fits { CString::new([prefix, name].concat()).ok() } else { None }
    };
    match subject {
        Subject::Url => Some(c"req.url".to_owned()),
        Subject::Status => Some(c"obj.status".to_owned()),
        Subject::RequestHeader(name) => header(b"req.http.", name),
        Subject::ObjectHeader(name) => header(b"obj.http.", name),
    }
}

fn text_oper(oper: TextOper) -> &'static CStr {
    match oper {
        TextOper::Equal => c"==",
        TextOper::NotEqual => c"!=",
        TextOper::Match => c"~",
        TextOper::NoMatch => c"!~",
    }
}

fn number_oper(oper: NumberOper) -> &'static CStr {
    match oper {
        NumberOper::Equal => c"==",
        NumberOper::NotEqual => c"!=",
        NumberOper::Greater => c">",
        NumberOper::GreaterOrEqual => c">=",
        NumberOper::Less => c"<",
        NumberOper::LessOrEqual => c"<=",
    }
}

fn duration_field(subject: DurationOf) -> &'static CStr {
    match subject {
        DurationOf::Ttl => c"obj.ttl",
        DurationOf::Age => c"obj.age",
        DurationOf::Grace => c"obj.grace",
        DurationOf::Keep => c"obj.keep",
    }
}

/// A number of seconds as varnishd reads it (`lib/libvarnish/vnum.c`: three decimals), rounded so that the test matches no less.
fn duration(subject: DurationOf, oper: NumberOper, seconds: f64, late: f64) -> String {
    let shifted = match subject {
        DurationOf::Age => seconds + late,
        DurationOf::Ttl => seconds - late,
        DurationOf::Grace | DurationOf::Keep => seconds,
    };
    let whole = shifted * 1000.0;
    if whole.fract() == 0.0 {
        return format!("{shifted:.3}s");
    }
    let micros = shifted * 1_000_000.0;
    let rounded = match oper {
        NumberOper::Greater | NumberOper::GreaterOrEqual => micros.floor(),
        NumberOper::Less | NumberOper::LessOrEqual => micros.ceil(),
        NumberOper::Equal | NumberOper::NotEqual => micros.round(),
    };
    format!("{:.3}ms", rounded / 1000.0)
}

/// A ban that is being made.
struct Draft(*mut ban_proto);

impl Draft {
    fn new() -> Result<Draft, String> {
        // SAFETY: BAN_Build allocates, or returns NULL.
        let draft = unsafe { BAN_Build() };
        if draft.is_null() { Err("no memory for a ban".to_owned()) } else { Ok(Draft(draft)) }
    }

    fn test(&mut self, field: &CStr, oper: &CStr, argument: &CStr) -> Result<(), String> {
        // SAFETY: a live draft; varnishd copies the strings, and checks them but for the length of a header's name.
        unsafe { message(BAN_AddTest(self.0, field.as_ptr(), oper.as_ptr(), argument.as_ptr())) }
    }

    fn commit(self) -> Result<(), String> {
        ADDING.set(true);
        // SAFETY: a live draft. BAN_Commit frees it if it succeeds; if it fails, its message is in the draft.
        let committed = unsafe { message(BAN_Commit(self.0)) };
        ADDING.set(false);
        if committed.is_ok() {
            std::mem::forget(self);
        }
        committed
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // SAFETY: a draft that was not committed.
        unsafe { BAN_Abandon(self.0) };
    }
}

/// # Safety
/// `error` must be null or a string of varnishd's.
unsafe fn message(error: *const c_char) -> Result<(), String> {
    // SAFETY: by contract.
    match unsafe { text(error) } {
        None => Ok(()),
        Some(error) => Err(String::from_utf8_lossy(error).into_owned()),
    }
}
