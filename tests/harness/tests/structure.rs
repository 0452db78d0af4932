//! The structure that DESIGN.md and CONTRIBUTING.md promise is the structure that the sources have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use objmapper_harness::artefacts;

/// Prefixes of names of varnishd's functions, macros and constants.
const PREFIXES: [&str; 26] = [
    "VRT_", "HSH_", "BAN_", "OC_F_", "OBJ_", "OEV_", "BOS_", "VDP_", "VFP_", "VSL_", "VSLb", "EXP_", "STV_", "ObjGet",
    "WS_", "OF_", "OA_", "LRU_", "MCF_", "Pool_", "WRK_", "VCL_", "BO_", "SLT_", "HTTP_", "V1L_",
];

/// The crates of the workspace that varnishd loads or a store consists of, with their folders.
fn crates() -> Result<BTreeMap<String, PathBuf>> {
    let root = artefacts::workspace();
    let manifest = std::fs::read_to_string(root.join("Cargo.toml"))?;
    let members = manifest.lines().find(|line| line.starts_with("members")).context("Cargo.toml has no members")?;
    let folders = members.split('"').skip(1).step_by(2).filter(|name| !name.contains('/') && *name != "bench");
    Ok(folders.map(|name| (name.to_owned(), root.join(name))).collect())
}

/// The crates of the workspace that a crate's programs and libraries are made of, from its Cargo.toml.
fn dependencies(folder: &Path, known: &BTreeMap<String, PathBuf>) -> Result<BTreeSet<String>> {
    let path = folder.join("Cargo.toml");
    let manifest = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut section = "";
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if section == "[dependencies]" && known.contains_key(name) {
            found.insert(name.to_owned());
        }
    }
    Ok(found)
}

/// The words in backticks of a table's cell.
fn names_in(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_crates_depend_on_each_other_as_the_design_says() -> Result<()> {
    let known = crates()?;
    let design = std::fs::read_to_string(artefacts::workspace().join("DESIGN.md"))?;
    let table = design.split("| crate | is made of |").nth(1).context("DESIGN.md has no table of crates")?;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut said = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').collect();
        let name = names_in(cells.get(1).copied().unwrap_or_default()).pop_first().context(row.to_owned())?;
        said.insert(name, names_in(cells.get(2).copied().unwrap_or_default()));
    }
    for (name, folder) in &known {
        let dependencies = dependencies(folder, &known)?;
        let named = said.remove(name).unwrap_or_default();
        ensure!(
            named == dependencies,
            "DESIGN.md says that {name} is made of {named:?}, but it is of {dependencies:?}"
        );
    }
    ensure!(said.is_empty(), "DESIGN.md names crates that are not in the workspace: {said:?}");
    Ok(())
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn nothing_above_the_crate_varnishd_names_what_is_varnishds() -> Result<()> {
    let mut files = vec![artefacts::workspace().join("build.rs")];
    for (name, folder) in crates()? {
        if !name.starts_with("varnishd") {
            sources(&folder, &mut files)?;
        }
    }
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            if words.any(|word| word == "varnishd_sys" || PREFIXES.iter().any(|prefix| word.starts_with(prefix))) {
                found.push(format!("{}:{}: {}", file.display(), index + 1, line.trim()));
            }
        }
    }
    ensure!(
        found.is_empty(),
        "only the crates varnishd and varnishd-sys name what is varnishd's (DESIGN.md, \"Processes and crates\"): give it a \
         name there, or cite the file of Varnish's instead of the function:\n{}",
        found.join("\n")
    );
    Ok(())
}
