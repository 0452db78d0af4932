//! The benchmark: varnishd with `-s malloc`, `-s file` and objmapper, and nginx, asked in turn in one run.
//!
//! [`run::run`] does what the command line says. What is measured is in [`work`], who is measured in [`peers`], the load
//! generator in [`load`], and how a report is made of it in [`figures`], [`targets`] and [`report`].

pub mod bed;
pub mod figures;
pub mod load;
pub mod machine;
pub mod options;
pub mod origin;
pub mod pattern;
pub mod peers;
pub mod plan;
pub mod proc;
pub mod progress;
pub mod report;
pub mod run;
pub mod stats;
pub mod target;
pub mod targets;
pub mod work;
