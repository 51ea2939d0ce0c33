//! Watches whether the kernel kills processes of the container for want of memory.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::agent::Agent;
use crate::cgroup::Cgroup;

/// Counts what any killer of the kernel's does to the group: for the group's own limit, or because the whole machine
/// has no more (cgroup-v2.rst).
const EVENTS: &str = "memory.events";
/// Between two looks at the least: a memory bomb dies again and again.
const STEP: Duration = Duration::from_millis(100);

/// How many were killed since the boot.
#[derive(Debug, Default)]
pub(crate) struct Kills(AtomicU64);

impl Kills {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    #[cfg(test)]
    pub(crate) fn add(&self, kills: u64) {
        self.0.fetch_add(kills, Ordering::SeqCst);
    }

    /// Looks again: whether there are more.
    pub(crate) fn grown(&self, cgroup: &Cgroup) -> bool {
        let now = cgroup.named(EVENTS, "oom_kill").unwrap_or(0);
        now > self.0.fetch_max(now, Ordering::SeqCst)
    }
}

/// Starts the thread that tells the host of them.
pub(crate) fn watch(agent: &Arc<Agent>, cgroup: &Cgroup) -> io::Result<()> {
    let events = File::open(cgroup.file(EVENTS))?;
    let agent = Arc::clone(agent);
    let thread = thread::Builder::new().name("oom".to_owned());
    thread.spawn(move || {
        loop {
            agent.look_for_oom();
            thread::sleep(STEP);
            // It has changed since it was last read: an exceptional condition, and one that the descriptor must be
            // read to end.
            let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], None);
            let _ = rustix::io::pread(&events, &mut [0; 512], 0);
        }
    })?;
    Ok(())
}
