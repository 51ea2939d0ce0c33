//! `fcpipe run`: boots a spec, gives the process's output as its own, and its exit status; or leaves it running.

use fcpipe_spec::LaunchId;
use fcpipe_supervisor::Bond;

use super::order::{Came, Wanted, start};
use super::{Outcome, print};
use crate::arguments::{Global, Run};
use crate::complaint::Complaint;

pub(crate) fn run(global: &Global, arguments: &Run) -> Outcome {
    let id = match &arguments.id {
        Some(id) => LaunchId::parse(id).map_err(|e| Complaint::new(format_args!("--id: {e}")))?,
        None => LaunchId::random().map_err(Complaint::of)?,
    };
    let wanted = Wanted {
        spec: &arguments.spec,
        launching: &arguments.launching,
        building: &arguments.building,
        id: id.clone(),
        bond: if arguments.detach {
            Bond::Detached
        } else {
            Bond::Attached
        },
        stdin: arguments.interactive,
        logged: arguments.detach,
        terminal: arguments.terminal,
        console_socket: None,
    };
    match start(global, wanted)? {
        Came::Exited(status) => Ok(status.shell_code()),
        Came::Started | Came::Created => {
            // It goes on, and nobody else would know its name.
            let named = |complaint: Complaint| complaint.hint(format!("launch {id} runs"));
            print(&format!("{id}\n")).map_err(named)?;
            Ok(0)
        }
    }
}
