//! `fcpipe logs`: what the process of a launch wrote, whose output nobody was attached to.

use std::io::Write as _;
use std::time::Duration;

use fcpipe_supervisor::{Entries, Entry, Status, look};

use super::{Outcome, existing};
use crate::arguments::{Global, Logs};
use crate::complaint::Complaint;
use crate::directories::Directories;

/// How often a log that is followed is looked at.
const STEP: Duration = Duration::from_millis(50);

/// What went to standard error comes on standard error.
pub(crate) fn run(global: &Global, arguments: &Logs) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    let id = &arguments.id;
    let record = existing(&directories, id)?;
    if !record.logged {
        return Err(
            Complaint::new(format_args!("{id} has no log: its output is its caller's"))
                .hint("`run --detach` and `create --log` keep one"),
        );
    }
    let mut entries = Entries::open(&directories.state.join(id));
    loop {
        // Before the look at the log: what is written before the end is read after it.
        let ended = !arguments.follow
            || look(&directories.state, id)
                .map_err(Complaint::of)?
                .is_none_or(|record| record.status == Status::Stopped);
        while let Some(entry) = entries.next().map_err(Complaint::of)? {
            match show(&entry, arguments.timestamps) {
                // Whoever read it wanted no more.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(0),
                shown => {
                    shown.map_err(|e| Complaint::new(format_args!("{}: {e}", entry.stream)))?
                }
            }
        }
        if ended {
            return Ok(0);
        }
        std::thread::sleep(STEP);
    }
}

fn show(entry: &Entry, timestamps: bool) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    if timestamps {
        bytes.extend_from_slice(entry.time.as_bytes());
        bytes.push(b' ');
    }
    bytes.extend_from_slice(&entry.text);
    if entry.stream == "stderr" {
        std::io::stderr().lock().write_all(&bytes)
    } else {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&bytes).and_then(|()| stdout.flush())
    }
}
