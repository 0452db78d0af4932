//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::machine::cpus::Cpus;

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Hits of every size.
    Hits,
    /// Misses: responses that are fetched and stored.
    Misses,
    /// Objects by popularity, more than fit.
    Mixed,
    /// Very many objects.
    Objects,
    /// objmapper's client against its server.
    Client,
    /// The second level that several varnishd share.
    Shared,
}

impl Part {
    /// As `--only` takes it.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Measures varnishd with malloc, file and objmapper, and nginx, side by side.
#[derive(Debug, Clone, Parser)]
#[command(name = "bench")]
pub struct Options {
    /// The short mode: under five minutes, fewer works and rounds
    #[arg(long)]
    pub quick: bool,
    /// Only these parts
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Part>,
    /// Only peers whose name contains one of these; malloc is always among them
    #[arg(long, value_delimiter = ',')]
    pub peers: Vec<String>,
    /// How many rounds
    #[arg(long)]
    pub rounds: Option<usize>,
    /// How long one measurement takes, in seconds
    #[arg(long)]
    pub seconds: Option<f64>,
    /// How many objects the part "objects" holds, and records the part "shared"
    #[arg(long)]
    pub objects: Option<u64>,
    /// Bytes of the working set, in MiB
    #[arg(long)]
    pub working_set: Option<u64>,
    /// CPUs of the servers, such as 0-3
    #[arg(long)]
    pub server_cpus: Option<Cpus>,
    /// CPUs of the load and of the origin
    #[arg(long)]
    pub load_cpus: Option<Cpus>,
    /// Leave free page reporting as it is
    #[arg(long)]
    pub keep_reporting: bool,
    /// Where caches keep their files while the run lasts
    #[arg(long)]
    pub work_dir: Option<PathBuf>,
    /// Where the report goes: report.json, report.html
    #[arg(long, default_value = "target/bench")]
    pub out: PathBuf,
    /// Measure nothing: write the report again from this report.json
    #[arg(long)]
    pub from: Option<PathBuf>,
}
