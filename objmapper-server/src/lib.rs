//! objmapper-server
