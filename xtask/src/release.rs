//! Building the program as it is given away: optimized, and one file that needs no library of the host.
//!
//! Without a loader a process starts and forks sooner, and a launch has several of both (docs/performance.md). It is linked with `cargo build --target`, as cargo refuses this for build scripts' own target,
//! and stays position-independent.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::shell::{check, command, target};

/// Builds these packages and says in which directory they are.
pub(crate) fn build(packages: &[&str]) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let linking = format!(r#"target.{triple}.rustflags=["-C","target-feature=+crt-static"]"#);
    let mut cargo = command("cargo", &["build", "--release", "--quiet", "--locked"]);
    cargo.args(["--target", &triple, "--config", &linking]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    check(&mut cargo)?;
    Ok(target().join(triple).join("release"))
}

/// A path as an argument of [`command`].
pub(crate) fn words(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| format!("{}: the name is not UTF-8", path.display()))
}
