//! The options of `objmapperd`: the command line wins over the TOML file, the file over the
//! defaults. Both use the same names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use serde::Deserialize;

use crate::net::ListenConfig;
use crate::store::{Damaged, DiskTier, MIN_LIMIT, MemoryTier, StoreConfig};

/// A value of an option that cannot be used. The text names the option, the value, the allowed values and the
/// remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// An object store that answers a URI with an open file descriptor over a Unix socket.
///
/// Sizes take the suffixes K, M, G, T (powers of 1024), times ms, s, m, h.
#[derive(Debug, Default, Clone, Parser, Deserialize)]
#[command(name = "objmapperd", version = env!("OBJMAPPER_VERSION"), about)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Options {
    /// TOML file with these options (without the dashes); the command line wins
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Path of the Unix socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Size of the memory tier, at least 1M
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Directory of the disk tier
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Size of the disk tier, at least 1M
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,
    /// What becomes of a disk tier's index that cannot be used: keep (moved to objmapper-store/set-aside-N,
    /// outside the limit, a 64th of it at most) or delete [default: keep]
    #[arg(long, value_name = "WHAT")]
    pub damaged: Option<String>,
    /// Permission bits of the socket, octal [default: 660]
    #[arg(long, value_name = "MODE")]
    pub socket_mode: Option<String>,
    /// Owner of the socket, a name or a number
    #[arg(long, value_name = "USER")]
    pub socket_owner: Option<String>,
    /// Group of the socket, a name or a number
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// User that may connect (may be repeated); without lists, the socket's mode alone decides
    #[arg(long, value_name = "USER")]
    pub allow_uid: Vec<String>,
    /// Primary group that may connect (may be repeated)
    #[arg(long, value_name = "GROUP")]
    pub allow_gid: Vec<String>,
    /// Threads that serve connections, 1 to 64 [default: 2]
    #[arg(long, value_name = "N")]
    pub threads: Option<u8>,
    /// Maximum number of connections [default: 1024]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// Maximum number of private (uncommitted) objects [default: 4096]
    #[arg(long, value_name = "N")]
    pub max_private: Option<usize>,
    /// Time that a session lives without connections [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub session_grace: Option<String>,
    /// Time that connections have to finish their requests after SIGTERM [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub drain_timeout: Option<String>,
    /// Give v0.1 clients writable descriptors of objects that exist, as v0.1 does
    #[arg(long)]
    pub legacy_writable: bool,
}

/// The checked options, with the defaults filled in.
#[derive(Debug)]
pub struct Config {
    /// Configuration of the store.
    pub store: StoreConfig,
    /// Configuration of the listening socket.
    pub listen: ListenConfig,
    /// The timeout of [`crate::net::Server::drain`].
    pub drain_timeout: Duration,
}

impl Config {
    /// Reads the command line of this process, and the file that it names. Ends the process for `--help`
    /// and for an unknown option.
    pub fn from_args() -> Result<Self, ConfigError> {
        Options::parse().resolve()
    }

    /// Returns the number of descriptors that the process may need at once.
    pub fn descriptors(&self) -> u64 {
        // The fixed part is for tiers, index, pollers, log and the descriptors in unsent replies. Each connection takes a socket,
        // each private object one descriptor.
        const FIXED: u64 = 128;
        (self.listen.max_connections + self.store.max_private) as u64 + FIXED
    }
}

impl Options {
    /// Merges the options with the file's, checks them, and fills in the defaults.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let options = match &self.config {
            Some(path) => self.clone().over(read_file(path)?),
            None => self,
        };
        options.check()
    }

    /// Returns each option of the command line or, where it is absent, of the file.
    fn over(self, file: Options) -> Options {
        let list = |ours: Vec<String>, theirs| if ours.is_empty() { theirs } else { ours };
        Options {
            config: self.config,
            socket: self.socket.or(file.socket),
            memory: self.memory.or(file.memory),
            dir: self.dir.or(file.dir),
            disk: self.disk.or(file.disk),
            damaged: self.damaged.or(file.damaged),
            socket_mode: self.socket_mode.or(file.socket_mode),
            socket_owner: self.socket_owner.or(file.socket_owner),
            socket_group: self.socket_group.or(file.socket_group),
            allow_uid: list(self.allow_uid, file.allow_uid),
            allow_gid: list(self.allow_gid, file.allow_gid),
            threads: self.threads.or(file.threads),
            max_connections: self.max_connections.or(file.max_connections),
            max_private: self.max_private.or(file.max_private),
            session_grace: self.session_grace.or(file.session_grace),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            legacy_writable: self.legacy_writable || file.legacy_writable,
        }
    }

    fn check(self) -> Result<Config, ConfigError> {
        let socket =
            self.socket.ok_or_else(|| ConfigError("--socket is missing: the path of the Unix socket".into()))?;
        let memory = self.memory.as_deref().map(|v| tier_size("--memory", v)).transpose()?;
        let disk = match (self.dir, self.disk) {
            (None, None) => None,
            (Some(dir), Some(size)) => Some(DiskTier { dir, limit: tier_size("--disk", &size)? }),
            (Some(dir), None) => {
                return Err(ConfigError(format!(
                    "--dir {} without --disk: give the size of the disk tier, such as --disk 100G",
                    dir.display()
                )));
            }
            (None, Some(size)) => {
                return Err(ConfigError(format!("--disk {size} without --dir: give the directory of the disk tier")));
            }
        };
        if memory.is_none() && disk.is_none() {
            return Err(ConfigError("no tier: give --memory SIZE, or --dir DIR and --disk SIZE, or both".into()));
        }
        let defaults = StoreConfig::default();
        let time = |option, value: Option<String>, default| value.map_or(Ok(default), |v| parse_time(option, &v));
        let users = |option, names: Vec<String>, file| -> Result<Vec<u32>, ConfigError> {
            names.iter().map(|name| id_of(option, name, file)).collect()
        };
        const PASSWD: &str = "/etc/passwd";
        const GROUP: &str = "/etc/group";
        Ok(Config {
            store: StoreConfig {
                memory: memory.map(|limit| MemoryTier { limit, mount: None }),
                disk,
                damaged: parse_damaged(self.damaged.as_deref())?,
                session_grace: time("--session-grace", self.session_grace, defaults.session_grace)?,
                max_private: in_range("--max-private", self.max_private, 4096, 1, 1_000_000)?,
                max_sessions: defaults.max_sessions,
                legacy_writable: self.legacy_writable,
            },
            listen: ListenConfig {
                socket,
                mode: self.socket_mode.as_deref().map_or(Ok(0o660), parse_mode)?,
                owner: self.socket_owner.map(|v| id_of("--socket-owner", &v, PASSWD)).transpose()?,
                group: self.socket_group.map(|v| id_of("--socket-group", &v, GROUP)).transpose()?,
                allow_uids: users("--allow-uid", self.allow_uid, PASSWD)?,
                allow_gids: users("--allow-gid", self.allow_gid, GROUP)?,
                max_connections: in_range("--max-connections", self.max_connections, 1024, 1, 1_000_000)?,
                threads: in_range("--threads", self.threads.map(usize::from), 2, 1, 64)? as u8,
            },
            drain_timeout: time("--drain-timeout", self.drain_timeout, Duration::from_secs(10))?,
        })
    }
}

fn read_file(path: &Path) -> Result<Options, ConfigError> {
    let wrong = |e: &dyn std::fmt::Display| ConfigError(format!("--config {}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
    toml::from_str(&text).map_err(|e| wrong(&e))
}

fn in_range(option: &str, value: Option<usize>, default: usize, min: usize, max: usize) -> Result<usize, ConfigError> {
    let value = value.unwrap_or(default);
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError(format!("{option} {value}: it must be from {min} to {max}")))
}

/// Parses a number of bytes such as `1G`, `512M` or `4096`. Suffixes are powers of 1024.
pub fn parse_size(option: &str, text: &str) -> Result<u64, ConfigError> {
    let wrong =
        || ConfigError(format!("{option} {text}: not a size; give a number with K, M, G or T behind it, such as 512M"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << shift).filter(|b| i64::try_from(*b).is_ok());
    bytes.ok_or_else(|| ConfigError(format!("{option} {text}: more than a file system holds")))
}

fn tier_size(option: &str, text: &str) -> Result<u64, ConfigError> {
    let size = parse_size(option, text)?;
    if size < MIN_LIMIT {
        return Err(ConfigError(format!("{option} {text}: too small, the minimum is 1M")));
    }
    Ok(size)
}

fn parse_time(option: &str, text: &str) -> Result<Duration, ConfigError> {
    let wrong = || ConfigError(format!("{option} {text}: not a time; give a number with ms, s, m or h, such as 30s"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u32 = digits.parse().map_err(|_| wrong())?;
    Ok(match &text[digits.len()..] {
        "ms" => Duration::from_millis(number.into()),
        "" | "s" => Duration::from_secs(number.into()),
        "m" => Duration::from_secs(u64::from(number) * 60),
        "h" => Duration::from_secs(u64::from(number) * 3600),
        _ => return Err(wrong()),
    })
}

fn parse_damaged(text: Option<&str>) -> Result<Damaged, ConfigError> {
    match text {
        None | Some("keep") => Ok(Damaged::Keep),
        Some("delete") => Ok(Damaged::Delete),
        Some(other) => Err(ConfigError(format!("--damaged {other}: it must be keep or delete"))),
    }
}

fn parse_mode(text: &str) -> Result<u32, ConfigError> {
    u32::from_str_radix(text.trim_start_matches("0o"), 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| ConfigError(format!("--socket-mode {text}: not permission bits; give octal ones, such as 660")))
}

/// Returns the id of a user or group that is given as a number, or as a name in `/etc/passwd` or `/etc/group`.
fn id_of(option: &str, name: &str, file: &str) -> Result<u32, ConfigError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let text = std::fs::read_to_string(file)
        .map_err(|e| ConfigError(format!("{option} {name}: reading {file}: {e}; give a number")))?;
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .ok_or_else(|| ConfigError(format!("{option} {name}: no such name in {file}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        let arguments = [&["objmapperd", "--socket", "/s"], arguments].concat();
        Options::try_parse_from(arguments).unwrap()
    }

    fn error(arguments: &[&str]) -> String {
        options(arguments).resolve().unwrap_err().to_string()
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("2k", 2048), ("3M", 3 << 20), ("1GiB", 1 << 30), ("2T", 2 << 40)] {
            assert_eq!(parse_size("--memory", text).unwrap(), bytes);
        }
        for text in ["", "x", "-1", "1.5G", "1X", "99999999T", "G"] {
            assert!(parse_size("--memory", text).is_err(), "{text}");
        }
    }

    #[test]
    fn errors_name_the_option_the_value_and_the_remedy() {
        for (arguments, parts) in [
            (&[][..], &["--memory", "--dir"][..]),
            (&["--memory", "1K"], &["--memory", "1K", "1M"]),
            (&["--memory", "much"], &["--memory", "much", "512M"]),
            (&["--dir", "/d"], &["--dir", "/d", "--disk"]),
            (&["--disk", "1G"], &["--disk", "1G", "--dir"]),
            (&["--memory", "1G", "--threads", "0"], &["--threads", "0", "64"]),
            (&["--memory", "1G", "--socket-mode", "999"], &["--socket-mode", "999", "660"]),
            (&["--memory", "1G", "--allow-uid", "no.such"], &["--allow-uid", "no.such", "passwd"]),
            (&["--memory", "1G", "--damaged", "cry"], &["--damaged", "cry", "keep", "delete"]),
            (&["--memory", "1G", "--drain-timeout", "soon"], &["--drain-timeout", "soon", "30s"]),
            (&["--config", "/no/such.toml"], &["--config", "/no/such.toml", "No such file"]),
        ] {
            let text = error(arguments);
            for part in parts {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "memory = \"2G\"\nthreads = 3\nallow-uid = [\"root\"]\n").unwrap();
        let file = file.to_str().unwrap();
        let config = options(&["--config", file, "--memory", "1G"]).resolve().unwrap();
        assert_eq!(config.store.memory.unwrap().limit, 1 << 30);
        assert_eq!((config.listen.threads, config.listen.allow_uids), (3, vec![0]));
        std::fs::write(file, "memroy = \"2G\"\n").unwrap();
        assert!(error(&["--config", file]).contains("memroy"));
    }
}
