//! `fcpipe doctor`: what this host can do, what is missing, and how to get it.

use fcpipe_kernel::{HOW_TO_IMPORT, KernelStore};
use fcpipe_vmm::{Finding, State};
use serde_json::json;

use super::{Outcome, clean_up, note, print};
use crate::arguments::{Format, Global};
use crate::complaint::Complaint;
use crate::directories::Directories;
use crate::render::harmless;

/// Exit code 1 where a launch could not work.
pub(crate) fn run(global: &Global) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    clean_up(&directories, &mut note)?;
    let mut findings = super::monitors(global, &directories).probe().findings();
    findings.push(kernel(&directories));
    let text: String = findings
        .iter()
        .map(|finding| show(finding, global.format))
        .collect();
    print(&text)?;
    Ok(u8::from(
        findings
            .iter()
            .any(|finding| finding.state == State::Missing),
    ))
}

fn kernel(directories: &Directories) -> Finding {
    let found = KernelStore::open(&directories.data).and_then(|store| store.default());
    let (state, detail, hint) = match found {
        Ok(kernel) => (State::Ok, kernel.id, None),
        Err(error) => (
            State::Missing,
            error.to_string(),
            Some(HOW_TO_IMPORT.to_owned()),
        ),
    };
    Finding {
        what: "kernel",
        state,
        detail,
        hint,
    }
}

fn show(finding: &Finding, format: Format) -> String {
    let state = match finding.state {
        State::Ok => "ok",
        State::Degraded => "degraded",
        State::Missing => "missing",
    };
    match format {
        Format::Json => format!(
            "{}\n",
            json!({
                "what": finding.what,
                "state": state,
                "detail": finding.detail,
                "hint": finding.hint,
            })
        ),
        Format::Human => {
            let hint = finding
                .hint
                .as_ref()
                .map(|h| format!("\n{:20}→ {h}", ""))
                .unwrap_or_default();
            harmless(&format!(
                "{state:9} {:20} {}{hint}\n",
                finding.what, finding.detail
            ))
        }
    }
}
