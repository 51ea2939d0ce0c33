//! `fcpipe validate`: reads a spec and says what it comes to, or what is wrong and where.

use serde_json::json;

use super::{Outcome, load, print};
use crate::arguments::{Format, Global, Validate};

pub(crate) fn run(global: &Global, arguments: &Validate) -> Outcome {
    let spec = load(global, &arguments.spec)?;
    let memory = indicatif::BinaryBytes(spec.machine.memory).to_string();
    let text = match global.format {
        Format::Json => format!(
            "{}\n",
            json!({
                "spec": spec.file.display().to_string(),
                "root": spec.root.path.display().to_string(),
                "args": spec.process.args,
                "mounts": spec.mounts.len(),
                "vcpus": spec.machine.vcpus,
                "memory": spec.machine.memory,
                "warnings": spec.warnings,
            })
        ),
        Format::Human => format!(
            "{}: valid: {} with {} mounts, {} vCPU, {memory}\n",
            spec.file.display(),
            spec.root.path.display(),
            spec.mounts.len(),
            spec.machine.vcpus,
        ),
    };
    print(&text)?;
    Ok(0)
}
