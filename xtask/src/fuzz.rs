//! Coverage-guided fuzzing, for maintainers: needs a nightly toolchain and cargo-fuzz.

use crate::Result;
use crate::shell::{check, command, find, output, root};

pub(crate) fn run(target: &str, seconds: u32) -> Result<()> {
    let dir = match target {
        "ext4" => root().join("stages/ext4"),
        _ => return Err(format!("no such target: {target} (ext4)")),
    };
    if find("cargo-fuzz").is_none() {
        return Err("fuzzing needs cargo-fuzz: cargo install --locked cargo-fuzz".to_owned());
    }
    if output(&mut command("rustc", &["+nightly", "--version"])).is_err() {
        return Err(
            "fuzzing needs a nightly toolchain: rustup toolchain install nightly".to_owned(),
        );
    }
    let arguments = [
        "+nightly",
        "fuzz",
        "run",
        target,
        "--",
        &format!("-max_total_time={seconds}"),
        "-max_len=4096",
        "-timeout=60",
    ];
    check(command("cargo", &arguments).current_dir(dir))
}
