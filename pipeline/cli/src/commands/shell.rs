//! `fcpipe completions` and `fcpipe man`: what a shell and `man` know of the command line, made from it.

use std::path::Path;

use clap::CommandFactory as _;

use super::{Outcome, print};
use crate::arguments::{Arguments, Shell};
use crate::complaint::Complaint;

/// Writes a completion script to stdout.
pub(crate) fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "fcpipe", &mut script);
    print(&String::from_utf8(script).map_err(Complaint::new)?)?;
    Ok(0)
}

/// Writes a page for the program and for each of its commands.
pub(crate) fn man(dir: &Path) -> Outcome {
    std::fs::create_dir_all(dir).map_err(|e| Complaint::about(dir, e))?;
    clap_mangen::generate_to(Arguments::command(), dir).map_err(|e| Complaint::about(dir, e))?;
    Ok(0)
}
