//! The ways in which the same test is run: which storage stands behind `-s`.

use std::path::Path;

use anyhow::Result;

use crate::artefacts;

/// One arrangement of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// Varnish's own `-s malloc`: the control. A test that fails here tests nothing of ours.
    Malloc,
    /// The store inside varnishd's child, small bodies in heap (threshold 64k).
    Embedded,
    /// The store inside varnishd's child, every body through it (threshold 0).
    EmbeddedT0,
    /// A real objmapperd, small bodies in heap.
    Daemon,
    /// A real objmapperd, every body through it.
    DaemonT0,
}

impl Arrangement {
    /// All arrangements, the control first.
    pub const ALL: [Self; 5] = [Self::Malloc, Self::Embedded, Self::EmbeddedT0, Self::Daemon, Self::DaemonT0];

    /// Its name on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::Embedded => "embedded",
            Self::EmbeddedT0 => "embedded-t0",
            Self::Daemon => "daemon",
            Self::DaemonT0 => "daemon-t0",
        }
    }

    /// The arrangement of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// Whether the storage engine under test is loaded.
    pub fn has_engine(self) -> bool {
        self != Self::Malloc
    }

    /// Whether an objmapperd of its own must run beside varnishd.
    pub fn has_daemon(self) -> bool {
        matches!(self, Self::Daemon | Self::DaemonT0)
    }

    /// The word behind `-s`.
    pub fn kind(self) -> &'static str {
        if self.has_engine() { "objmapper" } else { "malloc" }
    }

    /// `-E…` with the path of the engine staged in `dir`, or nothing.
    pub fn load_argument(self, dir: &Path) -> Result<String> {
        if !self.has_engine() {
            return Ok(String::new());
        }
        Ok(format!("-E{}", artefacts::stage(&artefacts::engine()?, dir)?.display()))
    }

    /// The options behind the size, as `key=value` joined by commas; `socket` is the daemon's.
    pub fn options(self, socket: Option<&Path>) -> String {
        let mut options = Vec::new();
        if let Some(socket) = socket {
            options.push(format!("socket={}", socket.display()));
        }
        if matches!(self, Self::EmbeddedT0 | Self::DaemonT0) {
            options.push("threshold=0".to_owned());
        }
        options.join(",")
    }

    /// A whole `-s` argument: `name=kind,size[,options][,extra]`. `extra` is left out for malloc.
    pub fn storage(self, name: &str, size: &str, socket: Option<&Path>, extra: &str) -> String {
        let mut spec = format!("{name}={},{size}", self.kind());
        let options = self.options(socket);
        for part in [options.as_str(), extra] {
            if self.has_engine() && !part.is_empty() {
                spec.push(',');
                spec.push_str(part);
            }
        }
        spec
    }
}
