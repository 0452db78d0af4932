//! What a test needs of the machine beyond a working varnishd, and what happens where the machine lacks it: the test is
//! skipped, and `make test` says so at its end.
//!
//! A plain container or chroot has no mounts, no namespaces, perhaps no root. A test that needs one of them asks
//! [`Need::skips`] first and returns if that is true. Each skip is a line on standard error (written to the descriptor,
//! because the test runner keeps what a passing test prints) and, if the variable `OBJM_SKIPPED` names a file, a line there.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::Result;

/// Something that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Mounts in a mount namespace of the test's own.
    Mounts,
    /// A network namespace of the test's own.
    Network,
    /// User namespaces for ordinary users.
    UserNamespaces,
    /// The congestion control bbr.
    Bbr,
}

impl Need {
    /// The reason as an operator reads it.
    fn reason(self) -> &'static str {
        match self {
            Self::Mounts => "needs root that may mount (a container without CAP_SYS_ADMIN has none)",
            Self::Network => "needs root that may make network namespaces (CAP_NET_ADMIN, CAP_SYS_ADMIN)",
            Self::UserNamespaces => "needs user namespaces for ordinary users, which this kernel forbids",
            Self::Bbr => "needs the TCP congestion control bbr, which this kernel lacks",
        }
    }

    /// A command that succeeds if and only if the machine has it; `None` if only the test itself can tell.
    fn probe(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Mounts => Some(&["unshare", "--mount", "mount", "-t", "tmpfs", "objm", "/tmp"]),
            Self::Network => Some(&["unshare", "--mount", "--net", "ip", "link", "set", "lo", "up"]),
            Self::UserNamespaces => Some(&[
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "unshare",
                "--user",
                "--map-current-user",
                "--mount",
                "true",
            ]),
            Self::Bbr => None,
        }
    }

    /// Returns true if the machine lacks it; the skip is then recorded for `test`.
    pub fn skips(self, test: &str) -> Result<bool> {
        let Some([program, arguments @ ..]) = self.probe() else { return Ok(false) };
        let status = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if status.is_ok_and(|status| status.success()) {
            return Ok(false);
        }
        self.record(test)?;
        Ok(true)
    }

    /// Records that `test` is skipped for lack of it.
    pub fn record(self, test: &str) -> Result<()> {
        let line = format!("{test}: SKIPPED: {}\n", self.reason());
        std::io::stderr().write_all(line.as_bytes())?;
        if let Some(file) = std::env::var_os("OBJM_SKIPPED") {
            // One write of a short line to a file opened for appending is not mixed with those of other tests.
            File::options().create(true).append(true).open(file)?.write_all(line.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_has_its_reason() {
        let needs = [Need::Mounts, Need::Network, Need::UserNamespaces, Need::Bbr];
        let mut reasons = needs.map(Need::reason).to_vec();
        reasons.dedup();
        assert_eq!(reasons.len(), needs.len());
    }
}
