//! `fcpipe create`: boots a bundle up to its process, which `start` starts.

use std::io::IsTerminal as _;
use std::path::Path;

use fcpipe_spec::LaunchId;
use fcpipe_supervisor::{Bond, look};

use super::Outcome;
use super::order::{Wanted, start};
use crate::arguments::{Create, Global};
use crate::complaint::Complaint;
use crate::directories::Directories;

pub(crate) fn run(global: &Global, arguments: &Create) -> Outcome {
    let id = LaunchId::parse(&arguments.id).map_err(Complaint::of)?;
    let spec = crate::arguments::Spec {
        path: arguments.bundle.clone(),
        set: arguments.set.clone(),
        strict: arguments.strict,
    };
    let wanted = Wanted {
        spec: &spec,
        launching: &arguments.launching,
        building: &arguments.building,
        id: id.clone(),
        bond: Bond::Created,
        // As OCI has it, the process's streams are those of `create`. A terminal stays with whoever sits at it.
        stdin: !arguments.log && !std::io::stdin().is_terminal(),
        logged: arguments.log,
        terminal: false,
        console_socket: arguments.console_socket.as_deref(),
    };
    start(global, wanted)?;
    if let Some(path) = &arguments.pid_file {
        pid_file(global, id.as_str(), path)?;
    }
    Ok(0)
}

/// Writes the pid of the launch's machine, whole or not at all.
fn pid_file(global: &Global, id: &str, path: &Path) -> Result<(), Complaint> {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let record = look(&directories.state, id).map_err(Complaint::of)?;
    let pid = record
        .and_then(|record| record.pid)
        .ok_or_else(|| Complaint::new(format_args!("{id} ended at once")))?;
    super::write_pid(path, pid)
}
