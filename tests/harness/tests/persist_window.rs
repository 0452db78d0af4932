//! Objects are purged, hard and soft, and varnishd's child is killed as soon as the last purge is answered: none of them comes back.
//! varnishd carries purges out in its expiry thread, which is later. `OBJM_PERSIST_WINDOW_ROUNDS` (4) sets the number of kills.

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client;
use objmapper_harness::persist::Keeper;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::site;
use std::time::Duration;

const OBJECTS: usize = 15;
const BOUND: Duration = Duration::from_secs(30);

#[test]
fn a_purge_that_was_answered_holds() -> Result<()> {
    let rounds = std::env::var("OBJM_PERSIST_WINDOW_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(4);
    let dir = open_directory()?;
    let root = dir.path().join("site");
    std::fs::create_dir(&root)?;
    site::write(&root, "small", 1, 1000)?;
    let h2o = H2o::start(dir.path(), &root)?;
    let mut keeper = Keeper::new(dir.path(), &h2o)?;
    keeper.start("100m", ",persist=on")?;
    let mut lost = 0;
    for round in 0..rounds {
        let client = Client::new();
        for object in 0..OBJECTS {
            keeper.get(&client, &format!("/small?{object}"))?;
        }
        wait_for("objects to be written", BOUND, || {
            Ok((keeper.counter("g_persisted")? >= OBJECTS as u64 && keeper.counter("c_persisted")? > 0).then_some(()))
        })?;
        let child = keeper.varnishd()?.child_pid()?;
        let method = if round % 2 == 0 { "PURGE" } else { "SOFT" };
        for object in 0..OBJECTS {
            keeper.command(&client, method, &format!("/small?{object}"), &[])?;
        }
        kill(Pid::from_raw(i32::try_from(child)?), Signal::SIGKILL)?;
        keeper.varnishd()?.wait_other_child(child)?;
        let client = Client::new();
        for object in 0..OBJECTS {
            if keeper.get(&client, &format!("/small?{object}"))?.header("x-hits") != Some("0") {
                println!("round {round}: {method} {object} of {OBJECTS} is lost");
                lost += 1;
            }
        }
    }
    println!("{rounds} kills behind {OBJECTS} purges each: {lost} purges are lost");
    ensure!(lost == 0, "{lost} purges are lost");
    ensure!(keeper.varnishd()?.panic().is_none());
    Ok(())
}
