//! Every counter of an engine and of a director is where varnishstat looks for it, with the documentation of the source.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use objmapper_counters::{CounterSet, Definition, Format, Kind};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::process::open_directory;
use objmapper_harness::varnishd::{Options, Varnishd};

/// What varnishd has written into its shared memory below `dir`, in one piece.
fn shared_memory(dir: &Path) -> Result<String> {
    let mut text = String::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        text.push_str(&String::from_utf8_lossy(&if path.is_dir() { Vec::new() } else { std::fs::read(&path)? }));
    }
    Ok(text)
}

fn compare(shown: &serde_json::Value, prefix: &str, definitions: &[Definition], memory: &str) -> Result<()> {
    let counters = shown["counters"].as_object().context("no counters")?;
    let mut shown: BTreeMap<&str, &serde_json::Value> =
        counters.iter().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?, value))).collect();
    for definition in definitions {
        let counter = shown.remove(definition.name).with_context(|| format!("no {prefix}{}", definition.name))?;
        let flag = match definition.kind {
            Kind::Counter => "c",
            Kind::Gauge => "g",
        };
        let format = match definition.format {
            Format::Integer => "i",
            Format::Bytes => "B",
        };
        let name = definition.name;
        ensure!(!definition.summary().is_empty(), "{prefix}{name} is not documented");
        ensure!(counter["description"] == definition.summary().as_str(), "{prefix}{name}: {counter}");
        ensure!(counter["flag"] == flag && counter["format"] == format, "{prefix}{name}: {counter}");
        let details = serde_json::to_string(&definition.details())?;
        ensure!(memory.contains(&format!("\"docs\":{details}")), "{prefix}{name}: {details} is nowhere");
    }
    ensure!(shown.is_empty(), "without a definition: {shown:?}");
    Ok(())
}

#[test]
fn varnishstat_shows_what_the_source_says() -> Result<()> {
    let dir = open_directory()?;
    let vmod = artefacts::stage(&artefacts::vmod()?, dir.path())?;
    let vcl = format!(
        "vcl 4.1;\nimport objmapper from \"{}\";\nbackend b {{ .host = \"127.0.0.1\"; .port = \"1\"; }}\n\
         sub vcl_init {{ new om = objmapper.director(); om.set_backend(b); }}\n\
         sub vcl_recv {{ set req.backend_hint = om.backend(); return (synth(200)); }}\n",
        vmod.display()
    );
    let arrangement = Arrangement::Embedded;
    let storage = [arrangement.storage("s0", "100m", None, ""), arrangement.storage("s1", "100m", None, "")];
    let varnishd = Varnishd::start(
        dir.path(),
        &Options {
            arrangement,
            storage: &storage,
            listen: &[],
            vcl: &vcl,
            // A VCL that is not used any more cools down for so many seconds before it can go.
            parameters: &["vcl_cooldown=1"],
            user: None,
            descriptors: None,
        },
    )?;
    let shown = varnishd.statistics()?;
    let memory = shared_memory(&dir.path().join("v/_.vsm_child"))?;
    let engine = objmapper_engine::counters::Counters::description().definitions();
    let director = objmapper_records::Counters::description().definitions();
    compare(&shown, "OBJM.s0.", engine, &memory)?;
    compare(&shown, "OBJM.s1.", engine, &memory)?;
    compare(&shown, "OBJM.boot.om.", director, &memory)?;
    compare(&shown, "OBJM_L1.follow.", objmapper_tags::Counters::description().definitions(), &memory)?;
    // A value in its place, in the middle of the segment.
    ensure!(shown["counters"]["OBJM.s1.g_happy"]["value"] == 1, "{shown}");
    ensure!(shown["counters"]["OBJM.boot.om.g_up"]["value"] == 1, "{shown}");
    // A segment goes with its director.
    let other = dir.path().join("other.vcl");
    std::fs::write(&other, "vcl 4.1;\nbackend none none;\n")?;
    varnishd.cli(&["vcl.load", "other", &other.display().to_string()])?;
    varnishd.cli(&["vcl.use", "other"])?;
    varnishd.cli(&["vcl.discard", "boot"])?;
    let counters = varnishd.statistics()?;
    let left = counters["counters"].as_object().context("no counters")?;
    ensure!(!left.keys().any(|name| name.starts_with("OBJM.boot.")), "{:?}", left.keys().collect::<Vec<_>>());
    compare(&counters, "OBJM.s0.", engine, &memory)?;
    varnishd.stop()
}
