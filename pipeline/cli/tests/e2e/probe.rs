//! The program that tests put into guests, and run on the host to compare: `fixtures/probe`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names one that is there already, for where there is no cargo.
const VARIABLE: &str = "FCPIPE_TEST_PROBE";

const MUSL: &str = "x86_64-unknown-linux-musl";

/// The probe, built when the first asks for it, for a root without a C library.
pub(crate) fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| match std::env::var_os(VARIABLE) {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--quiet"])
        .args(["--package", "fcpipe-probe", "--target", MUSL])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .unwrap();
    assert!(status.success(), "the probe does not build");
    target.join(MUSL).join("debug/fcpipe-probe")
}
