//! A journal against a model: whatever is appended, removed and changed, and however the process ends, what is found is what
//! was there.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use objmapper_journal::{Config, Damaged, Entry, Journal, NotKept, Opened, RecordPlace, StoredBody, Times, open};
use proptest::prelude::*;
use tempfile::TempDir;

const PRODUCT: &str = "varnish 7.7.0 (revision abc)";

fn config(dir: &Path) -> Config {
    Config { dir: dir.to_owned(), product: PRODUCT.to_owned(), size: 64 << 20, damaged: Damaged::Delete }
}

fn reopen(dir: &Path) -> Opened {
    open(&config(dir)).expect("a journal opens")
}

fn entry(number: u64) -> Entry {
    Entry {
        sequence: 0,
        digest: [number as u8; 32],
        times: Times { origin: number as f64, ttl: 1.0, grace: 2.0, keep: 3.0 },
        ban: 4.0,
        record: RecordPlace::default(),
        body: number.is_multiple_of(3).then_some(StoredBody { object: number + 1, body_len: 5, file_len: 6 }),
        heap: 100,
        tag: 9,
    }
}

fn record(number: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number as usize * 31 + at) as u8).collect()
}

/// Everything in the journal, by its origin, which the tests use as a number: the record and the ttl.
fn contents(opened: &Opened) -> BTreeMap<u64, (Vec<u8>, f32)> {
    let mut reader = opened.journal.reader().expect("a reader");
    let mut all = BTreeMap::new();
    for found in &opened.found {
        let entry = reader.entry(found.slot).expect("an entry that was found");
        let bytes = reader.record(&entry).expect("its record").to_vec();
        let former = all.insert(entry.times.origin as u64, (bytes, entry.times.ttl));
        assert!(former.is_none(), "found twice");
    }
    all
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(dir.join("objmapper-persist")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Remove(usize),
    Ttl(usize, u8),
    Flush,
    Compact,
    /// The process is killed.
    Kill,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..250_000).prop_map(Step::Append),
        4 => any::<usize>().prop_map(Step::Remove),
        3 => (any::<usize>(), any::<u8>()).prop_map(|(which, ttl)| Step::Ttl(which, ttl)),
        4 => Just(Step::Flush),
        2 => Just(Step::Compact),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
    ]
}

#[derive(Default)]
struct Model {
    /// By number: slot, record, ttl; and whether it is written.
    objects: BTreeMap<u64, (u32, Vec<u8>, f32, bool)>,
    next: u64,
}

impl Model {
    fn pick(&self, which: usize) -> Option<u64> {
        let len = self.objects.len();
        (len > 0).then(|| *self.objects.keys().nth(which % len).unwrap())
    }

    fn flush(&mut self, journal: &Journal) {
        assert!(journal.flush().error.is_none());
        self.objects.values_mut().for_each(|object| object.3 = true);
    }

    /// What a killed process leaves: what was written.
    fn survivors(&self) -> BTreeMap<u64, (Vec<u8>, f32)> {
        let written = self.objects.iter().filter(|(_, object)| object.3);
        written.map(|(number, object)| (*number, (object.1.clone(), object.2))).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_is_what_was_there(steps in proptest::collection::vec(step(), 1..120)) {
        let dir = TempDir::new().unwrap();
        let mut opened = reopen(dir.path());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Append(len) => {
                    let number = model.next;
                    model.next += 1;
                    let bytes = record(number, len);
                    let (a, b) = bytes.split_at(len / 2);
                    let slot = opened.journal.append(entry(number), &[a, b]).unwrap();
                    model.objects.insert(number, (slot, bytes, 1.0, false));
                }
                Step::Remove(which) => {
                    if let Some(number) = model.pick(which) {
                        let (slot, ..) = model.objects.remove(&number).unwrap();
                        opened.journal.remove(slot).unwrap();
                    }
                }
                Step::Ttl(which, ttl) => {
                    if let Some(number) = model.pick(which) {
                        let object = model.objects.get_mut(&number).unwrap();
                        object.2 = f32::from(ttl);
                        let times = Times { ttl: object.2, ..entry(number).times };
                        opened.journal.set_times(object.0, times).unwrap();
                    }
                }
                Step::Flush => model.flush(&opened.journal),
                Step::Compact => {
                    opened.journal.compact().unwrap();
                }
                Step::Kill | Step::Close => {
                    if matches!(step, Step::Close) {
                        opened.journal.close().unwrap();
                        model.objects.values_mut().for_each(|object| object.3 = true);
                    }
                    drop(opened);
                    opened = reopen(dir.path());
                    prop_assert_eq!(opened.discarded.as_ref(), None);
                    prop_assert_eq!(contents(&opened), model.survivors());
                    model.objects.retain(|_, object| object.3);
                    opened.journal.finish_loading().unwrap();
                    opened.journal.survived().unwrap();
                }
            }
            prop_assert_eq!(opened.journal.stats().objects, model.objects.len() as u64);
        }
    }
}

/// Some objects and bans, written by a process that is killed.
fn killed(dir: &Path) -> usize {
    let opened = reopen(dir);
    for number in 0..50 {
        opened.journal.append(entry(number), &[&record(number, 40_000)]).unwrap();
    }
    opened.journal.append_ban(b"a ban").unwrap();
    assert!(opened.journal.flush().error.is_none());
    50
}

#[test]
fn a_cut_or_changed_file_never_keeps_it_from_opening_nor_is_a_wrong_record_found() {
    let whole = TempDir::new().unwrap();
    killed(whole.path());
    let names: Vec<_> = files(whole.path()).iter().map(|file| file.file_name().unwrap().to_owned()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    for name in &names {
        for change in 0..24u64 {
            let dir = TempDir::new().unwrap();
            let copy = dir.path().join("objmapper-persist");
            fs::create_dir(&copy).unwrap();
            for file in files(whole.path()) {
                fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
            }
            let file = OpenOptions::new().read(true).write(true).open(copy.join(name)).unwrap();
            let len = file.metadata().unwrap().len();
            match change {
                0 => fs::remove_file(copy.join(name)).unwrap(),
                1 => {
                    fs::remove_file(copy.join(name)).unwrap();
                    fs::create_dir(copy.join(name)).unwrap();
                }
                _ if change < 12 => file.set_len(len * (change - 2) / 10).unwrap(),
                _ => file.write_all_at(&[0xa5; 7], (len - 7) * (change - 12) / 11).unwrap(),
            }
            let opened = reopen(dir.path());
            let mut reader = opened.journal.reader().unwrap();
            for found in &opened.found {
                let Ok(entry) = reader.entry(found.slot) else { continue };
                let number = entry.times.origin as u64;
                if let Ok(bytes) = reader.record(&entry) {
                    assert!(bytes == record(number, 40_000), "{name:?}, change {change}: a wrong record");
                }
            }
            // And it works.
            opened.journal.finish_loading().unwrap();
            let slot = opened.journal.append(entry(1000), &[b"new"]).unwrap();
            assert!(opened.journal.flush().error.is_none());
            opened.journal.remove(slot).unwrap();
        }
    }
}

#[test]
fn a_start_that_does_not_end_is_not_repeated() {
    let dir = TempDir::new().unwrap();
    let count = killed(dir.path());
    assert_eq!(reopen(dir.path()).found.len(), count);
    let opened = reopen(dir.path());
    assert!(opened.found.is_empty());
    assert!(opened.discarded.unwrap().0.contains("ended while it was loaded"));
}

#[test]
fn processes_that_end_at_once_one_after_the_other_are_not_repeated_for_ever() {
    let dir = TempDir::new().unwrap();
    let count = killed(dir.path());
    for _ in 0..4 {
        let opened = reopen(dir.path());
        assert_eq!(opened.found.len(), count);
        opened.journal.finish_loading().unwrap();
    }
    assert!(reopen(dir.path()).discarded.unwrap().0.contains("processes in a row"));
}

#[test]
fn another_product_another_boot_and_a_broken_journal_are_discarded() {
    let dir = TempDir::new().unwrap();
    let count = killed(dir.path());
    let other = Config { product: "vinyl-cache 9.0.1 (revision def)".to_owned(), ..config(dir.path()) };
    let opened = open(&other).unwrap();
    assert!(opened.discarded.unwrap().0.contains("it is of varnish 7.7.0"));
    assert!(files(dir.path()).iter().all(|file| !file.to_string_lossy().contains("segment")), "its files are gone");

    // Another boot: the boot id is at byte 24, and the header has a checksum, so that a clean header of another boot is made
    // by closing one.
    let dir = TempDir::new().unwrap();
    killed(dir.path());
    let opened = reopen(dir.path());
    opened.journal.finish_loading().unwrap();
    opened.journal.close().unwrap();
    drop(opened);
    assert_eq!(reopen(dir.path()).found.len(), count, "a clean end");
}

#[test]
fn files_that_cannot_be_used_are_kept_once_if_the_operator_wants_them() {
    let dir = TempDir::new().unwrap();
    let keep = Config { damaged: Damaged::Keep, ..config(dir.path()) };
    for round in 0..2 {
        killed(dir.path());
        let header = dir.path().join("objmapper-persist/header");
        File::options().write(true).open(header).unwrap().write_all_at(b"x", 100).unwrap();
        let opened = open(&keep).unwrap();
        let text = opened.discarded.unwrap().0;
        assert!(text.contains("its header is damaged"), "{text}");
        assert_eq!(text.contains("are kept in"), round == 0, "{text}");
        let kept = dir.path().join("objmapper-persist/damaged/entries");
        assert_eq!(fs::metadata(kept).unwrap().len(), 50 * 128);
        opened.journal.finish_loading().unwrap();
        opened.journal.survived().unwrap();
    }
}

#[test]
fn room_of_removed_objects_is_given_back() {
    let dir = TempDir::new().unwrap();
    let opened = reopen(dir.path());
    let mut slots = std::collections::VecDeque::new();
    let mut most = 0;
    for number in 0..2000u64 {
        slots.push_back(opened.journal.append(entry(number), &[&record(number, 100_000)]).unwrap());
        // One in 16 stays for good, so that no segment is ever without a live record.
        if slots.len() > 50 {
            let slot = slots.pop_front().unwrap();
            if number % 16 != 0 || number > 800 {
                opened.journal.remove(slot).unwrap();
            }
        }
        if number % 8 == 0 {
            assert!(opened.journal.flush().error.is_none());
            opened.journal.compact().unwrap();
        }
        let stats = opened.journal.stats();
        most = most.max(stats.bytes.saturating_sub(2 * stats.live));
    }
    assert!(most <= 8 << 20, "dead records take {most} bytes more than live ones");
    assert!(opened.journal.stats().objects < 110, "{:?}", opened.journal.stats());
}

#[test]
fn too_much_is_refused_and_nothing_waits() {
    let dir = TempDir::new().unwrap();
    let opened = reopen(dir.path());
    assert_eq!(opened.journal.append(entry(1), &[&vec![0; 300 << 10]]), Err(NotKept::TooLarge));
    let big = vec![0; 200 << 10];
    let mut taken = 0;
    let refused = loop {
        match opened.journal.append(entry(taken), &[&big]) {
            Ok(_) => taken += 1,
            Err(why) => break why,
        }
    };
    assert_eq!(refused, NotKept::Backlog);
    assert!(taken > 100, "{taken}");
    assert_eq!(opened.journal.flush().written, taken);
    assert!(opened.journal.append(entry(taken), &[&big]).is_ok());
}

#[test]
fn bans_are_found_in_their_order_and_a_replaced_log_has_only_the_new_ones() {
    let dir = TempDir::new().unwrap();
    let opened = reopen(dir.path());
    for number in 0..100u8 {
        opened.journal.append_ban(&[number; 40]).unwrap();
    }
    drop(opened);
    let opened = reopen(dir.path());
    assert_eq!(opened.bans.len(), 100);
    assert!(opened.bans.iter().enumerate().all(|(at, ban)| *ban == [at as u8; 40]));
    opened.journal.replace_bans([&b"x"[..], b"y"]).unwrap();
    opened.journal.append_ban(b"z").unwrap();
    opened.journal.finish_loading().unwrap();
    drop(opened);
    assert_eq!(reopen(dir.path()).bans, [b"x", b"y", b"z"]);
}
