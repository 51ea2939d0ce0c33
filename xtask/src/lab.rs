//! The lab: an outer virtual machine with an ordinary KVM in it, where the tests run with a real Firecracker.
//!
//! Few build hosts have a KVM that runs guests; but QEMU's translator emulates a processor with SVM (`-cpu max`), so a kernel in it has
//! `/dev/kvm`. Inside are a Debian root, the program, its tests, and the Firecracker that was named; all of it in an ext4
//! image that fcpipe compiles from a spec with that many mounts. Paths inside are those outside, because test binaries
//! remember theirs.

mod image;
mod machine;
mod results;

use std::path::{Path, PathBuf};

use crate::Result;
use crate::setup;
use crate::shell::target;

/// Names the Firecracker where no argument does; the program itself looks there too.
const VARIABLE: &str = "FCPIPE_FIRECRACKER";
const JAILER_VARIABLE: &str = "FCPIPE_JAILER";

/// What runs in it.
pub(crate) struct Wanted {
    pub(crate) firecracker: Option<PathBuf>,
    pub(crate) jailer: Option<PathBuf>,
    /// Build with optimization: for figures.
    pub(crate) release: bool,
    /// A shell command instead of the tests.
    pub(crate) command: Option<String>,
    /// Arguments of the test binary: names of tests.
    pub(crate) arguments: Vec<String>,
}

pub(crate) fn run(wanted: Wanted) -> Result<()> {
    let named = |given: Option<PathBuf>, variable: &str| {
        given.or_else(|| std::env::var_os(variable).map(PathBuf::from))
    };
    let Some(firecracker) = named(wanted.firecracker, VARIABLE) else {
        println!("skipped: no Firecracker is named (--firecracker FILE, or {VARIABLE})");
        return Ok(());
    };
    let jailer = named(wanted.jailer, JAILER_VARIABLE);
    for file in [Some(&firecracker), jailer.as_ref()].into_iter().flatten() {
        if !file.is_file() {
            return Err(format!("{}: no such file", file.display()));
        }
    }
    setup::run()?;
    let dir = dir();
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let script = script(&wanted.command, &wanted.arguments, jailer.is_some());
    let made = image::make(
        &dir,
        &firecracker,
        jailer.as_deref(),
        wanted.release,
        &script,
    )?;
    match machine::run(&dir, &made)? {
        0 => Ok(()),
        code => Err(format!("the lab's command ended with {code}")),
    }
}

fn dir() -> PathBuf {
    target().join("lab")
}

/// What the outer machine runs: by default what the API answers, and all end-to-end tests; then in jails those that boot most.
fn script(command: &Option<String>, arguments: &[String], jailed: bool) -> String {
    if let Some(command) = command {
        return command.clone();
    }
    let names: Vec<String> = arguments.iter().map(|name| quoted(name)).collect();
    let names = names.join(" ");
    let mut script = format!(
        "fcpipe doctor; \"$LAB_TRANSCRIPT\" needs_firecracker {TESTS}; code=$?; \
         \"$LAB_E2E\" {TESTS} {names} || code=$?; "
    );
    if jailed {
        let names = match names.as_str() {
            "" => JAILED,
            names => names,
        };
        script.push_str(&format!(
            "echo 'lab: in jails'; export FCPIPE_JAILER=\"$LAB_JAILER\"; \
             \"$LAB_E2E\" {TESTS} {names} || code=$?; "
        ));
    }
    script + "exit $code"
}

/// One machine at a time, and what the summary is made of.
const TESTS: &str = "--test-threads=1 --show-output --color=never";

/// Tests to run in jails where none are named.
const JAILED: &str = "firecracker::real process:: cleanup::";

/// For a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// As text, for scripts and specs.
fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| format!("{}: not UTF-8", path.display()))
}
