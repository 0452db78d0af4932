//! A hit in the second level: the record's body is adopted, so that a large one costs what a small one costs.

use anyhow::Result;

use super::{Cache, Shared, Store};
use crate::bed::Bed;
use crate::figures::{Figure, Plot, Section};
use crate::load::{self, Stop};
use crate::peers::Server;
use crate::plan::{K, M, size_name};
use crate::proc::Cpu;
use crate::target::Order;
use crate::work::begin;

/// The first level is our engine, with the same store.
pub const ADOPTED: &str = "objmapper (adopts)";
/// The first level is malloc.
pub const COPIED: &str = "malloc (copies)";
/// The small body of the target.
pub const SMALL: u64 = 64 * K;
/// The large one in the full run; the short one ends at a smaller one.
pub const LARGE: u64 = 1 << 30;

/// How often a record is asked for in a round. As often for every size, because a process that idles uses time too.
const REQUESTS: u64 = 20;
/// A copy of a large body takes so long that the idle time does not matter.
const REQUESTS_COPIED: u64 = 2;

pub(super) fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    let largest = bed.plan.largest_record;
    let sizes: Vec<u64> = [SMALL, M, 64 * M, 256 * M, LARGE].into_iter().filter(|&b| b <= largest).collect();
    let section = begin(
        sections,
        Section {
            key: "adoption".into(),
            title: "Hits in the shared second level".into(),
            about: format!(
                "One varnishd published the records; another one, started anew for each round, is asked for one byte of one \
             (Range), {REQUESTS} times, with a lifetime of 0 s in its own cache: delivery is aside, and what remains is the \
             look-up and what becomes of the body. The engine's threshold is {}, so that every body is in objmapper.",
                crate::figures::bytes(super::THRESHOLD as f64)
            ),
            baseline: None,
            columns: vec![Figure::FirstByte, Figure::CpuPerRequest, Figure::CopiedBytes],
            plots: vec![
                Plot {
                    title: "CPU time of a second-level hit".into(),
                    figure: Figure::CpuPerRequest,
                    works: String::new(),
                },
                Plot {
                    title: "First byte of a second-level hit".into(),
                    figure: Figure::FirstByte,
                    works: String::new(),
                },
            ],
            ..Section::default()
        },
    );
    let total: u64 = sizes.iter().sum();
    let store = Store::start(bed, 2 * total + 256 * M)?;
    let writer = store.varnishd(bed, Cache::Engine, 2 * total + 256 * M)?;
    for &bytes in &sizes {
        bed.progress.step(&format!("adoption: publishing {}", size_name(bytes)));
        writer.publish(bed, bytes, 0, 1)?;
    }
    // What the first request of a varnishd costs more is another part's question.
    writer.publish(bed, SMALL, 1000, 1)?;
    drop(writer);
    for round in 0..bed.plan.rounds {
        for (peer, cache) in [(ADOPTED, Cache::Engine), (COPIED, Cache::Malloc)] {
            let reader = store.varnishd(bed, cache, 2 * total + 256 * M)?;
            let order = Order::turn(SMALL, 1000, 1);
            let warm = reader.load(&header(), order, 1, Stop::Requests(REQUESTS));
            load::run(&warm, &bed.load)?;
            reader.wait_counter("c_hits", REQUESTS)?;
            for &bytes in &sizes {
                let text = format!("adoption {}: round {} of {}, {peer}", size_name(bytes), round + 1, bed.plan.rounds);
                bed.progress.step(&text);
                measure(bed, &reader, peer, bytes, section)?;
            }
        }
    }
    bed.progress.line("adoption: done");
    Ok(())
}

/// One byte, and the object does not stay.
fn header() -> String {
    format!("{}X-Bench-Once: 1\r\nRange: bytes=0-0\r\n", super::header(true, true))
}

fn measure(bed: &Bed, reader: &Shared, peer: &str, bytes: u64, section: &mut Section) -> Result<()> {
    let work = size_name(bytes);
    let count = if peer == COPIED && bytes > M { REQUESTS_COPIED } else { REQUESTS };
    let moved = |what: &str| reader.counter(what);
    let (hits, adopted, copied) = (moved("c_hits")?, moved("b_adopted")?, moved("b_copied")?);
    let pids = reader.varnishd.pids();
    let before = Cpu::of(&pids)?;
    let load = reader.load(&header(), Order::turn(bytes, 0, 1), 1, Stop::Requests(count));
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
    let copied = moved("b_copied")? - copied;
    section.add(&work, peer, Figure::CopiedBytes, copied as f64);
    if peer == ADOPTED && copied > 0 {
        // What the director decided, and where Varnish put the object.
        let log = reader.varnishd.log("Storage")? + &reader.varnishd.log("VCL_Log")?;
        let why = log
            .lines()
            .rev()
            .find(|line| line.contains("copies") || line.contains("Storage"))
            .unwrap_or("the log does not say why");
        let text =
            format!("{copied} bytes were copied in a round: {}", why.split_whitespace().collect::<Vec<_>>().join(" "));
        section.remark(&work, peer, text);
    }
    let hits = moved("c_hits")? - hits;
    if hits != count {
        section.remark(&work, peer, format!("only {hits} of {count} requests of a round were second-level hits"));
    }
    if let Some(why) = outcome.first_error {
        section.remark(&work, peer, why);
    }
    Ok(())
}
