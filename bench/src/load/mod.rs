//! The load generator: HTTP/1.1 with keep-alive from one thread per CPU, each with an epoll of its own.

mod connection;
pub mod fetch;
mod worker;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::machine::cpus::Cpus;
use crate::target::Order;

/// What the client does with a body's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// recv(2) into a buffer: the client pays for a copy, on its own CPU.
    Copy,
    /// recv(2) with MSG_TRUNC: the kernel throws the bytes away, so the client costs next to nothing (tcp(7)).
    Discard,
}

impl Drain {
    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Discard => "discard",
        }
    }
}

/// When a load ends. What has begun is always brought to its end, and counted.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// No request begins after this time.
    After(Duration),
    /// After so many requests.
    Requests(u64),
}

/// A load on one server.
#[derive(Debug, Clone)]
pub struct Load {
    /// The server.
    pub address: SocketAddr,
    /// Header lines of every request, each with its line end.
    pub header: String,
    /// What is asked for.
    pub order: Order,
    /// How many connections; each has one request at a time.
    pub connections: usize,
    /// What becomes of the bodies.
    pub drain: Drain,
    /// When it ends.
    pub stop: Stop,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Complete responses.
    pub requests: u64,
    /// Their body bytes.
    pub bytes: u64,
    /// From the first request to the last byte, in seconds.
    pub seconds: f64,
    /// From a request to its last byte, in nanoseconds.
    pub latency: Histogram<u64>,
    /// From a request to its first byte, in nanoseconds.
    pub first_byte: Histogram<u64>,
    /// Responses that were wrong or incomplete.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
}

impl Outcome {
    /// A quantile of the latency in microseconds.
    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }

    /// Adds what came of a load that began when this one had ended.
    pub fn add(&mut self, later: Self) -> Result<()> {
        let seconds = self.seconds + later.seconds;
        self.merge(later)?;
        self.seconds = seconds;
        Ok(())
    }

    /// Adds what came of a load at the same time.
    fn merge(&mut self, part: Self) -> Result<()> {
        self.requests += part.requests;
        self.bytes += part.bytes;
        self.seconds = self.seconds.max(part.seconds);
        self.latency.add(&part.latency)?;
        self.first_byte.add(&part.first_byte)?;
        self.errors += part.errors;
        self.first_error = self.first_error.take().or(part.first_error);
        Ok(())
    }

    /// A quantile of the time to the first byte in microseconds.
    pub fn first_byte_us(&self, quantile: f64) -> f64 {
        self.first_byte.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Up to a minute, to three digits.
pub(crate) fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

/// Puts the load on the server and waits for its end.
pub fn run(load: &Load, cpus: &Cpus) -> Result<Outcome> {
    let threads = cpus.count().min(load.connections).max(1);
    let parts = std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for thread in 0..threads {
            // The rest goes to the first ones.
            let connections = load.connections / threads + usize::from(thread < load.connections % threads);
            let stop = match load.stop {
                Stop::After(time) => Stop::After(time),
                Stop::Requests(n) => {
                    Stop::Requests(n / threads as u64 + u64::from((thread as u64) < n % threads as u64))
                }
            };
            let sequence = load.order.sequence(thread as u64);
            let work = move || worker::run(load, connections, stop, sequence, cpus);
            handles.push(std::thread::Builder::new().name(format!("load-{thread}")).spawn_scoped(scope, work)?);
        }
        let join = |handle: std::thread::ScopedJoinHandle<'_, Result<Outcome>>| {
            handle.join().map_err(|_| anyhow::anyhow!("a thread of the load panicked"))?
        };
        handles.into_iter().map(join).collect::<Result<Vec<Outcome>>>()
    })?;
    let mut parts = parts.into_iter();
    let mut sum = parts.next().context("a load without threads")?;
    parts.try_for_each(|part| sum.merge(part))?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::Origin;
    use crate::target::Target;

    fn load(origin: &Origin, drain: Drain, bytes: u64, stop: Stop) -> Load {
        let order = Order::turn(bytes, 0, 10);
        Load { address: origin.address(), header: String::new(), order, connections: 3, drain, stop }
    }

    #[test]
    fn counts_what_came_in_both_modes() {
        let cpus = Cpus::allowed().unwrap();
        let origin = Origin::start(&cpus).unwrap();
        let mut expected = 0;
        for drain in [Drain::Copy, Drain::Discard] {
            for bytes in [0, 1, 100, 5000, 1 << 20] {
                let outcome = run(&load(&origin, drain, bytes, Stop::Requests(25)), &cpus).unwrap();
                assert_eq!((outcome.errors, outcome.first_error), (0, None));
                assert_eq!((outcome.requests, outcome.bytes), (25, 25 * bytes));
                assert_eq!((outcome.latency.len(), outcome.first_byte.len()), (25, 25));
                assert!(outcome.seconds > 0.0);
                expected += 25;
                assert_eq!(origin.requests(), expected);
            }
        }
    }

    #[test]
    fn ends_by_time_and_brings_the_last_ones_to_an_end() {
        let cpus = Cpus::allowed().unwrap();
        let origin = Origin::start(&cpus).unwrap();
        let outcome =
            run(&load(&origin, Drain::Discard, 65_536, Stop::After(Duration::from_millis(50))), &cpus).unwrap();
        assert_eq!(outcome.errors, 0);
        assert!(outcome.requests > 0 && outcome.seconds >= 0.05, "{outcome:?}");
        assert_eq!(outcome.bytes, outcome.requests * 65_536);
        assert_eq!(origin.requests(), outcome.requests);
    }

    #[test]
    fn wrong_answers_are_errors() {
        let cpus = Cpus::allowed().unwrap();
        let origin = Origin::start(&cpus).unwrap();
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut to_nobody = load(&origin, Drain::Copy, 1, Stop::Requests(3));
        to_nobody.address = nobody;
        assert!(run(&to_nobody, &cpus).is_err());
        // The origin answers HEAD-like nonsense with 404: the status is not what was asked for.
        let mut wrong = load(&origin, Drain::Copy, 1, Stop::Requests(3));
        wrong.order = Order::One(Target { bytes: 1, id: 1 });
        wrong.header = "Range: bytes=0-0\r\n".into();
        let outcome = run(&wrong, &cpus).unwrap();
        assert!(outcome.errors > 0, "a 200 to a Range request is not what this load counts");
    }

    #[test]
    fn loads_one_after_the_other_take_their_time_together() {
        let outcome = |requests, seconds, errors: u64| {
            let mut latency = histogram().unwrap();
            latency.record(requests * 1000).unwrap();
            let first_error = (errors > 0).then(|| format!("error of {requests}"));
            let first_byte = latency.clone();
            Outcome { requests, bytes: 10 * requests, seconds, latency, first_byte, errors, first_error }
        };
        let mut sum = outcome(1, 0.5, 0);
        sum.add(outcome(3, 0.25, 2)).unwrap();
        assert_eq!((sum.requests, sum.bytes, sum.seconds), (4, 40, 0.75));
        assert_eq!((sum.latency.len(), sum.first_byte.len(), sum.latency.max() >= 3000), (2, 2, true));
        assert_eq!((sum.errors, sum.first_error.as_deref()), (2, Some("error of 3")));
        sum.merge(outcome(5, 0.5, 1)).unwrap();
        assert_eq!((sum.requests, sum.seconds, sum.first_error.as_deref()), (9, 0.75, Some("error of 3")));
    }

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut latency = histogram().unwrap();
        for value in 1..=100_u64 {
            latency.record(value * 10_000).unwrap();
        }
        let outcome = Outcome {
            requests: 100,
            bytes: 0,
            seconds: 1.0,
            first_byte: latency.clone(),
            latency,
            errors: 0,
            first_error: None,
        };
        assert!((outcome.latency_us(0.5) - 500.0).abs() < 2.0, "{}", outcome.latency_us(0.5));
        assert!((outcome.latency_us(0.99) - 990.0).abs() < 2.0);
        assert!((outcome.first_byte_us(1.0) - 1000.0).abs() < 2.0);
    }
}
