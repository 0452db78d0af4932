//! How soon a varnishd that has just been started answers from the second level.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Cache, Store, header, open_to_all};
use crate::bed::Bed;
use crate::figures::{Figure, Section};
use crate::load::fetch;
use crate::machine::interrupt;
use crate::peers::varnishd::Varnishd;
use crate::plan::{K, M};
use crate::target::Target;
use crate::work::begin;

/// The work: from the moment when varnishd's socket takes a connection.
pub const FIRST_HIT: &str = "socket up to first hit";
/// Who does it.
pub const VARNISHD: &str = "varnishd";
const FROM_EXEC: &str = "exec to first hit";

const BYTES: u64 = 64 * K;
/// Should the first request miss, the next one asks for another record.
const RECORDS: u64 = 200;

pub(super) fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    let section = begin(sections, Section {
        key: "start".into(),
        title: "Start of varnishd".into(),
        about: "A store with records is there; varnishd starts with an empty cache and is asked as soon as its socket takes a \
                connection, until a response comes from the second level."
            .into(),
        columns: vec![Figure::Milliseconds],
        ..Section::default()
    });
    let store = Store::start(bed, 256 * M)?;
    let writer = store.varnishd(bed, Cache::Engine, 256 * M)?;
    writer.publish(bed, BYTES, 0, RECORDS)?;
    drop(writer);
    for round in 0..bed.plan.rounds {
        interrupt::check()?;
        bed.progress.step(&format!("start: round {} of {}", round + 1, bed.plan.rounds));
        let dir = tempfile::Builder::new().prefix("v.").tempdir_in(store.dir.path())?;
        open_to_all(dir.path())?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let options = store.options(bed, Cache::Engine, 256 * M)?;
        let begun = Instant::now();
        let (mut process, _) = Varnishd::spawn(bed, dir.path(), &options, &address.to_string())?;
        let first = loop {
            // The child listens once it can answer; before that a connection is refused.
            if let Ok(stream) = TcpStream::connect(address) {
                break stream;
            }
            if process.has_ended()? || begun.elapsed() > Duration::from_secs(30) {
                bail!("varnishd does not start: {}", process.output());
            }
            // Finer than what is measured.
            std::thread::sleep(Duration::from_micros(500));
        };
        let up = Instant::now();
        let misses = until_hit(address, first)?;
        section.add(FIRST_HIT, VARNISHD, Figure::Milliseconds, up.elapsed().as_secs_f64() * 1e3);
        section.add(FROM_EXEC, VARNISHD, Figure::Milliseconds, begun.elapsed().as_secs_f64() * 1e3);
        if misses > 0 {
            section.remark(
                FIRST_HIT,
                VARNISHD,
                format!("{misses} requests of a round were misses before the first hit"),
            );
        }
        process.stop().context("varnishd")?;
    }
    bed.progress.line("start: done");
    Ok(())
}

/// How many requests it took besides the one that hit.
fn until_hit(address: SocketAddr, first: TcpStream) -> Result<u64> {
    let mut stream = first;
    for id in 0..RECORDS {
        interrupt::check()?;
        let head = fetch::get_on(&stream, &Target { bytes: BYTES, id }.path(), &header(true, true))?;
        if head.text.contains("X-Bench-L2: hit") {
            return Ok(id);
        }
        stream = TcpStream::connect(address)?;
    }
    bail!("none of {RECORDS} requests was a second-level hit")
}
