//! objmapper-proto
