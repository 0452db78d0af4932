//! How much is measured: the full run and the short one.

use std::time::Duration;

use crate::load::Drain;
use crate::options::{Options, Part};

/// How many objects a hit work spreads over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// One object: it stays in the CPU's caches if it fits there.
    One,
    /// A working set larger than the CPU's caches, asked for in turn.
    Set,
}

/// Hits of one size.
#[derive(Debug, Clone)]
pub struct Hits {
    /// Body length in bytes.
    pub bytes: u64,
    /// Over how many objects.
    pub spread: Spread,
    /// What the client does with the bytes.
    pub drains: Vec<Drain>,
}

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The short mode.
    pub quick: bool,
    /// The parts that are done.
    pub parts: Vec<Part>,
    /// How often everything is measured, interleaved.
    pub rounds: usize,
    /// How long one measurement takes.
    pub window: Duration,
    /// Bytes of a working set.
    pub working_set: u64,
    /// The hits.
    pub hits: Vec<Hits>,
    /// Bytes that a peer fetches in one round of misses.
    pub miss_bytes: u64,
    /// How many objects the part "objects" holds.
    pub objects: u64,
    /// How many objects are asked for again and again in it.
    pub few: u64,
    /// Bytes of memory to touch before the run, so that a hypervisor has given them back.
    pub touch: u64,
    /// The largest adopted body.
    pub largest_record: u64,
}

/// A body of 1 KiB.
pub const K: u64 = 1 << 10;
/// A body of 1 MiB.
pub const M: u64 = 1 << 20;

const ALL_PARTS: [Part; 6] = [Part::Hits, Part::Misses, Part::Mixed, Part::Objects, Part::Client, Part::Shared];

impl Plan {
    /// As the options say. `available` is the memory that may be used, in bytes.
    pub fn new(options: &Options, available: u64) -> Self {
        let both = || vec![Drain::Discard, Drain::Copy];
        let hits = |bytes, spread, drains| Hits { bytes, spread, drains };
        let mut plan = if options.quick {
            Self {
                quick: true,
                parts: Vec::new(),
                rounds: 3,
                window: Duration::from_millis(150),
                working_set: 512 * M,
                hits: vec![
                    hits(K, Spread::One, vec![Drain::Copy]),
                    hits(32 * K, Spread::One, vec![Drain::Copy]),
                    hits(64 * K, Spread::Set, vec![Drain::Copy]),
                    hits(M, Spread::Set, both()),
                    hits(16 * M, Spread::Set, both()),
                    hits(64 * M, Spread::Set, vec![Drain::Discard]),
                    hits(256 * M, Spread::Set, vec![Drain::Discard]),
                ],
                miss_bytes: 256 * M,
                objects: 50_000,
                few: 1000,
                touch: 6 << 30,
                largest_record: 256 * M,
            }
        } else {
            let sizes = [K, 16 * K, 32 * K, 64 * K, M, 16 * M, 64 * M, 256 * M];
            let spreads = [Spread::One, Spread::Set];
            Self {
                quick: false,
                parts: Vec::new(),
                rounds: 5,
                window: Duration::from_secs(1),
                working_set: 1536 * M,
                hits: sizes.iter().flat_map(|&bytes| spreads.map(|spread| hits(bytes, spread, both()))).collect(),
                miss_bytes: 768 * M,
                objects: 1_000_000,
                few: 1000,
                touch: 14 << 30,
                largest_record: 1 << 30,
            }
        };
        plan.parts = if options.only.is_empty() { ALL_PARTS.to_vec() } else { options.only.clone() };
        plan.rounds = options.rounds.unwrap_or(plan.rounds).max(1);
        plan.window = options.seconds.map_or(plan.window, |s| Duration::from_secs_f64(s.clamp(0.01, 3600.0)));
        plan.objects = options.objects.unwrap_or(plan.objects).max(2 * plan.few);
        plan.working_set = options.working_set.map_or(plan.working_set, |mib| mib.max(1) * M);
        // Every cache holds the working set at once, some in the page cache; half stays for everybody else.
        plan.working_set = plan.working_set.min(available / 2 / CACHES);
        plan.miss_bytes = plan.miss_bytes.min(available / 2 / CACHES);
        plan.touch = plan.touch.min(available / 10 * 8);
        plan
    }

    /// How many objects of this size make a working set: so many that they pass its bytes, but no more than this, because
    /// a cache that is full of small objects measures its look-up.
    pub fn objects_of(&self, bytes: u64) -> u64 {
        (self.working_set / bytes).clamp(1, 20_000)
    }
}

/// Caches that run at the same time.
const CACHES: u64 = 7;

/// `64k`, `1m`, `1g`.
pub fn size_name(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{}g", b >> 30),
        b if b >= M && b % M == 0 => format!("{}m", b / M),
        b if b >= K && b % K == 0 => format!("{}k", b / K),
        b => format!("{b}b"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn plan(arguments: &[&str], available: u64) -> Plan {
        Plan::new(&Options::parse_from([&["bench"], arguments].concat()), available)
    }

    #[test]
    fn names() {
        for (bytes, name) in
            [(1, "1b"), (1500, "1500b"), (K, "1k"), (64 * K, "64k"), (256 * M, "256m"), (1 << 30, "1g")]
        {
            assert_eq!(size_name(bytes), name);
        }
    }

    #[test]
    fn a_small_machine_gets_a_small_working_set() {
        let large = plan(&[], 64 << 30);
        assert_eq!(large.working_set, 1536 * M);
        let small = plan(&[], 4 << 30);
        assert!(small.working_set * CACHES <= 2 << 30, "{}", small.working_set);
        assert_eq!(large.objects_of(256 * M), 6);
        assert_eq!(large.objects_of(1), 20_000);
    }

    #[test]
    fn options_are_kept() {
        let plan = plan(
            &[
                "--quick",
                "--only",
                "hits,shared",
                "--rounds",
                "0",
                "--seconds",
                "0.2",
                "--objects",
                "5",
                "--working-set",
                "7",
            ],
            1 << 34,
        );
        assert_eq!(plan.parts, [Part::Hits, Part::Shared]);
        assert_eq!((plan.rounds, plan.window), (1, Duration::from_millis(200)));
        assert_eq!((plan.objects, plan.working_set), (2 * plan.few, 7 * M));
    }
}
