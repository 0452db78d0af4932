//! Which product and version the tests run: whatever `varnishd` is the first in PATH.

use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};

/// Varnish or Vinyl Cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// Its name in its own programs: `varnish`, `vinyl-cache`.
    pub name: String,
    /// For example `7.7.0`.
    pub version: String,
}

impl Product {
    /// The one that the tests run.
    pub fn get() -> Result<&'static Product> {
        static PRODUCT: OnceLock<Result<Product, String>> = OnceLock::new();
        PRODUCT.get_or_init(|| ask().map_err(|error| format!("{error:#}"))).as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Of what `varnishd -V` prints: `varnishd (varnish-7.7.0 revision 71fc9d2…)`.
    fn parse(text: &str) -> Option<Product> {
        let name_and_version = text.split('(').nth(1)?.split(' ').next()?;
        let (name, version) = name_and_version.rsplit_once('-')?;
        Some(Product { name: name.to_owned(), version: version.to_owned() })
    }

    /// Returns true if it is Vinyl Cache.
    pub fn is_vinyl(&self) -> bool {
        self.name == "vinyl-cache"
    }

    /// The response header with the numbers of the request and of the one that fetched the object.
    pub fn xid_header(&self) -> &'static str {
        if self.is_vinyl() { "X-Vinyl" } else { "X-Varnish" }
    }

    /// The name of the source package, whose tarball unpacks to `<this>-<version>`.
    pub fn package(&self) -> &str {
        &self.name
    }

    /// Where in the source the product's own test files are.
    pub fn test_directory(&self) -> &'static str {
        if self.is_vinyl() { "bin/vinyltest/tests" } else { "bin/varnishtest/tests" }
    }
}

fn ask() -> Result<Product> {
    let output = Command::new("varnishd").arg("-V").output().context("varnishd is not installed")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Product::parse(&text).with_context(|| format!("unreadable version of varnishd: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_in_what_varnishd_prints() {
        let varnish = Product::parse("varnishd (varnish-7.7.0 revision 71fc9d2)\nCopyright").expect("good");
        assert_eq!((varnish.name.as_str(), varnish.version.as_str()), ("varnish", "7.7.0"));
        assert_eq!(varnish.xid_header(), "X-Varnish");
        let vinyl = Product::parse("vinyld (vinyl-cache-9.0.1 revision 423648c)\nCopyright").expect("good");
        assert_eq!((vinyl.name.as_str(), vinyl.version.as_str()), ("vinyl-cache", "9.0.1"));
        assert_eq!(vinyl.xid_header(), "X-Vinyl");
        assert_eq!(Product::parse("sh: varnishd: not found"), None);
    }
}
