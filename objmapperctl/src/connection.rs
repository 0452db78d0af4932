//! Connecting to the store, and why it fails: the error names the socket, its owner and mode, and what to change.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::{Group, User, getegid, geteuid};
use objmapper_client::{Client, Error, Event};

use crate::failure::Failure;
use crate::options::Options;

/// Connects to the store.
pub(crate) fn connect(options: &Options) -> Result<Client, Failure> {
    probe(&options.socket)?;
    let reason: Arc<Mutex<Option<Error>>> = Arc::default();
    let noted = Arc::clone(&reason);
    let client = Client::builder(&options.socket)
        .connections(1)
        .call_timeout(options.timeout)
        .connect_timeout(options.timeout)
        .on_event(move |event| {
            if let Event::Down { why } | Event::Refused { why, .. } = event {
                *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
            }
        })
        .build()
        .map_err(|why| Failure::Store(why.to_string()))?;
    match client.wait_connected(options.timeout) {
        Ok(_) => Ok(client),
        Err(_) => {
            let reason = reason.lock().unwrap_or_else(PoisonError::into_inner).take();
            let reason = reason.map_or_else(
                || format!("no answer within {:?}; remedy: give more --timeout, or see what it does", options.timeout),
                |why| why.to_string(),
            );
            Err(Failure::Connection(format!("--socket {}: {reason}", options.socket.display())))
        }
    }
}

/// Connects once, for an error that says what to do.
fn probe(socket: &Path) -> Result<(), Failure> {
    let failed = |why: &str, remedy: &str| {
        Err(Failure::Connection(format!("--socket {}: {why}; remedy: {remedy}", socket.display())))
    };
    let metadata = match std::fs::metadata(socket) {
        Ok(metadata) => metadata,
        Err(why) if why.kind() == ErrorKind::PermissionDenied => {
            return failed(
                &format!("{} may not enter its directory", me()),
                "let it in (chmod), or run objmapperctl as another user",
            );
        }
        Err(why) => {
            return failed(
                &why.to_string(),
                "start objmapperd, or give its --socket; a store that is embedded in varnishd has none",
            );
        }
    };
    if !metadata.file_type().is_socket() {
        return failed("it is no socket", "give the --socket of an objmapperd");
    }
    match UnixStream::connect(socket) {
        Ok(_) => Ok(()),
        Err(why) if why.kind() == ErrorKind::PermissionDenied => failed(
            &format!(
                "{} may not write to it: owner {}, group {}, mode {:04o}",
                me(),
                user(metadata.uid()),
                group(metadata.gid()),
                metadata.mode() & 0o7777
            ),
            &format!(
                "run objmapperctl as {} or in group {}, or see objmapperd's --socket-group and --socket-mode",
                user(metadata.uid()),
                group(metadata.gid())
            ),
        ),
        Err(why) if why.kind() == ErrorKind::ConnectionRefused => {
            failed("no process listens there", "start objmapperd")
        }
        Err(why) => failed(&why.to_string(), "see objmapperd's log"),
    }
}

/// Returns the user and the group that this process runs as.
pub(crate) fn me() -> String {
    format!("user {}, group {}", user(geteuid().as_raw()), group(getegid().as_raw()))
}

/// Returns a user's name, or its number if it has no name.
fn user(id: u32) -> String {
    User::from_uid(id.into()).ok().flatten().map_or_else(|| id.to_string(), |user| user.name)
}

/// Returns a group's name, or its number if it has no name.
fn group(id: u32) -> String {
    Group::from_gid(id.into()).ok().flatten().map_or_else(|| id.to_string(), |group| group.name)
}
