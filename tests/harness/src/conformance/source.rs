//! Gets Varnish's test files from the package's source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::vtc;

/// The release whose Varnish we test with.
const RELEASE: &str = "trixie";

/// The test files of the installed Varnish's version.
#[derive(Debug)]
pub struct Source {
    /// The version of the installed varnishd, `7.7.0`.
    pub version: String,
    /// The vtc files, in order.
    pub files: Vec<PathBuf>,
}

/// Downloads and unpacks them below `work`, unless that was done before.
pub fn obtain(work: &Path) -> Result<Source> {
    let version = installed_version()?;
    let root = work.join(format!("varnish-{version}"));
    let tests = root.join("bin/varnishtest/tests");
    if !tests.is_dir() {
        fs::create_dir_all(work)?;
        let tarball = download(work, &version)?;
        unpack(&tarball, work, &version)?;
    }
    let files = vtc::files(&tests)?;
    if files.is_empty() {
        bail!("no vtc file in {}", tests.display());
    }
    Ok(Source { version, files })
}

fn installed_version() -> Result<String> {
    let output = Command::new("varnishd").arg("-V").output().context("varnishd is not installed")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let rest = text.split("varnish-").nth(1).with_context(|| format!("unreadable version: {text}"))?;
    Ok(rest.split_whitespace().next().unwrap_or(rest).to_owned())
}

/// The upstream tarball in `work`, by the package manager.
fn download(work: &Path, version: &str) -> Result<PathBuf> {
    let tarball = work.join(format!("varnish_{version}.orig.tar.xz"));
    if tarball.is_file() {
        return Ok(tarball);
    }
    for attempt in 0..2 {
        if attempt == 1 {
            add_source_packages()?;
        }
        println!("apt-get source --download-only varnish/{RELEASE}");
        let output = Command::new("apt-get")
            .args(["source", "-qq", "--download-only", &format!("varnish/{RELEASE}")])
            .current_dir(work)
            .stdin(Stdio::null())
            .output()?;
        // An error about another file of the package (a mirror without the .dsc) does not matter: the tarball does.
        if tarball.is_file() {
            return Ok(tarball);
        }
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    bail!("the package manager does not give the source of Varnish {version}: is a deb-src of {RELEASE} configured?")
}

/// Makes this system's own archive a source of source packages too.
fn add_source_packages() -> Result<()> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let site = text
        .lines()
        .find_map(|line| line.strip_suffix(&format!(" {RELEASE} main")))
        .with_context(|| format!("no archive of {RELEASE} is configured"))?;
    let list = format!("/etc/apt/sources.list.d/objmapper-{RELEASE}-src.sources");
    println!("adding the archive's source packages in {list}");
    let entry = format!(
        "Types: deb-src\nURIs: {site}\nSuites: {RELEASE}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    let script = "cat > \"$0\" && apt-get -qq update";
    let mut command = match nix::unistd::geteuid().is_root() {
        true => Command::new("sh"),
        false => {
            let mut sudo = Command::new("sudo");
            sudo.arg("sh");
            sudo
        }
    };
    let mut child = command.args(["-c", script, &list]).stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        std::io::Write::write_all(&mut stdin, entry.as_bytes())?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("cannot add {list}: {status}");
    }
    Ok(())
}

fn unpack(tarball: &Path, work: &Path, version: &str) -> Result<()> {
    let status = Command::new("tar")
        .arg("xJf")
        .arg(tarball)
        .arg("-C")
        .arg(work)
        .arg(format!("varnish-{version}/bin/varnishtest/tests"))
        .status()
        .context("cannot run tar")?;
    if !status.success() {
        bail!("cannot unpack {}: {status}", tarball.display());
    }
    Ok(())
}
