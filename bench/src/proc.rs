//! What processes use, from the kernel: CPU time, memory, descriptors, mappings.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// CPU time of one or more processes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cpu {
    /// All of it in seconds, from the process's CPU clock (clock_getcpuclockid(3)): nanoseconds, where /proc counts in
    /// ticks of 10 ms. Threads that have ended are in it.
    pub seconds: f64,
    /// User time in seconds, from `/proc/<pid>/stat`.
    pub user: f64,
    /// System time in seconds, from `/proc/<pid>/stat`.
    pub system: f64,
}

impl Cpu {
    /// What these processes have used so far.
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for &pid in pids {
            let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))
                .with_context(|| format!("process {pid} has no CPU clock: it has ended"))?;
            sum.seconds += Duration::from(clock_gettime(clock)?).as_secs_f64();
            let stat = Ticks::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?)
                .with_context(|| format!("unreadable /proc/{pid}/stat"))?;
            sum.user += stat.user as f64 / ticks_per_second()?;
            sum.system += stat.system as f64 / ticks_per_second()?;
        }
        Ok(sum)
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        Self { seconds: self.seconds + other.seconds, user: self.user + other.user, system: self.system + other.system }
    }

    /// What was used since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            seconds: self.seconds - earlier.seconds,
            user: self.user - earlier.user,
            system: self.system - earlier.system,
        }
    }
}

fn ticks_per_second() -> Result<f64> {
    use nix::unistd::{SysconfVar, sysconf};
    Ok(sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")? as f64)
}

/// The times of `/proc/<pid>/stat`, in clock ticks (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticks {
    /// Field 14.
    pub user: u64,
    /// Field 15.
    pub system: u64,
}

impl Ticks {
    /// From the file's text. The program's name, in parentheses, may contain blanks and parentheses.
    pub fn parse(text: &str) -> Option<Self> {
        let after_name = &text[text.rfind(')')? + 1..];
        // The first of these is field 3.
        let mut fields = after_name.split_ascii_whitespace().skip(14 - 3);
        Some(Self { user: fields.next()?.parse().ok()?, system: fields.next()?.parse().ok()? })
    }
}

/// Memory of one or more processes in bytes, from `/proc/<pid>/status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All resident pages (VmRSS).
    pub resident: u64,
    /// Those that belong to no file (RssAnon): heaps and stacks.
    pub anonymous: u64,
}

impl Memory {
    /// What these processes have now.
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let one = Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/status"))?)
                .with_context(|| format!("unreadable /proc/{pid}/status"))?;
            sum.resident += one.resident;
            sum.anonymous += one.anonymous;
        }
        Ok(sum)
    }

    /// From the file's text.
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
        };
        Some(Self { resident: field("VmRSS")?, anonymous: field("RssAnon")? })
    }
}

/// Descriptors and mappings of one or more processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handles {
    /// Open descriptors.
    pub fds: usize,
    /// Mappings (VMAs).
    pub vmas: usize,
}

impl Handles {
    /// What these processes have now.
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for &pid in pids {
            sum.fds += objmapper_harness::proc::open_fds(pid)?;
            sum.vmas += objmapper_harness::proc::mappings(pid)?;
        }
        Ok(sum)
    }
}

/// A size of `/proc/meminfo` in bytes (`MemTotal`, `MemAvailable`).
pub fn meminfo(name: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    parse_meminfo(&text, name).with_context(|| format!("no {name} in /proc/meminfo"))
}

fn parse_meminfo(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let text = "4711 (a) (b c) S 1 4711 4711 0 -1 4194560 2523 0 1 0 123 45 6 7 20 0 104 0 9 8 7";
        assert_eq!(Ticks::parse(text), Some(Ticks { user: 123, system: 45 }));
        assert_eq!(Ticks::parse("4711 (a) S 1 2"), None);
        assert_eq!(Ticks::parse("no parenthesis"), None);
    }

    #[test]
    fn status() {
        let text = "Name:\tcache-main\nVmHWM:\t  99 kB\nVmRSS:\t   20 kB\nRssAnon:\t   12 kB\nRssFile:\t    8 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { resident: 20 << 10, anonymous: 12 << 10 }));
        assert_eq!(Memory::parse("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn meminfo_by_its_whole_name() {
        let text = "MemTotalX:  1 kB\nMemTotal:       24 kB\nMemAvailable:   12 kB\n";
        assert_eq!(parse_meminfo(text, "MemTotal"), Some(24 << 10));
        assert_eq!(parse_meminfo(text, "Mem"), None);
    }

    #[test]
    fn this_process_uses_cpu_memory_and_descriptors() {
        let me = [std::process::id()];
        let before = Cpu::of(&me).unwrap();
        let mut sum = 0_u64;
        while Cpu::of(&me).unwrap().since(&before).seconds < 0.05 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let used = Cpu::of(&me).unwrap().since(&before);
        assert!(used.seconds >= 0.05 && used.seconds < 30.0, "{used:?}");
        // Ticks and the CPU clock tell of the same time.
        assert!((used.user + used.system - used.seconds).abs() < 0.5, "{used:?}");
        let memory = Memory::of(&me).unwrap();
        assert!(memory.anonymous > 0 && memory.resident >= memory.anonymous, "{memory:?}");
        let handles = Handles::of(&me).unwrap();
        assert!(handles.fds >= 3 && handles.vmas > 10, "{handles:?}");
        assert!(Cpu::of(&[u32::try_from(i32::MAX).unwrap()]).is_err());
    }
}
