//! What must hold of the figures.

use crate::figures::{Bound, Figure, Section, Verdict};
use crate::load::Drain;
use crate::peers::{BASELINE, MEMORY, MEMORY_ZERO_COPY};
use crate::plan::{K, M, Spread as Over, size_name};
use crate::stats::Spread;
use crate::work::{client, hits, objects, shared};

/// The verdicts on those targets about which this run says something.
pub fn judge(sections: &[Section]) -> Vec<Verdict> {
    let mut judge = Judge { sections, verdicts: Vec::new() };
    judge.hits();
    judge.misses();
    judge.objects();
    judge.client();
    judge.shared();
    judge.verdicts
}

struct Judge<'a> {
    sections: &'a [Section],
    verdicts: Vec<Verdict>,
}

impl<'a> Judge<'a> {
    fn section(&self, key: &str) -> Option<&'a Section> {
        self.sections.iter().find(|s| s.key == key)
    }

    fn add(&mut self, target: String, unit: &str, bound: Bound, limit: f64, measured: Option<Spread>) {
        if let Some(measured) = measured {
            self.verdicts.push(Verdict { target, unit: unit.to_owned(), bound, limit, measured });
        }
    }

    /// A peer's ratio to another at one work.
    fn ratio(&mut self, key: &str, text: &str, work: &str, who: (&str, &str), figure: Figure, bound: (Bound, f64)) {
        let measured = self.section(key).and_then(|s| s.ratio(work, who.0, who.1, figure));
        let target = format!("{work}: {text}, {} to {}", who.0, who.1);
        self.add(target, "x", bound.0, bound.1, measured);
    }

    fn hits(&mut self) {
        let to_malloc = (MEMORY_ZERO_COPY, BASELINE);
        for bytes in [M, 16 * M, 64 * M, 256 * M] {
            let discard = hits::work_name(bytes, Over::Set, Drain::Discard);
            let copy = hits::work_name(bytes, Over::Set, Drain::Copy);
            let cpu = "CPU per GB of hits";
            self.ratio("hits", cpu, &discard, to_malloc, Figure::CpuPerGb, (Bound::AtMost, 0.5));
            let speed = "GB/s of hits";
            self.ratio("hits", speed, &discard, to_malloc, Figure::GbPerSecond, (Bound::AtLeast, 1.3));
            self.ratio("hits", cpu, &copy, to_malloc, Figure::CpuPerGb, (Bound::AtMost, 0.7));
        }
        for bytes in [K, 16 * K, 32 * K] {
            let work = hits::work_name(bytes, Over::One, Drain::Copy);
            // "As fast as malloc" is what malloc is to itself in this run.
            let noise = |section: &Section, figure| section.ratio(&work, crate::peers::NOISE, BASELINE, figure);
            for (text, figure, bound) in [
                ("requests/s of small hits", Figure::Rate, Bound::AtLeast),
                ("CPU per request of small hits", Figure::CpuPerRequest, Bound::AtMost),
            ] {
                let limit = self.section("hits").and_then(|s| noise(s, figure)).map_or(1.0, |n| match bound {
                    Bound::AtLeast => n.low.min(1.0),
                    Bound::AtMost => n.high.max(1.0),
                });
                let limit = (limit * 1000.0).round() / 1000.0;
                let text = format!("{text} within the noise floor");
                self.ratio("hits", &text, &work, (MEMORY, BASELINE), figure, (bound, limit));
            }
        }
    }

    fn misses(&mut self) {
        for bytes in crate::work::misses::SIZES {
            let work = format!("{} miss", size_name(bytes));
            let bound = (Bound::AtLeast, 0.97);
            self.ratio("misses", "GB/s", &work, (MEMORY, BASELINE), Figure::GbPerSecond, bound);
            self.ratio("publishing", "GB/s", &work, (shared::ON, shared::OFF), Figure::GbPerSecond, bound);
        }
    }

    fn objects(&mut self) {
        let Some(section) = self.section("objects") else { return };
        let Some((few, many)) = few_and_many(section) else { return };
        let (all_few, all_many) = (objects::work_name(few, few), objects::work_name(many, few));
        let heap_work = objects::work_name(many, many);
        let heap = |peer| section.spread(&heap_work, peer, Figure::HeapPerObject).map(|s| s.median);
        let beyond = heap(MEMORY).zip(heap(BASELINE)).map(|(ours, theirs)| ours - theirs);
        let beyond = beyond.map(|v| Spread { median: v, low: v, high: v });
        let latency = across(section, MEMORY, &all_many, &all_few, Figure::P50);
        let name = format!("heap per object beyond malloc's, at {many} objects");
        self.add(name, " B", Bound::AtMost, 1024.0, beyond);
        // The spread of single rounds is the noise; the bound is a tenth above "the same".
        let name = format!("hit latency of the same objects among {many}, to that among {few}");
        self.add(name, "x", Bound::AtMost, 1.1, latency);
    }

    fn client(&mut self) {
        let Some(section) = self.section("client") else { return };
        let rate = section.spread(client::PIPELINED, client::WITH_FDS, Figure::Rate);
        let gain = across(section, client::WITH_FDS, client::PIPELINED, client::ONE, Figure::Rate);
        let name = "look-ups with descriptors, one connection, pipelined".to_owned();
        self.add(name.clone(), "/s", Bound::AtLeast, 100_000.0, rate);
        self.add(format!("{name}, to one at a time"), "x", Bound::AtLeast, 3.0, gain);
    }

    fn shared(&mut self) {
        if let Some(section) = self.section("adoption") {
            let small = size_name(shared::SMALL);
            let largest = section.works().last().map(|w| (*w).to_owned());
            if let Some(large) = largest.filter(|w| *w != small) {
                let ratio = |figure| across(section, shared::ADOPTED, &large, &small, figure);
                let (cpu, first) = (ratio(Figure::CpuPerRequest), ratio(Figure::FirstByte));
                let copied = section.spread(&large, shared::ADOPTED, Figure::CopiedBytes);
                self.add(format!("second-level hit, CPU at {large} to {small}"), "x", Bound::AtMost, 1.5, cpu);
                self.add(format!("second-level hit, first byte at {large} to {small}"), "x", Bound::AtMost, 1.5, first);
                self.add(format!("second-level hit, bytes copied at {large}"), " B", Bound::AtMost, 0.0, copied);
            }
        }
        if let Some(section) = self.section("lookup") {
            for peer in [shared::ADDED, shared::OWN_COUNTER] {
                let measured = section.spread(shared::LOOKUP, peer, Figure::Microseconds);
                let name = format!("second-level look-up that misses, {peer}");
                self.add(name, " µs", Bound::AtMost, 50.0, measured);
            }
        }
        if let Some(section) = self.section("start") {
            let measured = section.spread(shared::FIRST_HIT, shared::VARNISHD, Figure::Milliseconds);
            let name = "varnishd's socket up to the first second-level hit".to_owned();
            self.add(name, " ms", Bound::AtMost, 100.0, measured);
        }
        if let Some(section) = self.section("records") {
            let restart = section.spread(shared::RESTART, shared::DAEMON, Figure::Milliseconds);
            let latency = few_and_many(section).map(|(few, many)| {
                let work = |stored| shared::records_work(stored, few);
                let name = format!("look-up of the same records among {many}, to that among {few}");
                (name, across(section, shared::CLIENT, &work(many), &work(few), Figure::P50))
            });
            self.add("objmapperd's restart to its first answer".into(), " ms", Bound::AtMost, 2000.0, restart);
            if let Some((name, latency)) = latency {
                self.add(name, "x", Bound::AtMost, 1.1, latency);
            }
        }
    }
}

/// A peer's ratio of one work to another. The rounds of different works were not taken in turn, so each is set against the
/// other's median.
fn across(section: &Section, peer: &str, work: &str, to: &str, figure: Figure) -> Option<Spread> {
    let (one, other) = (section.spread(work, peer, figure)?, section.spread(to, peer, figure)?);
    let divide = |value| value / other.median;
    Some(Spread { median: divide(one.median), low: divide(one.low), high: divide(one.high) })
}

/// The least and the largest number of objects that a section's works name behind "of".
fn few_and_many(section: &Section) -> Option<(u64, u64)> {
    let stored = section.works().into_iter().filter_map(|w| w.rsplit_once(" of ")?.1.parse::<u64>().ok());
    let stored: Vec<u64> = stored.collect();
    let (few, many) = (*stored.iter().min()?, *stored.iter().max()?);
    (few < many).then_some((few, many))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_measured_nothing_judged() {
        assert!(judge(&[]).is_empty());
        assert!(judge(&[Section { key: "hits".into(), ..Section::default() }]).is_empty());
    }

    #[test]
    fn hits_against_malloc() {
        let mut section = Section { key: "hits".into(), ..Section::default() };
        let work = hits::work_name(M, Over::Set, Drain::Discard);
        for value in [0.2, 0.22] {
            section.add(&work, BASELINE, Figure::CpuPerGb, value);
            section.add(&work, MEMORY_ZERO_COPY, Figure::CpuPerGb, value * 0.4);
        }
        let verdicts = judge(&[section]);
        assert_eq!(verdicts.len(), 1);
        assert_eq!((verdicts[0].words(), verdicts[0].limit), ("met", 0.5));
        assert!(verdicts[0].target.contains("1m set discard"), "{}", verdicts[0].target);
    }

    #[test]
    fn heap_is_what_is_beyond_malloc() {
        let mut section = Section { key: "objects".into(), ..Section::default() };
        let work = objects::work_name(5000, 5000);
        section.add(&work, BASELINE, Figure::HeapPerObject, 1000.0);
        section.add(&work, MEMORY, Figure::HeapPerObject, 1800.0);
        section.add(&objects::work_name(1000, 1000), MEMORY, Figure::P50, 40.0);
        section.add(&objects::work_name(5000, 1000), MEMORY, Figure::P50, 50.0);
        let verdicts = judge(&[section]);
        assert_eq!(verdicts[0].measured.median, 800.0);
        assert!(verdicts[0].is_met());
        assert_eq!(verdicts[1].measured.median, 1.25);
        assert!(!verdicts[1].is_met());
    }
}
