//! What is measured.

pub mod client;
pub mod hits;
pub mod misses;
pub mod mixed;
pub mod objects;
pub mod shared;

use crate::bed::Measured;
use crate::figures::{Figure, Section};

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

    #[test]
    fn figures_of_a_measurement() {
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
        let mut section = Section::default();
        record(&mut section, "w", "p", &Measured { outcome, cpu, origin_requests: 250 });
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
    fn connections_by_size() {
        assert_eq!([connections(1), connections(1 << 20), connections(1 << 28)], [16, 8, 4]);
    }
}
