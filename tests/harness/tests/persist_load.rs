//! How long it takes to load many objects. The objects are copies of one that varnishd has written, with keys of their own.
//!
//! `OBJM_PERSIST_OBJECTS` (20,000) sets how many; the time is printed. With 1,000,000 the first hit is to come within 5 s of
//! the child's start, on a machine that has nothing else to do.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client;
use objmapper_harness::persist::Keeper;
use objmapper_harness::process::open_directory;
use objmapper_harness::random::Random;
use objmapper_harness::site;
use objmapper_journal::{Config, Damaged};

fn objects() -> u64 {
    std::env::var("OBJM_PERSIST_OBJECTS").ok().and_then(|objects| objects.parse().ok()).unwrap_or(20_000)
}

/// The CPU time of a process so far, in milliseconds.
fn cpu_ms(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("no fields")?.split_whitespace().collect();
    // Clock ticks of 10 ms (proc_pid_stat(5)): fields 14 and 15, of which two are before these.
    Ok((fields[11].parse::<u64>()? + fields[12].parse::<u64>()?) * 10)
}

#[test]
fn many_objects_are_loaded_before_the_first_request() -> Result<()> {
    let dir = open_directory()?;
    let root = dir.path().join("site");
    std::fs::create_dir(&root)?;
    site::write(&root, "1024", 1, 1024)?;
    let h2o = H2o::start(dir.path(), &root)?;
    let mut keeper = Keeper::new(dir.path(), &h2o)?;
    let client = Client::new();
    keeper.start("8g", ",persist=on")?;
    keeper.get(&client, "/1024")?;
    keeper.wait_persisted(1)?;
    keeper.stop()?;

    let objects = objects();
    let header = std::fs::read(keeper.kept().join("header"))?;
    let owner = std::fs::metadata(keeper.kept())?;
    let len = u32::from_le_bytes(header[40..44].try_into()?) as usize;
    let product = std::str::from_utf8(&header[44..44 + len])?.to_owned();
    let parent = keeper.kept().parent().context("no parent")?.to_owned();
    let config = Config { dir: parent, product, size: 8 << 30, damaged: Damaged::Delete };
    std::os::unix::fs::chown(keeper.kept(), Some(nix::unistd::geteuid().as_raw()), None)?;
    for file in std::fs::read_dir(keeper.kept())? {
        std::os::unix::fs::chown(file?.path(), Some(nix::unistd::geteuid().as_raw()), None)?;
    }
    let opened = objmapper_journal::open(&config)?;
    let (entry, record) = {
        let mut reader = opened.journal.reader()?;
        let entry = reader.entry(opened.found.first().context("nothing was found")?.slot)?;
        (entry, reader.record(&entry)?.to_vec())
    };
    let mut random = Random::new(1);
    for number in 1..objects {
        let mut digest = [0; 32];
        digest.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&random.next_u64().to_le_bytes()));
        opened.journal.append(objmapper_journal::Entry { digest, ..entry }, &[&record])?;
        if number % 1000 == 0 {
            opened.journal.flush();
        }
    }
    opened.journal.flush();
    opened.journal.finish_loading()?;
    opened.journal.close()?;
    drop(opened);
    for file in std::fs::read_dir(keeper.kept())? {
        std::os::unix::fs::chown(file?.path(), Some(owner.uid()), Some(owner.gid()))?;
    }
    std::os::unix::fs::chown(keeper.kept(), Some(owner.uid()), Some(owner.gid()))?;

    let began = Instant::now();
    keeper.start("8g", ",persist=on")?;
    let response = keeper.get(&client, "/1024")?;
    let first = began.elapsed();
    ensure!(response.header("x-hits") != Some("0"), "a miss");
    let (loaded, took) = (keeper.counter("c_reloaded")?, keeper.counter("g_reload_ms")?);
    let cpu = cpu_ms(keeper.varnishd()?.child_pid()?)?;
    println!(
        "{loaded} objects in {took} ms, {cpu} ms of CPU time of the child's by then, the first hit {first:?} after the start of the manager"
    );
    ensure!(loaded == objects, "{loaded}: {}", keeper.varnishd()?.output());
    ensure!(keeper.varnishd()?.counter("MAIN.n_object")? == objects);
    keeper.stop()
}
