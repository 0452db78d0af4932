//! A hit in the second level: the record's body is adopted, so that a large one costs what a small one costs.

use anyhow::Result;

use super::{Cache, Shared, Store, header};
use crate::bed::Bed;
use crate::figures::{Figure, Plot, Section};
use crate::load::{self, Stop};
use crate::peers::Server;
use crate::plan::{K, M, size_name};
use crate::proc::Cpu;
use crate::target::Order;

/// The first level is our engine, with the same store.
pub const ADOPTED: &str = "objmapper (adopts)";
/// The first level is malloc.
pub const COPIED: &str = "malloc (copies)";
/// The small body of the target.
pub const SMALL: u64 = 64 * K;
/// The large one in the full run; the short one ends at a smaller one.
pub const LARGE: u64 = 1 << 30;

/// How many records of a size are asked for in a round.
fn count(bytes: u64) -> u64 {
    match bytes {
        0..=0x1f_ffff => 20,
        0x20_0000..=0x7ff_ffff => 4,
        _ => 2,
    }
}

pub(super) fn run(bed: &Bed) -> Result<Section> {
    let largest = bed.plan.largest_record;
    let sizes: Vec<u64> = [SMALL, M, 64 * M, 256 * M, LARGE].into_iter().filter(|&b| b <= largest).collect();
    let mut section = Section {
        key: "adoption".into(),
        title: "Hits in the shared second level".into(),
        about: "One varnishd published the records; another one, started anew for each round, is asked for one byte of each \
                (Range), so that delivery is aside and what remains is the look-up and what becomes of the body."
            .into(),
        baseline: None,
        columns: vec![Figure::FirstByte, Figure::CpuPerRequest, Figure::CopiedBytes],
        plots: vec![
            Plot { title: "CPU time of a second-level hit".into(), figure: Figure::CpuPerRequest, works: String::new() },
            Plot { title: "First byte of a second-level hit".into(), figure: Figure::FirstByte, works: String::new() },
        ],
        ..Section::default()
    };
    let total: u64 = sizes.iter().map(|&b| b * count(b)).sum();
    let store = Store::start(bed, total / 8 * 9 + 256 * M)?;
    let writer = store.varnishd(bed, Cache::Engine, total / 8 * 9 + 256 * M)?;
    for &bytes in &sizes {
        bed.progress.step(&format!("adoption: publishing {}", size_name(bytes)));
        writer.publish(bed, bytes, 0, count(bytes))?;
    }
    // What the first request of a varnishd costs more is another part's question.
    writer.publish(bed, SMALL, 1000, 1)?;
    drop(writer);
    for round in 0..bed.plan.rounds {
        for (peer, cache) in [(ADOPTED, Cache::Engine), (COPIED, Cache::Malloc)] {
            let reader = store.varnishd(bed, cache, total / 8 * 9 + 256 * M)?;
            let warm = reader.load(&header(true, true), Order::turn(SMALL, 1000, 1), 1, Stop::Requests(1));
            load::run(&warm, &bed.load)?;
            reader.wait_counter("c_hits", 1)?;
            for &bytes in &sizes {
                let text = format!("adoption {}: round {} of {}, {peer}", size_name(bytes), round + 1, bed.plan.rounds);
                bed.progress.step(&text);
                measure(bed, &reader, peer, bytes, &mut section)?;
            }
        }
    }
    bed.progress.line("adoption: done");
    Ok(section)
}

fn measure(bed: &Bed, reader: &Shared, peer: &str, bytes: u64, section: &mut Section) -> Result<()> {
    let work = size_name(bytes);
    let count = count(bytes);
    let header = format!("{}Range: bytes=0-0\r\n", header(true, true));
    let moved = |what: &str| reader.counter(what);
    let (hits, adopted, copied) = (moved("c_hits")?, moved("b_adopted")?, moved("b_copied")?);
    let pids = reader.varnishd.pids();
    let before = Cpu::of(&pids)?;
    let load = reader.load(&header, Order::turn(bytes, 0, count), 1, Stop::Requests(count));
    let outcome = load::run(&load, &bed.load)?;
    // A body that is copied is still being copied when its first byte has come.
    objmapper_harness::process::wait_for("the bodies to arrive", std::time::Duration::from_secs(60), || {
        crate::machine::interrupt::check()?;
        let arrived = moved("b_adopted")? - adopted + moved("b_copied")? - copied;
        Ok((arrived >= bytes * count).then_some(()))
    })?;
    let cpu = Cpu::of(&pids)?.since(&before);
    section.add(&work, peer, Figure::FirstByte, outcome.first_byte_us(0.5));
    section.add(&work, peer, Figure::CpuPerRequest, cpu.seconds / count as f64 * 1e6);
    section.add(&work, peer, Figure::CopiedBytes, (moved("b_copied")? - copied) as f64);
    let hits = moved("c_hits")? - hits;
    if hits != count {
        section.remark(&work, peer, format!("only {hits} of {count} requests of a round were second-level hits"));
    }
    if let Some(why) = outcome.first_error {
        section.remark(&work, peer, why);
    }
    Ok(())
}
