//! `fcpipe report`: what a past launch spent its time on, beside the launch before.

use std::fmt::Write as _;
use std::path::Path;

use fcpipe_engine::{Explained, Receipt};

use super::{Outcome, load, print};
use crate::arguments::{Format, Global, Report};
use crate::chart::{self, Comparison};
use crate::complaint::Complaint;
use crate::directories::Directories;
use crate::history::{History, Past};
use crate::render::harmless;

pub(crate) fn run(global: &Global, arguments: &Report) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let history = History::of(&directories.data);
    if let Some(spec) = &arguments.of {
        let spec = load(global, &crate::arguments::Spec::plain(spec.clone()))?;
        let launches = history.of_spec(&spec.file).map_err(Complaint::of)?;
        print(&list(&launches, global.format)?)?;
        return Ok(0);
    }
    let id = arguments.id.as_deref();
    let past = history.find(id).map_err(Complaint::of)?.ok_or_else(|| {
        let what = match id {
            Some(id) => Complaint::new(format_args!("no launch {id} is known")),
            None => Complaint::new("no launch is known"),
        };
        what.hint("the last 32 of each spec are kept; `fcpipe report --of SPEC` lists them")
    })?;
    let before = history.before(&past).map_err(Complaint::of)?;
    let comparison = Comparison {
        past: &past,
        before: before.as_ref(),
    };
    for (path, text) in [
        (&arguments.svg, chart::svg as fn(&Comparison<'_>) -> String),
        (&arguments.html, chart::html),
        (&arguments.trace, chart::trace),
    ] {
        if let Some(path) = path {
            fcpipe_engine::write_file(path, text(&comparison).as_bytes())
                .map_err(|e| Complaint::about(path, e))?;
        }
    }
    let files = arguments.svg.is_some() || arguments.html.is_some() || arguments.trace.is_some();
    match global.format {
        Format::Json => {
            let text = serde_json::to_string_pretty(&past).map_err(Complaint::of)?;
            print(&format!("{text}\n"))?;
        }
        Format::Human if !files => print(&chart::terminal(&comparison, width()))?,
        Format::Human => {}
    }
    Ok(0)
}

/// Keeps what a launch or a build of this spec did. What is lost if it fails is a line of `report`.
pub(crate) fn keep(
    directories: &Directories,
    spec: &Path,
    command: &str,
    result: String,
    receipt: Option<&Receipt>,
    steps: &[Explained],
) -> Result<(), String> {
    let Some(receipt) = receipt else {
        return Ok(());
    };
    let past = Past::new(spec, command, result, receipt.clone(), steps);
    past.keep(&directories.data)
        .map_err(|error| format!("the launch is not kept for `report`: {error}"))
}

fn list(launches: &[Past], format: Format) -> Result<String, Complaint> {
    let mut text = String::new();
    for past in launches {
        match format {
            Format::Json => {
                let line = serde_json::to_string(past).map_err(Complaint::of)?;
                let _ = writeln!(text, "{line}");
            }
            Format::Human => {
                let hits = past.receipt.stages.iter();
                let hits = hits
                    .filter(|row| row.outcome == fcpipe_engine::Outcome::Hit)
                    .count();
                let line = format!(
                    "{:24} {:6} {:9.3} s  {hits:3} of {:3} stages hit  {}",
                    past.receipt.id,
                    past.command,
                    past.receipt.total_us as f64 / 1e6,
                    past.receipt.stages.len(),
                    past.result
                );
                let _ = writeln!(text, "{}", harmless(&line));
            }
        }
    }
    Ok(text)
}

/// Columns of the terminal; a log's line otherwise.
fn width() -> usize {
    console_columns().unwrap_or(100)
}

fn console_columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}
