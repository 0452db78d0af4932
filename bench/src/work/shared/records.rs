//! Very many records: look-ups among them, and the restart of an objmapperd that has them on disk.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use objmapper_client::{Client, CommitOptions, ObjUri, Want};
use objmapper_harness::objmapperd::Objmapperd;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::bed::Bed;
use crate::figures::{Figure, Section};
use crate::load::histogram;
use crate::machine::interrupt;
use crate::work::begin;

/// The work of the restart.
pub const RESTART: &str = "restart to first answer";
/// Who looks up.
pub const CLIENT: &str = "client";
/// Who restarts.
pub const DAEMON: &str = "objmapperd";

/// The works: so many records in the store, so many of them asked for.
pub fn work_name(stored: u64, asked: u64) -> String {
    format!("look-up, {asked} of {stored}")
}

/// Threads that make records: the store's latency to disk is not what is measured.
const MAKERS: u64 = 4;

pub(super) fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    let (few, many) = (bed.plan.few, bed.plan.objects);
    let section = begin(
        sections,
        Section {
            key: "records".into(),
            title: "Very many records".into(),
            about: format!(
                "An objmapperd with a disk tier. Look-ups with a descriptor at random among so many, one at a time; then SIGKILL, \
             and the time from the new process to its first answer about one of {many}."
            ),
            columns: vec![Figure::P50, Figure::P99, Figure::Milliseconds],
            ..Section::default()
        },
    );
    let dir = bed.directory()?;
    // Every record, empty as it is, weighs a page.
    let size = format!("{}m", ((many * 4096 * 2) >> 20) + 64);
    let mut daemon = bed.servers.run(|| Objmapperd::start_on_disk(dir.path(), &size))?;
    bed.load.run(|| {
        let client = connect(&daemon)?;
        make(bed, &client, 0, few)?;
        lookups(bed, &client, few, few, section)?;
        make(bed, &client, few, many)?;
        lookups(bed, &client, many, few, section)?;
        lookups(bed, &client, many, many, section)?;
        Ok(())
    })?;
    for round in 0..bed.plan.rounds.min(3) {
        interrupt::check()?;
        bed.progress.step(&format!("records: restart {}", round + 1));
        daemon.kill()?;
        let begun = Instant::now();
        bed.servers.run(|| daemon.start_again())?;
        let client = connect(&daemon)?;
        client.lookup(&uri(many - 1 - round as u64)?, Want::FD)?.context("a record is gone after the restart")?;
        section.add(RESTART, DAEMON, Figure::Milliseconds, begun.elapsed().as_secs_f64() * 1e3);
    }
    bed.progress.line("records: done");
    Ok(())
}

fn connect(daemon: &Objmapperd) -> Result<Client> {
    Ok(Client::builder(daemon.socket()).connections(2).call_timeout(Duration::from_secs(30)).connect()?)
}

fn uri(number: u64) -> Result<ObjUri<'static>> {
    Ok(ObjUri::try_from(format!("/bench/record/{number}"))?)
}

/// Publishes the records from number `from` to number `to`.
fn make(bed: &Bed, client: &Client, from: u64, to: u64) -> Result<()> {
    bed.progress.step(&format!("records: making {to}"));
    let one = |number: u64| -> Result<()> {
        let uri = uri(number)?;
        let mut object = client.create(0, None, Some(&uri))?;
        object.commit(&uri, 0, CommitOptions::default())?;
        Ok(())
    };
    std::thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS)
            .map(|maker| {
                scope.spawn(move || {
                    for number in (from + maker..to).step_by(MAKERS as usize) {
                        interrupt::check()?;
                        one(number)?;
                    }
                    Ok::<_, anyhow::Error>(())
                })
            })
            .collect();
        makers.into_iter().try_for_each(|m| m.join().map_err(|_| anyhow::anyhow!("a maker of records panicked"))?)
    })
}

fn lookups(bed: &Bed, client: &Client, stored: u64, asked: u64, section: &mut Section) -> Result<()> {
    let work = work_name(stored, asked);
    for round in 0..=bed.plan.rounds {
        interrupt::check()?;
        bed.progress.step(&format!("records {work}: round {round} of {}", bed.plan.rounds));
        let mut random = SmallRng::seed_from_u64(round as u64);
        let mut latency = histogram()?;
        let begun = Instant::now();
        while begun.elapsed() < bed.plan.window {
            let uri = uri(random.random_range(0..asked))?;
            let before = Instant::now();
            client.lookup(&uri, Want::FD)?.context("a record is gone")?;
            latency.saturating_record(before.elapsed().as_nanos() as u64);
        }
        // The first round is to warm up.
        if round > 0 {
            for (figure, quantile) in [(Figure::P50, 0.5), (Figure::P99, 0.99)] {
                section.add(&work, CLIENT, figure, latency.value_at_quantile(quantile) as f64 / 1e3);
            }
        }
    }
    Ok(())
}
