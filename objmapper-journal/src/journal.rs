//! The open journal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::FLUSH_INTERVAL;
use crate::bans::BanLog;
use crate::directory::Directory;
use crate::entry::{Entry, RecordPlace, Times};
use crate::header::Header;
use crate::inbox::{Batch, Inbox, Item};
use crate::ledger::Ledger;
use crate::reader::{Reader, frame_head};

/// Bytes before a record's own: checksum and sequence number.
pub(crate) const RECORD_HEAD: usize = 16;
/// Bytes of records that may wait to be written. More are not kept, so that no thread ever waits for a disk.
const MAX_BACKLOG: usize = 32 << 20;
/// Live bytes that are copied forward at a time.
const MAX_MOVED: u64 = 4 << 20;
/// After a failure, records are not kept for this time; it doubles with each.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(32);

/// Why an object is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// Its record is larger than a quarter of a segment.
    #[error("the record is too large")]
    TooLarge,
    /// The disk is slower than objects come.
    #[error("too much waits to be written")]
    Backlog,
    /// Records could not be written a moment ago.
    #[error("records cannot be written")]
    Paused,
    /// The journal is broken, closed, or its table is full.
    #[error("the journal takes no more objects")]
    Closed,
}

/// The outcome of [`Journal::flush`].
#[derive(Debug, Default)]
pub struct Flushed {
    /// Objects that are written.
    pub written: u64,
    /// Bytes of records.
    pub bytes: u64,
    /// Objects that could not be written.
    pub lost: u64,
    /// The last error.
    pub error: Option<io::Error>,
}

/// A journal's figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Objects in the table.
    pub objects: u64,
    /// Bytes of their records.
    pub live: u64,
    /// Bytes of all segments.
    pub bytes: u64,
}

/// What one flush has open.
#[derive(Default)]
struct Files {
    segment: Option<(u32, File)>,
    pause: Option<(Instant, Duration)>,
}

/// See the crate's documentation. All of it may be called by any thread.
pub struct Journal {
    directory: Directory,
    segment_size: u32,
    header: Mutex<(Header, File)>,
    bans: BanLog,
    flushing: Mutex<Files>,
    inbox: Mutex<Inbox>,
    wake: Condvar,
    ledger: Mutex<Ledger>,
    sequence: AtomicU64,
    /// No objects are taken: broken or closed.
    closed: AtomicBool,
    paused: AtomicBool,
}

fn segment_name(number: u32) -> String {
    format!("segment-{number:08x}")
}

/// The number in a segment's name.
pub(crate) fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("segment-").filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok()
}

/// The parts of a journal that [`crate::open`] makes.
pub(crate) struct Parts {
    pub(crate) directory: Directory,
    pub(crate) segment_size: u32,
    pub(crate) header: Header,
    pub(crate) header_file: File,
    pub(crate) bans: BanLog,
    pub(crate) ledger: Ledger,
    pub(crate) next_segment: u32,
    pub(crate) next_sequence: u64,
}

impl Journal {
    pub(crate) fn new(parts: Parts) -> Journal {
        Journal {
            directory: parts.directory,
            segment_size: parts.segment_size,
            header: Mutex::new((parts.header, parts.header_file)),
            bans: parts.bans,
            flushing: Mutex::default(),
            inbox: Mutex::new(Inbox::new(parts.segment_size, parts.next_segment)),
            wake: Condvar::new(),
            ledger: Mutex::new(parts.ledger),
            sequence: AtomicU64::new(parts.next_sequence),
            closed: AtomicBool::new(false),
            paused: AtomicBool::new(false),
        }
    }

    pub(crate) fn into_directory(self) -> Directory {
        self.directory
    }

    /// Takes an object, whose record is the concatenation of `parts`; `entry`'s sequence number and place are set here. Returns
    /// its slot. Copies memory, and makes no system call.
    ///
    /// # Errors
    /// The object is not kept.
    pub fn append(&self, mut entry: Entry, parts: &[&[u8]]) -> Result<u32, NotKept> {
        if self.closed.load(Relaxed) {
            return Err(NotKept::Closed);
        }
        if self.paused.load(Relaxed) {
            return Err(NotKept::Paused);
        }
        let bytes = parts.iter().map(|part| part.len()).sum::<usize>() + RECORD_HEAD;
        let len = u32::try_from(bytes).ok().filter(|len| *len <= self.segment_size / 4).ok_or(NotKept::TooLarge)?;
        entry.sequence = self.sequence.fetch_add(1, Relaxed);
        let mut inbox = self.inbox.lock();
        let backlog = inbox.backlog();
        if backlog + bytes > MAX_BACKLOG {
            return Err(NotKept::Backlog);
        }
        entry.record = inbox.next_place(len);
        let slot = self.ledger.lock().reserve(entry.record).ok_or(NotKept::Closed)?;
        inbox.push_framed(parts, Item::New { slot, entry }, |payload| frame_head(entry.sequence, payload));
        let wake = backlog == 0 || inbox.has_full_batch();
        drop(inbox);
        if wake {
            self.wake.notify_one();
        }
        Ok(slot)
    }

    /// Removes an object: it is not found any more after any end of this process.
    ///
    /// # Errors
    /// That could not be written. The journal is broken then, and nothing of it will be found.
    pub fn remove(&self, slot: u32) -> io::Result<()> {
        let removed = self.ledger.lock().remove(slot);
        match removed {
            Ok(emptied) => {
                self.remove_segments(emptied);
                Ok(())
            }
            Err(error) => Err(self.invalidate(error)),
        }
    }

    /// Sets an object's times: those are found after any end of this process.
    ///
    /// # Errors
    /// As for [`Journal::remove`].
    pub fn set_times(&self, slot: u32, times: Times) -> io::Result<()> {
        let set = self.ledger.lock().set_times(slot, times);
        set.map_err(|error| self.invalidate(error))
    }

    /// Appends a ban. Returns true if the caller should call [`Journal::replace_bans`], because the log has grown.
    ///
    /// # Errors
    /// As for [`Journal::remove`].
    pub fn append_ban(&self, ban: &[u8]) -> io::Result<bool> {
        self.bans.append(ban).map_err(|error| self.invalidate(error))
    }

    /// Replaces the log of bans. If that fails the former one stays.
    ///
    /// # Errors
    /// The new log could not be written.
    pub fn replace_bans<'a>(&self, bans: impl IntoIterator<Item = &'a [u8]>) -> io::Result<()> {
        self.bans.replace(&self.directory, bans)
    }

    /// Marks the journal as broken because of `error`, so that the next start finds nothing. Returns the error, with what became of
    /// that.
    pub fn invalidate(&self, error: io::Error) -> io::Error {
        self.closed.store(true, Release);
        let mut header = self.header.lock();
        header.0.broken = true;
        let (content, file) = &*header;
        let marked = content.write(file).or_else(|_| self.directory.remove(crate::header::NAME));
        match marked {
            Ok(()) => error,
            Err(second) => io::Error::new(
                error.kind(),
                format!(
                    "{error}; and the journal could not be marked as broken: {second}: remove its directory before varnishd is started again"
                ),
            ),
        }
    }

    /// Returns true if objects are taken.
    pub fn takes_objects(&self) -> bool {
        !self.closed.load(Relaxed) && !self.paused.load(Relaxed)
    }

    /// Waits until something was appended, then until much was, or for [`FLUSH_INTERVAL`]; at most `idle` in all if nothing is
    /// appended.
    pub fn wait(&self, idle: Duration) {
        let mut inbox = self.inbox.lock();
        if inbox.backlog() == 0 && self.wake.wait_for(&mut inbox, idle).timed_out() {
            return;
        }
        if !inbox.has_full_batch() && inbox.backlog() > 0 {
            self.wake.wait_for(&mut inbox, FLUSH_INTERVAL);
        }
    }

    /// Ends a [`Journal::wait`].
    pub fn notify(&self) {
        self.wake.notify_all();
    }

    /// Writes what was appended. Called in a loop by one thread.
    pub fn flush(&self) -> Flushed {
        let mut files = self.flushing.lock();
        let mut flushed = Flushed::default();
        if let Some((until, _)) = files.pause
            && Instant::now() >= until
        {
            self.paused.store(false, Relaxed);
        }
        let batches = self.inbox.lock().take();
        let any = !batches.is_empty();
        for batch in batches {
            self.write(&mut files, batch, &mut flushed);
        }
        if flushed.error.is_some() {
            let pause = files.pause.map_or(MIN_PAUSE, |(_, pause)| (pause * 2).min(MAX_PAUSE));
            files.pause = Some((Instant::now() + pause, pause));
            self.paused.store(true, Relaxed);
        } else if any {
            files.pause = None;
        }
        flushed
    }

    fn write(&self, files: &mut Files, batch: Batch, flushed: &mut Flushed) {
        let Batch { segment, base, bytes, items, closes } = batch;
        let new = items.iter().filter(|item| matches!(item, Item::New { .. })).count() as u64;
        let written = self.segment_to_write(files, segment).and_then(|file| file.write_all_at(&bytes, u64::from(base)));
        if let Err(error) = written {
            files.segment = None;
            // What is behind the failed part is not reached: this segment takes no more.
            self.inbox.lock().leave_segment(segment);
            let mut ledger = self.ledger.lock();
            ledger.abandon(items);
            let emptied = ledger.grown(segment, u64::from(base), closes);
            drop(ledger);
            self.remove_segments(emptied);
            flushed.lost += new;
            flushed.error = Some(error);
            return;
        }
        flushed.bytes += bytes.len() as u64;
        let mut ledger = self.ledger.lock();
        let entries = ledger.write(items);
        let emptied = ledger.grown(segment, u64::from(base) + bytes.len() as u64, closes);
        drop(ledger);
        if closes {
            files.segment = None;
        }
        match entries {
            Ok((written, unneeded)) => {
                flushed.written += written;
                self.remove_segments(unneeded);
            }
            Err(error) => {
                // Which of them were written is not known: an object that is removed later must not be found.
                flushed.lost += new;
                flushed.error = Some(self.invalidate(error));
            }
        }
        self.remove_segments(emptied);
    }

    fn segment_to_write<'a>(&self, files: &'a mut Files, number: u32) -> io::Result<&'a File> {
        if files.segment.as_ref().is_none_or(|(open, _)| *open != number) {
            let file = match self.directory.file(&segment_name(number))? {
                Some(file) => file,
                None => self.directory.create(&segment_name(number))?,
            };
            files.segment = Some((number, file));
        }
        files.segment.as_ref().map(|(_, file)| file).ok_or_else(|| io::Error::other("no segment is open"))
    }

    /// A file that cannot be removed is found and removed by the next start.
    fn remove_segments(&self, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            let _ = self.directory.remove(&segment_name(number));
        }
    }

    pub(crate) fn segment_file(&self, number: u32) -> io::Result<Option<File>> {
        self.directory.file(&segment_name(number))
    }

    /// Copies the live records of a segment that is mostly dead forward, if dead records take more room than live ones. Its
    /// file goes when they are written. Returns the bytes that were copied.
    ///
    /// # Errors
    /// The segment cannot be read.
    pub fn compact(&self) -> io::Result<u64> {
        if !self.takes_objects() {
            return Ok(0);
        }
        let slack = u64::from(self.segment_size) * 4;
        let Some((from, slots)) = self.ledger.lock().mostly_dead(slack) else { return Ok(0) };
        let Some(file) = self.segment_file(from)? else { return Ok(0) };
        let mut moved = 0;
        for slot in slots {
            if moved >= MAX_MOVED {
                break;
            }
            let entry = match self.ledger.lock().read(slot)? {
                Some(entry) if entry.record.segment == from => entry,
                _ => continue,
            };
            let mut bytes = vec![0; entry.record.len as usize];
            file.read_exact_at(&mut bytes, u64::from(entry.record.offset))?;
            let mut inbox = self.inbox.lock();
            let place: RecordPlace = inbox.next_place(entry.record.len);
            inbox.push(&bytes, Item::Moved { slot, sequence: entry.sequence, from, place });
            moved += u64::from(entry.record.len);
        }
        Ok(moved)
    }

    /// Reads what the journal was opened with.
    ///
    /// # Errors
    /// There are no descriptors.
    pub fn reader(&self) -> io::Result<Reader<'_>> {
        let table = self.ledger.lock().table()?;
        Ok(Reader::new(self, table))
    }

    /// Takes the mark *loading* away: all objects that were found are loaded or removed.
    ///
    /// # Errors
    /// The header could not be written: the next start finds nothing.
    pub fn finish_loading(&self) -> io::Result<()> {
        self.mark(|header| header.loading = false)
    }

    /// Notes that this process has lived for a while after it loaded the objects.
    ///
    /// # Errors
    /// The header could not be written.
    pub fn survived(&self) -> io::Result<()> {
        self.mark(|header| header.short_lives = 0)
    }

    fn mark(&self, change: impl FnOnce(&mut Header)) -> io::Result<()> {
        let mut header = self.header.lock();
        change(&mut header.0);
        let (content, file) = &*header;
        content.write(file)
    }

    /// Writes everything to disk and marks the journal as clean. Nothing is taken afterwards; removals still are.
    ///
    /// # Errors
    /// Something could not be written. What is there is found again, unless the system goes down.
    pub fn close(&self) -> io::Result<()> {
        let was_broken = self.closed.swap(true, Release);
        if let Some(error) = self.flush().error {
            return Err(error);
        }
        self.directory.sync_file_system()?;
        if was_broken {
            return Ok(());
        }
        let mut header = self.header.lock();
        if header.0.broken {
            return Ok(());
        }
        header.0.clean = true;
        header.0.short_lives = 0;
        let (content, file) = &*header;
        content.write(file)?;
        file.sync_data()
    }

    /// Returns the figures.
    pub fn stats(&self) -> Stats {
        let ledger = self.ledger.lock();
        let (live, bytes) = ledger.bytes();
        Stats { objects: ledger.objects(), live, bytes }
    }

    /// Returns the directory's path.
    pub fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Returns true if no removal or ban is missing in what is written.
    pub fn is_whole(&self) -> bool {
        let _ = self.closed.load(Acquire);
        !self.header.lock().0.broken
    }
}
