//! The arguments of `objmapper.director()` and their limits.

use std::path::PathBuf;
use std::time::Duration;

use objmapper_records::split_tags;

/// The prefix of directors that are given none.
pub(crate) const DEFAULT_PREFIX: &[u8] = b"varnish";

/// The longest path of a socket (`sun_path`, without its NUL).
const MAX_SOCKET: usize = 107;
const MAX_PREFIX: usize = 256;
const MAX_URI: usize = 4096;
/// Headers that name tags, and the length of a name: varnishd's own limit in bans.
const MAX_TAG_HEADERS: usize = 8;
const MAX_HEADER_NAME: usize = 126;

/// The limits of `log_size`.
const LOG_SIZE: std::ops::RangeInclusive<i64> = 64 << 10..=1 << 30;

/// The arguments of a director, checked.
#[derive(Debug, Clone)]
pub(crate) struct Arguments {
    /// `None`: the storage engine's store.
    pub(crate) socket: Option<PathBuf>,
    pub(crate) prefix: Vec<u8>,
    pub(crate) deadline: Duration,
    pub(crate) wait: Duration,
    pub(crate) hold: Duration,
    pub(crate) uncacheable: Duration,
    pub(crate) publish: bool,
    /// The most bytes of the invalidation log.
    pub(crate) log_size: u64,
    /// Whether what other caches invalidate is invalidated in varnishd's own cache.
    pub(crate) follow: bool,
    /// The headers that name a response's tags.
    pub(crate) tags: Vec<Vec<u8>>,
}

/// The arguments as VCL gives them.
pub(crate) struct Raw<'a> {
    pub(crate) socket: &'a [u8],
    pub(crate) prefix: &'a [u8],
    pub(crate) deadline: f64,
    pub(crate) wait: f64,
    pub(crate) hold: f64,
    pub(crate) uncacheable: f64,
    pub(crate) publish: bool,
    pub(crate) log_size: i64,
    pub(crate) follow: bool,
    pub(crate) tags: &'a [u8],
}

impl Arguments {
    /// Checks arguments. The message names argument, value, limit and remedy.
    pub(crate) fn parse(raw: &Raw<'_>, prefix_of_vcl: &[u8]) -> Result<Arguments, String> {
        let own = if raw.prefix.is_empty() { prefix_of_vcl } else { raw.prefix };
        Ok(Arguments {
            socket: socket(raw.socket)?,
            prefix: prefix("prefix", own)?,
            deadline: duration("deadline", raw.deadline, 0.001, 60.0, "1ms to 60s")?,
            wait: wait(raw.wait)?,
            hold: duration("hold", raw.hold, 1.0, 3600.0, "1s to 1h")?,
            uncacheable: duration("uncacheable", raw.uncacheable, 0.0, 3600.0, "0s to 1h")?,
            publish: raw.publish,
            log_size: log_size(raw.log_size)?,
            follow: raw.follow,
            tags: tag_headers(raw.tags)?,
        })
    }
}

/// Checks how long to wait for another fetch.
pub(crate) fn wait(seconds: f64) -> Result<Duration, String> {
    duration("wait", seconds, 0.0, 3600.0, "0s to 1h")
}

fn duration(name: &str, seconds: f64, min: f64, max: f64, limits: &str) -> Result<Duration, String> {
    if (min..=max).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(format!("{name} = {seconds}s: {limits} are possible; give {name} another value or leave it out"))
}

fn log_size(bytes: i64) -> Result<u64, String> {
    if LOG_SIZE.contains(&bytes) {
        return Ok(bytes.unsigned_abs());
    }
    Err(format!("log_size = {bytes}: 64KB to 1GB are possible; give log_size another value or leave it out"))
}

fn socket(path: &[u8]) -> Result<Option<PathBuf>, String> {
    use std::os::unix::ffi::OsStrExt;
    if path.is_empty() {
        return Ok(None);
    }
    if !path.starts_with(b"/") || path.len() > MAX_SOCKET {
        return Err(format!(
            "socket = \"{}\": an absolute path of at most {MAX_SOCKET} bytes is needed; give objmapperd's --socket",
            path.escape_ascii()
        ));
    }
    Ok(Some(PathBuf::from(std::ffi::OsStr::from_bytes(path))))
}

/// Checks a prefix.
pub(crate) fn prefix(name: &str, text: &[u8]) -> Result<Vec<u8>, String> {
    if text.is_empty() || text.len() > MAX_PREFIX || !text.iter().all(u8::is_ascii_graphic) {
        return Err(format!(
            "{name} = \"{}\" ({} bytes): 1 to {MAX_PREFIX} printable bytes without blanks are possible, for example \
             \"cdn://example.com\"",
            text.escape_ascii(),
            text.len()
        ));
    }
    Ok(text.to_vec())
}

/// The names of the headers that name tags, divided by white space or commas.
fn tag_headers(text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for name in split_tags(text) {
        let is_token = name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b));
        if !is_token || name.len() > MAX_HEADER_NAME {
            return Err(format!(
                "tags = \"{}\": \"{}\" is no name of a header (at most {MAX_HEADER_NAME} bytes); give names of response \
                 headers, for example \"xkey\" or \"Surrogate-Key, Cache-Tag\"",
                text.escape_ascii(),
                name.escape_ascii()
            ));
        }
        if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            names.push(name.to_vec());
        }
    }
    if names.len() > MAX_TAG_HEADERS {
        return Err(format!(
            "tags = \"{}\": {} headers, at most {MAX_TAG_HEADERS} are possible; name fewer",
            text.escape_ascii(),
            names.len()
        ));
    }
    Ok(names)
}

/// Checks a URI that stands for a record.
pub(crate) fn uri(text: &[u8]) -> Result<&[u8], String> {
    if text.is_empty() || text.len() > MAX_URI {
        return Err(format!(
            "uri = \"{}\" ({} bytes): 1 to {MAX_URI} bytes are possible",
            text[..text.len().min(64)].escape_ascii(),
            text.len()
        ));
    }
    Ok(text)
}
