//! The arguments of `-s [name=]objmapper[,SIZE][,key=value…]`.

use std::path::PathBuf;
use std::time::Duration;

use objmapper_server::store::Damaged;

use crate::account::UNLIMITED;

/// The options of one storage, with their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `size`: the limit in bytes of all that the storage holds, heap and objmapper together. Default: none.
    pub size: u64,
    /// `socket`: objmapperd's Unix socket. Default: none, the store runs inside varnishd.
    pub socket: Option<PathBuf>,
    /// `dir`: the embedded store keeps bodies in this directory. Default: none, in memory.
    pub dir: Option<PathBuf>,
    /// `persist`: whether objects survive the end of varnishd. Default: they do not.
    pub persist: bool,
    /// `damaged`: what becomes of the index in `dir` if it cannot be used. Default: it is kept aside.
    pub damaged: Damaged,
    /// `threshold`: a body of more bytes than this lives in objmapper. Default: 64 KiB.
    pub threshold: u64,
    /// `fallback_heap`: the limit in bytes of the heap for bodies that objmapper cannot take. Default: an eighth of the memory
    /// that the process may use.
    pub fallback_heap: Option<u64>,
    /// `fds`: the number of descriptors of cached bodies that stay open. Default: by the process's limit
    /// (RLIMIT_NOFILE).
    pub fds: Option<usize>,
    /// `maps`: the number of cached bodies that stay mapped. Default: 1024.
    pub maps: usize,
    /// `prefix`: the URIs of our bodies in objmapperd begin with this. Default: `/varnish`.
    pub prefix: String,
    /// `timeout`: the deadline of every call to objmapperd. Default: 1 s.
    pub timeout: Duration,
    /// `zero_copy`: how the delivery filter sends bodies from their files. Default: as is best.
    pub zero_copy: ZeroCopy,
}

/// How bodies are sent from their files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ZeroCopy {
    /// `auto`: the fastest way that the connection and the kernel allow.
    #[default]
    Auto,
    /// `sendfile`: by sendfile(2).
    Sendfile,
    /// `splice`: by splice(2), through a pipe.
    Splice,
    /// `off`: bodies are copied.
    Off,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            size: UNLIMITED,
            socket: None,
            dir: None,
            persist: false,
            damaged: Damaged::Keep,
            threshold: 64 << 10,
            fallback_heap: None,
            fds: None,
            maps: 1024,
            prefix: "/varnish".to_owned(),
            timeout: Duration::from_secs(1),
            zero_copy: ZeroCopy::Auto,
        }
    }
}

/// The smallest `size`, as malloc's: 1 MB.
const MIN_SIZE: u64 = 1 << 20;
/// The largest `fds` and `maps`. A process may have 65,530 mappings (vm.max_map_count) and seldom more descriptors.
const MAX_CACHED: u64 = 1 << 20;
/// The longest `timeout`: a worker thread waits for it.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest path of a Unix socket: `sun_path` less its NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// The longest `prefix` in bytes: the engine needs the rest of the 255 bytes that a component of a URI may have.
const MAX_PREFIX: usize = 200;

/// An invalid argument: the text names the key, the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadOption(String);

fn bad(message: String) -> BadOption {
    BadOption(message)
}

impl Options {
    /// Parses the arguments. `parse_bytes` is varnishd's own (`VNUM_2bytes`), so that sizes are written as everywhere
    /// in Varnish; its error is a text.
    pub fn parse<'a>(
        args: impl IntoIterator<Item = &'a str>,
        parse_bytes: impl Fn(&str) -> Result<u64, String>,
    ) -> Result<Options, BadOption> {
        let mut options = Options::default();
        let mut seen: Vec<&str> = Vec::new();
        for (position, arg) in args.into_iter().enumerate() {
            let (key, value) = match arg.split_once('=') {
                Some((key, value)) => (key, value),
                // `-s objmapper,1G` and `-s objmapper,` as with malloc.
                None if position == 0 => ("size", arg),
                None => {
                    return Err(bad(format!("argument \"{arg}\" is not of the form key=value (known keys: {KEYS})")));
                }
            };
            if seen.contains(&key) {
                return Err(bad(format!("{key} \"{value}\": is given twice, give it once")));
            }
            if value.is_empty() && !(position == 0 && arg.is_empty()) {
                return Err(bad(format!("{key} \"\": needs a value")));
            }
            seen.push(key);
            options.set(key, value, &parse_bytes)?;
        }
        if options.socket.is_some() && options.dir.is_some() {
            return Err(bad(
                "socket and dir exclude each other: with socket= objmapperd keeps the bodies, where its own options say"
                    .to_owned(),
            ));
        }
        if options.dir.is_some() && options.size == UNLIMITED {
            return Err(bad(
                "dir needs a size: give the bytes that the directory may hold, as in objmapper,10G,dir=…".to_owned()
            ));
        }
        if options.persist && options.socket.is_some() {
            return Err(bad(
                "persist \"on\": needs a dir; what objmapperd keeps (socket=) is shared, and not this varnishd's own: use \
                 objmapper,SIZE,dir=…,persist=on, or the VMOD's director"
                    .to_owned(),
            ));
        }
        if options.persist && options.dir.is_none() {
            return Err(bad(
                "persist \"on\": needs a dir, where objects are kept, as in objmapper,10G,dir=…,persist=on".to_owned(),
            ));
        }
        if options.dir.is_none() && seen.contains(&"damaged") {
            return Err(bad(
                "damaged needs a dir: it says what becomes of an index there that cannot be used".to_owned()
            ));
        }
        Ok(options)
    }

    fn set(
        &mut self,
        key: &str,
        value: &str,
        parse_bytes: &impl Fn(&str) -> Result<u64, String>,
    ) -> Result<(), BadOption> {
        let bytes = || parse_bytes(value).map_err(|why| bad(format!("{key} \"{value}\": {why}")));
        match key {
            "size" if value.is_empty() => {}
            "size" => {
                self.size = bytes()?;
                if self.size < MIN_SIZE {
                    return Err(bad(format!("size \"{value}\": too small, did you forget to specify M or G?")));
                }
                if self.size > UNLIMITED {
                    return Err(bad(format!("size \"{value}\": too big, at most {UNLIMITED} bytes")));
                }
            }
            "threshold" => self.threshold = bytes()?,
            "fallback_heap" => {
                let limit = bytes()?;
                if !(MIN_SIZE..=UNLIMITED).contains(&limit) {
                    return Err(bad(format!(
                        "fallback_heap \"{value}\": must be from {MIN_SIZE} to {UNLIMITED} bytes, as in 512M"
                    )));
                }
                self.fallback_heap = Some(limit);
            }
            "socket" => {
                absolute(key, value)?;
                if value.len() > MAX_SOCKET_PATH {
                    return Err(bad(format!(
                        "socket \"{value}\": {} bytes, a Unix socket's path has at most {MAX_SOCKET_PATH}",
                        value.len()
                    )));
                }
                self.socket = Some(value.into());
            }
            "dir" => {
                absolute(key, value)?;
                self.dir = Some(value.into());
            }
            "persist" => {
                self.persist = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(bad(format!("persist \"{value}\": must be on or off"))),
                }
            }
            "damaged" => {
                self.damaged = match value {
                    "keep" => Damaged::Keep,
                    "delete" => Damaged::Delete,
                    _ => return Err(bad(format!("damaged \"{value}\": must be keep or delete"))),
                }
            }
            "fds" => self.fds = Some(count(key, value)?),
            "maps" => self.maps = count(key, value)?,
            "prefix" => {
                let canonical = value.starts_with('/')
                    && value.len() > 1
                    && value[1..].split('/').all(|part| !part.is_empty() && part != "." && part != "..")
                    && value.bytes().all(|b| b.is_ascii_graphic());
                if !canonical || value.len() > MAX_PREFIX {
                    return Err(bad(format!(
                        "prefix \"{value}\": must begin with '/', have no empty, '.' or '..' part, no space, and at \
                         most {MAX_PREFIX} bytes, as in /varnish/a"
                    )));
                }
                if ["/list", "/backend", "/delete"].iter().any(|reserved| {
                    value.strip_prefix(reserved).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                }) {
                    return Err(bad(format!(
                        "prefix \"{value}\": /list, /backend and /delete are objmapper's own, use another"
                    )));
                }
                self.prefix = value.to_owned();
            }
            "timeout" => self.timeout = duration(value)?,
            "zero_copy" => {
                self.zero_copy = match value {
                    "auto" => ZeroCopy::Auto,
                    "sendfile" => ZeroCopy::Sendfile,
                    "splice" => ZeroCopy::Splice,
                    "off" => ZeroCopy::Off,
                    _ => return Err(bad(format!("zero_copy \"{value}\": must be auto, sendfile, splice or off"))),
                }
            }
            _ => return Err(bad(format!("unknown key \"{key}\" (known keys: {KEYS})"))),
        }
        Ok(())
    }
}

const KEYS: &str =
    "size, socket, dir, persist, damaged, threshold, fallback_heap, fds, maps, prefix, timeout, zero_copy";

fn absolute(key: &str, value: &str) -> Result<(), BadOption> {
    if value.starts_with('/') { Ok(()) } else { Err(bad(format!("{key} \"{value}\": must be an absolute path"))) }
}

fn count(key: &str, value: &str) -> Result<usize, BadOption> {
    match value.parse::<u64>() {
        Ok(n) if (1..=MAX_CACHED).contains(&n) => Ok(n as usize),
        _ => Err(bad(format!("{key} \"{value}\": must be a number from 1 to {MAX_CACHED}"))),
    }
}

fn duration(value: &str) -> Result<Duration, BadOption> {
    let (number, unit_ms) = match value.strip_suffix("ms") {
        Some(number) => (number, 1.0),
        None => (value.strip_suffix('s').unwrap_or(value), 1000.0),
    };
    match number.parse::<f64>().map(|n| n * unit_ms) {
        Ok(ms) if ms >= 1.0 && ms <= MAX_TIMEOUT.as_millis() as f64 => Ok(Duration::from_micros((ms * 1000.0) as u64)),
        _ => Err(bad(format!(
            "timeout \"{value}\": must be a duration from 1ms to {}s, as in 500ms or 2s",
            MAX_TIMEOUT.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        // Enough of VNUM_2bytes for these tests; the real one is used in varnishd.
        let bytes = |s: &str| {
            let (digits, unit) = match s.as_bytes().last() {
                Some(b'k' | b'K') => (&s[..s.len() - 1], 10),
                Some(b'm' | b'M') => (&s[..s.len() - 1], 20),
                Some(b'g' | b'G') => (&s[..s.len() - 1], 30),
                _ => (s, 0),
            };
            digits.parse::<u64>().map(|n| n << unit).map_err(|_| "Invalid number".to_owned())
        };
        Options::parse(args.iter().copied(), bytes).map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_at_all_is_unlimited_in_memory() {
        assert_eq!(parse(&[]).unwrap(), Options::default());
        assert_eq!(parse(&[""]).unwrap(), Options::default());
    }

    #[test]
    fn a_bare_size_comes_first_as_with_malloc() {
        assert_eq!(parse(&["100m"]).unwrap().size, 100 << 20);
        assert_eq!(parse(&["size=1g"]).unwrap().size, 1 << 30);
        assert!(parse(&["threshold=0", "100m"]).unwrap_err().contains("not of the form key=value"));
    }

    #[test]
    fn all_keys() {
        let options = parse(&[
            "1g",
            "socket=/run/objmapper.sock",
            "threshold=0",
            "fallback_heap=10m",
            "fds=10",
            "maps=20",
            "prefix=/a/b",
            "timeout=250ms",
            "zero_copy=splice",
        ])
        .unwrap();
        assert_eq!(options.socket.unwrap().to_str(), Some("/run/objmapper.sock"));
        assert_eq!((options.threshold, options.fds, options.maps), (0, Some(10), 20));
        assert_eq!(options.fallback_heap, Some(10 << 20));
        assert_eq!((options.prefix.as_str(), options.timeout), ("/a/b", Duration::from_millis(250)));
        assert_eq!((options.zero_copy, Options::default().zero_copy), (ZeroCopy::Splice, ZeroCopy::Auto));
        assert_eq!(parse(&["1g", "dir=/var/lib/x"]).unwrap().dir.unwrap().to_str(), Some("/var/lib/x"));
    }

    #[test]
    fn every_error_names_the_key_the_value_and_the_remedy() {
        for (args, expected) in [
            (&["1k"][..], "size \"1k\": too small, did you forget to specify M or G?"),
            (&["x"], "size \"x\": Invalid number"),
            (&["1000000g"], "size \"1000000g\": too big"),
            (&["1g", "size=2g"], "size \"2g\": is given twice"),
            (&["1g", "fds=5", "fds=5"], "fds \"5\": is given twice"),
            (&["1g", "colour=red"], "unknown key \"colour\" (known keys: size, socket,"),
            (&["1g", "socket=run/x"], "socket \"run/x\": must be an absolute path"),
            (&["1g", "socket="], "socket \"\": needs a value"),
            (&["1g", "dir=x"], "dir \"x\": must be an absolute path"),
            (&["dir=/x"], "dir needs a size"),
            (&["1g", "dir=/x", "socket=/y"], "socket and dir exclude each other"),
            (&["1g", "fallback_heap=5"], "fallback_heap \"5\": must be from 1048576 to"),
            (&["1g", "fallback_heap=x"], "fallback_heap \"x\": Invalid number"),
            (&["1g", "dir=/x", "damaged=no"], "damaged \"no\": must be keep or delete"),
            (&["1g", "damaged=keep"], "damaged needs a dir"),
            (&["1g", "fds=0"], "fds \"0\": must be a number from 1 to"),
            (&["1g", "maps=many"], "maps \"many\": must be a number from 1 to"),
            (&["1g", "prefix=a"], "prefix \"a\": must begin with '/'"),
            (&["1g", "prefix=/a/../b"], "prefix \"/a/../b\": must begin"),
            (&["1g", "prefix=/delete/x"], "prefix \"/delete/x\": /list, /backend and /delete are objmapper's own"),
            (&["1g", "timeout=0"], "timeout \"0\": must be a duration from 1ms to 60s"),
            (&["1g", "zero_copy=on"], "zero_copy \"on\": must be auto, sendfile, splice or off"),
            (&["1g", "timeout=5m"], "timeout \"5m\": must be a duration"),
            (&["1g", "threshold=-1"], "threshold \"-1\": Invalid number"),
            (&["1g", "2g"], "argument \"2g\" is not of the form key=value"),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.starts_with(expected), "{args:?}: {error}");
        }
        let long = format!("socket=/{}", "x".repeat(107));
        assert!(parse(&["1g", &long]).unwrap_err().contains("108 bytes, a Unix socket's path has at most 107"));
    }
}
