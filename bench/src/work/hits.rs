//! Hits: one object, and a working set larger than the CPU's caches.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{begin, connections, record};
use crate::bed::Bed;
use crate::figures::{Figure, Plot, Section};
use crate::load::{Drain, Stop};
use crate::peers::{BASELINE, Fleet, Peer, Storage};
use crate::plan::{Hits, Spread, size_name};
use crate::target::{Order, Target};

/// The name of such a work.
pub fn work_name(bytes: u64, spread: Spread, drain: Drain) -> String {
    let spread = match spread {
        Spread::One => "one",
        Spread::Set => "set",
    };
    format!("{} {spread} {}", size_name(bytes), drain.name())
}

/// Measures all hits of the plan.
pub fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    let plan = &bed.plan;
    let section = begin(
        sections,
        Section {
            key: "hits".into(),
            title: "Hits".into(),
            about: format!(
                "Every response comes from the cache. \"one\": the same object again and again; \"set\": {} in turn (at most \
             20,000 objects). \"copy\": the client receives into a buffer; \"discard\": the kernel throws the bytes away \
             (MSG_TRUNC), so that the client is not what is measured. 16 connections below 1 MiB, 8 below 64 MiB, then 4.",
                crate::figures::bytes(plan.working_set as f64)
            ),
            baseline: Some(BASELINE.into()),
            columns: vec![
                Figure::Rate,
                Figure::GbPerSecond,
                Figure::CpuPerGb,
                Figure::CpuPerRequest,
                Figure::SystemShare,
                Figure::P50,
                Figure::P99,
            ],
            ratios: vec![Figure::GbPerSecond, Figure::CpuPerGb],
            ..Section::default()
        },
    );
    for (title, figure, works) in [
        ("CPU time per GB, client discards", Figure::CpuPerGb, "m set discard"),
        ("Speed, client discards", Figure::GbPerSecond, "m set discard"),
        ("CPU time per GB, client copies", Figure::CpuPerGb, "m set copy"),
        ("CPU time per request, small objects", Figure::CpuPerRequest, "k one copy"),
        ("Requests per second, small objects", Figure::Rate, "k one copy"),
    ] {
        section.plots.push(Plot { title: title.into(), figure, works: works.into() });
    }
    // What is asked for, the free part that some engines keep, and one body more.
    let largest = plan.hits.iter().map(|h| h.bytes).max().unwrap_or(0);
    let bytes = plan.working_set.max(largest) / 8 * 9 + largest + (64 << 20);
    let mut fleet = Fleet::start(bed, Storage { bytes, deliveries: true })?;
    // The same bodies serve both spreads.
    let mut sizes: Vec<u64> = plan.hits.iter().map(|h| h.bytes).collect();
    sizes.dedup();
    for bytes in sizes {
        let works: Vec<&Hits> = plan.hits.iter().filter(|h| h.bytes == bytes).collect();
        let set = works.iter().any(|h| h.spread == Spread::Set);
        let count = if set { plan.objects_of(bytes) } else { 1 };
        fill(bed, &fleet, bytes, count)?;
        fleet.verify(Target { bytes, id: count - 1 })?;
        for hits in works {
            measure(bed, &fleet, hits, count, section)?;
        }
        fleet.clear()?;
    }
    Ok(())
}

/// Brings `count` objects into every cache.
fn fill(bed: &Bed, fleet: &Fleet, bytes: u64, count: u64) -> Result<()> {
    for peer in fleet.distinct() {
        bed.progress.step(&format!("hits {}: filling {}", size_name(bytes), peer.name));
        let order = Order::turn(bytes, 0, count);
        let load = fleet.load(peer, order, 4, Drain::Discard, Stop::Requests(count));
        let measured = fleet.measure(bed, peer, &load)?;
        if let Some(why) = measured.outcome.first_error {
            anyhow::bail!("{}: filling the cache: {why}", peer.name);
        }
    }
    Ok(())
}

fn measure(bed: &Bed, fleet: &Fleet, hits: &Hits, count: u64, section: &mut Section) -> Result<()> {
    let bytes = hits.bytes;
    for &drain in &hits.drains {
        let work = work_name(bytes, hits.spread, drain);
        let order = || match hits.spread {
            Spread::One => Order::One(Target { bytes, id: 0 }),
            Spread::Set => Order::turn(bytes, 0, count),
        };
        // Each peer has its own place in its working set, and goes on there in the next slice.
        let orders: BTreeMap<&str, Order> = fleet.peers.iter().map(|p| (p.name.as_str(), order())).collect();
        let load = |peer: &Peer, stop| {
            let order = orders.get(peer.name.as_str()).cloned().unwrap_or_else(order);
            fleet.load(peer, order, connections(bytes), drain, stop)
        };
        for peer in &fleet.peers {
            fleet.measure(bed, peer, &load(peer, Stop::After(bed.plan.window / 4)))?;
        }
        for round in 0..bed.plan.rounds {
            let sums = super::round(&fleet.peers, (round, bed.plan.window), |peer, _, stop| {
                bed.progress.step(&format!("hits {work}: round {} of {}, {}", round + 1, bed.plan.rounds, peer.name));
                fleet.measure(bed, peer, &load(peer, stop))
            })?;
            for (peer, measured) in fleet.peers.iter().zip(sums) {
                record(section, &work, &peer.name, &measured);
                if measured.origin_requests > 0 {
                    let text = format!("{} requests of a round were misses", measured.origin_requests);
                    section.remark(&work, &peer.name, text);
                }
            }
        }
        let sum = summary(section, &work);
        bed.progress.line(&format!("hits {work}: {sum}"));
    }
    Ok(())
}

/// One line while the run goes on: GB/s and CPU per GB of the baseline and of each other peer as ratios.
fn summary(section: &Section, work: &str) -> String {
    let Some(base) = section.spread(work, BASELINE, Figure::GbPerSecond) else { return String::new() };
    let mut text = format!("{BASELINE} {} GB/s", Figure::GbPerSecond.show(base.median));
    for peer in section.peers() {
        let ratio = |figure| section.ratio(work, peer, BASELINE, figure).map(|r| r.median);
        if peer == BASELINE {
            continue;
        }
        if let (Some(speed), Some(cpu)) = (ratio(Figure::GbPerSecond), ratio(Figure::CpuPerGb)) {
            text.push_str(&format!("; {peer} {speed:.2}x, CPU {cpu:.2}x"));
        }
    }
    text
}
