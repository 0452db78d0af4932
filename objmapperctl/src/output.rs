//! Standard output: buffered, and a reader that closes it (`| head`) ends the program without a complaint.

use std::io::{self, BufWriter, ErrorKind, Stdout, Write};

use crate::failure::Failure;

/// Standard output.
#[derive(Debug)]
pub(crate) struct Out {
    stdout: BufWriter<Stdout>,
}

/// The failure of a write.
pub(crate) fn failed(why: io::Error) -> Failure {
    if why.kind() == ErrorKind::BrokenPipe { Failure::OutputClosed } else { Failure::Output(why) }
}

impl Out {
    pub(crate) fn new() -> Self {
        Self { stdout: BufWriter::with_capacity(64 << 10, io::stdout()) }
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, line: impl std::fmt::Display) -> Result<(), Failure> {
        writeln!(self.stdout, "{line}").map_err(failed)
    }

    /// Writes a name and its value, as one of several lines in two columns.
    pub(crate) fn row(&mut self, name: &str, value: impl std::fmt::Display) -> Result<(), Failure> {
        self.line(format_args!("{name:<12} {value}"))
    }

    /// Writes what is buffered.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.stdout.flush().map_err(failed)
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stdout.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}
