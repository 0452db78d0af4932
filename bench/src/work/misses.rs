//! Misses: every object is asked for once.

use anyhow::Result;

use super::{begin, in_turn, record};
use crate::bed::Bed;
use crate::figures::{Figure, Plot, Section};
use crate::load::{Drain, Stop};
use crate::peers::{BASELINE, Fleet, Storage};
use crate::plan::{M, size_name};
use crate::target::Order;

/// Sizes that are missed.
pub const SIZES: [u64; 2] = [M, 64 * M];

/// Measures the misses of the plan.
pub fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    let plan = &bed.plan;
    let section = begin(
        sections,
        Section {
            key: "misses".into(),
            title: "Misses".into(),
            about: format!(
                "Every object is fetched from the origin, stored and delivered once, over 4 connections; a peer fetches {} in a \
             round and its cache is emptied after it. The client discards in the kernel; it shares its CPU with the origin.",
                crate::figures::bytes(plan.miss_bytes as f64)
            ),
            baseline: Some(BASELINE.into()),
            columns: vec![
                Figure::Rate,
                Figure::GbPerSecond,
                Figure::CpuPerGb,
                Figure::FirstByte,
                Figure::P50,
                Figure::P99,
            ],
            ratios: vec![Figure::GbPerSecond, Figure::CpuPerGb],
            ..Section::default()
        },
    );
    for (title, figure) in [("Speed of misses", Figure::GbPerSecond), ("CPU time per GB of misses", Figure::CpuPerGb)] {
        section.plots.push(Plot { title: title.into(), figure, works: String::new() });
    }
    let bytes = plan.miss_bytes / 8 * 9 + 192 * M;
    let mut fleet = Fleet::start(bed, Storage { bytes, deliveries: false })?;
    for bytes in SIZES {
        let count = (plan.miss_bytes / bytes).max(1);
        let work = format!("{} miss", size_name(bytes));
        section.rows_for(&work, fleet.peers.iter().map(|p| p.name.as_str()));
        // The first round is for memory that was never touched.
        for round in 0..=plan.rounds {
            for index in in_turn(round, fleet.peers.len()) {
                let peer = &fleet.peers[index];
                let name = peer.name.clone();
                bed.progress.step(&format!("{work}: round {round} of {}, {name}", plan.rounds));
                let order = Order::turn(bytes, round as u64 * 1_000_000, count);
                let load = fleet.load(peer, order, 4, Drain::Discard, Stop::Requests(count));
                let measured = fleet.measure(bed, peer, &load)?;
                if round > 0 {
                    record(section, &work, &name, &measured);
                    if measured.origin_requests != count {
                        let text =
                            format!("the origin was asked {} times for {count} objects", measured.origin_requests);
                        section.remark(&work, &name, text);
                    }
                }
                fleet.clear_one(&name)?;
            }
        }
        bed.progress.line(&format!("{work}: done"));
    }
    Ok(())
}
