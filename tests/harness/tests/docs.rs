//! Documents that name tests name tests that exist, and leave none out.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use objmapper_harness::artefacts;

/// The tests that the table of outages names: the last cell of each row.
fn named() -> Result<BTreeSet<String>> {
    let path = artefacts::workspace().join("docs/outages.md");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let rows = text.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default().trim();
        let name = cell.strip_prefix('`').and_then(|c| c.strip_suffix('`'));
        name.map(str::to_owned).with_context(|| format!("this row names no test: {row}"))
    })
    .collect()
}

/// The tests in the files about outages.
fn existing() -> Result<BTreeSet<String>> {
    let mut tests = BTreeSet::new();
    for entry in std::fs::read_dir(artefacts::workspace().join("tests/harness/tests"))? {
        let path = entry?.path();
        let file = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !file.starts_with("outage_") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let functions = text.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next());
        tests.extend(functions.map(|function| format!("{file}::{function}")));
    }
    Ok(tests)
}

#[test]
fn every_row_of_the_table_of_outages_has_its_test_and_every_test_its_row() -> Result<()> {
    let (named, existing) = (named()?, existing()?);
    ensure!(existing.len() > 10, "where are the tests? {existing:?}");
    let missing: Vec<_> = named.difference(&existing).collect();
    let unnamed: Vec<_> = existing.difference(&named).collect();
    ensure!(missing.is_empty(), "named but not there: {missing:?}");
    ensure!(unnamed.is_empty(), "there but not named: {unnamed:?}");
    Ok(())
}
