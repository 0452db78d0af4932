//! Opening a journal: what is found, and what is discarded. What an earlier process left is never a reason not to start.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::bans::{self, BanLog, BanRecord};
use crate::directory::Directory;
use crate::entry::{ENTRY_LEN, Entry, RecordPlace};
use crate::header::{self, BadHeader, Header};
use crate::journal::{Journal, Parts, segment_number};
use crate::ledger::Ledger;

const ENTRIES: &str = "entries";
/// So many processes in a row that end soon after they have loaded the same objects are no accident.
const MAX_SHORT_LIVES: u32 = 4;
/// Slots that are read at a time.
const SLOTS_AT_A_TIME: usize = 8192;
/// Tables that are kept for a diagnosis take one part in so many of the size at most.
const KEPT_PART: u64 = 64;
/// Bounds of the size of a segment.
const MIN_SEGMENT: u64 = 1 << 20;
const MAX_SEGMENT: u64 = 64 << 20;

/// What becomes of files that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damaged {
    /// Tables that may tell what went wrong are moved to a directory beside them, unless that exists, or they are large. The
    /// rest is removed.
    Keep,
    /// They are removed.
    Delete,
}

/// How a journal is opened.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory, which exists, and which no other process uses.
    pub dir: PathBuf,
    /// What writes the records: those of another product cannot be used.
    pub product: String,
    /// The limit in bytes of what the cache holds, by which the size of segments is chosen.
    pub size: u64,
    /// What becomes of files that cannot be used.
    pub damaged: Damaged,
}

/// Why nothing of what was there is used, and what became of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discarded(pub String);

/// An object that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Its sequence number: the larger, the newer.
    pub sequence: u64,
    /// Bytes that it takes, with its body in the store.
    pub bytes: u64,
    /// The time of the newest ban that it was tested by.
    pub ban: f64,
    /// Its slot.
    pub slot: u32,
}

/// An open journal and what was in it, which is marked as being loaded until [`Journal::finish_loading`].
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// All objects, from the oldest to the newest.
    pub found: Vec<Found>,
    /// All bans, in the order in which they were appended.
    pub bans: Vec<BanRecord>,
    /// Why it is empty, if something was there.
    pub discarded: Option<Discarded>,
    /// Entries that are damaged; their objects are not found.
    pub damaged: u64,
}

/// Opens the journal in a directory, or makes an empty one.
///
/// # Errors
/// The directory cannot be used at all.
pub fn open(config: &Config) -> io::Result<Opened> {
    let directory = Directory::open(&config.dir)?;
    let boot = header::boot_id();
    match load(&directory, config, boot) {
        Ok(None) => fresh(directory, config, None),
        Ok(Some(Loaded { header, header_file, contents })) => {
            let Contents { ledger, found, damaged, next_segment, next_sequence, bans, bans_found } = contents;
            let parts = Parts {
                directory,
                segment_size: segment_size(config),
                header,
                header_file,
                bans,
                ledger,
                next_segment,
                next_sequence,
            };
            Ok(Opened { journal: Journal::new(parts), found, bans: bans_found, discarded: None, damaged })
        }
        Err(why) => {
            let discarded = put_away(&directory, config, &why)?;
            fresh(directory, config, Some(discarded))
        }
    }
}

/// Removes what a journal in `dir` holds, if there is one: what happens to the cache from now on is not written there. Returns true
/// if there was one.
///
/// # Errors
/// It is still there, and a later start may find it.
pub fn forget(dir: &Path) -> io::Result<bool> {
    let Some(directory) = Directory::open_existing(dir)? else { return Ok(false) };
    let was_there = directory.file(header::NAME)?.is_some();
    directory.remove(header::NAME)?;
    directory.clear()?;
    Ok(was_there)
}

impl Opened {
    /// Discards what was found, because of `why`.
    ///
    /// # Errors
    /// The directory cannot be used at all.
    pub fn discard(self, config: &Config, why: &str) -> io::Result<Opened> {
        let directory = self.journal.into_directory();
        let discarded = put_away(&directory, config, &why.into())?;
        fresh(directory, config, Some(discarded))
    }
}

fn segment_size(config: &Config) -> u32 {
    (config.size / 64).clamp(MIN_SEGMENT, MAX_SEGMENT) as u32
}

/// Why a journal cannot be used.
struct Unusable {
    text: String,
    /// True if the tables may tell what went wrong; false if nothing did, or the text says all.
    tells: bool,
}

impl From<String> for Unusable {
    fn from(text: String) -> Unusable {
        Unusable { text, tells: true }
    }
}

impl From<&str> for Unusable {
    fn from(text: &str) -> Unusable {
        text.to_owned().into()
    }
}

fn put_away(directory: &Directory, config: &Config, why: &Unusable) -> io::Result<Discarded> {
    let path = directory.path().display();
    let removed = "its files are removed";
    let what = match config.damaged {
        Damaged::Keep if why.tells => {
            let limit = (config.size / KEPT_PART).max(MIN_SEGMENT);
            match directory.set_aside(&[header::NAME, ENTRIES, bans::NAME], limit) {
                Ok(Some(aside)) => format!("its tables are kept in {}", aside.display()),
                Ok(None) => format!("{removed}: older ones are kept already, or they are too large"),
                Err(error) => format!("{removed}: they cannot be kept: {error}"),
            }
        }
        Damaged::Keep | Damaged::Delete => removed.to_owned(),
    };
    // First: what is half removed must not be used.
    directory.remove(header::NAME)?;
    directory.clear()?;
    Ok(Discarded(format!("what was kept in {path} cannot be used: {}; the cache starts empty; {what}", why.text)))
}

fn fresh(directory: Directory, config: &Config, discarded: Option<Discarded>) -> io::Result<Opened> {
    directory.clear()?;
    let bans = BanLog::create(&directory)?;
    let ledger = Ledger::new(directory.create(ENTRIES)?);
    let header = Header::new(&config.product, header::boot_id());
    let header_file = directory.create(header::NAME)?;
    header.write(&header_file)?;
    let parts = Parts {
        directory,
        segment_size: segment_size(config),
        header,
        header_file,
        bans,
        ledger,
        next_segment: 0,
        next_sequence: 1,
    };
    Ok(Opened { journal: Journal::new(parts), found: Vec::new(), bans: Vec::new(), discarded, damaged: 0 })
}

/// A journal that can be used.
struct Loaded {
    header: Header,
    header_file: File,
    contents: Contents,
}

struct Contents {
    ledger: Ledger,
    found: Vec<Found>,
    damaged: u64,
    next_segment: u32,
    next_sequence: u64,
    bans: BanLog,
    bans_found: Vec<BanRecord>,
}

/// Returns why it cannot be used, if the header says so.
fn unusable(header: &Header, product: &str, boot: u128) -> Option<Unusable> {
    let ours = Header::new(product, boot);
    let tells = header.loading || header.short_lives >= MAX_SHORT_LIVES;
    let text = if header.product != ours.product {
        format!("it is of {}, and this is {}", header.product, ours.product)
    } else if header.broken {
        "something was removed from the cache, and that could not be written".to_owned()
    } else if header.loading {
        "an earlier start ended while it was loaded".to_owned()
    } else if header.short_lives >= MAX_SHORT_LIVES {
        format!("{MAX_SHORT_LIVES} processes in a row ended soon after they had loaded it")
    } else if !header.clean && (boot == 0 || header.boot != boot) {
        "the system went down before it was safe on disk".to_owned()
    } else {
        return None;
    };
    Some(Unusable { text, tells })
}

/// Reads what is there; `None` if there is nothing, and why it cannot be used if it cannot.
fn load(directory: &Directory, config: &Config, boot: u128) -> Result<Option<Loaded>, Unusable> {
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let Some(header_file) = directory.file(header::NAME).map_err(failed("opening its header"))? else {
        return Ok(None);
    };
    let mut header = match Header::read(&header_file).map_err(failed("reading its header"))? {
        Ok(header) => header,
        Err(BadHeader::Damaged) => return Err("its header is damaged".into()),
        Err(BadHeader::Layout(layout)) => {
            let text = format!("its layout is {layout}, which this release cannot read");
            return Err(Unusable { text, tells: false });
        }
    };
    if let Some(why) = unusable(&header, &config.product, boot) {
        return Err(why);
    }
    let was_clean = header.clean;
    header = Header { clean: false, loading: true, boot, short_lives: header.short_lives + 1, ..header };
    header.write(&header_file).map_err(failed("writing its header"))?;
    if was_clean {
        // Before anything else changes: after a crash of the system it would be taken for what it was.
        header_file.sync_data().map_err(failed("writing its header"))?;
    }
    let contents = read(directory)?;
    Ok(Some(Loaded { header, header_file, contents }))
}

fn read(directory: &Directory) -> Result<Contents, String> {
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let opened = BanLog::open(directory).map_err(failed("reading its bans"))?;
    let (bans, bans_found) = opened.ok_or("its log of bans is missing or damaged")?;
    let table = directory.file(ENTRIES).map_err(failed("opening its entries"))?.ok_or("its entries are missing")?;
    let mut segments = Vec::new();
    for name in directory.names().map_err(failed("reading the directory"))? {
        if let Some(number) = segment_number(&name)
            && let Some(file) = directory.file(&name).map_err(failed("opening a segment"))?
        {
            segments.push((number, file.metadata().map_err(failed("looking at a segment"))?.len()));
        }
    }
    let mut found = Vec::new();
    let mut places: Vec<(u32, RecordPlace)> = Vec::new();
    let mut damaged = 0;
    let slots = scan(&table, |slot, entry| match entry {
        Some(entry) => {
            let body = entry.body.map_or(0, |body| body.file_len);
            let bytes = u64::from(entry.heap).saturating_add(body);
            found.push(Found { sequence: entry.sequence, bytes, ban: entry.ban, slot });
            places.push((slot, entry.record));
        }
        None => damaged += 1,
    })
    .map_err(failed("reading its entries"))?;
    let mut ledger = Ledger::new(table);
    ledger.restore(slots, &places, &segments);
    drop(places);
    for number in ledger.without_live() {
        // Left by a process that ended before it removed it.
        let _ = directory.remove(&format!("segment-{number:08x}"));
    }
    found.sort_unstable_by_key(|found| found.sequence);
    let next_sequence = found.last().map_or(1, |newest| newest.sequence.saturating_add(1));
    let next_segment = segments.iter().map(|(number, _)| number.wrapping_add(1)).max().unwrap_or(0);
    Ok(Contents { ledger, found, damaged, next_segment, next_sequence, bans, bans_found })
}

/// Calls `each` with all used slots; without an entry, if it is damaged. Returns the number of slots.
fn scan(table: &File, mut each: impl FnMut(u32, Option<Entry>)) -> io::Result<usize> {
    let slots = usize::try_from(table.metadata()?.len()).unwrap_or(usize::MAX) / ENTRY_LEN;
    let slots = slots.min((u32::MAX - 2) as usize);
    let mut bytes = vec![0; SLOTS_AT_A_TIME.min(slots) * ENTRY_LEN];
    let mut at = 0;
    while at < slots {
        let some = SLOTS_AT_A_TIME.min(slots - at);
        let part = &mut bytes[..some * ENTRY_LEN];
        table.read_exact_at(part, (at * ENTRY_LEN) as u64)?;
        let (entries, _) = part.as_chunks::<ENTRY_LEN>();
        for (index, entry) in entries.iter().enumerate() {
            match Entry::decode(entry) {
                Ok(None) => {}
                Ok(Some(entry)) => each((at + index) as u32, Some(entry)),
                Err(_) => each((at + index) as u32, None),
            }
        }
        at += some;
    }
    Ok(slots)
}
