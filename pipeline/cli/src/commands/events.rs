//! `fcpipe events`: what happened to launches and what happens, a JSON object a line.

use std::collections::BTreeMap;
use std::time::Duration;

use fcpipe_engine::LaunchDir;
use fcpipe_supervisor::{EventLines, Status, look};

use super::{Outcome, clean_up, existing, note, print};
use crate::arguments::{Events, Global};
use crate::complaint::Complaint;
use crate::directories::Directories;

/// How often the launches are looked at.
const STEP: Duration = Duration::from_millis(50);

/// Of one launch, to its end; of all, for ever. With `--no-follow`, what there is.
pub(crate) fn run(global: &Global, arguments: &Events) -> Outcome {
    let directories = Directories::resolve(global).map_err(Complaint::new)?;
    clean_up(&directories, &mut note)?;
    if let Some(id) = &arguments.id {
        existing(&directories, id)?;
        if arguments.stats {
            return super::metrics::event(&directories, id);
        }
    }
    let mut open: BTreeMap<String, EventLines> = BTreeMap::new();
    loop {
        let ids = match &arguments.id {
            Some(id) => vec![id.clone()],
            None => LaunchDir::list(&directories.state).map_err(Complaint::of)?,
        };
        let mut ended = true;
        for id in &ids {
            let record = match look(&directories.state, id) {
                // Of all launches: one that can't be looked at hides no other.
                Err(_) if arguments.id.is_none() => None,
                looked => looked.map_err(Complaint::of)?,
            };
            ended &= record.is_none_or(|record| record.status == Status::Stopped);
            let lines = open
                .entry(id.clone())
                .or_insert_with(|| EventLines::open(&directories.state.join(id)));
            while let Some(line) = lines.next().map_err(Complaint::of)? {
                print(&line)?;
            }
        }
        // The file of one that is gone is held by its descriptor alone.
        open.retain(|id, _| ids.contains(id));
        if arguments.no_follow || (arguments.id.is_some() && ended) {
            return Ok(0);
        }
        if stdout_is_closed() {
            return Ok(0);
        }
        std::thread::sleep(STEP);
    }
}

/// Whether nobody can read what is printed any more.
fn stdout_is_closed() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = std::io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok()
        && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}
