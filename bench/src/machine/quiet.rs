//! Whether the machine was left alone while it was measured.

use anyhow::{Context, Result};

/// The CPU times of the whole machine at a moment, in ticks (proc_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    total: u64,
    stolen: u64,
}

impl Watch {
    /// From now on.
    pub fn begin() -> Result<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat")?).context("unreadable /proc/stat")
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<u64> = line.split_ascii_whitespace().map_while(|f| f.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guest time is in user time already.
        Some(Self { total: fields.get(..8)?.iter().sum(), stolen: fields[7] })
    }

    /// The part of the CPUs' time since then that the hypervisor gave to others, 0 to 1.
    pub fn stolen(&self) -> Result<f64> {
        let now = Self::begin()?;
        Ok((now.stolen - self.stolen) as f64 / (now.total - self.total).max(1) as f64)
    }
}

/// How many threads ran or wanted to, on average over the last minute (proc_loadavg(5)).
pub fn load_average() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    text.split_whitespace().next().context("unreadable /proc/loadavg")?.parse().context("unreadable /proc/loadavg")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time() {
        let watch = Watch::parse("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 0 0\n").unwrap();
        assert_eq!(watch, Watch { total: 36, stolen: 8 });
        assert_eq!(Watch::parse("cpu0 1 2 3 4 5 6 7 8\n"), None);
        assert_eq!(Watch::parse("cpu  1 2 3\n"), None);
        let part = Watch::begin().unwrap().stolen().unwrap();
        assert!((0.0..=1.0).contains(&part), "{part}");
        assert!(load_average().unwrap() >= 0.0);
    }
}
