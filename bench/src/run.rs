//! A run from its options to its report.

use anyhow::{Context, Result};

use crate::bed::{Bed, absolute};
use crate::figures::{Section, bytes};
use crate::machine::cpus::Cpus;
use crate::machine::facts::Facts;
use crate::machine::interrupt;
use crate::machine::quiet;
use crate::machine::reporting::{self, Reporting};
use crate::options::{Options, Part};
use crate::plan::Plan;
use crate::report::{Report, terminal};
use crate::{peers, proc, targets, work};

/// Does what the options say: measures, prints, writes the report.
pub fn run(options: &Options) -> Result<()> {
    let out = absolute(&options.out)?;
    let (report, ended) = match &options.from {
        Some(file) => {
            let mut report = Report::read(file)?;
            report.verdicts = targets::judge(&report.sections);
            (report, Ok(()))
        }
        None => measure(options)?,
    };
    print!("{}", terminal::text(&report));
    report.write(&out)?;
    println!("\nreport: {} and report.json", out.join("report.html").display());
    ended
}

/// The report, and why it is not whole, if so: an hour's figures are not thrown away because the last part failed.
fn measure(options: &Options) -> Result<(Report, Result<()>)> {
    interrupt::install()?;
    let load_before = quiet::load_average()?;
    let plan = Plan::new(options, proc::meminfo("MemAvailable")?);
    let reporting = Reporting::off(options.keep_reporting)?;
    let bed = Bed::new(options, plan)?;
    let mut report = Report { facts: facts(&bed, &reporting)?, ..Report::default() };
    for (name, text) in &report.facts.lines {
        bed.progress.line(&format!("{name}: {text}"));
    }
    if !bed.servers.is_apart_from(&bed.load) {
        report
            .remarks
            .push("servers and load share CPUs: take no figure of this run for the servers' speed".to_owned());
    }
    if load_before > 0.5 * Cpus::allowed()?.count() as f64 {
        let text = format!("the machine was not quiet: a load of {load_before} before the run began");
        bed.progress.line(&text);
        report.remarks.push(text);
    }
    if reporting.is_off() {
        bed.progress.step(&format!("touching {} of memory once", bytes(bed.plan.touch as f64)));
        reporting::fetch_back(bed.plan.touch)?;
    }
    let watch = quiet::Watch::begin()?;
    let ended = do_parts(&bed, &mut report.sections);
    bed.progress.clear();
    if let Err(why) = &ended {
        report.remarks.push(format!("the run ended early, in {why:#}"));
        report.sections.retain(|s| !s.rows.is_empty() || !s.remarks.is_empty());
    }
    let stolen = format!("{:.1} % of the CPUs' time while measuring", watch.stolen()? * 100.0);
    report.facts.add("load before the run", load_before.to_string());
    report.facts.add("taken by the hypervisor", stolen);
    report.verdicts = targets::judge(&report.sections);
    Ok((report, ended))
}

/// Every part in turn. What was measured until an error is in the sections.
fn do_parts(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    for &part in &bed.plan.parts {
        let done = match part {
            Part::Hits => work::hits::run(bed, sections),
            Part::Misses => work::misses::run(bed, sections),
            Part::Mixed => work::mixed::run(bed, sections),
            Part::Objects => work::objects::run(bed, sections),
            Part::Client => work::client::run(bed, sections),
            Part::Shared => work::shared::run(bed, sections),
        };
        done.with_context(|| format!("part {}", part.name()))?;
    }
    Ok(())
}

fn facts(bed: &Bed, reporting: &Reporting) -> Result<Facts> {
    let plan = &bed.plan;
    let mut facts = Facts::gather()?;
    facts.add("pinning", format!("servers on CPU {}, load and origin on CPU {}", bed.servers, bed.load));
    facts.add("memory of the virtual machine", reporting.describe());
    let mode = if plan.quick { "short" } else { "full" };
    facts.add(
        "run",
        format!(
            "{mode}: {} rounds in turn, {:?} each measurement, working set {}",
            plan.rounds,
            plan.window,
            bytes(plan.working_set as f64)
        ),
    );
    facts.add("varnishd's parameters", peers::varnishd::PARAMETERS.join(" "));
    facts.add("logs", "varnishd writes its log as always; nginx's access log is off");
    Ok(facts)
}
