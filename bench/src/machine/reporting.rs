//! Free page reporting: a virtual machine's kernel tells its hypervisor which memory is free, the hypervisor takes it, and the
//! next touch of every page costs a fault there, up to 100 times its price, for whoever happens to get that page. So it is off
//! while we measure, if we may, and what was taken is fetched back first.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use memmap2::MmapMut;

/// The order of the smallest block that is reported (Linux, mm/page_reporting.c).
const PARAMETER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
/// Above MAX_PAGE_ORDER there are no blocks to report.
const NEVER: &str = "11";

/// The setting while we measure; the old one comes back when this is dropped, on a panic and after an interrupt too.
#[derive(Debug)]
pub struct Reporting {
    state: State,
}

#[derive(Debug)]
enum State {
    Absent,
    /// We may not change it, or are told not to: why.
    Left(String),
    Off {
        file: PathBuf,
        before: String,
    },
}

impl Reporting {
    /// Turns it off. `keep` leaves it as it is.
    pub fn off(keep: bool) -> Result<Self> {
        Self::off_at(Path::new(PARAMETER), keep)
    }

    fn off_at(file: &Path, keep: bool) -> Result<Self> {
        if !file.exists() {
            return Ok(Self { state: State::Absent });
        }
        let before = std::fs::read_to_string(file)?.trim().to_owned();
        if keep {
            return Ok(Self { state: State::Left(format!("left at order {before} as asked")) });
        }
        match std::fs::write(file, NEVER) {
            Ok(()) => Ok(Self { state: State::Off { file: file.to_owned(), before } }),
            Err(why) => Ok(Self { state: State::Left(format!("order {before} cannot be changed: {why}")) }),
        }
    }

    /// Whether reporting was on and is off now, so that memory has to be fetched back.
    pub fn is_off(&self) -> bool {
        matches!(self.state, State::Off { .. })
    }

    /// For the report.
    pub fn describe(&self) -> String {
        match &self.state {
            State::Absent => "this kernel has no free page reporting".to_owned(),
            State::Left(why) => {
                format!("FREE PAGE REPORTING MAY BE ON ({why}): figures of misses and of large bodies are noise")
            }
            State::Off { before, .. } => {
                format!(
                    "free page reporting to the hypervisor was turned off while measuring (order {before} before and after)"
                )
            }
        }
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        if let State::Off { file, before } = &self.state
            && let Err(why) = std::fs::write(file, before)
        {
            eprintln!("bench: cannot set {} back to {before}: {why}; do it by hand", file.display());
        }
    }
}

/// Touches `bytes` of memory once and gives them back, so that the hypervisor's faults are over before we measure.
pub fn fetch_back(bytes: u64) -> Result<()> {
    const STEP: usize = 64 << 20;
    let mut held = Vec::new();
    for _ in 0..bytes / STEP as u64 {
        super::interrupt::check()?;
        let mut piece = MmapMut::map_anon(STEP).context("memory to touch")?;
        for page in piece.chunks_mut(4096) {
            page[0] = 1;
        }
        held.push(piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_even_after_a_panic() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = || std::fs::read_to_string(file.path()).unwrap();
        std::fs::write(file.path(), "9\n").unwrap();
        let path = file.path().to_owned();
        let outcome = std::panic::catch_unwind(|| {
            let reporting = Reporting::off_at(&path, false).unwrap();
            assert!(reporting.is_off());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), NEVER);
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(outcome.is_err());
        assert_eq!(read(), "9");
    }

    #[test]
    fn what_cannot_or_must_not_be_changed_is_said() {
        let reporting = Reporting::off_at(Path::new("/no/such/parameter"), false).unwrap();
        assert!(!reporting.is_off() && reporting.describe().contains("no free page reporting"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "9").unwrap();
        let reporting = Reporting::off_at(file.path(), true).unwrap();
        assert!(reporting.describe().contains("MAY BE ON"));
        drop(reporting);
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "9");
    }
}
