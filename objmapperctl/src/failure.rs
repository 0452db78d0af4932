//! Why a command failed: the exit code and the text. The codes are documented in `--help` and in docs/objmapperctl.md.

use std::path::PathBuf;

use objmapper_client::{Error, Status};
use objmapper_records::{InspectError, Outage};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The answer is no: absent, damaged, a failed check.
    #[error("{0}")]
    No(String),
    /// An argument cannot be used.
    #[error("{0}")]
    Usage(String),
    /// There is no connection, or no answer in time.
    #[error("{0}")]
    Connection(String),
    /// The store refused or failed the request.
    #[error("{0}")]
    Store(String),
    /// The store does not offer it.
    #[error("{0}")]
    Unsupported(String),
    /// A local file could not be read or written.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// Standard output could not be written.
    #[error("standard output: {0}; what is above is not all")]
    Output(std::io::Error),
    /// The reader of standard output has closed it: it has read what it wanted.
    #[error("standard output is closed")]
    OutputClosed,
}

impl Failure {
    /// Returns the exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::No(_) => 1,
            Self::Usage(_) => 2,
            Self::Connection(_) => 3,
            Self::Store(_) => 4,
            Self::Unsupported(_) => 5,
            Self::File { .. } | Self::Output(_) => 6,
        }
    }

    /// Makes the failure of a file.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |why| Self::File { path, why }
    }
}

impl From<Error> for Failure {
    fn from(why: Error) -> Self {
        match &why {
            Error::Unsupported(_) => Self::Unsupported(format!("{why}: it takes an objmapperd")),
            Error::Timeout { .. } => {
                Self::Connection(format!("{why}; remedy: give more --timeout, or see what it does"))
            }
            Error::Uri(_) => Self::Usage(why.to_string()),
            Error::Status { status: Status::Full, .. } => Self::Store(format!(
                "{why}; remedy: make room (objmapperctl delete), or give objmapperd more --memory or --disk"
            )),
            Error::Status { status: Status::Refused, .. } => Self::Connection(why.to_string()),
            why if why.should_reconnect() => Self::Connection(why.to_string()),
            why => Self::Store(why.to_string()),
        }
    }
}

impl From<InspectError> for Failure {
    fn from(why: InspectError) -> Self {
        match why {
            InspectError::Store(why) => why.into(),
            InspectError::Gone => Self::No(why.to_string()),
            InspectError::Read(_) => Self::Store(format!("{why}; remedy: see 'objmapperctl check', and ulimit -n")),
        }
    }
}

impl From<Outage> for Failure {
    fn from(why: Outage) -> Self {
        match why {
            Outage::Down => Self::Connection("the store is down".to_owned()),
            Outage::Timeout => {
                Self::Connection("no answer from the store in time; remedy: give more --timeout".to_owned())
            }
            why => Self::Store(format!("the store failed the request ({why}); remedy: see objmapperd's log")),
        }
    }
}
