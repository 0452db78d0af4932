//! Gets the product's own test files from its package's source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::product::Product;
use crate::vtc;

/// The release of Debian whose Varnish we test with.
const RELEASE: &str = "trixie";

/// The test files of the installed Varnish's version.
#[derive(Debug)]
pub struct Source {
    /// The product and version that the tests run, `varnish 7.7.0`.
    pub version: String,
    /// The vtc files, in order.
    pub files: Vec<PathBuf>,
}

/// Downloads and unpacks them below `work`, unless that was done before.
pub fn obtain(work: &Path) -> Result<Source> {
    let product = Product::get()?;
    let root = work.join(format!("{}-{}", product.package(), product.version));
    let tests = root.join(product.test_directory());
    if !tests.is_dir() {
        fs::create_dir_all(work)?;
        let tarball = download(work, product)?;
        unpack(&tarball, work, product)?;
    }
    let files = vtc::files(&tests)?;
    if files.is_empty() {
        bail!("no vtc file in {}", tests.display());
    }
    Ok(Source { version: format!("{} {}", product.name, product.version), files })
}

/// The upstream tarball in `work`, by the package manager.
fn download(work: &Path, product: &Product) -> Result<PathBuf> {
    let (package, version) = (product.package(), &product.version);
    let tarball = work.join(format!("{package}_{version}.orig.tar.xz"));
    if tarball.is_file() {
        return Ok(tarball);
    }
    // With a configuration of apt's that is not the system's, the sources are in it.
    let own = std::env::var_os("APT_CONFIG").is_some();
    let wanted = if own { package.to_owned() } else { format!("{package}/{RELEASE}") };
    for attempt in 0..2 {
        if attempt == 1 {
            if own {
                break;
            }
            add_source_packages()?;
        }
        println!("apt-get source --download-only {wanted}");
        let output = Command::new("apt-get")
            .args(["source", "-qq", "--download-only", &wanted])
            .current_dir(work)
            .stdin(Stdio::null())
            .output()?;
        // An error about another file of the package (a mirror without the .dsc) does not matter: the tarball does.
        if tarball.is_file() {
            return Ok(tarball);
        }
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    bail!("the package manager does not give the source of {package} {version}: is a deb-src of {RELEASE} configured?")
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

fn unpack(tarball: &Path, work: &Path, product: &Product) -> Result<()> {
    let tests = format!("{}-{}/{}", product.package(), product.version, product.test_directory());
    let status = Command::new("tar").arg("xJf").arg(tarball).arg("-C").arg(work).arg(tests).status();
    let status = status.context("cannot run tar")?;
    if !status.success() {
        bail!("cannot unpack {}: {status}", tarball.display());
    }
    Ok(())
}
