//! Mixed traffic: popularity by Zipf's law over more objects than fit.

use std::sync::Arc;

use anyhow::Result;

use super::{begin, record};
use crate::bed::Bed;
use crate::figures::{Figure, Plot, Section};
use crate::load::{Drain, Stop};
use crate::peers::{BASELINE, Fleet, Storage};
use crate::plan::{K, M};
use crate::target::{Order, Popularity};

const SIZES: [u64; 7] = [4 * K, 16 * K, 16 * K, 64 * K, 256 * K, M, 4 * M];
const EXPONENT: f64 = 0.9;
/// The objects are so many times what the cache holds.
const OVERCOMMIT: u64 = 4;

/// Measures the mix.
pub fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    let plan = &bed.plan;
    let storage = plan.working_set;
    let mean = SIZES.iter().sum::<u64>() / SIZES.len() as u64;
    let count = (storage * OVERCOMMIT / mean).max(100) as usize;
    let popularity = Arc::new(Popularity::zipf(count, EXPONENT, &SIZES)?);
    let section = begin(
        sections,
        Section {
            key: "mixed".into(),
            title: "Mixed traffic".into(),
            about: format!(
                "{count} objects of 4 KiB to 4 MiB, {} in all, over caches of {}, asked for by Zipf's law (exponent {EXPONENT}) \
             over 16 connections: hits, misses and evictions as they come. The client discards in the kernel.",
                crate::figures::bytes(popularity.total() as f64),
                crate::figures::bytes(storage as f64)
            ),
            baseline: Some(BASELINE.into()),
            columns: vec![
                Figure::Rate,
                Figure::GbPerSecond,
                Figure::CpuPerGb,
                Figure::HitRate,
                Figure::P50,
                Figure::P99,
                Figure::Resident,
                Figure::Fds,
                Figure::Vmas,
            ],
            ratios: vec![Figure::GbPerSecond, Figure::CpuPerGb],
            ..Section::default()
        },
    );
    for (title, figure) in
        [("Speed of mixed traffic", Figure::GbPerSecond), ("Hit rate of mixed traffic", Figure::HitRate)]
    {
        section.plots.push(Plot { title: title.into(), figure, works: String::new() });
    }
    let fleet = Fleet::start(bed, Storage { bytes: storage, deliveries: true })?;
    for peer in fleet.distinct() {
        bed.progress.step(&format!("mixed: filling {}", peer.name));
        // Enough to fill the cache twice, so that evictions have begun.
        let order = Order::Popular(Arc::clone(&popularity), u64::MAX);
        let requests = 2 * storage / mean;
        fleet.measure(bed, peer, &fleet.load(peer, order, 16, Drain::Discard, Stop::Requests(requests)))?;
    }
    for round in 0..plan.rounds {
        let sums = super::round(&fleet.peers, (round, plan.window * 2), |peer, slice, stop| {
            bed.progress.step(&format!("mixed: round {} of {}, {}", round + 1, plan.rounds, peer.name));
            // The same objects for everybody, others in each slice.
            let order = Order::Popular(Arc::clone(&popularity), ((round as u64) << 32) + u64::from(slice));
            fleet.measure(bed, peer, &fleet.load(peer, order, 16, Drain::Discard, stop))
        })?;
        for (peer, measured) in fleet.peers.iter().zip(sums) {
            record(section, "zipf", &peer.name, &measured);
            super::objects::record_handles(section, "zipf", &peer.name, &fleet.server(peer).pids())?;
        }
    }
    bed.progress.line("mixed: done");
    Ok(())
}
