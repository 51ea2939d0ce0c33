//! How a process is known after the program that started it is gone, and ended without hitting another.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::error::VmmError;

/// In the environment of every process of a machine: the launch's directory.
pub const MACHINE_DIR_VARIABLE: &str = "FCPIPE_MACHINE_DIR";

/// How long a process may take to end after SIGKILL; one in uninterruptible I/O takes its time.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// One process, for as long as this host is up: a pid alone is used again, but not with the same start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessMark {
    pub pid: u32,
    /// Clock ticks since boot: field 22 of `/proc/<pid>/stat`, proc_pid_stat(5).
    pub start_time: u64,
}

impl ProcessMark {
    /// The mark of the process that has this pid now.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_time: stat(pid)?.start_time,
        })
    }

    /// Whether the process still runs; one that ended but was not yet waited for does not.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_ok_and(|stat| stat.start_time == self.start_time && !stat.ended)
    }

    /// SIGKILL, if it is still the same process; then waits for its end. `Ok(false)`: there was none.
    pub fn kill(&self, timeout: Duration) -> io::Result<bool> {
        let Some(pidfd) = open_pidfd(self.pid)? else {
            return Ok(false);
        };
        // In this order: if the number was taken over before the open, the start time differs; after it, the
        // descriptor is of the process that is gone.
        match stat(self.pid) {
            Ok(stat) if stat.start_time == self.start_time => {}
            _ => return Ok(false),
        }
        kill_pidfd(&pidfd)?;
        if wait_pidfd(&pidfd, timeout)? {
            Ok(true)
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

/// Of `/proc/<pid>/stat`, proc_pid_stat(5).
struct Stat {
    ended: bool,
    /// Field 22.
    start_time: u64,
    /// Bytes of memory, field 23. None have a thread of the kernel and a process that has ended: neither gets an environment.
    /// (Their `environ` is empty on Linux 6.1, and cannot be opened on 6.18.)
    memory: u64,
    /// Where the environment begins and ends, fields 50 and 51; 0 until execve(2) has laid it down.
    environment: (u64, u64),
}

impl Stat {
    /// It has an environment that is not empty, or is about to get one.
    fn has_environment(&self) -> bool {
        let (start, end) = self.environment;
        self.memory > 0 && (start == 0 || start < end)
    }
}

fn stat(pid: u32) -> io::Result<Stat> {
    let bytes = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The name, in parentheses, may hold anything: what follows the last `)` is fields from the third on.
fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let after = bytes.iter().rposition(|&byte| byte == b')')? + 1;
    let fields = std::str::from_utf8(&bytes[after..]).ok()?;
    let fields: Vec<_> = fields.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    Some(Stat {
        ended: matches!(*fields.first()?, "Z" | "X"),
        start_time: field(22)?,
        memory: field(23)?,
        environment: (field(50)?, field(51)?),
    })
}

/// `None`: no such process.
pub(crate) fn open_pidfd(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// SIGKILL; content if the process is already gone.
pub(crate) fn kill_pidfd(pidfd: &OwnedFd) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the process ended within `timeout` (a pidfd becomes readable then).
pub(crate) fn wait_pidfd(pidfd: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends every process of the machine whose directory is `dir`, and waits for them: the undo of a launch whose
/// supervisor died. Returns how many there were.
///
/// A process belongs to the machine if its environment carries [`MACHINE_DIR_VARIABLE`] and either its working directory
/// is `dir` or the variable names `dir`. Processes of other users, which this one may not look at, are not the machine's.
pub fn kill_by_mark(dir: &Path) -> Result<usize, VmmError> {
    let mut killed = 0;
    // Again until none is found: one may have forked between being listed and being killed.
    loop {
        let found = find_marked(dir)?;
        if found.is_empty() {
            return Ok(killed);
        }
        for (pid, pidfd) in &found {
            kill_pidfd(pidfd)
                .map_err(|source| proc_error("cannot end the process", *pid, source))?;
        }
        for (pid, pidfd) in &found {
            let ended = wait_pidfd(pidfd, KILL_TIMEOUT)
                .map_err(|source| proc_error("cannot wait for the process", *pid, source))?;
            if !ended {
                return Err(VmmError::Immortal {
                    dir: dir.to_owned(),
                    pid: *pid,
                    waited: KILL_TIMEOUT,
                });
            }
        }
        killed += found.len();
    }
}

fn proc_error(what: &'static str, pid: u32, source: io::Error) -> VmmError {
    VmmError::Io {
        what,
        path: format!("/proc/{pid}").into(),
        source,
    }
}

fn find_marked(dir: &Path) -> Result<Vec<(u32, OwnedFd)>, VmmError> {
    let dir_inode = fs::metadata(dir).ok().map(|meta| (meta.dev(), meta.ino()));
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let this = std::process::id();
    let entries = fs::read_dir("/proc").map_err(|source| VmmError::Io {
        what: "cannot list the processes",
        path: "/proc".into(),
        source,
    })?;
    let mut pids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != this)
        .collect();
    let mut found = Vec::new();
    let end = Instant::now() + EXEC;
    loop {
        // Who is on the way into a program is looked at again, all of them together.
        pids.retain(|&pid| {
            // Most have no mark, and one look is all they need.
            match look(pid) {
                Look::Unmarked => return false,
                Look::Between => return true,
                Look::Marked(_) => {}
            }
            // Before the looks that count, so that what is killed is what was looked at, or nothing.
            let Ok(Some(pidfd)) = open_pidfd(pid) else {
                return false;
            };
            let marked = match look(pid) {
                Look::Marked(marked) => marked,
                Look::Unmarked => return false,
                Look::Between => return true,
            };
            let cwd = fs::metadata(format!("/proc/{pid}/cwd"))
                .ok()
                .map(|meta| (meta.dev(), meta.ino()));
            let same_dir = dir_inode.is_some() && cwd == dir_inode;
            if same_dir || OsStr::from_bytes(&marked) == dir.as_os_str() {
                found.push((pid, pidfd));
            }
            false
        });
        if pids.is_empty() || Instant::now() >= end {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// How long processes may be on their way into a program; it takes some microseconds, unless the program comes from a slow disk.
const EXEC: Duration = Duration::from_secs(2);

/// What the environment that a process was started with says.
enum Look {
    /// The variable's value.
    Marked(Vec<u8>),
    Unmarked,
    /// The process is in the middle of execve(2): it has left its old environment, and the new one was not there yet.
    Between,
}

fn look(pid: u32) -> Look {
    let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else {
        return Look::Unmarked;
    };
    if environ.is_empty() && stat(pid).is_ok_and(|stat| stat.has_environment()) {
        return Look::Between;
    }
    let value = environ.split(|&byte| byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(MACHINE_DIR_VARIABLE.as_bytes())?;
        value.strip_prefix(b"=")
    });
    value.map_or(Look::Unmarked, |value| Look::Marked(value.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_confuse() {
        let line = b"42 (a) Z (b) c) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 4096 1 \
            0 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 50 51 0\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.start_time, stat.memory), (777, 4096));
        assert_eq!((stat.ended, stat.environment), (false, (50, 51)));
    }

    #[test]
    fn an_environment_begins_somewhere() {
        let stat = stat(std::process::id()).unwrap();
        let (start, end) = stat.environment;
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
        let (from, to) = stack.split_once(' ').unwrap().0.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        assert!((number(from)..number(to)).contains(&start) && start < end);
        assert!(stat.has_environment());
    }

    /// Each of them cost [`EXEC`] on kernels that let their empty `environ` be read.
    #[test]
    fn what_has_ended_and_what_is_the_kernels_are_not_waited_for() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        let id = rustix::process::WaitId::Pid(Pid::from_child(&child));
        let kept = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(id, kept).unwrap();
        assert!(!stat(pid).unwrap().has_environment());
        child.wait().unwrap();
        // In a namespace of processes there are none of the kernel's.
        if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.trim_end() == "kthreadd") {
            assert!(!stat(2).unwrap().has_environment());
        } else {
            println!("skipped for threads of the kernel: there are none to be seen");
        }
    }

    #[test]
    fn this_process_is_alive_and_one_that_took_its_number_is_another() {
        let mark = ProcessMark::of(std::process::id()).unwrap();
        assert!(mark.is_alive());
        let stranger = ProcessMark {
            start_time: mark.start_time + 1,
            ..mark
        };
        assert!(!stranger.is_alive());
        assert!(!stranger.kill(Duration::ZERO).unwrap());
    }
}
