//! objmapper-client
