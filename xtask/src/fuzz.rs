//! Coverage-guided fuzzing, for maintainers: needs a nightly toolchain and cargo-fuzz.

use crate::Result;
use crate::shell::{check, command, root};

pub(crate) fn run(target: &str, seconds: u32) -> Result<()> {
    let limit = format!("-max_total_time={seconds}");
    check(
        command("cargo", &["+nightly", "fuzz", "run", target, "--", &limit])
            .current_dir(root().join("stages/ext4")),
    )
}
