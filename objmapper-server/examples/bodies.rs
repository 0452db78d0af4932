//! Where bodies of the memory tier should live, and how they should be written: measured.
//!
//! `cargo run --release -p objmapper-server --example bodies [KIB…]` (as root, for the mounts). Prints, for
//! each way and size: objects written and published per second, opened and read per second, and the
//! CPU time of sending a MiB with sendfile over loopback TCP.

use std::fs::File;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

type Error = Box<dyn std::error::Error>;

/// A place for bodies: publish one, open one, remove all.
trait Place {
    fn publish(&mut self, body: &[u8], how: How) -> Result<(), Error>;
    /// A read-only file and the body's offset in it.
    fn open(&self, at: usize) -> Result<(File, u64), Error>;
    fn clear(&mut self) -> Result<(), Error>;
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    /// One write of the whole body.
    Write,
    /// Writes of 64 KiB, as they come from a socket.
    Pieces,
    /// Space allocated and length set first, then writes of 64 KiB.
    Sized,
    /// Through a shared mapping, a page at a time.
    Mapped,
}

fn write(file: &File, offset: u64, body: &[u8], how: How) -> Result<(), Error> {
    match how {
        How::Write => file.write_all_at(body, offset)?,
        How::Pieces | How::Sized => {
            if how == How::Sized {
                rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), offset, body.len() as u64)?;
            }
            for (i, piece) in body.chunks(64 << 10).enumerate() {
                file.write_all_at(piece, offset + (i << 16) as u64)?;
            }
        }
        How::Mapped => {
            rustix::fs::ftruncate(file, offset + body.len() as u64)?;
            let (prot, shared) = (rustix::mm::ProtFlags::WRITE, rustix::mm::MapFlags::SHARED);
            // SAFETY: a fresh mapping of a file of this length, which nobody else changes; it is
            // written inside its bounds and unmapped before the function ends.
            unsafe {
                let map = rustix::mm::mmap(std::ptr::null_mut(), body.len(), prot, shared, file, offset)?;
                std::ptr::copy_nonoverlapping(body.as_ptr(), map.cast(), body.len());
                rustix::mm::munmap(map, body.len())?;
            }
        }
    }
    Ok(())
}

fn reopen(file: &File) -> Result<File, Error> {
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?)
}

/// All bodies in one large memfd.
struct Extents {
    memfd: File,
    bodies: Vec<u64>,
    end: u64,
}

impl Place for Extents {
    fn publish(&mut self, body: &[u8], how: How) -> Result<(), Error> {
        write(&self.memfd, self.end, body, how)?;
        self.bodies.push(self.end);
        self.end += body.len().next_multiple_of(4096) as u64;
        Ok(())
    }
    fn open(&self, at: usize) -> Result<(File, u64), Error> {
        Ok((reopen(&self.memfd)?, self.bodies[at]))
    }
    fn clear(&mut self) -> Result<(), Error> {
        rustix::fs::ftruncate(&self.memfd, 0)?;
        self.bodies.clear();
        self.end = 0;
        Ok(())
    }
}

/// A memfd for each body, held open.
struct Memfds(Vec<File>);

impl Place for Memfds {
    fn publish(&mut self, body: &[u8], how: How) -> Result<(), Error> {
        let memfd = File::from(rustix::fs::memfd_create("body", MemfdFlags::CLOEXEC)?);
        write(&memfd, 0, body, how)?;
        self.0.push(memfd);
        Ok(())
    }
    fn open(&self, at: usize) -> Result<(File, u64), Error> {
        Ok((reopen(&self.0[at])?, 0))
    }
    fn clear(&mut self) -> Result<(), Error> {
        self.0.clear();
        Ok(())
    }
}

/// A file for each body in a tmpfs, published by link, as the store does it.
struct Files {
    dir: OwnedFd,
    count: usize,
}

impl Files {
    fn new(huge: &str) -> Result<Self, Error> {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "size", "4G")?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "huge", huge)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let dir = rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty())?;
        Ok(Files { dir, count: 0 })
    }
}

impl Place for Files {
    fn publish(&mut self, body: &[u8], how: How) -> Result<(), Error> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.dir, ".", flags, Mode::from_raw_mode(0o444))?);
        let reader = reopen(&file)?;
        write(&file, 0, body, how)?;
        drop(file);
        let from = format!("/proc/self/fd/{}", reader.as_raw_fd());
        rustix::fs::linkat(CWD, from, &self.dir, self.count.to_string(), AtFlags::SYMLINK_FOLLOW)?;
        self.count += 1;
        Ok(())
    }
    fn open(&self, at: usize) -> Result<(File, u64), Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok((File::from(rustix::fs::openat(&self.dir, at.to_string(), flags, Mode::empty())?), 0))
    }
    fn clear(&mut self) -> Result<(), Error> {
        for at in 0..self.count {
            rustix::fs::unlinkat(&self.dir, at.to_string(), AtFlags::empty())?;
        }
        self.count = 0;
        Ok(())
    }
}

/// CPU time of this thread.
fn cpu() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

/// Microseconds of the sender's CPU per MiB.
fn send(place: &dyn Place, count: usize, size: usize) -> Result<f64, Error> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sink = TcpStream::connect(listener.local_addr()?)?;
    let (socket, _) = listener.accept()?;
    let reader = std::thread::spawn(move || io::copy(&mut sink, &mut io::sink()));
    let mut spent = 0.0;
    for at in 0..count {
        let (file, offset) = place.open(at)?;
        let (mut from, end) = (offset, offset + size as u64);
        let before = cpu();
        while from < end {
            let left = (end - from) as usize;
            rustix::fs::sendfile(&socket, &file, Some(&mut from), left)?;
        }
        spent += cpu() - before;
    }
    drop(socket);
    reader.join().map_err(|_| "the reader has panicked")??;
    Ok(spent * 1e6 / (count * size) as f64 * f64::from(1 << 20))
}

fn measure(name: &str, place: &mut dyn Place, size: usize, how: How) -> Result<(), Error> {
    let count = ((256 << 20) / size).clamp(16, 5000);
    let body = vec![0x5au8; size];
    let mut buffer = vec![0u8; size];
    let (mut published, mut read, mut sent) = (0f64, 0f64, f64::MAX);
    // The best of three: what the way can do, not what the machine did meanwhile.
    for _ in 0..3 {
        place.clear()?;
        let started = Instant::now();
        for _ in 0..count {
            place.publish(&body, how)?;
        }
        published = published.max(count as f64 / started.elapsed().as_secs_f64());
        let started = Instant::now();
        for at in 0..count {
            let (mut file, offset) = place.open(at)?;
            match offset {
                0 => file.read_exact(&mut buffer)?,
                offset => file.read_exact_at(&mut buffer, offset)?,
            }
        }
        read = read.max(count as f64 / started.elapsed().as_secs_f64());
        sent = sent.min(send(place, count, size)?);
    }
    place.clear()?;
    println!("{name:26} {:>6} KiB {published:>9.0}/s {read:>9.0}/s {sent:>7.0} us/MiB", size >> 10);
    Ok(())
}

fn main() -> Result<(), Error> {
    println!("{:26} {:>10} {:>11} {:>11} {:>14}", "way", "size", "publish", "open+read", "sendfile CPU");
    let mut sizes: Vec<usize> = std::env::args().skip(1).map(|kib| kib.parse()).collect::<Result<_, _>>()?;
    if sizes.is_empty() {
        sizes = vec![4, 64, 1024, 16384];
    }
    for size in sizes.into_iter().map(|kib| kib << 10) {
        let memfd = File::from(rustix::fs::memfd_create("extents", MemfdFlags::CLOEXEC)?);
        let mut extents = Extents { memfd, bodies: Vec::new(), end: 0 };
        measure("memfd extents", &mut extents, size, How::Write)?;
        measure("memfd per object", &mut Memfds(Vec::new()), size, How::Write)?;
        for huge in ["never", "advise", "within_size", "always"] {
            measure(&format!("tmpfs huge={huge}"), &mut Files::new(huge)?, size, How::Write)?;
        }
        for (name, how) in [("64K writes", How::Pieces), ("fallocate, 64K", How::Sized), ("mmap", How::Mapped)] {
            for huge in ["never", "within_size", "always"] {
                measure(&format!("  {huge}, {name}"), &mut Files::new(huge)?, size, how)?;
            }
        }
    }
    Ok(())
}
