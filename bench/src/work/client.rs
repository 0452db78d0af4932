//! objmapper's client against its server: look-ups per second, and how long one takes.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use objmapper_client::{Client, CommitOptions, ObjUri, Want};
use objmapper_harness::objmapperd::Objmapperd;

use super::begin;
use crate::bed::Bed;
use crate::figures::{Figure, Plot, Section};
use crate::load::histogram;
use crate::machine::interrupt;
use crate::proc::Cpu;

const OBJECTS: usize = 1000;
/// Callers of the work with many.
const THREADS: usize = 8;
/// Their connections.
const CONNECTIONS: usize = 4;

/// One caller that waits for each answer.
pub const ONE: &str = "one at a time";
/// Many requests on their way on one connection.
pub const PIPELINED: &str = "pipelined";
/// Many operations in a frame.
pub const BATCHED: &str = "batched";
/// Several callers over several connections.
pub const MANY: &str = "8 callers, 4 connections";
/// Look-ups that bring a descriptor.
pub const WITH_FDS: &str = "with descriptors";

/// Measures the client crate.
pub fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    let section = begin(
        sections,
        Section {
            key: "client".into(),
            title: "Client against server".into(),
            about: format!(
                "objmapper-client in this process on the load's CPUs, objmapperd with its default options on the \
             servers'; look-ups of {OBJECTS} objects in its memory tier. One connection, but where it is said otherwise."
            ),
            baseline: None,
            columns: vec![Figure::Rate, Figure::P50, Figure::P99, Figure::CpuPerRequest],
            plots: vec![Plot { title: "Look-ups per second".into(), figure: Figure::Rate, works: String::new() }],
            ..Section::default()
        },
    );
    let dir = bed.directory()?;
    let daemon = bed.servers.run(|| Objmapperd::start(dir.path(), "256m"))?;
    let pids = [daemon.pid().context("objmapperd has ended")?];
    // The client's own threads are on the CPUs of the one who makes it.
    bed.load.run(|| {
        let connect = |connections| {
            let timeout = std::time::Duration::from_secs(10);
            Client::builder(daemon.socket()).connections(connections).call_timeout(timeout).connect()
        };
        let (one, many) = (connect(1)?, connect(CONNECTIONS)?);
        let uris = store(&one)?;
        for round in 0..=bed.plan.rounds {
            for (peer, want) in [(WITH_FDS, Want::FD), ("without", Want::ENTRY)] {
                for work in [ONE, PIPELINED, BATCHED, MANY] {
                    interrupt::check()?;
                    bed.progress.step(&format!("client: round {round} of {}, {work}, {peer}", bed.plan.rounds));
                    let caller = Caller { bed, uris: &uris, want };
                    let before = Cpu::of(&pids)?;
                    let begun = Instant::now();
                    let done = match work {
                        ONE => caller.one(&one)?,
                        PIPELINED => caller.pipelined(&one)?,
                        BATCHED => caller.batched(&one)?,
                        _ => caller.many(&many)?,
                    };
                    let seconds = begun.elapsed().as_secs_f64();
                    let cpu = Cpu::of(&pids)?.since(&before);
                    // The first round is to warm up.
                    if round > 0 {
                        section.add(work, peer, Figure::Rate, done.operations as f64 / seconds);
                        section.add(work, peer, Figure::CpuPerRequest, cpu.seconds / done.operations as f64 * 1e6);
                        if !done.latency.is_empty() {
                            for (figure, quantile) in [(Figure::P50, 0.5), (Figure::P99, 0.99)] {
                                section.add(work, peer, figure, done.latency.value_at_quantile(quantile) as f64 / 1e3);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    })?;
    bed.progress.line("client: done");
    Ok(())
}

fn store(client: &Client) -> Result<Vec<ObjUri<'static>>> {
    let mut uris = Vec::with_capacity(OBJECTS);
    for number in 0..OBJECTS {
        let uri = ObjUri::try_from(format!("/bench/{number}"))?;
        let mut object = client.create(0, None, Some(&uri))?;
        object.commit(&uri, 0, CommitOptions::default())?;
        uris.push(uri);
    }
    Ok(uris)
}

struct Done {
    operations: u64,
    latency: Histogram<u64>,
}

struct Caller<'a> {
    bed: &'a Bed,
    uris: &'a [ObjUri<'static>],
    want: Want,
}

impl Caller<'_> {
    fn is_over(&self, begun: Instant) -> bool {
        begun.elapsed() >= self.bed.plan.window || interrupt::asked()
    }

    fn one(&self, client: &Client) -> Result<Done> {
        let mut latency = histogram()?;
        let begun = Instant::now();
        let mut uris = self.uris.iter().cycle();
        while !self.is_over(begun) {
            let uri = uris.next().context("no objects")?;
            let asked = Instant::now();
            client.lookup(uri, self.want)?.context("an object is gone")?;
            latency.saturating_record(asked.elapsed().as_nanos() as u64);
        }
        Ok(Done { operations: latency.len(), latency })
    }

    fn pipelined(&self, client: &Client) -> Result<Done> {
        let begun = Instant::now();
        let mut operations = 0;
        while !self.is_over(begun) {
            let pipeline = client.pipeline()?;
            let pending = self.uris.iter().map(|u| pipeline.lookup(u, self.want)).collect::<Result<Vec<_>, _>>()?;
            for pending in pending {
                pending.wait()?.context("an object is gone")?;
                operations += 1;
            }
        }
        Ok(Done { operations, latency: histogram()? })
    }

    fn batched(&self, client: &Client) -> Result<Done> {
        let begun = Instant::now();
        let mut operations = 0;
        while !self.is_over(begun) {
            let batch = self.uris.iter().fold(client.batch(), |batch, uri| batch.lookup(uri, self.want));
            for outcome in batch.run()? {
                match outcome? {
                    objmapper_client::BatchOutcome::Found(_) => operations += 1,
                    other => bail!("an object is gone: {other:?}"),
                }
            }
        }
        Ok(Done { operations, latency: histogram()? })
    }

    fn many(&self, client: &Client) -> Result<Done> {
        let parts = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| self.one(client))).collect();
            let join = |caller: std::thread::ScopedJoinHandle<'_, Result<Done>>| {
                caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?
            };
            callers.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let mut latency = histogram()?;
        for part in &parts {
            latency.add(&part.latency)?;
        }
        Ok(Done { operations: latency.len(), latency })
    }
}
