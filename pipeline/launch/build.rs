//! Builds the guest program for musl and carries it inside fcpipe, so that `cargo build` is all there is.
//!
//! A nested cargo in the same target directory would wait for its parent for ever, so the guest has a
//! target directory of its own; and what the outer build sets for itself must not reach the inner one.
#![allow(
    clippy::print_stdout,
    reason = "a build script speaks to cargo by printing"
)]

use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-musl";

fn main() -> Result<(), String> {
    let variable = |name: &str| std::env::var(name).map_err(|e| format!("{name}: {e}"));
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?).join("guest");
    let root = here.join("../..");
    for watched in ["stages/guest", "stages/proto", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }

    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(&root)
        .args([
            "build",
            "--locked",
            "--release",
            "--package",
            "fcpipe-guest",
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&out)
        // Small and without unwinding: it is read by the kernel at every boot.
        .args(["--config", "profile.release.opt-level=\"s\""])
        .args(["--config", "profile.release.panic=\"abort\""])
        .args(["--config", "profile.release.lto=true"])
        .args(["--config", "profile.release.strip=true"])
        .args(["--config", "profile.release.codegen-units=1"]);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let outer = name.starts_with("RUSTC")
            || name.starts_with("CLIPPY")
            || name.starts_with("CARGO_PROFILE_")
            || ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "CARGO_BUILD_TARGET"]
                .contains(&name.as_ref());
        if outer {
            cargo.env_remove(name.as_ref());
        }
    }
    let status = cargo.status().map_err(|e| format!("cargo: {e}"))?;
    if !status.success() {
        return Err(format!(
            "the guest program did not build ({status}); is its target there? rustup target add {TARGET}"
        ));
    }
    let program = out.join(TARGET).join("release/fcpipe-guest");
    println!("cargo::rustc-env=FCPIPE_GUEST={}", program.display());
    // Here, so that no launch has to read all of it.
    let digest = PathBuf::from(variable("OUT_DIR")?).join("guest.blake3");
    let bytes = std::fs::read(&program).map_err(|e| format!("{}: {e}", program.display()))?;
    std::fs::write(&digest, blake3::hash(&bytes).as_bytes())
        .map_err(|e| format!("{}: {e}", digest.display()))?;
    println!("cargo::rustc-env=FCPIPE_GUEST_BLAKE3={}", digest.display());
    Ok(())
}
