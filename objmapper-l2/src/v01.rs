//! Peers of protocol v0.1.

use std::sync::Arc;

use crate::counters::Counters;
use crate::finding::{Finding, MissReason};
use crate::outage::Outage;
use crate::request::Lookup;
use crate::space::Core;

impl Core {
    pub(crate) fn find_v01(self: &Arc<Self>, _: &Lookup<'_>, _: &Counters) -> Result<Finding, MissReason> {
        Err(MissReason::Outage(Outage::Protocol))
    }
}
