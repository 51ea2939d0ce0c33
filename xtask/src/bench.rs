//! Measures against peers. The programs that do it live in `benches/`.

use std::ffi::OsStr;

use crate::Result;
use crate::shell::{check, command, target};
use crate::{demo, release, setup};

const AREAS: [&str; 5] = ["ext4", "cache", "delta", "launch", "net"];

/// `all`: every area, and at last what was to be reached and what was.
pub(crate) fn run(area: &str, rest: &[String]) -> Result<()> {
    if area == "all" {
        for area in AREAS {
            println!("\n== {area}");
            run(area, rest)?;
        }
        println!("\n== to reach");
        return program(&["summary"], &[target().join("bench").as_os_str()]);
    }
    let words: &[&str] = match area {
        "ext4" => &[],
        "cache" => &["cache"],
        "delta" => &["delta"],
        "launch" => &["launch"],
        "net" => &["net"],
        _ => {
            let known = AREAS.join(", ");
            return Err(format!("no such area: {area} (all, {known})"));
        }
    };
    setup::run()?;
    let fcpipe = release::build(&["fcpipe", "fcpipe-fake-firecracker"])?.join("fcpipe");
    let path = release::words(&fcpipe)?;
    if area != "ext4" {
        demo::import_kernel(path)?;
    }
    if area == "net" {
        net_without_a_machine()?;
    }
    let mut arguments = vec![fcpipe.as_os_str()];
    arguments.extend(rest.iter().map(OsStr::new));
    program(words, &arguments)
}

/// Runs the measuring program.
fn program(words: &[&str], arguments: &[&OsStr]) -> Result<()> {
    let cargo = [
        "run",
        "--release",
        "--quiet",
        "--manifest-path",
        "benches/Cargo.toml",
        "--bin",
        "bench-ext4",
        "--",
    ];
    check(command("cargo", &cargo).args(words).args(arguments))
}

/// What is measured of the library: a machine would only blur it.
fn net_without_a_machine() -> Result<()> {
    let dir = target().join("bench/net");
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let program = [
        "run",
        "--release",
        "--quiet",
        "--package",
        "fcpipe-net",
        "--example",
        "measure",
        "--",
    ];
    check(command("cargo", &program).arg(dir.join("redirect.json")))
}
