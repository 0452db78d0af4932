//! What a look-up costs that finds nothing.

use anyhow::Result;

use super::{Cache, Store, header};
use crate::bed::Bed;
use crate::figures::{Figure, Section};
use crate::peers::Server;
use crate::plan::K;
use crate::target::Order;
use crate::work::{begin, record, round};

/// The name of the work.
pub const WORK: &str = "1k miss";
/// The difference of the medians with and without the director.
pub const ADDED: &str = "added by the director";
/// What the director's own counter says.
pub const OWN_COUNTER: &str = "the director's own sum";

const WITH: &str = "with director";
const WITHOUT: &str = "without";

pub(super) fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    let section = begin(sections, Section {
        key: "lookup".into(),
        title: "Look-up that misses".into(),
        about: "Objects of 1 KiB that nobody has, one connection, not published: the same miss with the director and past it, \
                in turn. The latency is to the last byte."
            .into(),
        baseline: Some(WITHOUT.into()),
        columns: vec![Figure::Rate, Figure::FirstByte, Figure::P50, Figure::P99, Figure::CpuPerRequest, Figure::Microseconds],
        ratios: vec![Figure::P50],
        ..Section::default()
    });
    let store = Store::start(bed, 256 << 20)?;
    let varnishd = store.varnishd(bed, Cache::Engine, 2 << 30)?;
    let mut pids = varnishd.varnishd.pids();
    pids.extend(store.daemon.pid());
    let mut asked = 0;
    section.rows_for(WORK, [WITHOUT, WITH, ADDED, OWN_COUNTER]);
    // The first round is to warm up.
    for number in 0..=bed.plan.rounds {
        let (us, misses) = (varnishd.counter("t_find_us")?, varnishd.counter("c_misses")?);
        let sums = round(&[WITHOUT, WITH], (number, bed.plan.window), |peer, _, stop| {
            bed.progress.step(&format!("look-up: round {number} of {}, {peer}", bed.plan.rounds));
            // Numbers that were never used: there are more than a round can ask for.
            let order = Order::turn(K, asked, u64::from(u32::MAX));
            let measured = bed.measure(&pids, &varnishd.load(&header(*peer == WITH, false), order, 1, stop))?;
            asked += measured.outcome.requests + 1;
            Ok(measured)
        })?;
        if number == 0 {
            continue;
        }
        for (peer, measured) in [WITHOUT, WITH].into_iter().zip(&sums) {
            record(section, WORK, peer, measured);
        }
        if let [without, with] = &sums[..] {
            let added = with.outcome.latency_us(0.5) - without.outcome.latency_us(0.5);
            section.add(WORK, ADDED, Figure::Microseconds, added);
        }
        let misses = varnishd.counter("c_misses")? - misses;
        if misses > 0 {
            let own = (varnishd.counter("t_find_us")? - us) as f64 / misses as f64;
            section.add(WORK, OWN_COUNTER, Figure::Microseconds, own);
        }
    }
    bed.progress.line("look-up: done");
    Ok(())
}
