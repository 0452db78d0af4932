//! The lists beside the runner: tests that cannot apply, and words that a test must not depend on.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

/// What `tests/conformance/` says about Varnish's tests.
#[derive(Debug, Default)]
pub struct Lists {
    /// Test name (without `.vtc`) to the reason why it cannot apply.
    pub excluded: BTreeMap<String, String>,
    /// Test name to a text in it, what takes its place, and the reason.
    pub adapted: BTreeMap<String, Adaptation>,
}

/// One text replaced in one test, because it names malloc where it means "the default storage".
#[derive(Debug)]
pub struct Adaptation {
    /// The text in Varnish's file.
    pub from: String,
    /// What stands there for us.
    pub to: String,
    /// Why that leaves the test's meaning as it is.
    pub reason: String,
}

impl Lists {
    /// Reads `excluded.txt` (`name: reason`) and `adapted.txt` (`name: from => to: reason`) in `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut lists = Self::default();
        for (name, rest) in entries(&dir.join("excluded.txt"))? {
            lists.excluded.insert(name, rest);
        }
        for (name, rest) in entries(&dir.join("adapted.txt"))? {
            let entry = adaptation(&rest).with_context(|| format!("adapted.txt, {name}"))?;
            lists.adapted.insert(name, entry);
        }
        Ok(lists)
    }
}

fn adaptation(rest: &str) -> Option<Adaptation> {
    let (from, rest) = rest.split_once(" => ")?;
    let (to, reason) = rest.split_once(": ")?;
    Some(Adaptation { from: from.to_owned(), to: to.to_owned(), reason: reason.to_owned() })
}

fn entries(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, rest) =
                line.split_once(": ").with_context(|| format!("{}: no reason in {line:?}", path.display()))?;
            Ok((name.to_owned(), rest.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_in_the_repository_are_readable() {
        let dir = crate::artefacts::workspace().join("tests/conformance");
        let lists = Lists::read(&dir).expect("lists");
        assert!(lists.excluded.values().all(|reason| !reason.is_empty()));
    }

    #[test]
    fn an_adaptation_has_three_parts() {
        let a = adaptation("(malloc|umem) => (malloc|umem|objmapper): it names the storage").expect("parts");
        assert_eq!((a.from.as_str(), a.to.as_str()), ("(malloc|umem)", "(malloc|umem|objmapper)"));
        assert!(adaptation("only => two").is_none());
    }
}
