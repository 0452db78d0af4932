//! What is measured.

pub mod client;
pub mod hits;
pub mod misses;
pub mod mixed;
pub mod objects;
pub mod shared;

use std::time::Duration;

use anyhow::Result;

use crate::bed::Measured;
use crate::figures::{Figure, Section};
use crate::load::Stop;

/// A new part of the report. What is measured goes into it at once, so that it is there if the run ends early.
fn begin(sections: &mut Vec<Section>, section: Section) -> &mut Section {
    let at = sections.len();
    sections.push(section);
    &mut sections[at]
}

/// Peers take turns so often that a machine which is faster for a second is so for all of them: with windows of a second the
/// same thing differed from itself by half, with the same second in slices by a few hundredths.
const SLICE: Duration = Duration::from_millis(125);

/// So many slices has a window. A window shorter than a slice is one.
fn slices(window: Duration) -> u32 {
    u32::try_from(window.as_nanos() / SLICE.as_nanos()).unwrap_or(u32::MAX).max(1)
}

/// The order of turn number `number` among `count`: everybody is first, and behind everybody else, in turn.
fn in_turn(number: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |index| (index + number) % count)
}

/// One round: each of `peers` is measured for a window, in slices, in turn; `measure` takes one, a slice's number and its end.
/// The measurements are in the order of `peers`.
fn round<P>(
    peers: &[P],
    (number, window): (usize, Duration),
    mut measure: impl FnMut(&P, u32, Stop) -> Result<Measured>,
) -> Result<Vec<Measured>> {
    let mut sums: Vec<Option<Measured>> = peers.iter().map(|_| None).collect();
    let count = slices(window);
    for slice in 0..count {
        for index in in_turn(number + slice as usize, peers.len()) {
            let measured = measure(&peers[index], slice, Stop::After(window / count))?;
            match &mut sums[index] {
                Some(sum) => sum.add(measured)?,
                none => *none = Some(measured),
            }
        }
    }
    Ok(sums.into_iter().flatten().collect())
}

/// Adds a measurement to its line.
fn record(section: &mut Section, work: &str, peer: &str, measured: &Measured) {
    let Measured { outcome, cpu, origin_requests } = measured;
    let (requests, gigabytes) = (outcome.requests as f64, outcome.bytes as f64 / 1e9);
    for (figure, value) in [
        (Figure::Rate, requests / outcome.seconds),
        (Figure::GbPerSecond, gigabytes / outcome.seconds),
        (Figure::CpuPerGb, cpu.seconds / gigabytes),
        (Figure::CpuPerRequest, cpu.seconds / requests * 1e6),
        (Figure::SystemShare, cpu.system / (cpu.system + cpu.user)),
        (Figure::P50, outcome.latency_us(0.5)),
        (Figure::P99, outcome.latency_us(0.99)),
        (Figure::FirstByte, outcome.first_byte_us(0.5)),
        (Figure::HitRate, 1.0 - *origin_requests as f64 / requests),
    ] {
        section.add(work, peer, figure, value);
    }
    if let Some(why) = &outcome.first_error {
        section.remark(work, peer, format!("{} responses were wrong, the first: {why}", outcome.errors));
    }
}

/// Few connections for large bodies: each keeps a whole body moving.
fn connections(bytes: u64) -> usize {
    match bytes {
        0..=0xf_ffff => 16,
        0x10_0000..=0x3ff_ffff => 8,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Outcome, histogram};
    use crate::proc::Cpu;

    fn measured() -> Measured {
        let mut latency = histogram().unwrap();
        latency.record(2_000_000).unwrap();
        let outcome = Outcome {
            requests: 1000,
            bytes: 4_000_000_000,
            seconds: 2.0,
            first_byte: latency.clone(),
            latency,
            errors: 2,
            first_error: Some("short".into()),
        };
        let cpu = Cpu { seconds: 0.8, user: 0.2, system: 0.6 };
        Measured { outcome, cpu, origin_requests: 250 }
    }

    #[test]
    fn peers_take_turns_in_a_round() {
        let mut order = String::new();
        let window = (1, 3 * SLICE);
        let sums = round(&["a", "b"], window, |peer, slice, stop| {
            assert!(matches!(stop, Stop::After(time) if time == SLICE), "{stop:?}");
            order.push_str(&format!("{peer}{slice} "));
            let mut measured = measured();
            measured.origin_requests = if *peer == "a" { 1 } else { 10 };
            Ok(measured)
        });
        let sums = sums.unwrap();
        assert_eq!(order, "b0 a0 a1 b1 b2 a2 ");
        assert_eq!(sums.iter().map(|m| m.origin_requests).collect::<Vec<_>>(), [3, 30]);
        assert_eq!((sums[0].outcome.requests, sums[0].outcome.seconds), (3000, 6.0));
        assert!((sums[0].cpu.seconds - 2.4).abs() < 1e-9 && (sums[0].cpu.system - 1.8).abs() < 1e-9);
        assert!(round(&["a"], window, |_, _, _| anyhow::bail!("an error")).is_err());
    }

    #[test]
    fn figures_of_a_measurement() {
        let mut section = Section::default();
        record(&mut section, "w", "p", &measured());
        let value = |figure| section.spread("w", "p", figure).unwrap().median;
        assert_eq!(value(Figure::Rate), 500.0);
        assert_eq!(value(Figure::GbPerSecond), 2.0);
        assert_eq!(value(Figure::CpuPerGb), 0.2);
        assert!((value(Figure::CpuPerRequest) - 800.0).abs() < 1e-9);
        assert!((value(Figure::SystemShare) - 0.75).abs() < 1e-9);
        assert!((value(Figure::P50) - 2000.0).abs() < 2.0);
        assert_eq!(value(Figure::HitRate), 0.75);
        assert_eq!(section.rows[0].remarks, ["2 responses were wrong, the first: short"]);
    }

    #[test]
    fn slices_by_window() {
        let of = |ms| slices(Duration::from_millis(ms));
        assert_eq!([of(0), of(20), of(150), of(250), of(1000)], [1, 1, 1, 2, 8]);
    }

    #[test]
    fn connections_by_size() {
        assert_eq!([connections(1), connections(1 << 20), connections(1 << 28)], [16, 8, 4]);
    }
}
