//! The house rules as a check: which crate may know which, who prints, what stands at the top, and
//! that every crate begins with a page about itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::Result;
use crate::rows;
use crate::shell::{command, output, root};

/// Crate → the crates of the project it may depend on. This table is docs/architecture.md's code map
/// in another form; an edge that is not here does not exist.
const EDGES: &[(&str, &[&str])] = &[
    (
        "fcpipe",
        &[
            "fcpipe-engine",
            "fcpipe-kernel",
            "fcpipe-launch",
            "fcpipe-proto",
            "fcpipe-spec",
            "fcpipe-supervisor",
            "fcpipe-vmm",
        ],
    ),
    (
        "fcpipe-supervisor",
        &[
            "fcpipe-engine",
            "fcpipe-kernel",
            "fcpipe-launch",
            "fcpipe-proto",
            "fcpipe-spec",
            "fcpipe-vmm",
        ],
    ),
    (
        "fcpipe-launch",
        &[
            "fcpipe-disk",
            "fcpipe-engine",
            "fcpipe-ext4",
            "fcpipe-kernel",
            "fcpipe-net",
            "fcpipe-proto",
            "fcpipe-spec",
            "fcpipe-tree",
            "fcpipe-vmm",
        ],
    ),
    ("fcpipe-engine", &["fcpipe-sparse"]),
    ("fcpipe-spec", &[]),
    ("fcpipe-sparse", &[]),
    ("fcpipe-tree", &["fcpipe-sparse", "fcpipe-spec"]),
    ("fcpipe-ext4", &["fcpipe-sparse", "fcpipe-tree"]),
    (
        "fcpipe-disk",
        &["fcpipe-ext4", "fcpipe-sparse", "fcpipe-tree"],
    ),
    ("fcpipe-kernel", &[]),
    ("fcpipe-net", &[]),
    ("fcpipe-vmm", &["fcpipe-proto"]),
    ("fcpipe-guest", &["fcpipe-proto"]),
    ("fcpipe-proto", &[]),
    ("fcpipe-fake-firecracker", &["fcpipe-proto"]),
    ("fcpipe-treegen", &["fcpipe-tree"]),
    ("fcpipe-probe", &[]),
    ("fcpipe-benches", &[]),
    ("xtask", &[]),
];

/// Crates that speak to people; everything else returns values.
const PRINTERS: &[&str] = &["fixtures/probe", "pipeline/cli", "stages/guest", "xtask"];

/// What stands at the top level.
const TOP: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "clippy.toml",
    "deny.toml",
    "docs",
    "fixtures",
    "pipeline",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "stages",
    "xtask",
];

/// Lines of `//!` a crate's first file has at least.
const PAGE: usize = 5;

pub(crate) fn run() -> Result<()> {
    let mut faults = Vec::new();
    edges(&mut faults)?;
    let files = files()?;
    top_level(&files, &mut faults);
    rows::check(&files, &mut faults)?;
    for file in files.iter().filter(|file| file.ends_with(".rs")) {
        let text = fs::read_to_string(root().join(file)).map_err(|e| format!("{file}: {e}"))?;
        prints(file, &text, &mut faults);
        page(file, &text, &mut faults);
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(format!("tidy:\n  {}", faults.join("\n  ")))
}

/// What git tracks, and what it would if it were added.
pub(crate) fn files() -> Result<Vec<String>> {
    let files = output(&mut command(
        "git",
        &["ls-files", "--cached", "--others", "--exclude-standard"],
    ))?;
    let there = |file: &&str| root().join(file).is_file();
    Ok(files.lines().filter(there).map(str::to_owned).collect())
}

fn edges(faults: &mut Vec<String>) -> Result<()> {
    let metadata = output(&mut command(
        "cargo",
        &["metadata", "--format-version=1", "--no-deps", "--offline"],
    ))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).map_err(|e| e.to_string())?;
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(may) = allowed.get(name) else {
            faults.push(format!(
                "{name}: a crate that the table of edges does not have"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            let ours = !dependency["path"].is_null();
            // What only tests use is no edge of the program.
            if ours && dependency["kind"] != "dev" && !may.contains(&on) {
                faults.push(format!("{name} must not depend on {on}"));
            }
        }
    }
    Ok(())
}

fn top_level(files: &[String], faults: &mut Vec<String>) {
    for file in files {
        let top = file.split('/').next().unwrap_or(file);
        if !TOP.contains(&top) {
            faults.push(format!("{top}: has no place at the top level"));
        }
    }
}

fn prints(file: &str, text: &str, faults: &mut Vec<String>) {
    let quiet = (file.starts_with("pipeline/") || file.starts_with("stages/"))
        && !PRINTERS.iter().any(|dir| Path::new(file).starts_with(dir))
        // A build script speaks to cargo.
        && !file.ends_with("/build.rs")
        && !file.contains("/tests/")
        && !file.ends_with("/tests.rs")
        && !file.contains("/examples/")
        && !file.contains("/fuzz/");
    if !quiet {
        return;
    }
    // Tests beside the code may print what they skipped.
    let code = text.split("#[cfg(test)]").next().unwrap_or(text);
    for (number, line) in code.lines().enumerate() {
        let line = line.trim_start();
        let says = ["println!", "eprintln!", "print!", "eprint!"]
            .iter()
            .any(|word| line.starts_with(word));
        if says {
            faults.push(format!("{file}:{}: a library must not print", number + 1));
        }
    }
}

fn page(file: &str, text: &str, faults: &mut Vec<String>) {
    // The page is in the library's first file, or in the program's if there is no library.
    let first = match file.strip_suffix("src/main.rs") {
        Some(dir) => !root().join(dir).join("src/lib.rs").is_file(),
        None => file.ends_with("src/lib.rs"),
    };
    if !first {
        return;
    }
    let lines = text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .count();
    if lines < PAGE {
        faults.push(format!(
            "{file}: begins with {lines} lines of //!, not with a page about the crate"
        ));
    }
}

#[cfg(test)]
mod tests {
    /// `cargo test` alone says it too.
    #[test]
    fn the_tree_is_tidy() {
        if let Err(faults) = super::run() {
            panic!("{faults}");
        }
    }
}
