//! Measures against peers. The programs that do it live in `benches/`.

use crate::Result;
use crate::shell::{check, command, target};
use crate::{demo, setup};

pub(crate) fn run(area: &str, rest: &[String]) -> Result<()> {
    let words: &[&str] = match area {
        "ext4" => &[],
        "cache" => &["cache"],
        "delta" => &["delta"],
        "launch" => &["launch"],
        "net" => &["net"],
        _ => {
            return Err(format!(
                "no such area: {area} (ext4, cache, delta, launch, net)"
            ));
        }
    };
    setup::run()?;
    check(&mut command(
        "cargo",
        &[
            "build",
            "--release",
            "--quiet",
            "--package",
            "fcpipe",
            "--package",
            "fcpipe-fake-firecracker",
        ],
    ))?;
    let fcpipe = target().join("release/fcpipe");
    let path = fcpipe
        .to_str()
        .ok_or("the target directory's name is not UTF-8")?;
    if area != "ext4" {
        demo::import_kernel(path)?;
    }
    if area == "net" {
        net_without_a_machine()?;
    }
    check(
        command(
            "cargo",
            &[
                "run",
                "--release",
                "--quiet",
                "--manifest-path",
                "benches/Cargo.toml",
                "--bin",
                "bench-ext4",
                "--",
            ],
        )
        .args(words)
        .arg(fcpipe)
        .args(rest),
    )
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
