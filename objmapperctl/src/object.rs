//! `get`, `put`, `delete`: an object as a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::uio::pwrite;
use objmapper_client::{CommitOptions, IfVersion, ObjUri, Status, Tier, V01Tier};
use objmapper_records::{Contents, Object};

use crate::argument::{Request, uri};
use crate::failure::Failure;
use crate::options::{DeleteArguments, GetArguments, PutArguments, TierName};
use crate::output::{Out, failed};
use crate::show::{absent, name};
use crate::store::Store;
use crate::text::{now, printable};

/// Bytes that are copied at a time.
const COPY_SIZE: usize = 256 << 10;

pub(crate) fn get(store: &Store, arguments: &GetArguments, out: &mut Out) -> Result<(), Failure> {
    let uri = arguments.target.uri(&store.inspector)?;
    let object = store.inspector.find(&uri)?.ok_or_else(|| absent(store, &uri))?;
    let (uri, object) = match &object.contents {
        Contents::Index(variants) if !arguments.raw => {
            let request = Request::new(variants.text(), store.inspector.prefix(), &arguments.target.header);
            store.variant(variants, &request)?.ok_or_else(|| {
                Failure::No(format!(
                    "{}: its responses vary, and there is none for these request headers; give those of another one with \
                     --header 'Name: value' ('objmapperctl show' has the names)",
                    name(&arguments.target.name)
                ))
            })?
        }
        _ => (uri, object),
    };
    let damage = match &arguments.output {
        Some(path) => {
            let mut file = File::create(path).map_err(Failure::file(path))?;
            copy(&object, arguments.raw, |bytes| file.write_all(bytes).map_err(Failure::file(path)))?
        }
        None => copy(&object, arguments.raw, |bytes| out.write_all(bytes).map_err(failed))?,
    };
    match damage {
        None => Ok(()),
        Some(why) => Err(Failure::No(format!(
            "{}: damaged: {why}; what was written is not what was published; remedy: 'objmapperctl delete' it",
            printable(uri.as_bytes())
        ))),
    }
}

/// Passes a body, or the whole file, to `write`. Returns the name of what is damaged, if anything is.
fn copy(
    object: &Object,
    raw: bool,
    mut write: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Option<String>, Failure> {
    if !raw {
        return object.read_body(write);
    }
    // The damage is reported all the same.
    let damage = object.read_body::<Failure>(|_| Ok(()))?;
    let Some(file) = &object.file else { return Ok(damage) };
    let whole = Object {
        entry: object.entry,
        file: Some(file.try_clone().map_err(|why| Failure::Store(format!("the file cannot be read: {why}")))?),
        length: object.length,
        contents: Contents::Plain,
    };
    Ok(whole.read_body(|bytes| write(bytes))?.or(damage))
}

pub(crate) fn put(store: &Store, arguments: &PutArguments, out: &mut Out) -> Result<(), Failure> {
    let uri = uri(&arguments.uri)?;
    let path = &arguments.file;
    let mut source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).map_err(Failure::file(path))?)
    };
    if store.is_v01() {
        return put_v01(store, arguments, &uri, &mut *source, out);
    }
    let expected = std::fs::metadata(path).ok().filter(|file| file.is_file()).map_or(0, |file| file.len());
    let tier = arguments.tier.map(|tier| match tier {
        TierName::Memory => Tier::Memory,
        TierName::Disk => Tier::Disk,
    });
    let mut private = store.client.create(expected, tier, Some(&uri))?;
    let file = private.take_fd().ok_or_else(|| Failure::Store("the store sent no file".to_owned()))?;
    let mut reserved = expected;
    let length = write(&file, &mut *source, path, |length| {
        if length > reserved {
            // More than asked for, so that a long stream asks seldom.
            reserved = length.max(reserved.saturating_mul(2)).max(1 << 20);
            match private.reserve(reserved) {
                Err(why) if why.status() == Some(Status::Full) => {
                    reserved = length;
                    private.reserve(length)?;
                }
                outcome => outcome?,
            }
        }
        Ok(())
    })?;
    check_is_a_record(store, &uri, &file, length)?;
    drop(file);
    let expires = arguments.expires_in.map_or(0, |time| ((now() + time.as_secs_f64()) * 1000.0) as i64);
    let if_version = if arguments.new { IfVersion::Absent } else { IfVersion::Any };
    let options = CommitOptions { expires, if_version, ..CommitOptions::default() };
    let found = private.commit(&uri, length, options).map_err(|why| match why.status() {
        Some(Status::Conflict) if arguments.new => {
            Failure::No(format!("{}: there is one already", printable(uri.as_bytes())))
        }
        Some(Status::Conflict) => Failure::No(format!("{}: it was deleted meanwhile", printable(uri.as_bytes()))),
        _ => why.into(),
    })?;
    out.line(format_args!(
        "put {}: {length} bytes, {} tier, version {}",
        printable(uri.as_bytes()),
        found.entry.tier,
        found.entry.version
    ))
}

/// Caches remove from the URIs of records what is none: a file there must be one, such as `get --raw` writes.
fn check_is_a_record(store: &Store, uri: &ObjUri<'_>, file: &OwnedFd, length: u64) -> Result<(), Failure> {
    if !store.inspector.is_for_records(uri) {
        return Ok(());
    }
    let why = match Contents::of_file(file, length)? {
        Contents::Plain => "it is none".to_owned(),
        Contents::Damaged(why) => why,
        _ => return Ok(()),
    };
    Err(Failure::Usage(format!(
        "{}: this URI is for a record, and a cache would remove the file, because it is not a valid one ({why}); give \
         another URI, or a file that 'objmapperctl get --raw' has written",
        printable(uri.as_bytes())
    )))
}

/// Writes a source to a file. `reserve` is called with the length that the file is about to have.
fn write(
    file: &OwnedFd,
    source: &mut dyn Read,
    path: &Path,
    mut reserve: impl FnMut(u64) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut buffer = vec![0; COPY_SIZE];
    let mut length = 0;
    loop {
        let mut bytes = match source.read(&mut buffer) {
            Ok(0) => return Ok(length),
            Ok(n) => &buffer[..n],
            Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
            Err(why) => return Err(Failure::file(path)(why)),
        };
        reserve(length + bytes.len() as u64)?;
        while !bytes.is_empty() {
            let at = i64::try_from(length).map_err(|_| Failure::Usage("more than a file holds".to_owned()))?;
            match pwrite(file, bytes, at) {
                Ok(n) => {
                    bytes = &bytes[n..];
                    length += n as u64;
                }
                Err(Errno::EINTR) => {}
                Err(why) => return Err(Failure::Store(format!("the object's file cannot be written: {why}"))),
            }
        }
    }
}

/// In a v0.1 store the object's file is rewritten in place: readers may see a part of it.
fn put_v01(
    store: &Store,
    arguments: &PutArguments,
    uri: &ObjUri<'_>,
    source: &mut dyn Read,
    out: &mut Out,
) -> Result<(), Failure> {
    let refused = |option: &str| {
        Err(Failure::Unsupported(format!(
            "{option}: a v0.1 peer does not offer it; leave it out, or use an objmapperd"
        )))
    };
    match arguments {
        PutArguments { new: true, .. } => return refused("--new"),
        PutArguments { tier: Some(_), .. } => return refused("--tier"),
        PutArguments { expires_in: Some(_), .. } => return refused("--expires-in"),
        _ => {}
    }
    if store.inspector.is_for_records(uri) {
        return Err(Failure::Usage(format!(
            "{}: this URI is for a record, which only a cache can put into a v0.1 store; give another URI",
            printable(uri.as_bytes())
        )));
    }
    let file = store.client.get_or_create(uri, V01Tier::Default)?.into_fd();
    lock(&file)?;
    let failed = |why: Errno| Failure::Store(format!("the object's file cannot be written: {why}"));
    nix::unistd::ftruncate(file.as_fd(), 0).map_err(failed)?;
    let length = write(&file, source, &arguments.file, |_| Ok(()))?;
    out.line(format_args!("put {}: {length} bytes, not atomically: a v0.1 peer", printable(uri.as_bytes())))
}

/// Locks a file as all writers of a v0.1 store do.
fn lock(file: &OwnedFd) -> Result<(), Failure> {
    let lock = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as nix::libc::c_short,
        l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            Err(Failure::Store("another client is writing the object; try again".to_owned()))
        }
        Err(why) => Err(Failure::Store(format!("the object's file cannot be locked: {why}"))),
    }
}

pub(crate) fn delete(store: &Store, arguments: &DeleteArguments, out: &mut Out) -> Result<(), Failure> {
    let uri = uri(&arguments.uri)?;
    if !store.client.delete(&uri, IfVersion::Any)? {
        return Err(Failure::No(format!("{}: there is none", printable(uri.as_bytes()))));
    }
    out.line(format_args!("deleted {}", printable(uri.as_bytes())))
}
