//! A miss with publishing on, off, and without the director.

use anyhow::Result;

use super::{Cache, Store, header};
use crate::bed::Bed;
use crate::figures::{Figure, Plot, Section};
use crate::load::Stop;
use crate::peers::Server;
use crate::plan::{M, size_name};
use crate::target::Order;
use crate::work::misses::SIZES;
use crate::work::{begin, in_turn, record};

/// The origin is the backend.
pub const NO_DIRECTOR: &str = "no director";
/// Looked up, not published.
pub const OFF: &str = "publishing off";
/// Looked up and published.
pub const ON: &str = "publishing on";

pub(super) fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    let bytes_each = bed.plan.miss_bytes;
    let section = begin(
        sections,
        Section {
            key: "publishing".into(),
            title: "Misses through the director".into(),
            about: format!(
                "One varnishd with our engine and an objmapperd; objects that nobody has, over 4 connections; {} in each \
             measurement. A new varnishd and a new objmapperd for each round.",
                crate::figures::bytes(bytes_each as f64)
            ),
            baseline: Some(OFF.into()),
            columns: vec![Figure::Rate, Figure::GbPerSecond, Figure::CpuPerGb, Figure::FirstByte, Figure::P50],
            ratios: vec![Figure::GbPerSecond, Figure::CpuPerGb],
            plots: vec![Plot {
                title: "Speed of misses, publishing".into(),
                figure: Figure::GbPerSecond,
                works: String::new(),
            }],
            ..Section::default()
        },
    );
    let variants = [(NO_DIRECTOR, header(false, false)), (OFF, header(true, false)), (ON, header(true, true))];
    let room = bytes_each * (variants.len() * SIZES.len() + 1) as u64 / 8 * 9 + 256 * M;
    // The first round is for memory that was never touched.
    for round in 0..=bed.plan.rounds {
        let store = Store::start(bed, room)?;
        let varnishd = store.varnishd(bed, Cache::Engine, room)?;
        let mut pids = varnishd.varnishd.pids();
        pids.extend(store.daemon.pid());
        for (number, (_, header)) in variants.iter().enumerate() {
            // A process that has just begun is slower.
            let order = Order::turn(M, number as u64 * 1_000_000 + 900_000, 8);
            bed.measure(&pids, &varnishd.load(header, order, 4, Stop::Requests(8)))?;
        }
        varnishd.wait_counter("c_published", 8)?;
        for bytes in SIZES {
            let count = (bytes_each / bytes).max(1);
            let work = format!("{} miss", size_name(bytes));
            section.rows_for(&work, variants.iter().map(|v| v.0));
            for number in in_turn(round, variants.len()) {
                let (peer, header) = &variants[number];
                bed.progress.step(&format!("{work}: round {round} of {}, {peer}", bed.plan.rounds));
                let published = varnishd.counter("c_published")?;
                let order = Order::turn(bytes, number as u64 * 1_000_000, count);
                let measured = bed.measure(&pids, &varnishd.load(header, order, 4, Stop::Requests(count)))?;
                let expected = if *peer == ON { count } else { 0 };
                if expected > 0 {
                    varnishd.wait_counter("c_published", published + expected)?;
                }
                if round > 0 {
                    record(section, &work, peer, &measured);
                    let published = varnishd.counter("c_published")? - published;
                    if published != expected {
                        section.remark(&work, peer, format!("{published} objects were published, expected {expected}"));
                    }
                }
            }
        }
    }
    bed.progress.line("publishing: done");
    Ok(())
}
