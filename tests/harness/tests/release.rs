//! What was built for another release than the one that runs is refused, with a message that names both.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use objmapper_harness::artefacts;
use objmapper_harness::process::{PATIENCE, open_directory, wait_for};
use objmapper_harness::product::Product;

/// Replaces `from` by `to`, of the same length, wherever it is in a copy of a library.
fn altered(library: &Path, to_path: &Path, from: &str, to: &str) -> Result<()> {
    ensure!(from.len() == to.len(), "{from:?} and {to:?} differ in length");
    let mut bytes = std::fs::read(library)?;
    let places: Vec<usize> =
        (0..bytes.len().saturating_sub(from.len())).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
    ensure!(!places.is_empty(), "{from:?} is not in {}", library.display());
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    std::fs::write(to_path, bytes).with_context(|| to_path.display().to_string())
}

/// Version and revision of the varnishd that runs, as they stand in its ABI's name: `7.7.0 71fc9d2…`.
fn running() -> Result<(String, String)> {
    let output = Command::new("varnishd").arg("-V").output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let revision = text.split("revision ").nth(1).and_then(|rest| rest.split(')').next());
    Ok((Product::get()?.version.clone(), revision.with_context(|| text.clone())?.to_owned()))
}

/// What varnishd prints when it is started with an engine; an error if it does not end by itself.
fn start_with(dir: &Path, engine: &Path) -> Result<String> {
    let log = dir.join("varnishd.log");
    let out = File::create(&log)?;
    let mut varnishd = Command::new("varnishd")
        .args(["-F", "-b", "none", "-a", "127.0.0.1:0", "-s", "s0=objmapper,10m", "-n"])
        .arg(dir.join("v"))
        .arg(format!("-E{}", engine.display()))
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    let output = || String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    let ended = wait_for("varnishd to end", PATIENCE, || Ok(varnishd.try_wait()?));
    if ended.is_err() {
        varnishd.kill()?;
        varnishd.wait()?;
        bail!("varnishd runs with an engine that was built for another release:\n{}", output());
    }
    Ok(output())
}

fn refused(of: impl Fn(&str, &str) -> (String, String)) -> Result<()> {
    let (version, revision) = running()?;
    let (other_version, other_revision) = of(&version, &revision);
    let dir = open_directory()?;
    let engine = dir.path().join("other.so");
    altered(
        &artefacts::engine()?,
        &engine,
        &format!("{version} {revision}"),
        &format!("{other_version} {other_revision}"),
    )?;
    let output = start_with(dir.path(), &engine)?;
    let name = &Product::get()?.name;
    for part in [
        format!("was built for {name} {other_version} (revision {other_revision})"),
        format!("but {name} {version} (revision {revision}) loads it"),
        "rebuild it".to_owned(),
    ] {
        ensure!(output.contains(&part), "{part:?} is not in:\n{output}");
    }
    Ok(())
}

#[test]
fn an_engine_built_for_another_patch_release_is_refused() -> Result<()> {
    refused(|version, revision| {
        let (branch, patch) = version.rsplit_once('.').unwrap_or((version, "0"));
        let other = if patch.ends_with('9') { '8' } else { '9' };
        (format!("{branch}.{}{other}", &patch[..patch.len() - 1]), revision.to_owned())
    })
}

#[test]
fn an_engine_built_from_another_revision_is_refused() -> Result<()> {
    refused(|version, revision| {
        let other = if revision.ends_with('0') { "1" } else { "0" };
        (version.to_owned(), format!("{}{other}", &revision[..revision.len() - 1]))
    })
}

/// varnishd itself does so, because the VMOD's `$ABI` is strict.
#[test]
fn a_vmod_built_from_another_revision_is_refused() -> Result<()> {
    let (version, revision) = running()?;
    let other = format!("{}{}", &revision[..revision.len() - 1], if revision.ends_with('0') { "1" } else { "0" });
    let dir = open_directory()?;
    let vmod = dir.path().join("libvmod_objmapper.so");
    altered(&artefacts::vmod()?, &vmod, &format!("{version} {revision}"), &format!("{version} {other}"))?;
    let vcl = dir.path().join("import.vcl");
    std::fs::write(&vcl, format!("vcl 4.1;\nimport objmapper from \"{}\";\nbackend none none;\n", vmod.display()))?;
    let output = Command::new("varnishd").arg("-C").arg("-n").arg(dir.path().join("v")).arg("-f").arg(&vcl).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "the VCL compiles with a VMOD of another revision");
    ensure!(text.contains("ABI mismatch") && text.contains(&other) && text.contains(&revision), "{text}");
    Ok(())
}
