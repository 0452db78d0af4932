//! Every `tests/*.vtc` in every arrangement that it names, one line each.
//!
//! `OBJM_ARRANGEMENTS=malloc,embedded` chooses among the arrangements; without it all but the control
//! (`malloc`) are run.

use std::path::Path;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::vtc::{self, Header, Outcome};

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let wanted = wanted()?;
    let mut trials = Vec::new();
    for file in vtc::files(&artefacts::workspace().join("tests"))? {
        let header = Header::parse(&std::fs::read_to_string(&file)?).with_context(|| file.display().to_string())?;
        let name = file.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        for arrangement in header.arrangements {
            if wanted.contains(&arrangement) {
                let file = file.clone();
                let name = format!("{name}::{}", arrangement.name());
                trials.push(Trial::test(name, move || run(&file, arrangement)));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn wanted() -> Result<Vec<Arrangement>> {
    match std::env::var("OBJM_ARRANGEMENTS") {
        Ok(names) => {
            names.split(',').map(|n| Arrangement::parse(n).with_context(|| format!("no arrangement {n:?}"))).collect()
        }
        Err(_) => Ok(Arrangement::ALL.into_iter().filter(|a| a.has_engine()).collect()),
    }
}

fn run(file: &Path, arrangement: Arrangement) -> Result<(), Failed> {
    match vtc::run(file, arrangement).map_err(|e| format!("{e:#}"))? {
        Outcome::Passed => Ok(()),
        // Our tests need nothing that a machine with the packages may lack.
        Outcome::Skipped(reason) => Err(format!("skipped: {reason}").into()),
        Outcome::Failed(log) => Err(format!("{}\n{}", complaints(&log), tail(&log, 250)).into()),
    }
}

/// What varnishtest complains about: the lines that it marks with four dashes.
fn complaints(log: &str) -> String {
    log.lines().filter(|line| line.starts_with("----")).collect::<Vec<_>>().join("\n")
}

/// The last `lines` lines: what went wrong stands near the end, and the whole can be megabytes.
fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
