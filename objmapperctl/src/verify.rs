//! `verify`: reads objects, and compares the checksums of records.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use objmapper_client::{Entry, EntryFlags, IfVersion, ObjUri, Status};
use objmapper_records::{Contents, InspectError};
use serde_json::{Value, json};

use crate::argument::uri_prefix;
use crate::failure::Failure;
use crate::list::to_json;
use crate::options::VerifyArguments;
use crate::output::Out;
use crate::store::Store;
use crate::text::{printable, size};

/// What was found.
#[derive(Debug, Default)]
struct Sums {
    objects: u64,
    bytes: u64,
    /// Records whose body has a checksum, which was compared.
    checked: u64,
    damaged: u64,
    deleted: u64,
    /// Objects that were deleted or replaced before they were read.
    gone: u64,
}

pub(crate) fn run(store: &Store, arguments: &VerifyArguments, out: &mut Out) -> Result<(), Failure> {
    let prefix = uri_prefix(arguments.prefix_of_uris.as_deref())?;
    let bar = progress(store, &prefix)?;
    let mut sums = Sums::default();
    for item in store.client.list(&prefix) {
        let (uri, entry) = item?;
        bar.inc(1);
        match examine(store, &uri, entry, &mut sums, &bar) {
            Ok(None) => {}
            Ok(Some(why)) => {
                sums.damaged += 1;
                // A v0.1 client may be writing it.
                let is_foreign = entry.flags.contains(EntryFlags::FOREIGN);
                let deleted = arguments.delete && !is_foreign && delete(store, &uri, &entry)?;
                sums.deleted += u64::from(deleted);
                bar.suspend(|| report(arguments, &uri, &entry, &why, deleted, out))?;
            }
            Err(InspectError::Gone) => sums.gone += 1,
            Err(why) => {
                let Failure::Store(why) = Failure::from(why) else {
                    return Err(Failure::Connection("the store was lost; what is above is not all".to_owned()));
                };
                return Err(Failure::Store(format!("{}: {why}", printable(uri.as_bytes()))));
            }
        }
    }
    bar.finish_and_clear();
    sum_up(arguments, &sums, out)?;
    match sums.damaged {
        0 => Ok(()),
        damaged if sums.deleted == damaged => Err(Failure::No(format!("{damaged} damaged objects, all removed"))),
        damaged if arguments.delete => Err(Failure::No(format!("{damaged} damaged objects, {} removed", sums.deleted))),
        damaged => {
            Err(Failure::No(format!("{damaged} damaged objects; remedy: 'objmapperctl verify --delete' removes them")))
        }
    }
}

/// Reads an object. `Some` names the damage.
fn examine(
    store: &Store,
    uri: &ObjUri<'_>,
    entry: Entry,
    sums: &mut Sums,
    bar: &ProgressBar,
) -> Result<Option<String>, InspectError> {
    let object = store.inspector.open(uri, entry)?;
    sums.objects += 1;
    sums.checked += u64::from(matches!(&object.contents, Contents::Record(record) if record.sum.is_some()));
    object.read_body(|part| {
        sums.bytes += part.len() as u64;
        bar.tick();
        Ok(())
    })
}

/// Removes a damaged object, unless it was replaced meanwhile. Returns true if it was removed.
fn delete(store: &Store, uri: &ObjUri<'_>, entry: &Entry) -> Result<bool, Failure> {
    match store.client.evict(uri, IfVersion::from_raw(entry.version)) {
        Err(why) if why.status() == Some(Status::Conflict) => Ok(false),
        outcome => Ok(outcome?),
    }
}

fn progress(store: &Store, prefix: &[u8]) -> Result<ProgressBar, Failure> {
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()));
    }
    // The number of objects below a prefix is not known.
    if !prefix.is_empty() && prefix != b"/" {
        return Ok(ProgressBar::new_spinner().with_style(style("{spinner} {pos} objects ({per_sec})")));
    }
    let objects = store.client.stat()?.tiers.iter().map(|tier| tier.objects).sum();
    Ok(ProgressBar::new(objects).with_style(style("{bar:40} {pos}/{len} objects ({per_sec}, {eta})")))
}

fn style(template: &str) -> ProgressStyle {
    // The templates above are valid, so that the default is never used.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn report(
    arguments: &VerifyArguments,
    uri: &ObjUri<'_>,
    entry: &Entry,
    why: &str,
    deleted: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    if arguments.json {
        let mut object = to_json(uri, entry);
        object.insert("damage".to_owned(), why.into());
        object.insert("deleted".to_owned(), deleted.into());
        out.line(Value::from(object))?;
    } else {
        let deleted = if deleted { ", removed" } else { "" };
        out.line(format_args!("damaged: {}: {why}{deleted}", printable(uri.as_bytes())))?;
    }
    // It may take long until the next one.
    out.finish()
}

fn sum_up(arguments: &VerifyArguments, sums: &Sums, out: &mut Out) -> Result<(), Failure> {
    let Sums { objects, bytes, checked, damaged, deleted, gone } = sums;
    if arguments.json {
        return out.line(json!({
            "objects": objects,
            "bytes": bytes,
            "checked": checked,
            "damaged": damaged,
            "deleted": deleted,
            "gone": gone,
        }));
    }
    out.line(format_args!(
        "{objects} objects read ({} of bodies), {checked} of them with a checksum; {damaged} damaged, {deleted} removed; \
         {gone} were gone before they were read",
        size(*bytes)
    ))
}
