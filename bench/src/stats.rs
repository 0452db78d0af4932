//! Medians, spreads and ratios of rounds.

use serde::{Deserialize, Serialize};

/// The middle of several values, with the lowest and the highest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The lowest value.
    pub low: f64,
    /// The highest value.
    pub high: f64,
}

impl Spread {
    /// Of these values; `None` if there are none. Values that are no number are left out.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, low, high })
    }

    /// Of `ours / theirs`, round by round: what both had in common in a round falls out. Rounds that only one of them has
    /// are left out.
    pub fn of_ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        Self::of(&ratios)
    }

    /// How far the values lie apart, as a part of the median: (high - low) / median.
    pub fn relative(&self) -> f64 {
        (self.high - self.low) / self.median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0]), Some(Spread { median: 3.0, low: 3.0, high: 3.0 }));
        assert_eq!(Spread::of(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, low: 1.0, high: 9.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of(&[f64::NAN, 2.0, f64::INFINITY]).unwrap().high, 2.0);
    }

    #[test]
    fn ratios_are_paired_by_round() {
        // Rounds of very different speed: the ratio of medians would be 1, that of every round is 2.
        let ours = [2.0, 20.0, 200.0];
        let theirs = [1.0, 10.0, 100.0];
        let ratio = Spread::of_ratios(&ours, &theirs).unwrap();
        assert_eq!(ratio, Spread { median: 2.0, low: 2.0, high: 2.0 });
        assert_eq!(Spread::of_ratios(&ours, &[]), None);
        assert_eq!(Spread::of_ratios(&[1.0], &[0.0]), None);
    }

    #[test]
    fn relative_spread() {
        assert_eq!(Spread::of(&[8.0, 10.0, 12.0]).unwrap().relative(), 0.4);
    }
}
