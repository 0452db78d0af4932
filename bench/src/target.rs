//! What is asked for: an object by its size and number, and the order in which objects are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// One object of the origin. Its path says everything: `/<bytes>/<id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The body's length in bytes.
    pub bytes: u64,
    /// Which of the objects of that length.
    pub id: u64,
}

impl Target {
    /// The request's path.
    pub fn path(&self) -> String {
        format!("/{}/{}", self.bytes, self.id)
    }

    /// The object that a path names; a query string is passed over.
    pub fn from_path(path: &str) -> Option<Self> {
        let path = path.split('?').next()?;
        let (bytes, id) = path.strip_prefix('/')?.split_once('/')?;
        Some(Self { bytes: bytes.parse().ok()?, id: id.parse().ok()? })
    }
}

/// How popular the objects of a mix are, and how large each is.
#[derive(Debug)]
pub struct Popularity {
    weights: WeightedIndex<f64>,
    sizes: Vec<u64>,
}

impl Popularity {
    /// `count` objects whose popularity falls with their rank to the power of `exponent` (Zipf's law). The sizes are dealt
    /// out in turn, so that none of them is the popular one.
    pub fn zipf(count: usize, exponent: f64, sizes: &[u64]) -> anyhow::Result<Self> {
        let weights = WeightedIndex::new((1..=count).map(|rank| (rank as f64).powf(-exponent)))?;
        // A step that shares no factor with the list's length would repeat; a hash of the rank does not.
        let sizes = (0..count).map(|rank| sizes[mix(rank as u64) as usize % sizes.len()]).collect();
        Ok(Self { weights, sizes })
    }

    /// The bytes of all objects together.
    pub fn total(&self) -> u64 {
        self.sizes.iter().sum()
    }

    fn draw(&self, random: &mut SmallRng) -> Target {
        let rank = self.weights.sample(random);
        Target { bytes: self.sizes[rank], id: rank as u64 }
    }
}

/// splitmix64's finisher: neighbouring numbers get values that have nothing in common.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The order in which objects are asked for.
#[derive(Debug, Clone)]
pub enum Order {
    /// One object again and again.
    One(Target),
    /// `count` objects in turn, the next wherever all clients together are.
    Turn {
        /// Length of each.
        bytes: u64,
        /// The first one's number.
        first: u64,
        /// How many there are.
        count: u64,
        /// Where all clients are.
        position: Arc<AtomicU64>,
    },
    /// `count` objects of one length, each as likely as the others.
    Random {
        /// Length of each.
        bytes: u64,
        /// How many there are, numbered from 0.
        count: u64,
        /// The same seed gives the same order.
        seed: u64,
    },
    /// By popularity.
    Popular(Arc<Popularity>, u64),
}

impl Order {
    /// `count` objects in turn from number `first` on.
    pub fn turn(bytes: u64, first: u64, count: u64) -> Self {
        Self::Turn { bytes, first, count: count.max(1), position: Arc::default() }
    }

    /// The order as thread number `thread` of a load sees it.
    pub(crate) fn sequence(&self, thread: u64) -> Sequence {
        let seed = match self {
            Self::Random { seed, .. } | Self::Popular(_, seed) => *seed,
            Self::One(_) | Self::Turn { .. } => 0,
        };
        Sequence { order: self.clone(), random: SmallRng::seed_from_u64(mix(seed) ^ thread) }
    }
}

/// One thread's order.
#[derive(Debug)]
pub(crate) struct Sequence {
    order: Order,
    random: SmallRng,
}

impl Sequence {
    pub(crate) fn next(&mut self) -> Target {
        match &self.order {
            Order::One(target) => *target,
            Order::Turn { bytes, first, count, position } => {
                let turn = position.fetch_add(1, Ordering::Relaxed);
                Target { bytes: *bytes, id: first + turn % count }
            }
            Order::Random { bytes, count, .. } => Target { bytes: *bytes, id: self.random.random_range(0..*count) },
            Order::Popular(popularity, _) => popularity.draw(&mut self.random),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_both_ways() {
        let target = Target { bytes: 1 << 20, id: 77 };
        assert_eq!(Target::from_path(&target.path()), Some(target));
        assert_eq!(Target::from_path("/4/5?round=1"), Some(Target { bytes: 4, id: 5 }));
        for wrong in ["", "/", "4/5", "/4", "/x/5", "/4/x", "/4/5/6"] {
            assert_eq!(Target::from_path(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn turns_are_shared_and_repeat() {
        let order = Order::turn(10, 100, 3);
        let (mut a, mut b) = (order.sequence(0), order.sequence(1));
        let ids = [a.next().id, b.next().id, a.next().id, b.next().id];
        assert_eq!(ids, [100, 101, 102, 100]);
    }

    #[test]
    fn zipf_prefers_low_ranks_in_the_right_proportion() {
        let popularity = Arc::new(Popularity::zipf(1000, 1.0, &[1, 2]).unwrap());
        let mut sequence = Order::Popular(Arc::clone(&popularity), 1).sequence(0);
        let mut seen = [0_u32; 1000];
        for _ in 0..200_000 {
            seen[sequence.next().id as usize] += 1;
        }
        // Zipf's law with exponent 1: rank 1 is asked for ten times as often as rank 10.
        let ratio = f64::from(seen[0]) / f64::from(seen[9]);
        assert!((8.5..11.5).contains(&ratio), "{ratio}");
        assert!((1000..2000).contains(&popularity.total()));
    }

    #[test]
    fn an_object_has_one_size_and_a_seed_one_order() {
        let popularity = Arc::new(Popularity::zipf(50, 0.9, &[1, 2, 3]).unwrap());
        let draw = |seed| {
            let mut sequence = Order::Popular(Arc::clone(&popularity), seed).sequence(0);
            (0..100).map(|_| sequence.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        for target in draw(3) {
            assert_eq!(target.bytes, popularity.sizes[target.id as usize]);
        }
    }
}
