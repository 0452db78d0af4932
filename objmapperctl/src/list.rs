//! `list`: objects by their URIs. Pages are printed as they come; there is never more than one in memory.

use objmapper_client::{Entry, EntryFlags, ObjUri};
use serde_json::{Map, Value, json};

use crate::argument::uri_prefix;
use crate::failure::Failure;
use crate::options::ListArguments;
use crate::output::Out;
use crate::store::Store;
use crate::text::{duration, insert_bytes, now, printable, seconds};

pub(crate) fn run(store: &Store, arguments: &ListArguments, out: &mut Out) -> Result<(), Failure> {
    let prefix = uri_prefix(arguments.prefix_of_uris.as_deref())?;
    if arguments.long && !arguments.json {
        out.line(format_args!("{:>12} {:<6} {:>8} {:>8} {:<5} URI", "SIZE", "TIER", "AGE", "EXPIRES", "FLAGS"))?;
    }
    for item in store.client.list(&prefix) {
        let (uri, entry) = item?;
        match arguments {
            ListArguments { json: true, .. } => out.line(Value::from(to_json(&uri, &entry)))?,
            ListArguments { long: true, .. } => out.line(long(&uri, &entry))?,
            _ => out.line(printable(uri.as_bytes()))?,
        }
    }
    Ok(())
}

fn long(uri: &ObjUri<'_>, entry: &Entry) -> String {
    let now = now();
    let expires = match entry.expires {
        0 => "never".to_owned(),
        expires if seconds(expires) <= now => "expired".to_owned(),
        expires => duration(seconds(expires) - now),
    };
    format!(
        "{:>12} {:<6} {:>8} {:>8} {:<5} {}",
        entry.length,
        entry.tier.to_string(),
        duration(now - seconds(entry.mtime)),
        expires,
        flags(entry),
        printable(uri.as_bytes())
    )
}

/// Returns the flags of an entry as letters: `e` ephemeral, `p` pinned by this session, `f` of a v0.1 client.
pub(crate) fn flags(entry: &Entry) -> String {
    let letters = [(EntryFlags::EPHEMERAL, 'e'), (EntryFlags::PINNED, 'p'), (EntryFlags::FOREIGN, 'f')];
    let set: String = letters.into_iter().filter(|(flag, _)| entry.flags.contains(*flag)).map(|(_, c)| c).collect();
    if set.is_empty() { "-".to_owned() } else { set }
}

/// Returns an entry as a JSON object. Times are in seconds since 1970; `expires` is null for never.
pub(crate) fn to_json(uri: &ObjUri<'_>, entry: &Entry) -> Map<String, Value> {
    let mut object = Map::new();
    insert_bytes(&mut object, "uri", uri.as_bytes());
    let expires = if entry.expires == 0 { Value::Null } else { seconds(entry.expires).into() };
    let fields = json!({
        "length": entry.length,
        "tier": entry.tier.to_string(),
        "object": entry.object,
        "version": entry.version,
        "stored": seconds(entry.mtime),
        "expires": expires,
        "ephemeral": entry.flags.contains(EntryFlags::EPHEMERAL),
        "pinned_by_this_session": entry.flags.contains(EntryFlags::PINNED),
        "foreign": entry.flags.contains(EntryFlags::FOREIGN),
    });
    if let Value::Object(fields) = fields {
        object.extend(fields);
    }
    object
}
