//! Starts a program in the control groups, the namespaces and with the descriptors that it is to have, and no others.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};

use crate::cgroup::Entrances;
use crate::confine::{Child, Confined};
use crate::mark::{ProcessMark, open_pidfd};
use crate::vfork;

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
        let group = self.cgroups.of_two.as_ref().map(|two| two.dir.as_fd());
        let born = match group {
            Some(_) => become_child(&child, group)?,
            None => None,
        };
        let (pid, failed) = match born {
            Some(born) => born,
            None => {
                let all: Vec<_> = self.cgroups.all().collect();
                child.entrances = &all;
                become_child(&child, None)?.ok_or(io::ErrorKind::InvalidData)?
            }
        };
        let watched = Spawned::watch(pid);
        if watched.is_err() {
            // One that can't be watched is not kept.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if failed.is_some() || watched.is_err() {
            let _ = waited(pid);
        }
        match failed {
            Some(why) => Err(why),
            None => watched,
        }
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

/// The process, once it has become the program; or why it could not, and then it has ended or is about to.
#[allow(
    unsafe_code,
    reason = "a child in its parent's memory has no safe form"
)]
fn become_child(
    child: &Child<'_>,
    group: Option<BorrowedFd<'_>>,
) -> io::Result<Option<(Pid, Option<io::Error>)>> {
    let failed = AtomicI32::new(0);
    let be = || failed.store(child.become_program().raw_os_error(), Ordering::Relaxed);
    // SAFETY: `become_program` makes system calls and touches the stack and memory that was allocated before; it takes no lock,
    // allocates nothing, and writes to nothing but an atomic number.
    let pid = unsafe { vfork::child(group, &be) }?;
    let failed = Some(failed.into_inner()).filter(|errno| *errno != 0);
    Ok(pid.map(|pid| (pid, failed.map(io::Error::from_raw_os_error))))
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// As execve(2) takes them, with a null at the end.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr());
    pointers.chain([std::ptr::null()]).collect()
}
