//! Measures against peers. The programs that do it live in `benches/`.

use std::ffi::OsStr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::shell::{check, command, output, target};
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
        return program(&["summary"], &[place(&built()?)?.as_os_str()]);
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
    let fcpipe = built()?;
    let path = release::words(&fcpipe)?;
    if area != "ext4" {
        demo::import_kernel(path)?;
    }
    let place = place(&fcpipe)?;
    if area == "net" {
        net_without_a_machine(&place)?;
    }
    let place = match area {
        "launch" | "net" => place.join(area),
        _ => place,
    };
    let mut arguments = vec![fcpipe.as_os_str()];
    if !rest.iter().any(|word| word == "--dir") {
        arguments.extend([OsStr::new("--dir"), place.as_os_str()]);
    }
    arguments.extend(rest.iter().map(OsStr::new));
    program(words, &arguments)
}

/// The program, with the fake monitor beside it.
fn built() -> Result<PathBuf> {
    Ok(release::build(&["fcpipe", "fcpipe-fake-firecracker"])?.join("fcpipe"))
}

/// Where trees, images and figures go: `target/bench`, unless the program refuses to keep its state there, as root does in a checkout of
/// another user.
fn place(fcpipe: &Path) -> Result<PathBuf> {
    let here = target().join("bench");
    let state = here.join("state");
    // It judges what is there.
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&state);
    made.map_err(|e| format!("{}: {e}", state.display()))?;
    let mut asked = command(release::words(fcpipe)?, &["ps", "--state-dir"]);
    if output(asked.arg(state)).is_ok() {
        return Ok(here);
    }
    let there = PathBuf::from("/var/tmp/fcpipe-bench");
    println!("in {} therefore", there.display());
    Ok(there)
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
fn net_without_a_machine(place: &Path) -> Result<()> {
    let dir = place.join("net");
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
