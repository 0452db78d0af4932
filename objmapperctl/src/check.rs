//! `check`: whether this user can use the store, step by step, and what to change if not.

use std::os::unix::ffi::OsStrExt;

use nix::sys::uio::pwrite;
use objmapper_client::{ConnectionState, Status};
use objmapper_records::Contents;
use serde_json::{Value, json};

use crate::connection::me;
use crate::failure::Failure;
use crate::options::{JsonArgument, Options};
use crate::output::Out;
use crate::store::Store;
use crate::text::{printable, size};

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    /// The store does not offer it.
    Absent,
    Failed,
}

/// Steps, printed as they are done.
struct Steps<'a> {
    out: &'a mut Out,
    json: bool,
    done: Vec<Value>,
    failed: usize,
}

impl Steps<'_> {
    fn step(&mut self, name: &str, outcome: Outcome, text: &str) -> Result<(), Failure> {
        self.failed += usize::from(outcome == Outcome::Failed);
        let word = match outcome {
            Outcome::Ok => "ok",
            Outcome::Absent => "absent",
            Outcome::Failed => "FAILED",
        };
        if self.json {
            self.done.push(json!({ "step": name, "outcome": word.to_ascii_lowercase(), "text": text }));
            return Ok(());
        }
        self.out.line(format_args!("{word:<7} {name}: {text}"))
    }

    fn end(self) -> Result<(), Failure> {
        if self.json {
            self.out.line(json!({ "ok": self.failed == 0, "steps": self.done }))?;
        }
        match self.failed {
            0 => Ok(()),
            failed => Err(Failure::No(format!("{failed} checks failed"))),
        }
    }
}

pub(crate) fn run(options: &Options, arguments: &JsonArgument, out: &mut Out) -> Result<(), Failure> {
    let mut steps = Steps { out, json: arguments.json, done: Vec::new(), failed: 0 };
    steps.step("user", Outcome::Ok, &me())?;
    let store = match Store::connect(options) {
        Ok(store) => store,
        Err(why) => {
            steps.step("connect", Outcome::Failed, &why.to_string())?;
            return match (steps.end(), why) {
                // The step has said why.
                (Err(Failure::No(_)), Failure::Connection(_)) => {
                    Err(Failure::Connection("the store cannot be used".to_owned()))
                }
                (Err(Failure::No(_)) | Ok(()), why) => Err(why),
                (Err(output), _) => Err(output),
            };
        }
    };
    steps.step("connect", Outcome::Ok, &options.socket.display().to_string())?;
    match store.client.state() {
        ConnectionState::V01 { version, .. } => {
            let text = format!(
                "{version:?} of objmapper v0.1, without extensions: it cannot list, look up without creating, or publish \
                 atomically; get, put, delete and purge work, list, stat and verify do not"
            );
            steps.step("protocol", Outcome::Absent, &text)?;
        }
        _ => extended(&store, options, &mut steps)?,
    }
    steps.end()
}

/// The steps with an objmapperd.
fn extended(store: &Store, options: &Options, steps: &mut Steps<'_>) -> Result<(), Failure> {
    steps.step("protocol", Outcome::Ok, "V2 with extensions, version 1")?;
    let session = store.client.session();
    match session.as_ref().and_then(|session| session.board()) {
        Some(_) => steps.step("board", Outcome::Ok, "shared memory for fences and bans is mapped")?,
        None => steps.step(
            "board",
            Outcome::Failed,
            "the store sends none, and directors cannot use it; remedy: see objmapperd's log",
        )?,
    }
    match store.client.stat() {
        Ok(stat) => {
            for tier in &stat.tiers {
                let text = format!("{} of {} used, {} objects", size(tier.used), size(tier.limit), tier.objects);
                steps.step(&format!("{} tier", tier.tier), Outcome::Ok, &text)?;
            }
        }
        Err(why) => steps.step("stat", Outcome::Failed, &Failure::from(why).to_string())?,
    }
    match publish(store) {
        Ok(()) => steps.step("write", Outcome::Ok, "a private object was created, written and given up")?,
        Err(why) => steps.step("write", Outcome::Failed, &why.to_string())?,
    }
    read(store, options, steps)
}

/// Creates an object, which is never published.
fn publish(store: &Store) -> Result<(), Failure> {
    const PAGE: [u8; 4096] = [0; 4096];
    let private = store.client.create(PAGE.len() as u64, None, None).map_err(|why| match why.status() {
        Some(Status::Unavailable) => {
            Failure::Store(format!("{why}; remedy: give objmapperd more --max-private, or more open files"))
        }
        _ => why.into(),
    })?;
    if let Some(fd) = private.fd() {
        pwrite(fd, &PAGE, 0).map_err(|why| Failure::Store(format!("the object's file cannot be written: {why}")))?;
    }
    Ok(private.abort()?)
}

/// Reads the first object below the prefix.
fn read(store: &Store, options: &Options, steps: &mut Steps<'_>) -> Result<(), Failure> {
    let prefix = printable(options.prefix.as_bytes());
    let first = store.client.list_page(&store.inspector.uri_prefix(), b"", 1)?;
    let Some((uri, entry)) = first.items.into_iter().next() else {
        let text =
            format!("there is nothing with --prefix {prefix}: no cache has published yet, or it has another prefix");
        return steps.step("read", Outcome::Absent, &text);
    };
    match store.inspector.open(&uri, entry) {
        Ok(object) => match object.contents {
            Contents::Damaged(why) => {
                let text = format!("{}: {why}; remedy: 'objmapperctl verify --delete'", printable(uri.as_bytes()));
                steps.step("read", Outcome::Failed, &text)
            }
            _ => steps.step("read", Outcome::Ok, &format!("{} can be opened", printable(uri.as_bytes()))),
        },
        Err(why) => steps.step("read", Outcome::Failed, &Failure::from(why).to_string()),
    }
}
