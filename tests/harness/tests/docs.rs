//! Documents that name tests name tests that exist, and leave none out.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use objmapper_harness::artefacts;

/// The tests that the tables of outages name: the last cell of each row, names in backticks with commas between them.
fn named() -> Result<BTreeSet<String>> {
    let path = artefacts::workspace().join("docs/outages.md");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut names = BTreeSet::new();
    let lines: Vec<_> = text.lines().collect();
    let is_rule = |index: usize| lines.get(index).is_some_and(|line: &&str| line.starts_with("|---"));
    for (index, row) in lines.iter().enumerate().filter(|(_, line)| line.starts_with('|')) {
        if is_rule(index) || is_rule(index + 1) {
            continue;
        }
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        for name in cell.split(',') {
            let name = name.trim().strip_prefix('`').and_then(|name| name.strip_suffix('`'));
            names.insert(name.map(str::to_owned).with_context(|| format!("this row names no test: {row}"))?);
        }
    }
    Ok(names)
}

/// The tests of a directory's files: `file::function` of Rust, the file's name of varnishtest.
fn tests_in(dir: &Path) -> Result<BTreeSet<String>> {
    let mut tests = BTreeSet::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let file = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        match path.extension().and_then(|e| e.to_str()) {
            Some("rs") => {
                let text = std::fs::read_to_string(&path)?;
                let functions = text.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next());
                tests.extend(functions.map(|function| format!("{file}::{function}")));
            }
            Some("vtc") => {
                tests.insert(file);
            }
            _ => {}
        }
    }
    Ok(tests)
}

#[test]
fn every_row_of_the_table_of_outages_has_its_test_and_every_test_its_row() -> Result<()> {
    let root = artefacts::workspace();
    let mut existing = BTreeSet::new();
    for dir in
        ["tests", "tests/harness/tests", "objmapper-client/tests", "objmapper-engine/tests", "objmapper-server/tests"]
    {
        existing.extend(tests_in(&root.join(dir))?);
    }
    let named = named()?;
    let missing: Vec<_> = named.difference(&existing).collect();
    ensure!(missing.is_empty(), "named but not there: {missing:?}");
    let about_outages: BTreeSet<_> = existing.into_iter().filter(|name| name.starts_with("outage_")).collect();
    ensure!(about_outages.len() > 10, "where are the tests? {about_outages:?}");
    let unnamed: Vec<_> = about_outages.difference(&named).collect();
    ensure!(unnamed.is_empty(), "there but not named: {unnamed:?}");
    Ok(())
}
