//! What was to be reached, and whether it was.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Result;

/// One line.
pub(crate) fn goal(reached: bool, what: &str) -> String {
    format!("{:8} {what}", if reached { "reached" } else { "MISSED" })
}

/// The lines of all benches that were run in `dir`.
pub(crate) fn summary(dir: &Path) -> Result<()> {
    for area in ["ext4", "cache", "delta", "launch"] {
        let Ok(text) = fs::read(dir.join(area).with_extension("json")) else {
            println!("{area}: not measured");
            continue;
        };
        let report: Value = serde_json::from_slice(&text)?;
        println!("{area}:");
        for line in report["goals"].as_array().into_iter().flatten() {
            println!("  {}", line.as_str().unwrap_or_default());
        }
    }
    Ok(())
}
