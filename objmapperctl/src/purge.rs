//! `purge`, `purge-tag`: records are invalidated as a cache does it, and with them what was requested before.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use objmapper_records::{Config, Connect, Counters, L2, Notice};

use crate::argument::key;
use crate::failure::Failure;
use crate::options::{Options, PurgeArguments, PurgeTagArguments};
use crate::output::Out;
use crate::regex::Pcre2;
use crate::store::Store;
use crate::text::printable;

/// Opens the records as a cache does.
pub(crate) fn open(options: &Options) -> Result<Arc<L2>, Failure> {
    let config = Config {
        store: Connect::Socket(options.socket.clone()),
        call_timeout: options.timeout,
        connections: 1,
        prefix: options.prefix.as_bytes().to_vec(),
        regexes: Arc::new(Pcre2),
        tags: Vec::new(),
        log_limit: Config::LOG_LIMIT,
        origin: None,
        since: None,
        follower: None,
        log: Arc::new(|notice| {
            // What is lost or delayed concerns the operator; that a connection was made does not.
            if !matches!(notice, Notice::Up(_)) {
                eprintln!("objmapperctl: {notice}");
            }
        }),
    };
    let records = L2::open(config).map_err(|why| Failure::Store(why.to_string()))?;
    if records.wait_up(options.timeout.max(Duration::from_secs(1))) {
        return Ok(records);
    }
    Err(Failure::Connection(format!(
        "--socket {}: it takes no second connection; remedy: give objmapperd more --max-connections",
        options.socket.display()
    )))
}

pub(crate) fn url(options: &Options, store: &Store, arguments: &PurgeArguments, out: &mut Out) -> Result<(), Failure> {
    let key = key(&store.inspector, &arguments.url, arguments.key)?;
    let was_there = open(options)?.purge(&key, arguments.soft, &Counters::default())?;
    let text = printable(key.text());
    out.line(match was_there {
        true if arguments.soft => format!("purged {text} softly"),
        true => format!("purged {text}"),
        false => format!("purged {text}: there was no record"),
    })
}

pub(crate) fn tags(options: &Options, arguments: &PurgeTagArguments, out: &mut Out) -> Result<(), Failure> {
    let tags: Vec<&[u8]> = arguments.tags.iter().map(|tag| tag.as_bytes()).collect();
    if let Some(tag) = tags.iter().find(|tag| tag.is_empty() || tag.iter().any(u8::is_ascii_whitespace)) {
        return Err(Failure::Usage(format!(
            "\"{}\": no tag: a tag is a word; give several ones as several arguments",
            printable(tag)
        )));
    }
    open(options)?.purge_tags(&tags, arguments.soft, &Counters::default())?;
    let names: Vec<_> = tags.iter().map(|tag| printable(tag)).collect();
    out.line(format_args!("purged the records with a tag of: {}", names.join(" ")))
}
