//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  no: the object is absent, something is damaged, a check failed
  2  the command line is wrong
  3  no connection to the store, or no answer from it in time
  4  the store refused or failed the request
  5  the store is a peer of protocol v0.1, which does not offer this
  6  a local file, or standard output, could not be read or written";

/// Looks into an objmapper store, and changes what is in it.
///
/// A URI is an object's name in the store and begins with a slash, such as /varnish/r/www.example.org/%2Fa. A URL is that of a
/// request, such as `www.example.org/a` or `http://www.example.org/a`, and stands for the record that answers it.
#[derive(Debug, Parser)]
#[command(name = "objmapperctl", version = env!("OBJMAPPER_VERSION"), about, after_help = EXIT_CODES)]
pub(crate) struct Options {
    /// Unix socket of the objmapperd
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "OBJMAPPER_SOCKET",
        default_value = "/run/objmapper/objmapper.sock"
    )]
    pub(crate) socket: PathBuf,
    /// Prefix of the caches' records: the argument `prefix` of their directors
    #[arg(long, global = true, value_name = "PREFIX", default_value = "varnish")]
    pub(crate) prefix: OsString,
    /// Deadline of connecting and of each call, such as 500ms or 5s
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = time)]
    pub(crate) timeout: Duration,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List objects, in byte order of their URIs
    List(ListArguments),
    /// Show the store's tiers, sessions, leases
    Stat(JsonArgument),
    /// Show an object: of a record its head, its times, and what a cache would make of it now
    Show(ShowArguments),
    /// Write an object's body to standard output or a file
    Get(GetArguments),
    /// Publish a file as an object
    Put(PutArguments),
    /// Delete an object; what was fetched for its URI before is not published any more
    Delete(DeleteArguments),
    /// Invalidate the record of a URL with its variants, as a purge by a cache does
    Purge(PurgeArguments),
    /// Invalidate the records with one of these tags (surrogate keys), as a purge by a cache does
    PurgeTag(PurgeTagArguments),
    /// Invalidate the records that a ban expression matches, such as 'req.url ~ ^/news && obj.status == 200'
    Ban(BanArguments),
    /// Read all objects, and compare the checksums of records
    Verify(VerifyArguments),
    /// Find out whether this user can use the store, and what to change if not
    Check(JsonArgument),
    /// Print a script that completes commands in a shell
    Completion {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct JsonArgument {
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// What the URIs begin with; without it all objects are listed
    pub(crate) prefix_of_uris: Option<OsString>,
    /// Print size, tier, age, expiry and flags, too
    #[arg(long, short)]
    pub(crate) long: bool,
    /// Print one JSON object on each line
    #[arg(long)]
    pub(crate) json: bool,
}

/// The object that a command is about.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// A URI, which begins with a slash, or a URL
    #[arg(value_name = "URI|URL")]
    pub(crate) name: OsString,
    /// Take the argument for a key's text, such as one that om.set_uri() was given
    #[arg(long)]
    pub(crate) key: bool,
    /// A header of the request, which selects a variant; may be repeated
    #[arg(long, short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    pub(crate) header: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Write to this file
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Write the whole file: of a record also what stands behind the body
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PutArguments {
    /// The object's URI
    pub(crate) uri: OsString,
    /// The file; - is standard input
    pub(crate) file: PathBuf,
    /// The time after which the store may drop it, such as 90s, 15m, 24h; without it never
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) expires_in: Option<Duration>,
    /// The tier; without it the store chooses
    #[arg(long, value_enum)]
    pub(crate) tier: Option<TierName>,
    /// Fail if there is an object
    #[arg(long)]
    pub(crate) new: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArguments {
    /// The object's URI
    pub(crate) uri: OsString,
}

#[derive(Debug, Args)]
pub(crate) struct PurgeArguments {
    /// The URL, such as www.example.org/a
    pub(crate) url: OsString,
    /// Leave the record for grace and revalidation: its ttl ends now
    #[arg(long)]
    pub(crate) soft: bool,
    /// Take the argument for a key's text, such as one that om.set_uri() was given
    #[arg(long)]
    pub(crate) key: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PurgeTagArguments {
    /// The tags
    #[arg(required = true, value_name = "TAG")]
    pub(crate) tags: Vec<OsString>,
    /// Leave the records for grace and revalidation: their ttl ends now
    #[arg(long)]
    pub(crate) soft: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BanArguments {
    /// The expression, as of varnishd's command `ban`; best in quotes
    #[arg(required = true, value_name = "EXPRESSION", allow_hyphen_values = true)]
    pub(crate) expression: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// What the URIs begin with; without it all objects are read
    pub(crate) prefix_of_uris: Option<OsString>,
    /// Remove what is damaged
    #[arg(long)]
    pub(crate) delete: bool,
    /// Print one JSON object on each line: each damaged object, then the sums
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TierName {
    Memory,
    Disk,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl From<Shell> for clap_complete::Shell {
    fn from(shell: Shell) -> Self {
        match shell {
            Shell::Bash => Self::Bash,
            Shell::Zsh => Self::Zsh,
            Shell::Fish => Self::Fish,
        }
    }
}

/// Parses a time such as `500ms`, `5s`, `15m`, `24h`; a number alone is seconds.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("not a time: {text}; give a number with ms, s, m or h, such as 30s");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u32 = digits.parse().map_err(|_| wrong())?;
    let number = u64::from(number);
    let time = match &text[digits.len()..] {
        "ms" => Duration::from_millis(number),
        "" | "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number * 60),
        "h" => Duration::from_secs(number * 3600),
        _ => return Err(wrong()),
    };
    if time.is_zero() { Err(format!("{text}: it must be more than 0")) } else { Ok(time) }
}

/// Parses `Name: value`.
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once(':').ok_or_else(|| format!("{text}: no header; give a name, a colon and a value"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn times_and_headers() {
        for (text, ms) in [("500ms", 500), ("2", 2000), ("5s", 5000), ("3m", 180_000), ("1h", 3_600_000)] {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0", "s", "-1s", "1.5s", "1d", "99999999999s"] {
            assert!(time(text).is_err(), "{text}");
        }
        assert_eq!(header("Accept-Language:  de "), Ok(("Accept-Language".into(), "de".into())));
        assert!(header("Accept-Language").is_err());
    }
}
