//! The counters of failed store requests, by kind.

pub use objmapper_client::Outage;

use crate::counters::Counters;

impl Counters {
    /// Counts a store request that failed.
    pub fn outage(&self, outage: Outage) {
        let counter = match outage {
            Outage::Down => &self.c_out_down,
            Outage::Timeout => &self.c_out_timeout,
            Outage::Full => &self.c_out_full,
            Outage::Io => &self.c_out_io,
            Outage::Protocol => &self.c_out_protocol,
        };
        Self::add(counter, 1);
    }
}
