//! What the report says of the machine and of the programs.

use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::proc;

/// The machine and the programs, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// A name and its text, in the order of the report.
    pub lines: Vec<(String, String)>,
}

impl Facts {
    /// Of this machine.
    pub fn gather() -> Result<Self> {
        let mut facts = Self::default();
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
        let count = cpuinfo.lines().filter(|l| l.starts_with("processor")).count();
        let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("", |m| m.1);
        let cache = last_level_cache().map_or(String::new(), |c| format!(", last cache {c}"));
        facts.add("CPU", format!("{count} x {model}{cache}"));
        facts.add("memory", format!("{:.1} GiB", proc::meminfo("MemTotal")? as f64 / (1_u64 << 30) as f64));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        facts.add("kernel", format!("Linux {}", kernel.trim()));
        for (name, file) in [
            ("transparent huge pages", "/sys/kernel/mm/transparent_hugepage/enabled"),
            ("huge pages in tmpfs", "/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            ("TCP congestion control", "/proc/sys/net/ipv4/tcp_congestion_control"),
        ] {
            if let Ok(text) = std::fs::read_to_string(file) {
                facts.add(name, chosen(&text));
            }
        }
        facts.add("varnishd", version("varnishd", "-V"));
        facts.add("nginx", version("nginx", "-v"));
        facts.add("objmapper", format!("{}{}", env!("CARGO_PKG_VERSION"), commit()));
        Ok(facts)
    }

    /// Adds a line.
    pub fn add(&mut self, name: &str, text: impl Into<String>) {
        self.lines.push((name.to_owned(), text.into()));
    }
}

/// The word in brackets: `always [madvise] never`.
fn chosen(text: &str) -> String {
    let inner = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inner.map_or(text.trim(), |(word, _)| word).to_owned()
}

fn last_level_cache() -> Option<String> {
    let size = |index| std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok();
    (0..8).rev().find_map(size).map(|text| text.trim().to_owned())
}

/// The first line that the program prints of its version, on whichever stream.
fn version(program: &str, option: &str) -> String {
    match Command::new(program).arg(option).output() {
        Ok(output) => {
            let both = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&both).lines().next().unwrap_or("says no version").to_owned()
        }
        Err(why) => format!("not there ({why})"),
    }
}

/// The commit that was measured, where there is a git to ask.
fn commit() -> String {
    let root = objmapper_harness::artefacts::workspace();
    let output = Command::new("git").arg("-C").arg(root).args(["describe", "--always", "--dirty"]).output();
    match output {
        Ok(output) if output.status.success() => format!(" ({})", String::from_utf8_lossy(&output.stdout).trim()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word() {
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen("plain\n"), "plain");
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = Facts::gather().unwrap();
        for name in ["CPU", "memory", "kernel", "varnishd", "nginx"] {
            assert!(facts.lines.iter().any(|(n, text)| n == name && !text.is_empty()), "{name}");
        }
    }
}
