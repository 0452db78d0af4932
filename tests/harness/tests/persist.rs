//! Objects survive the end of varnishd (`persist=on`), and what was purged or banned does not come back.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::{Client, Request};
use objmapper_harness::persist::Keeper;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::site;

const BOUND: Duration = Duration::from_secs(30);
/// In heap, around the threshold, in the store.
const SIZES: [usize; 5] = [0, 300, 20_000, 65_600, 1_500_000];
const ON: &str = ",persist=on";

fn stage(dir: &Path) -> Result<(H2o, Keeper)> {
    let root = dir.join("site");
    std::fs::create_dir(&root)?;
    for size in SIZES {
        site::write(&root, &size.to_string(), size as u64, size)?;
    }
    let h2o = H2o::start(dir, &root)?;
    let keeper = Keeper::new(dir, &h2o)?;
    Ok((h2o, keeper))
}

/// GETs the file of this size; returns whether it was a hit.
fn get(keeper: &Keeper, client: &Client, size: usize, query: &str) -> Result<bool> {
    let path = format!("/{size}?{query}");
    let response = keeper.get(client, &path)?;
    ensure!(response.status == 200 && response.body == site::bytes(size as u64, size), "{path}: {}", response.status);
    Ok(response.header("x-hits") != Some("0"))
}

/// GETs all sizes; returns how many were hits.
fn get_all(keeper: &Keeper, client: &Client, query: &str) -> Result<usize> {
    SIZES.iter().try_fold(0, |hits, size| Ok(hits + usize::from(get(keeper, client, *size, query)?)))
}

fn no_panic(keeper: &Keeper) -> Result<()> {
    let varnishd = keeper.varnishd()?;
    ensure!(varnishd.panic().is_none(), "{:?}\n{}", varnishd.panic(), varnishd.output());
    Ok(())
}

#[test]
fn hits_after_every_end_and_no_invalidated_object() -> Result<()> {
    let dir = open_directory()?;
    let (h2o, mut keeper) = stage(dir.path())?;
    let client = Client::new();
    keeper.start("200m", ON)?;
    for query in ["a", "b", "c", "d", "e", "f"] {
        ensure!(get_all(&keeper, &client, query)? == 0);
    }
    keeper.wait_persisted(30)?;
    // Each means of invalidation: one query.
    for size in SIZES {
        keeper.command(&client, "PURGE", &format!("/{size}?a"), &[])?;
        keeper.command(&client, "SOFT", &format!("/{size}?b"), &[])?;
    }
    // The expiry thread hears of purges a moment later.
    wait_for("removals", BOUND, || Ok((keeper.counter("g_persisted")? == 25).then_some(())))?;
    // Pending when varnishd ends, as nothing asks for these objects: one by a request, two by the object, with expressions.
    let varnishd = keeper.varnishd()?;
    varnishd.cli(&["param.set", "ban_lurker_sleep", "0"])?;
    varnishd.cli(&["ban", "req.url", "~", "^/[0-9]+[?]c$"])?;
    varnishd.cli(&["ban", "obj.http.x-file", "~", "^(1500000|300)$", "&&", "obj.status", "==", "404"])?;
    keeper.command(&client, "BAN", "/", &[("X-Ban", "req.url ~ [?]d$ && req.http.host !~ another")])?;
    let asked = h2o.requests()?.len();

    for end in ["child", "all", "stop", "all"] {
        match end {
            "child" => keeper.varnishd()?.kill_child()?,
            "all" => keeper.kill()?,
            _ => keeper.stop()?,
        }
        if end != "child" {
            keeper.start("200m", ON)?;
        }
        ensure!(keeper.counter("c_reload_discarded")? == 0, "{end}: {}", keeper.varnishd()?.output());
        for query in ["e", "f"] {
            ensure!(get_all(&keeper, &client, query)? == SIZES.len(), "{end}: {query}");
        }
        // They are tested at the next start again, and by the lurker, which runs now.
        no_panic(&keeper)?;
    }
    ensure!(h2o.requests()?.len() == asked, "the origin was asked");
    for query in ["a", "c", "d"] {
        ensure!(get_all(&keeper, &client, query)? == 0, "{query} came back");
    }
    // Soft: the origin is asked, and has not changed.
    for size in SIZES {
        ensure!(!get(&keeper, &client, size, "b")?, "{size} came back");
    }
    no_panic(&keeper)?;
    // And works on.
    keeper.wait_persisted(20)?;
    keeper.kill()?;
    keeper.start("200m", ON)?;
    for query in ["a", "b", "c", "d", "e", "f"] {
        ensure!(get_all(&keeper, &client, query)? == SIZES.len(), "{query}");
    }
    no_panic(&keeper)?;
    keeper.stop()
}

#[test]
fn what_is_delivered_by_all_means_is_the_same_after_a_restart() -> Result<()> {
    let dir = open_directory()?;
    let (_h2o, mut keeper) = stage(dir.path())?;
    let client = Client::new();
    keeper.start("200m", ON)?;
    get_all(&keeper, &client, "x")?;
    let before = keeper.get(&client, "/1500000?x")?;
    keeper.wait_persisted(5)?;
    keeper.kill()?;
    keeper.start("200m", ON)?;
    let after = keeper.get(&client, "/1500000?x")?;
    for name in ["etag", "last-modified", "content-type", "content-length", "x-file"] {
        ensure!(before.header(name) == after.header(name), "{name}: {:?} {:?}", before.headers, after.headers);
    }
    let etag = before.header("etag").unwrap_or_default().to_owned();
    let headers = [("If-None-Match", etag.as_str())];
    let response = keeper.send(&client, "/1500000?x", &Request { headers: &headers, ..Request::default() })?;
    ensure!(response.status == 304, "{response:?}");
    let headers = [("Range", "bytes=1000000-1000099")];
    let response = keeper.send(&client, "/1500000?x", &Request { headers: &headers, ..Request::default() })?;
    let want = &site::bytes(1_500_000, 1_500_000)[1_000_000..1_000_100];
    ensure!(response.status == 206 && response.body == want, "{}", response.status);
    let panic = keeper.varnishd()?.panic();
    ensure!(panic.is_none(), "{panic:?}");
    keeper.stop()
}

/// Starts on what another process left; the objects that are hits, and the child's lines.
fn start_and_count(keeper: &mut Keeper, client: &Client, size: &str, options: &str) -> Result<(usize, String)> {
    keeper.start(size, options)?;
    let hits = get_all(keeper, client, "x")?;
    no_panic(keeper)?;
    Ok((hits, keeper.varnishd()?.output()))
}

/// Where the header has the boot id.
const BOOT_ID: usize = 24;

/// What happens to the files while varnishd does not run.
type Damage = dyn Fn(&Keeper) -> Result<()>;

#[test]
fn what_cannot_be_used_is_discarded_with_one_line_and_varnishd_starts() -> Result<()> {
    let dir = open_directory()?;
    let (_h2o, mut keeper) = stage(dir.path())?;
    let client = Client::new();
    keeper.start("200m", ON)?;
    get_all(&keeper, &client, "x")?;
    keeper.wait_persisted(5)?;
    keeper.stop()?;
    let cases: [(&str, &Damage); 8] = [
        ("the system went down", &|keeper| {
            keeper.change_header(|header| {
                header[12] &= !1;
                header[BOOT_ID] ^= 1;
            })
        }),
        ("ended while it was loaded", &|keeper| keeper.change_header(|header| header[12] |= 2)),
        ("something was removed", &|keeper| keeper.change_header(|header| header[12] |= 4)),
        ("processes in a row", &|keeper| keeper.change_header(|header| header[16] = 4)),
        ("its layout is 77", &|keeper| keeper.change_header(|header| header[8] = 77)),
        ("it is of ", &|keeper| keeper.change_header(|header| header[44] = b'X')),
        ("its header is damaged", &|keeper| Ok(std::fs::write(keeper.kept().join("header"), b"half")?)),
        ("its log of bans is missing", &|keeper| {
            let bans = std::fs::OpenOptions::new().write(true).open(keeper.kept().join("bans"))?;
            Ok(bans.write_all_at(&[0xff; 9], 4)?)
        }),
    ];
    for (line, damage) in cases {
        damage(&keeper)?;
        let (hits, output) = start_and_count(&mut keeper, &client, "200m", ON)?;
        ensure!(hits == 0, "{line}: {hits} hits");
        ensure!(output.contains(line) && output.contains("the cache starts empty"), "{line}:\n{output}");
        ensure!(keeper.counter("c_reload_discarded")? == 1, "{line}");
        keeper.wait_persisted(5)?;
        keeper.stop()?;
        // And it is used again.
        let (hits, output) = start_and_count(&mut keeper, &client, "200m", ON)?;
        ensure!(hits == SIZES.len(), "{line}: {hits} hits then:\n{output}");
        keeper.stop()?;
    }
    Ok(())
}

#[test]
fn damaged_records_and_bodies_are_misses() -> Result<()> {
    let dir = open_directory()?;
    let (_h2o, mut keeper) = stage(dir.path())?;
    let client = Client::new();
    keeper.start("200m", ON)?;
    get_all(&keeper, &client, "x")?;
    keeper.wait_persisted(5)?;
    keeper.stop()?;
    let segment = keeper.kept().join("segment-00000000");
    let file = std::fs::OpenOptions::new().write(true).open(segment)?;
    // In the body of 20,000 bytes.
    file.write_all_at(b"damaged", 8000)?;
    let (hits, output) = start_and_count(&mut keeper, &client, "200m", ON)?;
    ensure!(hits == 4 && keeper.counter("c_reload_damaged")? == 1, "{hits} hits:\n{output}");
    keeper.wait_persisted(1)?;
    keeper.stop()?;
    // Without the store's index there are no large bodies.
    std::fs::remove_file(dir.path().join("store/objmapper-store/index.sqlite3"))?;
    let (hits, output) = start_and_count(&mut keeper, &client, "200m", ON)?;
    ensure!(hits == 3 && keeper.counter("c_reload_lost")? == 2, "{hits} hits:\n{output}");
    keeper.stop()
}

#[test]
fn a_start_that_keeps_nothing_leaves_nothing_to_find() -> Result<()> {
    let dir = open_directory()?;
    let (_h2o, mut keeper) = stage(dir.path())?;
    let client = Client::new();
    keeper.start("200m", ON)?;
    get_all(&keeper, &client, "x")?;
    keeper.wait_persisted(5)?;
    keeper.stop()?;
    let (hits, output) = start_and_count(&mut keeper, &client, "200m", "")?;
    ensure!(hits == 0 && output.contains("is removed: nothing is kept now"), "{hits} hits:\n{output}");
    keeper.command(&client, "PURGE", "/300?x", &[])?;
    keeper.stop()?;
    let (hits, output) = start_and_count(&mut keeper, &client, "200m", ON)?;
    ensure!(hits == 0, "{hits} hits:\n{output}");
    keeper.stop()
}

#[test]
fn a_smaller_size_keeps_the_newest() -> Result<()> {
    let dir = open_directory()?;
    let (_h2o, mut keeper) = stage(dir.path())?;
    let client = Client::new();
    keeper.start("200m", ON)?;
    for number in 0..40 {
        get(&keeper, &client, 1_500_000, &number.to_string())?;
    }
    keeper.wait_persisted(40)?;
    keeper.stop()?;
    keeper.start("20m", ON)?;
    let dropped = keeper.counter("c_reload_size")?;
    ensure!((27..=30).contains(&dropped), "{dropped} were dropped");
    for number in 30..40 {
        ensure!(get(&keeper, &client, 1_500_000, &number.to_string())?, "{number} is a miss");
    }
    ensure!(!get(&keeper, &client, 1_500_000, "0")?);
    ensure!(keeper.varnishd()?.counter("SMA.s0.g_bytes")? <= 20 << 20);
    no_panic(&keeper)?;
    keeper.stop()
}

#[test]
fn a_directory_in_use_is_refused() -> Result<()> {
    let dir = open_directory()?;
    let (h2o, mut keeper) = stage(dir.path())?;
    let client = Client::new();
    keeper.start("200m", ON)?;
    get_all(&keeper, &client, "x")?;
    let second = dir.path().join("second");
    std::fs::create_dir(&second)?;
    let mut other = Keeper::new(&second, &h2o)?;
    let shared = format!(",persist=on,dir={}", dir.path().join("store").display());
    // Given twice: an error of the options, whatever the directory.
    ensure!(other.start("200m", &shared).is_err());
    std::fs::remove_dir(second.join("store"))?;
    std::os::unix::fs::symlink(dir.path().join("store"), second.join("store"))?;
    let error = other.start("200m", ON).err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(error.contains("is in use by another store"), "{error}");
    ensure!(get_all(&keeper, &client, "x")? == SIZES.len());
    no_panic(&keeper)?;
    keeper.stop()
}
