//! Measures against peers. The programs that do it live in `benches/`.

use crate::Result;
use crate::shell::{check, command, target};
use crate::{demo, net_bench, setup};

pub(crate) fn run(area: &str, rest: &[String]) -> Result<()> {
    let words: &[&str] = match area {
        "ext4" => &[],
        "cache" => &["cache"],
        "delta" => &["delta"],
        "launch" => &["launch"],
        "net" => &[],
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
    match area {
        "ext4" => {}
        "net" => return net_bench::run(path),
        _ => demo::import_kernel(path)?,
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
