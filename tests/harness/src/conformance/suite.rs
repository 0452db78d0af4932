//! Runs the whole suite in one arrangement.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::lists::Lists;
use super::source::Source;
use crate::arrangement::Arrangement;
use crate::objmapperd::Objmapperd;
use crate::process::open_directory;

/// How often a test is run again, alone, before its failure counts.
const RETRIES: usize = 2;
/// varnishtest's own limit per test, seconds; its default.
const TEST_SECONDS: &str = "60";

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passed at once, or alone in a second try.
    Passed,
    /// varnishtest skipped it: this system lacks something that it needs.
    Skipped,
    /// It failed in every try.
    Failed,
    /// It stands in the list of tests that cannot apply.
    Excluded,
}

/// The verdicts of one run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// The version of Varnish.
    pub version: String,
    /// Test name to verdict.
    pub tests: BTreeMap<String, Verdict>,
    /// Tests that passed only when they were run again, alone.
    pub flaky: Vec<String>,
    /// How long the run took, in seconds.
    pub seconds: u64,
}

/// What is run, and where its files go.
#[derive(Debug)]
pub struct Suite<'a> {
    /// Varnish's test files.
    pub source: &'a Source,
    /// What cannot apply, and what is adapted.
    pub lists: &'a Lists,
    /// The directory for adapted files, logs and results.
    pub work: &'a Path,
    /// Tests at once.
    pub jobs: usize,
    /// Prefixes of the names of the tests to run; all when empty.
    pub only: &'a [String],
}

/// What a test is run with.
struct Setting {
    arrangement: Arrangement,
    directory: tempfile::TempDir,
    /// Kept for its Drop.
    _daemon: Option<Objmapperd>,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Suite<'_> {
    /// Runs every test in `arrangement`. With a baseline, a test that does not pass there is not tried again here:
    /// its failure says nothing about us.
    pub fn run(&self, arrangement: Arrangement, baseline: Option<&Results>) -> Result<Results> {
        let started = Instant::now();
        let setting = self.setting(arrangement)?;
        let logs = self.work.join(format!("logs/{}", arrangement.name()));
        if logs.exists() {
            fs::remove_dir_all(&logs)?;
        }
        fs::create_dir_all(&logs)?;
        let adapted = self.adapt(arrangement)?;

        let mut tests = BTreeMap::new();
        let mut queue = VecDeque::new();
        for file in adapted {
            let name = stem(&file);
            if arrangement.has_engine() && self.lists.excluded.contains_key(&name) {
                tests.insert(name, Verdict::Excluded);
            } else {
                queue.push_back((name, file));
            }
        }
        let files: BTreeMap<String, PathBuf> = queue.iter().cloned().collect();
        let total = queue.len();
        let queue = Mutex::new(queue);
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    while let Some((name, file)) = pop(&queue) {
                        let verdict = run_one(&setting, &file, &logs.join(format!("{name}.log")));
                        let mut done = done.lock().unwrap_or_else(|e| e.into_inner());
                        done.push((name, verdict));
                        if done.len() % 50 == 0 || done.len() == total {
                            println!("{}: {} of {total}", arrangement.name(), done.len());
                        }
                    }
                });
            }
        });

        let mut flaky = Vec::new();
        for (name, verdict) in done.into_inner().unwrap_or_else(|e| e.into_inner()) {
            let mut verdict = verdict?;
            let counts = baseline.is_none_or(|b| b.tests.get(&name) == Some(&Verdict::Passed));
            let mut left = if counts { RETRIES } else { 0 };
            while verdict == Verdict::Failed && left > 0 {
                left -= 1;
                let log = logs.join(format!("{name}.{}.log", RETRIES - left));
                verdict = run_one(&setting, &files[&name], &log)?;
                if verdict == Verdict::Passed {
                    flaky.push(name.clone());
                }
            }
            tests.insert(name, verdict);
        }
        Ok(Results { version: self.source.version.clone(), tests, flaky, seconds: started.elapsed().as_secs() })
    }

    fn setting(&self, arrangement: Arrangement) -> Result<Setting> {
        let directory = open_directory()?;
        let daemon = match arrangement.has_daemon() {
            true => Some(Objmapperd::start(directory.path(), "4g")?),
            false => None,
        };
        let mut arguments = Vec::new();
        let mut environment = Vec::new();
        if arrangement.has_engine() {
            // For the vtc commands "varnish" and "vinyl".
            for name in ["varnishd_args_prepend", "vinyld_args_prepend"] {
                arguments.push(format!("-D{name}={}", arrangement.load_argument(directory.path())?));
            }
            environment.push(("OBJMAPPER_REGISTER_AS", "default".to_owned()));
            let socket = daemon.as_ref().map(Objmapperd::socket);
            environment.push(("OBJMAPPER_OPTIONS", arrangement.options(socket.as_deref())));
        }
        Ok(Setting { arrangement, directory, _daemon: daemon, arguments, environment })
    }

    /// The files to run: Varnish's own, or for the engine a copy where the list says so.
    fn adapt(&self, arrangement: Arrangement) -> Result<Vec<PathBuf>> {
        let dir = self.work.join("adapted");
        fs::create_dir_all(&dir)?;
        let mut files = Vec::new();
        for file in &self.source.files {
            let name = stem(file);
            if !self.only.is_empty() && !self.only.iter().any(|p| name.starts_with(p.as_str())) {
                continue;
            }
            match self.lists.adapted.get(&name) {
                Some(change) if arrangement.has_engine() => {
                    let text = fs::read_to_string(file)?;
                    anyhow::ensure!(
                        text.contains(&change.from),
                        "{name} does not contain {:?}: adapted.txt is out of date",
                        change.from
                    );
                    let copy = dir.join(format!("{name}.vtc"));
                    fs::write(&copy, text.replace(&change.from, &change.to))?;
                    files.push(copy);
                }
                _ => files.push(file.clone()),
            }
        }
        Ok(files)
    }
}

fn pop(queue: &Mutex<VecDeque<(String, PathBuf)>>) -> Option<(String, PathBuf)> {
    queue.lock().unwrap_or_else(|e| e.into_inner()).pop_front()
}

fn stem(file: &Path) -> String {
    file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

fn run_one(setting: &Setting, file: &Path, log: &Path) -> Result<Verdict> {
    let mut command = Command::new("varnishtest");
    command.args(["-t", TEST_SECONDS]).args(&setting.arguments).arg(file);
    command.env("TMPDIR", setting.directory.path()).stdin(Stdio::null());
    for (name, value) in &setting.environment {
        command.env(name, value);
    }
    // Some tests look at files beside them by relative paths.
    if let Some(dir) = file.parent() {
        command.current_dir(dir);
    }
    let output = command
        .output()
        .with_context(|| format!("cannot run varnishtest on {} ({})", file.display(), setting.arrangement.name()))?;
    let verdict = match output.status.code() {
        Some(0) => Verdict::Passed,
        Some(77) => Verdict::Skipped,
        _ => Verdict::Failed,
    };
    if verdict == Verdict::Failed {
        fs::write(log, [output.stdout, output.stderr].concat())?;
    }
    Ok(verdict)
}
