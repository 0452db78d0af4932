//! Which CPUs the servers and the load run on.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// A list of CPUs as taskset(1) writes it: `0-2,5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

impl Cpus {
    /// Those that this thread may use.
    pub fn allowed() -> Result<Self> {
        let set = sched_getaffinity(this_thread())?;
        Ok(Self((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect()))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The rest of the allowed CPUs' first half, for servers, and their second, for the load and the origin: neither side
    /// ever takes the other's time. With one CPU they share it.
    pub fn halves(&self) -> (Self, Self) {
        if self.0.len() < 2 {
            return (self.clone(), self.clone());
        }
        let (servers, load) = self.0.split_at(self.0.len() / 2);
        (Self(servers.to_vec()), Self(load.to_vec()))
    }

    /// Whether no CPU is in both.
    pub fn is_apart_from(&self, other: &Self) -> bool {
        self.0.iter().all(|cpu| !other.0.contains(cpu))
    }

    /// Binds this thread, and what it starts from now on, to these CPUs.
    pub fn bind(&self) -> Result<()> {
        let mut set = CpuSet::new();
        for &cpu in &self.0 {
            set.set(cpu).with_context(|| format!("CPU {cpu} is out of range"))?;
        }
        sched_setaffinity(this_thread(), &set).with_context(|| format!("cannot use CPUs {self}"))
    }

    /// Does `work`, and starts what it starts, on these CPUs; afterwards this thread is where it was.
    pub fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = Self::allowed()?;
        self.bind()?;
        let done = work();
        before.bind()?;
        done
    }
}

fn this_thread() -> Pid {
    Pid::from_raw(0)
}

impl FromStr for Cpus {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |n: &str| n.trim().parse::<usize>().with_context(|| format!("\"{part}\" is no CPU"));
            let (first, last) = (number(first)?, number(last)?);
            if first > last || last >= CpuSet::count() {
                bail!("\"{part}\" is no range of CPUs");
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        let mut comma = "";
        while let Some(&first) = rest.first() {
            let run = rest.iter().enumerate().take_while(|&(i, &cpu)| cpu == first + i).count();
            match run {
                1 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{}", first + run - 1)?,
            }
            rest = &rest[run..];
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        for (text, shown) in [("0", "0"), ("0-3", "0-3"), ("3,0-1", "0-1,3"), ("1,2,3,7,7", "1-3,7")] {
            assert_eq!(text.parse::<Cpus>().unwrap().to_string(), shown);
        }
        for wrong in ["", "x", "3-1", "0-99999999", "1,,2"] {
            assert!(wrong.parse::<Cpus>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn halves_are_apart_where_they_can() {
        let (servers, load) = "0-4".parse::<Cpus>().unwrap().halves();
        assert_eq!((servers.to_string(), load.to_string()), ("0-1".into(), "2-4".into()));
        assert!(servers.is_apart_from(&load));
        let (servers, load) = "3".parse::<Cpus>().unwrap().halves();
        assert!(!servers.is_apart_from(&load));
    }

    #[test]
    fn work_runs_where_it_should_and_the_thread_comes_back() {
        let all = Cpus::allowed().unwrap();
        let (_, last) = all.halves();
        let seen = last.run(Cpus::allowed).unwrap();
        assert_eq!(seen, last);
        assert_eq!(Cpus::allowed().unwrap(), all);
    }
}
