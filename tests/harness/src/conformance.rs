//! Varnish's own vtc files as a measure of our engine: whatever passes with `-s malloc` has to pass with
//! us in malloc's place.

pub mod lists;
pub mod report;
pub mod source;
pub mod suite;
