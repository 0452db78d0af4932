//! Records that are not what was published: damaged, cut, lengthened, gone.
//!
//! They are in a disk tier, whose files this test, which is root, can write to behind the store's back. docs/outages.md has
//! a row for each.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::outage::{SIZES, Stage};
use objmapper_harness::process::wait_for;
use objmapper_harness::random::Random;
use objmapper_harness::shared::status;

const BOUND: Duration = Duration::from_secs(30);

/// Up to which size a body is verified by its checksum at each use; the tail always is. With the storage engine, whose
/// threshold is 64k, larger bodies are published and adopted without being read.
fn verified(arrangement: Arrangement) -> usize {
    if arrangement.has_engine() { 65_536 } else { 1 << 20 }
}

/// A published record: the path that it answers, and its file.
struct Victim {
    path: String,
    size: usize,
    file: PathBuf,
    length: usize,
}

impl Victim {
    fn of(stage: &Stage, size: usize) -> Result<Self> {
        let path = format!("{}-victim-", stage.new_path(size));
        let mut victim = Self { path, size, file: PathBuf::new(), length: 0 };
        victim.find_again(stage)?;
        Ok(victim)
    }

    /// Asks until the record is found in the store; its file is the newest that names the path.
    fn find_again(&mut self, stage: &Stage) -> Result<()> {
        let path = &self.path;
        wait_for("the response to be published", BOUND, || Ok((status(&stage.miss(path)?) == "hit").then_some(())))
            .with_context(|| format!("{:?}\n{}", stage.cache.counters(), stage.log()))?;
        let bodies = stage.daemon.as_ref().context("no objmapperd")?.bodies();
        let mut newest = None;
        for directory in std::fs::read_dir(&bodies).with_context(|| bodies.display().to_string())? {
            let directory = directory?.path();
            if !directory.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(directory)? {
                let file = entry?.path();
                // What is removed meanwhile is not it.
                let Ok(bytes) = std::fs::read(&file) else { continue };
                let tail = &bytes[bytes.len().min(self.size)..];
                let named = tail.windows(path.len()).any(|w| w == path.as_bytes());
                let number = file.file_name().map(|n| n.to_owned());
                if named && newest.as_ref().is_none_or(|(n, _, _)| *n < number) {
                    newest = Some((number, file, bytes.len()));
                }
            }
        }
        let (_, file, length) = newest.with_context(|| format!("no record names {path}"))?;
        (self.file, self.length) = (file, length);
        ensure!(self.length > self.size, "a record has a tail: {} bytes for {}", self.length, self.size);
        Ok(())
    }

    fn open(&self) -> Result<File> {
        File::options().read(true).write(true).open(&self.file).with_context(|| self.file.display().to_string())
    }

    /// After `act` the record is not used: the request is answered by the origin, right. The record is counted by
    /// `counter`, and replaced by a whole one.
    fn spoil(&mut self, stage: &Stage, counter: &str, act: impl FnOnce(&File) -> Result<()>) -> Result<()> {
        let before = stage.cache.counter(counter)?;
        act(&self.open()?)?;
        let response = stage.miss(&self.path)?;
        ensure!(status(&response) == "miss", "a spoilt record was used: {:?}", response.headers);
        ensure!(stage.cache.counter(counter)? == before + 1, "not counted: {:?}", stage.cache.counters());
        self.find_again(stage)
    }
}

fn stage(arrangement: Arrangement) -> Result<Stage> {
    Stage::set(arrangement, |dir| Objmapperd::start_on_disk(dir, "2g").map(Some))
}

/// An operator is told of damaged records, by a bounded number of lines in each minute, and of no outage of the store.
fn logged(stage: &Stage) -> Result<()> {
    let counted = stage.cache.counter("c_damaged")? as usize;
    let lines = wait_for("a line about damaged records", BOUND, || {
        Ok(Some(stage.log().matches("a damaged record was removed").count()).filter(|lines| *lines > 0))
    })?;
    ensure!(counted > 20 && lines <= counted / 2, "{lines} lines for {counted} records\n{}", stage.log());
    ensure!(stage.changes().0 == 0, "{}", stage.log());
    Ok(())
}

/// Flips a bit of the byte at `at`.
fn flip(file: &File, at: usize, bit: usize) -> Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64)?;
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at as u64)?;
    Ok(())
}

fn damaged_in(arrangement: Arrangement, whole: bool) -> Result<()> {
    let mut random = Random::new(Random::seed());
    let stage = stage(arrangement)?;
    for size in SIZES {
        let mut victim = Victim::of(&stage, size)?;
        let places: Vec<usize> = match (size, whole) {
            // Every byte of a small one.
            (..1000, true) => (0..victim.length).collect(),
            _ => {
                let mut places: Vec<usize> =
                    (0..20).map(|_| victim.size + random.below(victim.length - victim.size)).collect();
                places.extend([victim.size, victim.length - 1]);
                if size <= verified(arrangement) {
                    places.extend([0, size - 1]);
                    places.extend((0..10).map(|_| random.below(size)));
                }
                places
            }
        };
        for at in places {
            let bit = random.below(8);
            victim
                .spoil(&stage, "c_damaged", |file| flip(file, at, bit))
                .with_context(|| format!("{size} bytes: bit {bit} of byte {at} of {}", victim.length))?;
        }
    }
    logged(&stage)?;
    stage.end()
}

#[test]
fn damaged_in_any_byte_and_copied() -> Result<()> {
    damaged_in(Arrangement::Malloc, true)
}

#[test]
fn damaged_and_adopted() -> Result<()> {
    damaged_in(Arrangement::Daemon, false)
}

fn truncated_in(arrangement: Arrangement) -> Result<()> {
    let stage = stage(arrangement)?;
    for size in SIZES {
        let mut victim = Victim::of(&stage, size)?;
        let length = victim.length;
        for cut in [0, 1, size - 1, size, size + 1, (size + length) / 2, length - 1, length + 1, length + 4096] {
            victim
                .spoil(&stage, "c_damaged", |file| Ok(file.set_len(cut as u64)?))
                .with_context(|| format!("{size} bytes: {cut} instead of {length}"))?;
        }
    }
    logged(&stage)?;
    stage.end()
}

#[test]
fn truncated_and_copied() -> Result<()> {
    truncated_in(Arrangement::Malloc)
}

#[test]
fn truncated_and_adopted() -> Result<()> {
    truncated_in(Arrangement::Daemon)
}

/// The file is gone, the store's index still names it.
#[test]
fn removed() -> Result<()> {
    let stage = stage(Arrangement::Malloc)?;
    let victim = Victim::of(&stage, 200_000)?;
    std::fs::remove_file(&victim.file)?;
    let response = stage.miss(&victim.path)?;
    ensure!(status(&response) == "miss", "{:?}", response.headers);
    stage.shares()?;
    stage.end()
}
