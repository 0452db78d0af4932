//! The store that a command is about.

use std::os::unix::ffi::OsStrExt;

use objmapper_client::{Client, ConnectionState};
use objmapper_records::Inspector;

use crate::connection::connect;
use crate::failure::Failure;
use crate::options::Options;
use crate::text::printable;

/// A connected store.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) client: Client,
    pub(crate) inspector: Inspector,
}

impl Store {
    /// Connects to the store that the options name.
    pub(crate) fn connect(options: &Options) -> Result<Self, Failure> {
        let prefix = options.prefix.as_bytes();
        let client = connect(options)?;
        let inspector = Inspector::new(client.clone(), prefix).map_err(|why| {
            Failure::Usage(format!("--prefix {}: {why}; give that of the director's arguments", printable(prefix)))
        })?;
        Ok(Self { client, inspector })
    }

    /// Returns true if the store is a peer of protocol v0.1.
    pub(crate) fn is_v01(&self) -> bool {
        matches!(self.client.state(), ConnectionState::V01 { .. })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !self.is_v01() {
            // Without this the store keeps the session for its grace time; it does the same then.
            let _ = self.client.detach();
        }
    }
}
