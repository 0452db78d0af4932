//! Tells the terminal what is being measured: one line that is written over, or lines in a log.

use std::io::{IsTerminal, Write, stderr};
use std::time::Instant;

/// The progress of a run, on standard error.
#[derive(Debug)]
pub struct Progress {
    begun: Instant,
    terminal: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self { begun: Instant::now(), terminal: stderr().is_terminal() }
    }
}

impl Progress {
    /// A step that is soon over: on a terminal it is written over by the next one, in a log it is left out.
    pub fn step(&self, text: &str) {
        if self.terminal {
            // Cleared to its end: the line before may have been longer.
            eprint!("\r\x1b[2K[{}] {text}", self.time());
            let _ = stderr().flush();
        }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
        eprintln!("[{}] {text}", self.time());
    }

    /// Clears the last step.
    pub fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
    }

    fn time(&self) -> String {
        let seconds = self.begun.elapsed().as_secs();
        format!("{:02}:{:02}", seconds / 60, seconds % 60)
    }
}
