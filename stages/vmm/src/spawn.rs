//! Starts a program in the control groups, the namespaces and with the descriptors that it is to have, and no others.

use std::ffi::{CString, OsStr};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};

use crate::cgroup::Entrances;
use crate::confine::{Child, Confined};
use crate::mark::{ProcessMark, open_pidfd};

/// A program, and what its process is to be like.
pub(crate) struct Spawn<'a> {
    /// With a `/` in it: nothing is looked for.
    pub(crate) path: &'a Path,
    /// Without the program's name.
    pub(crate) args: &'a [&'a OsStr],
    /// The whole environment.
    pub(crate) env: &'a [(&'a str, &'a OsStr)],
    /// Its working directory.
    pub(crate) dir: &'a Path,
    /// Its standard input, output and error.
    pub(crate) streams: [BorrowedFd<'a>; 3],
    pub(crate) cgroups: &'a Entrances,
    pub(crate) confined: Confined,
}

/// The way to hear that a program has begun.
#[derive(Debug)]
pub(crate) struct Report(OwnedFd);

/// A process that was started and has not been waited for.
pub(crate) struct Spawned {
    pub(crate) mark: ProcessMark,
    pub(crate) pidfd: OwnedFd,
    pid: Pid,
}

impl Spawn<'_> {
    /// Starts it. It dies with the calling thread, and is in a session of its own. Returns once the program has begun, or with why it
    /// could not.
    pub(crate) fn spawn(&self) -> io::Result<Spawned> {
        let (spawned, report) = self.fork()?;
        match report.begun() {
            Ok(()) => Ok(spawned),
            Err(error) => {
                // It has ended, or is about to.
                let _ = spawned.wait();
                Err(error)
            }
        }
    }

    /// The same, but returns at once. Whether it has become its program is in the report.
    pub(crate) fn fork(&self) -> io::Result<(Spawned, Report)> {
        let path = c_string(self.path.as_os_str().as_bytes())?;
        let dir = c_string(self.dir.as_os_str().as_bytes())?;
        let mut args = vec![path.clone()];
        for arg in self.args {
            args.push(c_string(arg.as_bytes())?);
        }
        let mut env = Vec::new();
        for (name, value) in self.env {
            env.push(c_string(
                &[name.as_bytes(), b"=", value.as_bytes()].concat(),
            )?);
        }
        // Above the standard numbers, which are theirs in the child.
        let streams = self
            .streams
            .map(|stream| rustix::io::fcntl_dupfd_cloexec(stream, 3));
        let [stdin, stdout, stderr] = streams;
        let (stdin, stdout, stderr) = (stdin?, stdout?, stderr?);
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let report = rustix::io::fcntl_dupfd_cloexec(&write, 3)?;
        drop(write);
        let entrances: Vec<_> = self.cgroups.of_one.iter().map(|fd| fd.as_fd()).collect();
        let mut child = Child {
            parent: rustix::process::getpid(),
            confined: &self.confined,
            entrances: &entrances,
            streams: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            dir: &dir,
            path: &path,
            argv: &pointers(&args),
            envp: &pointers(&env),
        };
        let born = match &self.cgroups.of_two {
            Some(two) => fork_into(two.dir.as_fd(), &child, report.as_fd()),
            None => None,
        };
        let pid = match born {
            Some(pid) => pid,
            None => {
                let all: Vec<_> = self.cgroups.all().collect();
                child.entrances = &all;
                fork(&child, report.as_fd())?
            }
        };
        drop(report);
        let watched = Spawned::watch(pid);
        if watched.is_err() {
            // One that can't be watched is not kept.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = waited(pid);
        }
        Ok((watched?, Report(read)))
    }
}

impl Spawned {
    /// Not waited for yet, so even if it has ended the number is still its own.
    fn watch(pid: Pid) -> io::Result<Self> {
        let number = pid.as_raw_nonzero().get().unsigned_abs();
        let mark = ProcessMark::of(number)?;
        let pidfd = open_pidfd(number)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Spawned { mark, pidfd, pid })
    }

    /// Waits for its end.
    pub(crate) fn wait(&self) -> io::Result<ExitStatus> {
        waited(self.pid).map(|status| ExitStatus::from_raw(status.as_raw()))
    }
}

fn waited(pid: Pid) -> io::Result<WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            // Without NOHANG there is nothing else to be told.
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl Report {
    /// Waits until the program has begun: the pipe ends then, by itself. What stands in it is why it could not.
    pub(crate) fn begun(self) -> io::Result<()> {
        let mut word = Vec::new();
        std::fs::File::from(self.0).read_to_end(&mut word)?;
        match <[u8; 4]>::try_from(&word[..]) {
            Ok(errno) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
            Err(_) => Ok(()),
        }
    }
}

/// linux/sched.h; libc's constant of that name is too narrow for its value.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A child that is born in a control group of version 2. `None`: it could not be; another way may tell why.
#[allow(unsafe_code, reason = "clone3 has no safe form")]
fn fork_into(group: BorrowedFd<'_>, child: &Child<'_>, report: BorrowedFd<'_>) -> Option<Pid> {
    let wanted = libc::clone_args {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: u64::from(group.as_raw_fd().unsigned_abs()),
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
    };
    // SAFETY: as `fork` below; the structure is of the size that is told.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const wanted, size_of_val(&wanted)) };
    match pid {
        0 => be(child, report),
        pid => i32::try_from(pid)
            .ok()
            .filter(|pid| *pid > 0)
            .and_then(Pid::from_raw),
    }
}

#[allow(unsafe_code, reason = "fork has no safe form")]
fn fork(child: &Child<'_>, report: BorrowedFd<'_>) -> io::Result<Pid> {
    // SAFETY: the copy of a process that may have threads may only do what is async-signal-safe. `be` makes system calls and
    // touches the stack and memory that was allocated before; it takes no lock, allocates nothing, and does not return.
    match unsafe { libc::fork() } {
        0 => be(child, report),
        -1 => Err(io::Error::last_os_error()),
        pid => Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidData.into()),
    }
}

/// Is the child.
#[allow(
    unsafe_code,
    reason = "ending a forked process without its parent's handlers"
)]
fn be(child: &Child<'_>, report: BorrowedFd<'_>) -> ! {
    let errno = child.become_program();
    // A parent that is gone hears nothing.
    let _ = rustix::io::write(report, &errno.raw_os_error().to_ne_bytes());
    // SAFETY: it ends this process, and runs nothing of it.
    unsafe { libc::_exit(127) }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// As execve(2) takes them, with a null at the end.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr());
    pointers.chain([std::ptr::null()]).collect()
}
