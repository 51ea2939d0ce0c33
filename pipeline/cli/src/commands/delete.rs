//! `fcpipe delete`: takes away what is left of a launch that has stopped; with `--force`, of any.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use fcpipe_supervisor::{Request, Status, connect, delete, look};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Outcome, clean_up, missing, note};
use crate::arguments::{Delete, Global};
use crate::complaint::Complaint;
use crate::directories::Directories;

/// How long a supervisor may take to end its launch in order.
const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(5);

pub(crate) fn run(global: &Global, arguments: &Delete) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    clean_up(&directories, &mut note)?;
    let id = &arguments.id;
    let record = match look(&directories.state, id).map_err(Complaint::of)? {
        Some(record) => record,
        // As rm -f, and as runc.
        None if arguments.force => return Ok(0),
        None => return Err(missing(id)),
    };
    if record.status != Status::Stopped {
        if !arguments.force {
            return Err(Complaint::new(format_args!(
                "cannot delete container {id} that is not stopped: {}",
                record.status
            ))
            .hint("`fcpipe kill ID KILL` ends it; `fcpipe delete --force` ends and deletes it"));
        }
        end(&directories, id)?;
    }
    delete(&directories.state, id, &mut note).map_err(Complaint::of)?;
    Ok(0)
}

/// Ends a launch: by asking, and where that does not help, by force.
fn end(directories: &Directories, id: &str) -> Result<(), Complaint> {
    // It may have begun just now, and not listen yet. One that does not take it is killed.
    let mut asked = false;
    let ask = || {
        if !asked
            && let Some(connection) = connect(&directories.state, id).map_err(Complaint::of)?
        {
            asked = connection.ask(&Request::End, &[]).is_ok();
        }
        Ok(())
    };
    if gone(directories, id, ask)? {
        return Ok(());
    }
    if let Some(process) = supervisor(directories, id)? {
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
    if gone(directories, id, || Ok(()))? {
        return clean_up(directories, &mut note);
    }
    Err(Complaint::new(format_args!("{id} does not end")))
}

/// The process that looks after a launch. One that had just begun did not say so before.
fn supervisor(directories: &Directories, id: &str) -> Result<Option<OwnedFd>, Complaint> {
    let record = look(&directories.state, id).map_err(Complaint::of)?;
    let pid = record.and_then(|record| Pid::from_raw(i32::try_from(record.supervisor).ok()?));
    let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    // Looked at once more: as long as the launch lives, so does its supervisor, and what was opened is no other that has its number.
    let lives = !stopped(directories, id)?;
    Ok(process.filter(|_| lives))
}

/// Waits until it is. `ask` is called until then.
fn gone(
    directories: &Directories,
    id: &str,
    mut ask: impl FnMut() -> Result<(), Complaint>,
) -> Result<bool, Complaint> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        ask()?;
        if stopped(directories, id)? {
            return Ok(true);
        }
        std::thread::sleep(STEP);
    }
    Ok(false)
}

fn stopped(directories: &Directories, id: &str) -> Result<bool, Complaint> {
    let record = look(&directories.state, id).map_err(Complaint::of)?;
    Ok(record.is_none_or(|record| record.status == Status::Stopped))
}
