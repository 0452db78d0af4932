//! `objmapperctl`: looks into an objmapper store over its socket, and changes what is in it.
//!
//! Each command is a file: it takes its arguments and a [`Store`], and writes its answer to [`Out`].
//! What went wrong is a [`Failure`], which is the exit code, too.

mod argument;
mod ban;
mod check;
mod connection;
mod failure;
mod list;
mod object;
mod options;
mod output;
mod purge;
mod regex;
mod show;
mod stat;
mod store;
mod text;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::failure::Failure;
use crate::options::{Command, Options};
use crate::output::Out;
use crate::store::Store;

fn main() -> ExitCode {
    let options = Options::parse();
    let mut out = Out::new();
    let outcome = run(&options, &mut out).and_then(|()| out.finish());
    match outcome {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            // What was written before is part of the answer.
            let _ = out.finish();
            eprintln!("objmapperctl: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

fn run(options: &Options, out: &mut Out) -> Result<(), Failure> {
    match &options.command {
        Command::Check(arguments) => return check::run(options, arguments, out),
        Command::Completion { shell } => {
            let shell = clap_complete::Shell::from(*shell);
            clap_complete::generate(shell, &mut Options::command(), "objmapperctl", out);
            return Ok(());
        }
        _ => {}
    }
    let store = Store::connect(options)?;
    match &options.command {
        Command::List(arguments) => list::run(&store, arguments, out),
        Command::Stat(arguments) => stat::run(&store, arguments, out),
        Command::Show(arguments) => show::run(&store, arguments, out),
        Command::Get(arguments) => object::get(&store, arguments, out),
        Command::Put(arguments) => object::put(&store, arguments, out),
        Command::Delete(arguments) => object::delete(&store, arguments, out),
        Command::Purge(arguments) => purge::url(options, &store, arguments, out),
        Command::PurgeTag(arguments) => purge::tags(options, arguments, out),
        Command::Ban(arguments) => ban::run(options, arguments, out),
        Command::Verify(arguments) => verify::run(&store, arguments, out),
        // Handled above.
        Command::Check(_) | Command::Completion { .. } => Ok(()),
    }
}
