//! When a change that is made later is sure to show in a file's times.
//!
//! The kernel stamps a change with a clock that goes on in steps (the tick of CLOCK_REALTIME_COARSE, 1 to
//! 10 ms), and some file systems keep even less of it. Two changes within one step leave the same times,
//! so what was read after the first may be outdated although the times are the same. As in git's index,
//! a file whose time of change is that near to the look is not trusted: it is *unsettled*.
//!
//! The times that count are those of a statx made before anything else of the file is read. Since the
//! wait for the next step is short, it is waited for, and looked at again. Only what is still unsettled
//! then (a log that is written all the time, a file system that keeps whole seconds, a time in the
//! future) stays so: it is read again by each scan, and its content counts as changed.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::Statx;
use rustix::io::Errno;

use crate::model::Timestamp;
use crate::sys;

/// The longest wait for one file.
const PATIENCE: Duration = Duration::from_millis(50);
/// How many waits there are in one scan.
const WAITS: u32 = 20;

/// Says what is settled in one scan.
pub(super) struct Clock {
    /// Before anything was looked at.
    started: i128,
    tick: i128,
    /// How far the clock that stamps may be from this one.
    skew: i128,
    waits: AtomicU32,
}

impl Clock {
    pub(super) fn new(started: Timestamp, skew: i128) -> Self {
        Clock {
            started: nanos(started),
            tick: i128::from(sys::tick()),
            skew,
            waits: AtomicU32::new(0),
        }
    }

    /// Looks at a name, and says whether it is settled.
    pub(super) fn stat(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(Statx, bool), Errno> {
        let mut stat = sys::stat(dir, name)?;
        let settled = self.settle(dir, name, &mut stat)?;
        Ok((stat, settled))
    }

    /// Whether what was just looked at is settled. If it is not, but soon will be, it is looked at again
    /// when it is.
    pub(super) fn settle(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &mut Statx,
    ) -> Result<bool, Errno> {
        if self.settled_at(stat) <= self.started {
            return Ok(true);
        }
        loop {
            // Read before the look that counts.
            let now = nanos(sys::now());
            let missing = self.settled_at(stat) - now;
            if missing > 0 {
                let patient = missing <= PATIENCE.as_nanos() as i128
                    && self.waits.fetch_add(1, Ordering::Relaxed) < WAITS;
                if !patient {
                    return Ok(false);
                }
                // Shorter than a step there is nothing to wait for: `now` stands still in between.
                let wait = missing.max(self.tick);
                std::thread::sleep(Duration::from_nanos(wait as u64));
                continue;
            }
            let before = sys::stamp_of(stat);
            *stat = sys::stat(dir, name)?;
            if sys::stamp_of(stat) == before {
                return Ok(true);
            }
        }
    }

    /// From when on a look is sure to tell later changes apart; nanoseconds since 1970.
    fn settled_at(&self, stat: &Statx) -> i128 {
        let ctime = sys::stamp_of(stat).ctime;
        nanos(ctime) + grain(ctime.nanos) + 2 * self.tick + self.skew
    }
}

/// How much the file system may have left out of a time. Where it keeps everything, one of 10^7 files
/// looks as if it did not (one of 250, where the host's clock has gone in whole milliseconds since its start), which does no harm:
/// for that long, what was just written counts as changed.
fn grain(nanos: u32) -> i128 {
    const SECOND: i128 = 1_000_000_000;
    match nanos {
        // FAT keeps pairs of seconds.
        0 => 2 * SECOND,
        n if n.is_multiple_of(100_000_000) => SECOND / 10,
        n if n.is_multiple_of(10_000_000) => SECOND / 100,
        _ => 0,
    }
}

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    /// The clock of this module goes in steps: what is missing may be far less than a step, and no wait of that
    /// length, however often, brings the next one.
    #[test]
    fn row_27_a_file_that_will_be_settled_with_the_next_step_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("new"), "new").unwrap();
        let fd = File::open(dir.path()).unwrap();
        for round in 0..10 {
            let now = nanos(sys::now());
            let mut clock = Clock::new(sys::now(), 0);
            let stat = sys::stat(fd.as_fd(), c"new").unwrap();
            clock.skew = now + 1000 - clock.settled_at(&stat);
            let (_, settled) = clock.stat(fd.as_fd(), c"new").unwrap();
            assert!(settled, "round {round}");
        }
    }
}
