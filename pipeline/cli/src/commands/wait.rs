//! `fcpipe wait`: waits until a launch's process has ended, and says how.

use fcpipe_supervisor::{Record, Reply, Request, Status};

use super::{Outcome, existing, print, reach};
use crate::arguments::{Global, Wait};
use crate::complaint::Complaint;
use crate::directories::Directories;

/// Prints the exit code as a shell would have it.
pub(crate) fn run(global: &Global, arguments: &Wait) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let id = &arguments.id;
    if existing(&directories, id)?.status != Status::Stopped
        && let Ok(mut connection) = reach(&directories, id)?
    {
        connection.ask(&Request::Wait, &[]).map_err(Complaint::of)?;
        match connection.reply().map_err(Complaint::of)? {
            Some(Reply::Exited { status }) => {
                print(&format!("{}\n", status.shell_code()))?;
                return Ok(0);
            }
            Some(Reply::Failed { failed }) => {
                return Err(fcpipe_engine::Failure::from(failed).into());
            }
            // Its supervisor has died, or ended between the look and the question.
            _ => {}
        }
    }
    stopped(&existing(&directories, id)?)
}

fn stopped(record: &Record) -> Outcome {
    match (record.exit, &record.error) {
        (Some(status), _) => {
            print(&format!("{}\n", status.shell_code()))?;
            Ok(0)
        }
        (None, why) => Err(Complaint::new(format_args!(
            "{}: how its process ended is not known: {}",
            record.id,
            why.as_deref().unwrap_or("it never ran")
        ))),
    }
}
