//! The report: what a run found, for the terminal, for programs and for a person with a minute.

pub mod html;
pub mod plot;
pub mod terminal;

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::figures::{Section, Verdict};
use crate::machine::facts::Facts;

/// A whole run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The machine, the programs, how it was measured.
    pub facts: Facts,
    /// What became of the targets.
    pub verdicts: Vec<Verdict>,
    /// The parts.
    pub sections: Vec<Section>,
    /// What was left out, and why.
    pub remarks: Vec<String>,
}

impl Report {
    /// From a file that [`Self::write`] made.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", file.display()))
    }

    /// Writes `report.json` and `report.html` into a directory.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        std::fs::write(dir.join("report.json"), serde_json::to_string_pretty(self)?)?;
        std::fs::write(dir.join("report.html"), html::page(self)?)?;
        Ok(())
    }
}

/// A table's cell: the median, the ratio to the baseline, and the spread of what is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    value: String,
    ratio: Option<String>,
}

/// The cells of a line, one for each column of the section and one more for each ratio.
fn cells(section: &Section, work: &str, peer: &str) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &figure in &section.columns {
        let spread = section.spread(work, peer, figure);
        let value = spread.map_or(String::new(), |s| figure.show(s.median));
        let ratio = section.ratios.contains(&figure).then(|| {
            let baseline = section.baseline.as_deref().filter(|b| *b != peer);
            let ratio = baseline.and_then(|b| section.ratio(work, peer, b, figure));
            ratio.map_or(String::new(), |r| format!("{:.2} ({:.2}–{:.2})", r.median, r.low, r.high))
        });
        cells.push(Cell { value, ratio });
    }
    cells
}

#[cfg(test)]
pub(crate) mod sample {
    use super::*;
    use crate::figures::{Bound, Figure, Plot};
    use crate::stats::Spread;

    /// A small report with everything that a report can have.
    pub(crate) fn report() -> Report {
        let mut facts = Facts::default();
        facts.add("CPU", "2 x <fast> & \"cheap\"");
        let mut section = Section {
            key: "hits".into(),
            title: "Hits".into(),
            about: "What & how.".into(),
            baseline: Some("malloc".into()),
            columns: vec![Figure::GbPerSecond, Figure::CpuPerGb],
            ratios: vec![Figure::CpuPerGb],
            plots: vec![Plot { title: "CPU time".into(), figure: Figure::CpuPerGb, works: String::new() }],
            remarks: vec!["a remark".into()],
            ..Section::default()
        };
        for value in [1.0, 2.0, 3.0] {
            section.add("1m", "malloc", Figure::GbPerSecond, value);
            section.add("1m", "malloc", Figure::CpuPerGb, value / 10.0);
            section.add("1m", "objmapper", Figure::GbPerSecond, value * 2.0);
            section.add("1m", "objmapper", Figure::CpuPerGb, value / 20.0);
        }
        section.remark("1m", "objmapper", "3 requests were misses".into());
        let measured = Spread { median: 0.5, low: 0.4, high: 0.6 };
        let verdict =
            Verdict { target: "CPU <per> GB".into(), unit: "x".into(), bound: Bound::AtMost, limit: 0.5, measured };
        Report { facts, verdicts: vec![verdict], sections: vec![section], remarks: vec!["nginx left out".into()] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_file() {
        let report = sample::report();
        let dir = tempfile::tempdir().unwrap();
        report.write(dir.path()).unwrap();
        assert_eq!(Report::read(&dir.path().join("report.json")).unwrap(), report);
        assert!(std::fs::read_to_string(dir.path().join("report.html")).unwrap().contains("<svg"));
        assert!(Report::read(&dir.path().join("report.html")).is_err());
    }

    #[test]
    fn ratios_stand_beside_what_they_are_of() {
        let report = sample::report();
        let section = &report.sections[0];
        let cell = |value: &str, ratio: Option<&str>| Cell { value: value.into(), ratio: ratio.map(Into::into) };
        assert_eq!(cells(section, "1m", "malloc"), [cell("2.00", None), cell("0.200", Some(""))]);
        assert_eq!(cells(section, "1m", "objmapper"), [cell("4.00", None), cell("0.100", Some("0.50 (0.50–0.50)"))]);
    }
}
