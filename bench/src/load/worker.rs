//! One thread of the load.

use std::fmt::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::connection::{Connection, Expected, Progress};
use super::{Drain, Load, Outcome, Stop, histogram};
use crate::machine::cpus::Cpus;
use crate::machine::interrupt;
use crate::target::Sequence;

/// A copying client's buffer stays in its CPU's cache; a discarding one has no reason to read in pieces.
const COPY_BUFFER: usize = 128 << 10;
const DISCARD_BUFFER: usize = 1 << 20;
/// A server that says nothing for so long is broken.
const SILENCE_MS: u16 = 60_000;
/// After so many wrong answers there is no point in going on.
const MAX_ERRORS: u64 = 20;

pub(crate) fn run(load: &Load, connections: usize, stop: Stop, sequence: Sequence, cpus: &Cpus) -> Result<Outcome> {
    cpus.bind()?;
    let outcome = Outcome {
        requests: 0,
        bytes: 0,
        seconds: 0.0,
        latency: histogram()?,
        first_byte: histogram()?,
        errors: 0,
        first_error: None,
    };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut worker =
        Worker { load, stop, sequence, epoll, outcome, begun: Instant::now(), sent: 0, request: String::new() };
    let mut all = Vec::with_capacity(connections);
    for number in 0..connections {
        all.push(worker.connect(number)?);
    }
    worker.drive(&mut all)?;
    Ok(worker.outcome)
}

struct Worker<'a> {
    load: &'a Load,
    stop: Stop,
    sequence: Sequence,
    epoll: Epoll,
    outcome: Outcome,
    begun: Instant,
    sent: u64,
    request: String,
}

impl Worker<'_> {
    fn connect(&self, number: usize) -> Result<Connection> {
        let connection = Connection::open(self.load.address)?;
        self.epoll.add(&connection, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        Ok(connection)
    }

    fn is_over(&self) -> bool {
        let enough = match self.stop {
            Stop::After(time) => self.begun.elapsed() >= time,
            Stop::Requests(n) => self.sent >= n,
        };
        enough || interrupt::asked() || self.outcome.errors >= MAX_ERRORS
    }

    /// Sends the next request; `false` when there is none.
    fn send(&mut self, connection: &mut Connection) -> Result<bool> {
        if self.is_over() {
            return Ok(false);
        }
        let target = self.sequence.next();
        self.request.clear();
        write!(
            self.request,
            "GET /{}/{} HTTP/1.1\r\nHost: bench\r\n{}\r\n",
            target.bytes, target.id, self.load.header
        )?;
        // A load with a Range asks for the first byte only.
        let expected = match self.load.header.contains("Range: ") {
            false => Expected { status: 200, bytes: target.bytes },
            true => Expected { status: 206, bytes: 1 },
        };
        connection.send(self.request.as_bytes(), expected)?;
        self.sent += 1;
        Ok(true)
    }

    fn drive(&mut self, all: &mut [Connection]) -> Result<()> {
        let mut buffer = match self.load.drain {
            Drain::Copy => vec![0; COPY_BUFFER],
            Drain::Discard => vec![0; DISCARD_BUFFER],
        };
        self.begun = Instant::now();
        let mut busy = 0;
        for connection in &mut *all {
            busy += usize::from(self.send(connection)?);
        }
        let mut events = vec![EpollEvent::empty(); all.len()];
        while busy > 0 {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(SILENCE_MS)) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            anyhow::ensure!(ready > 0, "no answer for {SILENCE_MS} ms ({busy} requests outstanding)");
            for event in &events[..ready] {
                let number = event.data() as usize;
                let connection = all.get_mut(number).context("an event of no connection")?;
                match connection.advance(self.load.drain, &mut buffer) {
                    Ok(Progress::Waiting) => continue,
                    Ok(Progress::Complete(answer)) => {
                        self.outcome.requests += 1;
                        self.outcome.bytes += answer.bytes;
                        self.outcome.latency.saturating_record(answer.latency.as_nanos() as u64);
                        self.outcome.first_byte.saturating_record(answer.first_byte.as_nanos() as u64);
                    }
                    Err(why) => {
                        self.outcome.errors += 1;
                        self.outcome.first_error.get_or_insert_with(|| format!("{why:#}"));
                        // The old one is closed, and leaves the epoll with that.
                        *connection = self.connect(number)?;
                    }
                }
                if !self.send(&mut all[number])? {
                    busy -= 1;
                }
            }
        }
        self.outcome.seconds = self.begun.elapsed().as_secs_f64();
        Ok(())
    }
}
