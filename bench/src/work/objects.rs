//! Very many objects: what each costs in heap, and whether a hit costs more among many.

use anyhow::Result;

use super::{begin, record};
use crate::bed::Bed;
use crate::figures::{Figure, Plot, Section};
use crate::load::{Drain, Load, Stop};
use crate::peers::varnishd::{Options, Varnishd};
use crate::peers::{BASELINE, MEMORY, Server, vcl, wants};
use crate::plan::K;
use crate::proc::{Handles, Memory};
use crate::target::Order;

/// Every body; with `threshold=0` each lives in objmapper, as a large one does.
const BYTES: u64 = K;

/// Adds memory, descriptors and mappings to a line.
pub(super) fn record_handles(section: &mut Section, work: &str, peer: &str, pids: &[u32]) -> Result<()> {
    let handles = Handles::of(pids)?;
    section.add(work, peer, Figure::Resident, Memory::of(pids)?.resident as f64);
    section.add(work, peer, Figure::Fds, handles.fds as f64);
    section.add(work, peer, Figure::Vmas, handles.vmas as f64);
    Ok(())
}

/// The works: so many objects in the cache, of which so many are asked for.
pub fn work_name(stored: u64, asked: u64) -> String {
    format!("{asked} of {stored}")
}

struct Engine {
    name: &'static str,
    varnishd: Varnishd,
    /// Whether bodies are in the heap that is counted.
    bodies_in_heap: bool,
    _dir: tempfile::TempDir,
}

/// Measures many objects.
pub fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    let plan = &bed.plan;
    let (few, many) = (plan.few, plan.objects);
    let section = begin(
        sections,
        Section {
            key: "objects".into(),
            title: "Very many objects".into(),
            about: format!(
                "Bodies of 1 KiB; objmapper with threshold=0, so that each lives in the store as a large one does, with its \
             default options for descriptors and maps (maps=1024). Hits at random over one connection: \"{}\" is the latency among few \
             objects, \"{}\" of the same objects among many, \"{}\" of all. Heap is the growth of anonymous memory of \
             varnishd's child per object, without the body where it is in the heap.",
                work_name(few, few),
                work_name(many, few),
                work_name(many, many)
            ),
            baseline: Some(BASELINE.into()),
            columns: vec![
                Figure::P50,
                Figure::P99,
                Figure::CpuPerRequest,
                Figure::HeapPerObject,
                Figure::Resident,
                Figure::Fds,
                Figure::Vmas,
            ],
            ratios: vec![Figure::P50, Figure::CpuPerRequest],
            ..Section::default()
        },
    );
    for (title, figure) in
        [("Latency of a hit, one connection", Figure::P50), ("Heap per object", Figure::HeapPerObject)]
    {
        section.plots.push(Plot { title: title.into(), figure, works: String::new() });
    }
    let mut engines = Vec::new();
    for (name, storage, engine) in [(BASELINE, "malloc,", false), (MEMORY, "objmapper,threshold=0,size=", true)]
        .into_iter()
        .filter(|e| wants(bed, e.0))
    {
        // Varnish counts the body and what an object needs beside it.
        let storage = vec![format!("s0={storage}{}b", many * (BYTES + 4 * K) + (64 << 20))];
        let dir = bed.directory()?;
        let vcl = vcl::plain(bed.origin.address());
        let varnishd = Varnishd::start(bed, dir.path(), &Options { engine, storage, vcl })?;
        engines.push(Engine { name, varnishd, bodies_in_heap: !engine, _dir: dir });
    }
    let mut at_first = Vec::new();
    for engine in &engines {
        fill(bed, engine, 0, few)?;
        at_first.push(Memory::of(&engine.varnishd.pids())?.anonymous);
    }
    latency(bed, &engines, few, few, section)?;
    let work = work_name(many, many);
    for work in [work_name(many, few), work.clone()] {
        section.rows_for(&work, engines.iter().map(|e| e.name));
    }
    for (engine, before) in engines.iter().zip(at_first) {
        fill(bed, engine, few, many - few)?;
        let grown = Memory::of(&engine.varnishd.pids())?.anonymous.saturating_sub(before) as f64;
        let body = if engine.bodies_in_heap { BYTES as f64 } else { 0.0 };
        section.add(&work, engine.name, Figure::HeapPerObject, grown / (many - few) as f64 - body);
        let stored = engine.varnishd.counter("MAIN.n_object")?.unwrap_or(0);
        if stored < many {
            section.remark(&work, engine.name, format!("only {stored} objects are in the cache"));
        }
    }
    latency(bed, &engines, many, few, section)?;
    latency(bed, &engines, many, many, section)?;
    Ok(())
}

fn load(engine: &Engine, order: Order, connections: usize, stop: Stop) -> Load {
    let header = vcl::zero_copy(false);
    Load { address: engine.varnishd.address(), header, order, connections, drain: Drain::Copy, stop }
}

fn fill(bed: &Bed, engine: &Engine, first: u64, count: u64) -> Result<()> {
    // In pieces, so that an interrupt is heard.
    const PIECE: u64 = 50_000;
    for begin in (0..count).step_by(PIECE as usize) {
        bed.progress.step(&format!("objects: {} of {count} into {}", begin, engine.name));
        let piece = PIECE.min(count - begin);
        let order = Order::turn(BYTES, first + begin, piece);
        let measured = bed.measure(&engine.varnishd.pids(), &load(engine, order, 16, Stop::Requests(piece)))?;
        if let Some(why) = measured.outcome.first_error {
            anyhow::bail!("{}: filling the cache: {why}", engine.name);
        }
    }
    Ok(())
}

/// Hits at random among the first `asked` of `stored` objects.
fn latency(bed: &Bed, engines: &[Engine], stored: u64, asked: u64, section: &mut Section) -> Result<()> {
    let work = work_name(stored, asked);
    for round in 0..bed.plan.rounds {
        let sums = super::round(engines, (round, bed.plan.window), |engine, slice, stop| {
            bed.progress.step(&format!("objects {work}: round {} of {}, {}", round + 1, bed.plan.rounds, engine.name));
            let seed = ((round as u64) << 32) + u64::from(slice);
            let order = Order::Random { bytes: BYTES, count: asked, seed };
            bed.measure(&engine.varnishd.pids(), &load(engine, order, 1, stop))
        })?;
        for (engine, measured) in engines.iter().zip(sums) {
            record(section, &work, engine.name, &measured);
            if measured.origin_requests > 0 {
                section.remark(&work, engine.name, format!("{} requests were misses", measured.origin_requests));
            }
            record_handles(section, &work, engine.name, &engine.varnishd.pids())?;
        }
    }
    bed.progress.line(&format!("objects {work}: done"));
    Ok(())
}
