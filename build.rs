//! The one build script of everything that varnishd loads: finds Varnish or Vinyl Cache by pkg-config, refuses a release that
//! is not known, and tells cargo what depends on it.
//!
//! It is compiled as the library `objmapper-build`, which the `build.rs` of each crate calls. [`BRANCHES`] is the only place
//! that names branches: code asks for a capability, and only in `varnishd-sys`.
//!
//! The programs take [`emit_version`] from it, and need no Varnish.

use std::fmt;
use std::path::PathBuf;

#[path = "objmapper-build/src/version.rs"]
mod version;

pub use version::emit_version;

/// A branch of Varnish whose private structures `varnishd-sys` declares.
#[derive(Debug, PartialEq, Eq)]
pub struct Branch {
    /// The name that its `VMOD_ABI_Version` begins with.
    pub product: &'static str,
    /// What its `VCS_String("T")` returns.
    pub tarname: &'static str,
    /// Major and minor version.
    pub version: (u32, u32),
    /// What it has that 7.7 has not; a subset of [`CAPABILITIES`].
    pub capabilities: &'static [&'static str],
}

/// Every branch that can be built for.
pub const BRANCHES: &[Branch] = &[
    Branch { product: "Varnish", tarname: "varnish", version: (7, 7), capabilities: &[] },
    Branch {
        product: "Varnish",
        tarname: "varnish",
        version: (8, 0),
        capabilities: &["hdr_t", "hsh_withdraw", "strands_magic", "vai", "vsc_allocv"],
    },
    Branch {
        product: "Vinyl Cache",
        tarname: "vinyl-cache",
        version: (9, 0),
        capabilities: &["hdr_t", "hsh_withdraw", "strands_magic", "vai", "vsc_allocv", "vsl_alloc"],
    },
];

/// What a branch may have: the values of `cfg(varnishd_has)`.
///
/// | capability | |
/// |---|---|
/// | `hdr_t` | names of headers (`H_Date`) are pointers, not arrays |
/// | `hsh_withdraw` | a function of its own takes a busy object back, the one that gives a reference back does not say how many requests to wake, and an object of an earlier process is not entered as a busy one |
/// | `strands_magic` | `struct strands` begins with a magic number |
/// | `vai` | `struct obj_methods` ends with `vai_init`, `struct vdp` with four `io_*` |
/// | `vsc_allocv` | the function that makes counters is variadic, and another one takes the `va_list` |
/// | `vsl_alloc` | a function makes a log with memory of its own |
pub const CAPABILITIES: &[&str] = &["hdr_t", "hsh_withdraw", "strands_magic", "vai", "vsc_allocv", "vsl_alloc"];

/// The pkg-config modules that may name it. Debian's Vinyl Cache has both names for the same file.
const MODULES: &[&str] = &["varnishapi", "vinylapi"];

/// Chooses among [`MODULES`] where both a Varnish and a Vinyl Cache are installed.
const CHOICE: &str = "OBJMAPPER_VARNISH_API";

/// A Varnish or Vinyl Cache that was found and is supported.
#[derive(Debug, Clone)]
pub struct Varnish {
    /// The pkg-config module that names it.
    pub module: &'static str,
    /// The version in its headers, for example `7.7.0`.
    pub version: String,
    /// Where its headers are.
    pub include_paths: Vec<PathBuf>,
    /// Its branch.
    pub branch: &'static Branch,
    /// The header that names its version.
    abi_header: PathBuf,
}

impl Varnish {
    /// The arguments that let a C compiler (or libclang) find the headers.
    pub fn include_args(&self) -> Vec<String> {
        self.include_paths.iter().map(|p| format!("-I{}", p.display())).collect()
    }

    /// Product and version, for example `Varnish 7.7.0`.
    pub fn name(&self) -> String {
        format!("{} {}", self.branch.product, self.version)
    }

    /// Tells cargo the name as the environment variable `VARNISH_NAME`, and when to run again.
    pub fn emit(&self) {
        println!("cargo::rustc-env=VARNISH_NAME={}", self.name());
        println!("cargo::rerun-if-changed={}", self.abi_header.display());
        for name in ["PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR", "PKG_CONFIG_SYSROOT_DIR", CHOICE] {
            println!("cargo::rerun-if-env-changed={name}");
        }
    }

    /// Tells cargo what the branch can do, as `cfg(varnishd_has = "…")`, and the product's name in its own programs as the
    /// environment variable `VARNISH_TARNAME`. For `varnishd-sys` only: what is above it sees one interface.
    pub fn emit_capabilities(&self) {
        let known: Vec<String> = CAPABILITIES.iter().map(|name| format!("\"{name}\"")).collect();
        println!("cargo::rustc-check-cfg=cfg(varnishd_has, values({}))", known.join(", "));
        for name in self.branch.capabilities {
            println!("cargo::rustc-cfg=varnishd_has=\"{name}\"");
        }
        println!("cargo::rustc-env=VARNISH_TARNAME={}", self.branch.tarname);
    }
}

/// Why there is nothing to build for.
#[derive(Debug)]
pub enum Error {
    /// pkg-config knows neither of the two modules.
    NotFound(String),
    /// Varnish and Vinyl Cache are both installed.
    Ambiguous(Vec<String>),
    /// There is one, but not of a supported branch.
    Unsupported(String),
    /// Its headers cannot be read.
    Headers(String),
}

impl Error {
    /// Shows the error as cargo shows errors of build scripts, and ends the build.
    pub fn exit(&self) -> ! {
        println!("cargo::error={self}");
        std::process::exit(1)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<String> =
            BRANCHES.iter().map(|b| format!("{} {}.{}", b.product, b.version.0, b.version.1)).collect();
        let known = known.join(", ");
        match self {
            Error::NotFound(why) => write!(
                f,
                "pkg-config finds neither Varnish (module 'varnishapi') nor Vinyl Cache ('vinylapi'): {why}. Install one of \
                 {known} with its headers (Debian: libvarnishapi-dev or libvinylapi-dev, see scripts/setup.sh) or set \
                 PKG_CONFIG_PATH"
            ),
            Error::Ambiguous(found) => write!(
                f,
                "there are {}: set {CHOICE} to the pkg-config module of the one to build for ({})",
                found.join(" and "),
                MODULES.join(" or ")
            ),
            Error::Unsupported(found) => write!(
                f,
                "{found} is not supported: a storage engine depends on varnishd's private structures, which are \
                 declared here for {known} only. Install one of those, or add the branch (DESIGN.md, \"Add a Varnish branch\")"
            ),
            Error::Headers(why) => write!(
                f,
                "the headers that pkg-config names are not those of a Varnish or Vinyl Cache: {why}. Install its development \
                 package again, or set PKG_CONFIG_PATH to the right one"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Finds the installed Varnish or Vinyl Cache.
pub fn find_varnish() -> Result<Varnish, Error> {
    let chosen = std::env::var(CHOICE).unwrap_or_default();
    let mut found: Vec<Varnish> = Vec::new();
    let mut failures = Vec::new();
    for module in MODULES.iter().copied().filter(|module| chosen.is_empty() || chosen == *module) {
        match pkg_config::Config::new().cargo_metadata(false).probe(module) {
            Ok(library) => {
                let varnish = read(module, library)?;
                if found.iter().all(|other| other.abi_header != varnish.abi_header) {
                    found.push(varnish);
                }
            }
            Err(error) => failures.push(first_line(&error.to_string())),
        }
    }
    match found.pop() {
        None if failures.is_empty() => Err(Error::NotFound(format!("{CHOICE}={chosen} is neither of them"))),
        None => Err(Error::NotFound(failures.join("; "))),
        Some(varnish) if found.is_empty() => Ok(varnish),
        Some(varnish) => {
            found.push(varnish);
            Err(Error::Ambiguous(found.iter().map(Varnish::name).collect()))
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// What the headers say: pkg-config's version has no product, and may be that of another package than the headers.
fn read(module: &'static str, library: pkg_config::Library) -> Result<Varnish, Error> {
    let abi_header = library.include_paths.iter().map(|path| path.join("vmod_abi.h")).find(|path| path.is_file());
    let Some(abi_header) = abi_header else {
        return Err(Error::Headers(format!("there is no vmod_abi.h in {:?}", library.include_paths)));
    };
    let text = std::fs::read_to_string(&abi_header)
        .map_err(|error| Error::Headers(format!("{}: {error}", abi_header.display())))?;
    let abi = abi_version(&text)
        .ok_or_else(|| Error::Headers(format!("{} defines no VMOD_ABI_Version", abi_header.display())))?;
    if abi.version != library.version {
        return Err(Error::Headers(format!(
            "pkg-config says {module} {}, but {} is of {} {}",
            library.version,
            abi_header.display(),
            abi.product,
            abi.version
        )));
    }
    let mut parts = abi.version.split('.').map_while(|part| part.parse::<u32>().ok());
    let version = (parts.next(), parts.next());
    let branch =
        BRANCHES.iter().find(|b| b.product == abi.product && (Some(b.version.0), Some(b.version.1)) == version);
    let Some(branch) = branch else {
        return Err(Error::Unsupported(format!("{} {}", abi.product, abi.version)));
    };
    Ok(Varnish {
        module,
        version: abi.version.to_owned(),
        include_paths: library.include_paths.clone(),
        branch,
        abi_header,
    })
}

/// The words of `VMOD_ABI_Version`: `Vinyl Cache 9.0.1 423648c…`.
#[derive(Debug, PartialEq, Eq)]
struct AbiVersion<'a> {
    product: &'a str,
    version: &'a str,
}

fn abi_version(header: &str) -> Option<AbiVersion<'_>> {
    let line = header.lines().find_map(|line| line.strip_prefix("#define VMOD_ABI_Version"))?;
    let mut words = line.trim().trim_matches('"').rsplitn(3, ' ');
    let (_revision, version, product) = (words.next()?, words.next()?, words.next()?);
    Some(AbiVersion { product, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_and_version_are_in_the_header() {
        let of = |text| abi_version(text).map(|abi| (abi.product, abi.version));
        assert_eq!(of("#define VMOD_ABI_Version \"Varnish 7.7.0 71fc9d2\"\n"), Some(("Varnish", "7.7.0")));
        let vinyl =
            "/* */\n#define VMOD_ABI_Version \"Vinyl Cache 9.0.1 423648c\"\n#define VMOD_Debian_Version \"9.0.1-4\"\n";
        assert_eq!(of(vinyl), Some(("Vinyl Cache", "9.0.1")));
        assert_eq!(of("#define VMOD_ABI_Version \"NOGIT\"\n"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn branches_have_known_capabilities_only() {
        for branch in BRANCHES {
            for name in branch.capabilities {
                assert!(CAPABILITIES.contains(name), "{name} of {branch:?}");
            }
        }
    }

    #[test]
    fn errors_name_the_branches_and_the_remedy() {
        let text = Error::Unsupported("Varnish 7.6.1".to_owned()).to_string();
        for part in ["Varnish 7.6.1", "Varnish 7.7, Varnish 8.0, Vinyl Cache 9.0", "DESIGN.md"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
