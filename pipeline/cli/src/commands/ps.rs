//! `fcpipe ps` and `fcpipe state`: which launches there are, and how far one is.

use std::fmt::Write as _;

use fcpipe_supervisor::{Record, Status, look_at_all};
use serde_json::json;

use super::{Outcome, clean_up, existing, note, print};
use crate::arguments::{Format, Global, State};
use crate::complaint::Complaint;
use crate::directories::Directories;
use crate::render::harmless;

pub(crate) fn ps(global: &Global) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    clean_up(&directories, &mut note)?;
    let records = look_at_all(&directories.state, &mut note).map_err(Complaint::of)?;
    let mut text = String::new();
    match global.format {
        Format::Json => {
            for record in &records {
                let _ = writeln!(text, "{}", whole(record));
            }
        }
        Format::Human => {
            let _ = writeln!(
                text,
                "{:24} {:9} {:>8}  {:20} BUNDLE",
                "ID", "STATUS", "PID", "CREATED"
            );
            for record in &records {
                let pid = record
                    .pid
                    .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
                let created = record.created_at.get(..19).unwrap_or(&record.created_at);
                let line = format!(
                    "{:24} {:9} {pid:>8}  {created}Z {}",
                    record.id,
                    ended(record),
                    record.bundle.display()
                );
                let _ = writeln!(text, "{}", harmless(&line));
            }
        }
    }
    print(&text)?;
    Ok(0)
}

/// The status, and how a stopped one ended.
fn ended(record: &Record) -> String {
    match (record.status, record.exit) {
        (Status::Stopped, Some(exit)) => format!("exit {}", exit.shell_code()),
        (Status::Stopped, None) => "failed".to_owned(),
        (status, _) => status.to_string(),
    }
}

pub(crate) fn state(global: &Global, arguments: &State) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    clean_up(&directories, &mut note)?;
    let record = existing(&directories, &arguments.id)?;
    print(&format!("{:#}\n", whole(&record)))?;
    Ok(0)
}

/// OCI's state, and what fcpipe knows besides.
fn whole(record: &Record) -> serde_json::Value {
    let mut state = record.oci_state();
    state["created"] = json!(record.created_at);
    if let Some(finished) = &record.finished_at {
        state["finished"] = json!(finished);
    }
    if let Some(exit) = record.exit {
        state["exitCode"] = json!(exit.shell_code());
    }
    if let Some(error) = &record.error {
        state["error"] = json!(error);
    }
    state
}
