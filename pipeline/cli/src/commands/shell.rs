//! `fcpipe completions`, `fcpipe man` and `fcpipe schema`: what other programs know of fcpipe, made from what it reads and
//! writes itself.

use std::path::Path;

use clap::CommandFactory as _;

use super::{Outcome, print};
use crate::arguments::{Arguments, SchemaOf, Shell};
use crate::complaint::Complaint;

/// Writes a completion script to stdout.
pub(crate) fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "fcpipe", &mut script);
    print(&String::from_utf8(script).map_err(Complaint::of)?)?;
    Ok(0)
}

/// Writes a page for the program and for each of its commands.
pub(crate) fn man(dir: &Path) -> Outcome {
    std::fs::create_dir_all(dir).map_err(|e| Complaint::about(dir, e))?;
    clap_mangen::generate_to(Arguments::command(), dir).map_err(|e| Complaint::about(dir, e))?;
    Ok(0)
}

/// Writes a schema to stdout.
pub(crate) fn schema(of: SchemaOf) -> Outcome {
    let schema = match of {
        SchemaOf::LaunchFile => fcpipe_spec::launch_file_schema(),
        SchemaOf::Receipt => fcpipe_engine::receipt_schema(),
    };
    print(&format!("{schema:#}\n"))?;
    Ok(0)
}
