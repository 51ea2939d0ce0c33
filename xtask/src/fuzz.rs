//! Coverage-guided fuzzing, for maintainers: needs cargo-fuzz. Its instrumentation is a nightly compiler's; where
//! there is none, the stable compiler is told to take the same flags.

use crate::Result;
use crate::shell::{check, command, find, output, root};

pub(crate) fn run(target: &str, seconds: u32) -> Result<()> {
    let dir = match target {
        "ext4" | "proto" => root().join("stages").join(target),
        _ => return Err(format!("no such target: {target} (ext4, proto)")),
    };
    if find("cargo-fuzz").is_none() {
        return Err("fuzzing needs cargo-fuzz: cargo install --locked cargo-fuzz".to_owned());
    }
    let nightly = output(&mut command("rustc", &["+nightly", "--version"])).is_ok();
    let mut cargo = command("cargo", if nightly { &["+nightly"] } else { &[] });
    if !nightly {
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    let arguments = [
        "fuzz",
        "run",
        target,
        "--",
        &format!("-max_total_time={seconds}"),
        "-max_len=4096",
        "-timeout=60",
    ];
    check(cargo.args(arguments).current_dir(dir))
}
