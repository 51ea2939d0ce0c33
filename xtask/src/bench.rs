//! Measures against peers. The programs that do it live in `benches/`.

use crate::Result;
use crate::setup;
use crate::shell::{check, command, target};

pub(crate) fn run(area: &str, rest: &[String]) -> Result<()> {
    if area != "ext4" {
        return Err(format!("no such area: {area} (ext4)"));
    }
    setup::run()?;
    check(&mut command(
        "cargo",
        &["build", "--release", "--quiet", "--package", "fcpipe"],
    ))?;
    let fcpipe = target().join("release/fcpipe");
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
        .arg(fcpipe)
        .args(rest),
    )
}
