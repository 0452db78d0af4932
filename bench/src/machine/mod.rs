//! The machine that is measured on: its CPUs, its memory's peculiarities, its versions, and a user who interrupts.

pub mod cpus;
pub mod facts;
pub mod interrupt;
pub mod quiet;
pub mod reporting;
