//! Runs one vtc file with the packaged varnishtest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::arrangement::Arrangement;
use crate::h2o::H2o;
use crate::objmapperd::Objmapperd;
use crate::process::open_directory;
use crate::product::Product;
use crate::{artefacts, site};

/// How a vtc file ended.
#[derive(Debug)]
pub enum Outcome {
    /// Every expectation was met.
    Passed,
    /// varnishtest skipped it; the reason that it gave.
    Skipped(String),
    /// It failed; varnishtest's log.
    Failed(String),
}

/// Directives in a vtc file's leading comments: `# arrangements: a b`, `# needs: h2o`.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// In which arrangements the file is run.
    pub arrangements: Vec<Arrangement>,
    /// Whether it wants an H2O, as the macros `${h2o_…}`.
    pub needs_h2o: bool,
}

impl Header {
    /// Reads the directives of `text`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut header = Self { arrangements: Arrangement::ALL.to_vec(), needs_h2o: false };
        for line in text.lines() {
            if let Some(names) = line.strip_prefix("# arrangements:") {
                header.arrangements = names
                    .split_whitespace()
                    .map(|n| Arrangement::parse(n).with_context(|| format!("arrangement {n:?}")))
                    .collect::<Result<_>>()?;
            } else if let Some(what) = line.strip_prefix("# needs:") {
                anyhow::ensure!(what.trim() == "h2o", "unknown need {what:?}");
                header.needs_h2o = true;
            }
        }
        Ok(header)
    }
}

/// Runs `file` in `arrangement`, with an objmapperd and an H2O of its own where they are wanted.
pub fn run(file: &Path, arrangement: Arrangement) -> Result<Outcome> {
    let text = std::fs::read_to_string(file)?;
    let header = Header::parse(&text)?;
    let dir = open_directory()?;
    let product = Product::get()?;
    let mut macros: Vec<(&str, String)> = vec![
        ("path", std::env::var("PATH").context("PATH")?),
        ("xid", product.xid_header().to_owned()),
        ("objm", arrangement.kind().to_owned()),
        ("objm_load", arrangement.load_argument(dir.path())?),
        ("objm_dir", dir.path().display().to_string()),
        ("vcl_dir", stage_vcl(dir.path())?.display().to_string()),
    ];

    if text.contains("${vmod}") {
        macros.push(("vmod", artefacts::stage(&artefacts::vmod()?, dir.path())?.display().to_string()));
    }

    if text.contains("${objmapperd}") {
        macros.push(("objmapperd", artefacts::objmapperd()?.display().to_string()));
    }

    // Without the engine there is no store that a director could use by default.
    let director_needs_one = !arrangement.has_engine() && text.contains("${objm_store}");
    let daemon = match arrangement.has_daemon() || director_needs_one {
        true => Some(Objmapperd::start(dir.path(), "1g")?),
        false => None,
    };
    let socket = daemon.as_ref().map(Objmapperd::socket);
    let store = socket.as_ref().filter(|_| director_needs_one).map(|s| format!("\"{}\"", s.display()));
    macros.push(("objm_store", store.unwrap_or_default()));
    let mut options = arrangement.options(socket.as_deref().filter(|_| arrangement.has_daemon()));
    if !options.is_empty() {
        options.insert(0, ',');
    }
    macros.push(("objm_options", options));

    let h2o = match header.needs_h2o {
        true => Some(serve_site(dir.path())?),
        false => None,
    };
    if let Some(h2o) = &h2o {
        macros.extend(h2o_macros(h2o));
        macros.push(("site", dir.path().join("site").display().to_string()));
    }

    let mut command = Command::new("varnishtest");
    command.args(["-b", "8M", "-t", "90"]);
    for (name, value) in &macros {
        command.arg(format!("-D{name}={value}"));
    }
    let output =
        command.arg(file).env("TMPDIR", dir.path()).stdin(Stdio::null()).output().context("cannot run varnishtest")?;
    let mut log = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.stderr.is_empty() {
        log.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    Ok(match output.status.code() {
        Some(0) => Outcome::Passed,
        Some(77) => Outcome::Skipped(skip_reason(&log)),
        _ => Outcome::Failed(log),
    })
}

/// Copies the repository's `vcl/` to `dir`, and beside it the scripts that cases source: `${vcl_dir}/../tests/*.sh`.
fn stage_vcl(dir: &Path) -> Result<PathBuf> {
    for (from, extension) in [("vcl", "vcl"), ("tests", "sh")] {
        let staged = dir.join(from);
        std::fs::create_dir(&staged)?;
        for entry in std::fs::read_dir(artefacts::workspace().join(from))? {
            let path = entry?.path();
            if path.extension().is_some_and(|found| found == extension) {
                artefacts::stage(&path, &staged)?;
            }
        }
    }
    Ok(dir.join("vcl"))
}

/// The reason in varnishtest's log for a test that it skipped.
pub fn skip_reason(log: &str) -> String {
    let line = log.lines().find(|line| line.contains("SKIPPING test"));
    line.map_or("no reason given", |l| l.rsplit("SKIPPING test, ").next().unwrap_or(l)).to_owned()
}

/// The vtc files in `dir`, in order.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "vtc") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Every way to reach `h2o`, and its access log.
fn h2o_macros(h2o: &H2o) -> [(&'static str, String); 7] {
    [
        ("h2o_addr", h2o.address().ip().to_string()),
        ("h2o_port", h2o.address().port().to_string()),
        ("h2o_path", h2o.socket().display().to_string()),
        ("h2o_proxy_addr", h2o.proxy_address().ip().to_string()),
        ("h2o_proxy_port", h2o.proxy_address().port().to_string()),
        ("h2o_proxy_path", h2o.proxy_socket().display().to_string()),
        ("h2o_log", h2o.access_log().display().to_string()),
    ]
}

/// An H2O with a file of each of [`site::SIZES`] as `/<size>`.
fn serve_site(dir: &Path) -> Result<H2o> {
    let root = dir.join("site");
    std::fs::create_dir(&root)?;
    for size in site::SIZES {
        site::write(&root, &size.to_string(), size as u64, size)?;
    }
    H2o::start(dir, &root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_defaults_to_every_arrangement() {
        let header = Header::parse("varnishtest \"x\"\nserver s1 {} -start\n").expect("no directive");
        assert_eq!(header.arrangements, Arrangement::ALL);
        assert!(!header.needs_h2o);
    }

    #[test]
    fn header_directives_are_read() {
        let header = Header::parse("# arrangements: daemon embedded\n# needs: h2o\n").expect("good");
        assert_eq!(header.arrangements, [Arrangement::Daemon, Arrangement::Embedded]);
        assert!(header.needs_h2o);
    }

    #[test]
    fn unknown_directives_are_errors() {
        assert!(Header::parse("# arrangements: mallock\n").is_err());
        assert!(Header::parse("# needs: nginx\n").is_err());
    }

    #[test]
    fn skip_reason_is_the_text_behind_the_comma() {
        let log = "**   top   === feature x\n*    top   SKIPPING test, lacking feature: ipv6\n";
        assert_eq!(skip_reason(log), "lacking feature: ipv6");
    }
}
