//! `bench`: see [`objmapper_bench`].

use std::process::ExitCode;

use clap::Parser;
use objmapper_bench::options::Options;

fn main() -> ExitCode {
    match objmapper_bench::run::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: error: {why:#}");
            ExitCode::FAILURE
        }
    }
}
