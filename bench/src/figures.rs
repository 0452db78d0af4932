//! What was measured: one value per round for each work, peer and figure, and what must hold of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::Spread;

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Requests or operations per second.
    Rate,
    /// Body bytes per second, in 10^9.
    GbPerSecond,
    /// CPU seconds of the server's processes per 10^9 body bytes.
    CpuPerGb,
    /// CPU microseconds of the server's processes per request.
    CpuPerRequest,
    /// System time as a part of the server's CPU time.
    SystemShare,
    /// Median latency in microseconds, to the last byte.
    P50,
    /// 99th percentile of the latency in microseconds.
    P99,
    /// Median time to the first byte in microseconds.
    FirstByte,
    /// Part of the requests that the origin did not see.
    HitRate,
    /// Bytes of resident memory.
    Resident,
    /// Bytes of heap per object: growth of anonymous memory.
    HeapPerObject,
    /// Open descriptors.
    Fds,
    /// Mappings of the process (lines of its maps file).
    Vmas,
    /// A duration in milliseconds.
    Milliseconds,
    /// A duration in microseconds.
    Microseconds,
    /// Body bytes that were copied.
    CopiedBytes,
}

impl Figure {
    /// Head of its column, with the unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::Rate => "req/s",
            Self::GbPerSecond => "GB/s",
            Self::CpuPerGb => "CPU s/GB",
            Self::CpuPerRequest => "CPU µs/req",
            Self::SystemShare => "system part",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::FirstByte => "first byte µs",
            Self::HitRate => "hit rate",
            Self::Resident => "RSS",
            Self::HeapPerObject => "heap B/object",
            Self::Fds => "fds",
            Self::Vmas => "VMAs",
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::CopiedBytes => "copied B",
        }
    }

    /// The number as a person reads it.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Resident | Self::CopiedBytes => bytes(value),
            Self::HeapPerObject | Self::Fds | Self::Vmas | Self::Rate => format!("{value:.0}"),
            _ => significant(value),
        }
    }
}

/// Three digits that count.
pub fn significant(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Bytes in the largest unit that leaves a whole part.
pub fn bytes(value: f64) -> String {
    let mut value = value;
    for unit in ["B", "KiB", "MiB"] {
        if value.abs() < 1024.0 {
            return format!("{} {unit}", significant(value).trim_end_matches(".000"));
        }
        value /= 1024.0;
    }
    format!("{} GiB", significant(value))
}

/// A line of a table: one peer at one work.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What is done.
    pub work: String,
    /// Who does it.
    pub peer: String,
    /// A value per round.
    pub values: BTreeMap<Figure, Vec<f64>>,
    /// What went otherwise than it should.
    pub remarks: Vec<String>,
}

/// A plot: for each work a group of bars, one per peer, with the spread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// Its title.
    pub title: String,
    /// What is drawn.
    pub figure: Figure,
    /// Only works that contain this.
    pub works: String,
}

/// A part of the report: one table and its plots.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// Its short name, as `--only` takes it.
    pub key: String,
    /// Its title.
    pub title: String,
    /// How it was measured.
    pub about: String,
    /// Whom every ratio is to.
    pub baseline: Option<String>,
    /// The columns.
    pub columns: Vec<Figure>,
    /// For which columns the ratio to the baseline is shown.
    pub ratios: Vec<Figure>,
    /// The lines.
    pub rows: Vec<Row>,
    /// The plots.
    pub plots: Vec<Plot>,
    /// What a reader must know.
    pub remarks: Vec<String>,
}

impl Section {
    /// The line of this peer at this work, made if there is none.
    pub fn row(&mut self, work: &str, peer: &str) -> &mut Row {
        let found = self.rows.iter().position(|r| r.work == work && r.peer == peer);
        let index = found.unwrap_or_else(|| {
            // Lines of one work stay together.
            let after = self.rows.iter().rposition(|r| r.work == work).map_or(self.rows.len(), |i| i + 1);
            self.rows.insert(after, Row { work: work.to_owned(), peer: peer.to_owned(), ..Row::default() });
            after
        });
        &mut self.rows[index]
    }

    /// Makes the lines of a work in the order in which they are to be read, whoever is measured first.
    pub fn rows_for<'p>(&mut self, work: &str, peers: impl IntoIterator<Item = &'p str>) {
        for peer in peers {
            self.row(work, peer);
        }
    }

    /// Adds a round's value. What is no number (a part of nothing) is left out.
    pub fn add(&mut self, work: &str, peer: &str, figure: Figure, value: f64) {
        if value.is_finite() {
            self.row(work, peer).values.entry(figure).or_default().push(value);
        }
    }

    /// Adds a remark to a line, once.
    pub fn remark(&mut self, work: &str, peer: &str, text: String) {
        let row = self.row(work, peer);
        if !row.remarks.contains(&text) {
            row.remarks.push(text);
        }
    }

    /// The values of a figure.
    pub fn values(&self, work: &str, peer: &str, figure: Figure) -> Option<&[f64]> {
        let row = self.rows.iter().find(|r| r.work == work && r.peer == peer)?;
        row.values.get(&figure).map(Vec::as_slice)
    }

    /// Median and spread of a figure.
    pub fn spread(&self, work: &str, peer: &str, figure: Figure) -> Option<Spread> {
        Spread::of(self.values(work, peer, figure)?)
    }

    /// A peer's ratio to another, round by round.
    pub fn ratio(&self, work: &str, peer: &str, to: &str, figure: Figure) -> Option<Spread> {
        Spread::of_ratios(self.values(work, peer, figure)?, self.values(work, to, figure)?)
    }

    /// The works in their order.
    pub fn works(&self) -> Vec<&str> {
        let mut works: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !works.contains(&row.work.as_str()) {
                works.push(&row.work);
            }
        }
        works
    }

    /// The peers in their order.
    pub fn peers(&self) -> Vec<&str> {
        let mut peers: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !peers.contains(&row.peer.as_str()) {
                peers.push(&row.peer);
            }
        }
        peers
    }
}

/// What a target compares its bound with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// It must be at least so much.
    AtLeast,
    /// It must be at most so much.
    AtMost,
}

/// What became of a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What should be.
    pub target: String,
    /// What was measured, with its unit or "x" for a ratio.
    pub unit: String,
    /// The direction.
    pub bound: Bound,
    /// How much.
    pub limit: f64,
    /// The measured value and its spread.
    pub measured: Spread,
}

impl Verdict {
    /// Whether the median keeps the bound.
    pub fn is_met(&self) -> bool {
        self.keeps(self.measured.median)
    }

    /// Whether the spread lies on both sides of the bound: more rounds, or a quieter machine, could say otherwise.
    pub fn is_close(&self) -> bool {
        self.keeps(self.measured.low) != self.keeps(self.measured.high)
    }

    fn keeps(&self, value: f64) -> bool {
        match self.bound {
            Bound::AtLeast => value >= self.limit,
            Bound::AtMost => value <= self.limit,
        }
    }

    /// In words.
    pub fn words(&self) -> &'static str {
        match (self.is_met(), self.is_close()) {
            (true, false) => "met",
            (true, true) => "met, but the rounds disagree",
            (false, true) => "missed, but the rounds disagree",
            (false, false) => "missed",
        }
    }

    /// The bound with its sign.
    pub fn limit_text(&self) -> String {
        let sign = match self.bound {
            Bound::AtLeast => "≥",
            Bound::AtMost => "≤",
        };
        format!("{sign} {}{}", plain(self.limit), self.unit)
    }
}

/// A bound as it was written.
fn plain(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(Figure::CpuPerGb.show(0.1834), "0.183");
        assert_eq!(Figure::Rate.show(61_755.4), "61755");
        assert_eq!(Figure::P50.show(12.345), "12.3");
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1536.0), "1.50 KiB");
        assert_eq!(bytes(3.0 * 1024.0 * 1024.0 * 1024.0), "3.00 GiB");
    }

    #[test]
    fn lines_of_a_work_stay_together_and_rounds_in_order() {
        let mut section = Section::default();
        for round in 0..2 {
            for work in ["1k", "1m"] {
                for peer in ["a", "b"] {
                    section.add(work, peer, Figure::Rate, f64::from(round + 1) * if peer == "a" { 1.0 } else { 3.0 });
                }
            }
        }
        section.add("1k", "late", Figure::Rate, 1.0);
        section.add("1k", "late", Figure::Rate, f64::NAN);
        let order: Vec<_> = section.rows.iter().map(|r| format!("{} {}", r.work, r.peer)).collect();
        assert_eq!(order, ["1k a", "1k b", "1k late", "1m a", "1m b"]);
        assert_eq!(section.values("1k", "late", Figure::Rate), Some(&[1.0][..]));
        section.rows_for("2m", ["b", "a"]);
        section.add("2m", "a", Figure::Rate, 1.0);
        assert_eq!(section.rows.iter().rev().take(2).map(|r| r.peer.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        section.rows.truncate(5);
        assert_eq!(section.works(), ["1k", "1m"]);
        assert_eq!(section.peers(), ["a", "b", "late"]);
        assert_eq!(section.values("1m", "b", Figure::Rate), Some(&[3.0, 6.0][..]));
        assert_eq!(section.ratio("1m", "b", "a", Figure::Rate).unwrap().median, 3.0);
        assert_eq!(section.ratio("1m", "b", "nobody", Figure::Rate), None);
    }

    #[test]
    fn verdicts() {
        let verdict = |bound, limit, low, median, high| Verdict {
            target: String::new(),
            unit: "x".into(),
            bound,
            limit,
            measured: Spread { median, low, high },
        };
        assert_eq!(verdict(Bound::AtMost, 0.5, 0.3, 0.4, 0.45).words(), "met");
        assert_eq!(verdict(Bound::AtMost, 0.5, 0.3, 0.4, 0.6).words(), "met, but the rounds disagree");
        assert_eq!(verdict(Bound::AtLeast, 1.3, 1.0, 1.2, 1.4).words(), "missed, but the rounds disagree");
        assert_eq!(verdict(Bound::AtLeast, 1.3, 1.0, 1.1, 1.2).words(), "missed");
        assert_eq!(verdict(Bound::AtLeast, 1.3, 1.0, 1.1, 1.2).limit_text(), "≥ 1.3x");
        assert_eq!(verdict(Bound::AtMost, 1024.0, 1.0, 1.1, 1.2).limit_text(), "≤ 1024x");
    }
}
