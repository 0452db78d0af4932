//! Varnish's own test suite with `-s malloc` and with our engine registered as `default`: the difference,
//! test by test.
//!
//! `conformance [--arrangement NAME]... [--jobs N] [--only GLOB-PREFIX]... [--fresh]`

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::conformance::lists::Lists;
use objmapper_harness::conformance::suite::{Results, Suite};
use objmapper_harness::conformance::{report, source};
use objmapper_harness::product::Product;

struct Arguments {
    arrangements: Vec<Arrangement>,
    jobs: usize,
    only: Vec<String>,
    fresh: bool,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let product = Product::get()?;
    let work = artefacts::work_dir("conformance");
    let source = source::obtain(&work)?;
    println!("{} test files of {}", source.files.len(), source.version);
    let lists = Lists::read(&artefacts::workspace().join("tests/conformance"))?;
    let suite = Suite { source: &source, lists: &lists, work: &work, jobs: arguments.jobs, only: &arguments.only };

    let baseline = baseline(&suite, &work, arguments.fresh)?;
    let mut runs: BTreeMap<&'static str, Results> = BTreeMap::new();
    for arrangement in arguments.arrangements {
        let results = suite.run(arrangement, Some(&baseline))?;
        report::print_difference(arrangement, &baseline, &results);
        // A part of the suite must not pass for the whole in the next report.
        if arguments.only.is_empty() && arrangement.has_engine() {
            save(&work.join(format!("{}.json", arrangement.name())), &results)?;
        }
        runs.insert(arrangement.name(), results);
    }

    // The page is about Debian's Varnish.
    if arguments.only.is_empty() && !product.is_vinyl() {
        report::write(&artefacts::workspace().join("docs/conformance.md"), &source, &lists, &work, &baseline)?;
    }
    let worse: usize = runs.values().map(|r| report::differences(&baseline, r).len()).sum();
    if worse > 0 {
        bail!("{worse} tests pass with malloc and not with the engine; logs are in {}", work.display());
    }
    println!("no difference");
    Ok(())
}

/// malloc's results: those of an earlier run of the same test files, or new ones.
fn baseline(suite: &Suite<'_>, work: &std::path::Path, fresh: bool) -> Result<Results> {
    let path: PathBuf = work.join("malloc.json");
    if !fresh && let Ok(text) = std::fs::read_to_string(&path) {
        let results: Results = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        if results.version == suite.source.version && results.tests.len() == suite.source.files.len() {
            println!("malloc: {} results from {}", results.tests.len(), path.display());
            return Ok(results);
        }
    }
    let results = suite.run(Arrangement::Malloc, None)?;
    if suite.only.is_empty() {
        save(&path, &results)?;
    }
    Ok(results)
}

fn save(path: &std::path::Path, results: &Results) -> Result<()> {
    std::fs::write(path, serde_json::to_string_pretty(results)?)?;
    Ok(())
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments { arrangements: Vec::new(), jobs: 2, only: Vec::new(), fresh: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--arrangement" => {
                let name = value()?;
                let known = Arrangement::parse(&name).with_context(|| format!("no arrangement {name:?}"))?;
                arguments.arrangements.push(known);
            }
            "--jobs" => arguments.jobs = value()?.parse()?,
            "--only" => arguments.only.push(value()?),
            "--fresh" => arguments.fresh = true,
            _ => bail!("unknown argument {word:?}; known: --arrangement NAME, --jobs N, --only PREFIX, --fresh"),
        }
    }
    if arguments.arrangements.is_empty() {
        arguments.arrangements = Arrangement::ALL.into_iter().filter(|a| a.has_engine()).collect();
    }
    Ok(arguments)
}
