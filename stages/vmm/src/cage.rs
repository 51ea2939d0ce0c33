//! What holds the processes of a machine together: control groups that they are in, and a shim whose end is theirs.
//!
//! The shim is the first process of a PID namespace, and every program of the machine is another process of it. When the
//! shim ends the kernel kills the rest, whatever users they have become. The shim itself ends with the program that started it: by
//! PR_SET_PDEATHSIG, which nothing clears in a process that keeps its user, and by the end of a pipe.
//!
//! A PID namespace can only be made by root. Others have PR_SET_PDEATHSIG on each process alone.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;

use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use crate::confine::{Confined, confine};
use crate::mark::{
    KILL_TIMEOUT, MACHINE_DIR_VARIABLE, ProcessMark, kill_pidfd, open_pidfd, wait_pidfd,
};

/// Which program the shim is: one that calls [`shim_main`] when it is started with these arguments.
#[derive(Debug, Clone)]
pub struct ShimProgram {
    pub path: PathBuf,
    pub args: Vec<String>,
}

/// What a machine's processes are started in. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Cage {
    /// The `cgroup.procs` of each control group that they are to be in, open for writing.
    pub cgroups: Vec<Arc<OwnedFd>>,
    shim: Option<Arc<Shim>>,
}

/// A shim that runs. Dropping it kills it, and with it everything in its namespace.
#[derive(Debug)]
struct Shim {
    mark: ProcessMark,
    pidfd: OwnedFd,
    /// Its end tells the shim that nobody needs it any more.
    _alive: OwnedFd,
}

impl Cage {
    /// A cage whose processes are in these control groups, and in the namespace of a shim where there can be one. `dir` is the
    /// launch's directory.
    ///
    /// # Errors
    /// When the shim cannot be started, though a namespace could be made.
    pub fn new(
        cgroups: Vec<Arc<OwnedFd>>,
        program: Option<&ShimProgram>,
        dir: &Path,
    ) -> io::Result<Self> {
        let shim = match program {
            Some(program) => Shim::start(program, &cgroups, dir)?,
            None => None,
        };
        Ok(Cage {
            cgroups,
            shim: shim.map(Arc::new),
        })
    }

    /// The shim, if there is one.
    pub fn shim(&self) -> Option<ProcessMark> {
        Some(self.shim.as_ref()?.mark)
    }

    /// Makes the calling thread's next children processes of the shim's namespace. Whether there is one.
    pub(crate) fn enter(&self) -> io::Result<bool> {
        let Some(shim) = &self.shim else {
            return Ok(false);
        };
        move_into_thread_name_spaces(shim.pidfd.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
        Ok(true)
    }
}

impl Shim {
    /// `None`: this process may not make a namespace.
    fn start(
        program: &ShimProgram,
        cgroups: &[Arc<OwnedFd>],
        dir: &Path,
    ) -> io::Result<Option<Self>> {
        let (read, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.args)
            .current_dir(dir)
            .env_clear()
            .env(MACHINE_DIR_VARIABLE, dir)
            .stdin(read)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let confined = Confined {
            cgroups: cgroups.to_vec(),
            first: true,
            ..Confined::default()
        };
        confine(&mut command, confined);
        let (tell, told) = mpsc::channel();
        // The thread lives as long as the shim: PDEATHSIG is sent when the thread that forked ends.
        let thread = thread::Builder::new().name("vmm-shim".to_owned());
        thread.spawn(move || {
            let started = in_new_namespace(&mut command);
            let child = match started {
                Ok(child) => child,
                Err(error) => {
                    let _ = tell.send(Err(error));
                    return;
                }
            };
            let Some(mut child) = child else {
                let _ = tell.send(Ok(None));
                return;
            };
            // Not waited for yet, so even if it has ended the number is still its own.
            let known = ProcessMark::of(child.id()).and_then(|mark| {
                let pidfd = open_pidfd(mark.pid)?.ok_or(io::ErrorKind::NotFound)?;
                Ok(Some((mark, pidfd)))
            });
            if known.is_err() {
                let _ = child.kill();
            }
            let _ = tell.send(known);
            let _ = child.wait();
        })?;
        let known = told
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(known.map(|(mark, pidfd)| Shim {
            mark,
            pidfd,
            _alive: alive,
        }))
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = kill_pidfd(&self.pidfd);
        let _ = wait_pidfd(&self.pidfd, KILL_TIMEOUT);
    }
}

/// Starts it as the first process of a new PID namespace; `None` where that is not permitted.
#[allow(
    unsafe_code,
    reason = "unsharing a table of descriptors would be unsound; this is none"
)]
fn in_new_namespace(command: &mut Command) -> io::Result<Option<std::process::Child>> {
    // SAFETY: CLONE_NEWPID changes only which namespace the children of this thread are in; memory and descriptors are as before.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) };
    match unshared {
        Ok(()) => command.spawn().map(Some),
        Err(Errno::PERM | Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Is the shim: waits until whoever started it is gone. What is left in its namespace without a parent ends up with it.
pub fn shim_main() {
    // The kernel waits for its children then, so that none stays as a zombie.
    let _ = ignore_children();
    let mut byte = [0];
    // Nobody writes: this is the end of the pipe.
    while matches!(
        rustix::io::read(rustix::stdio::stdin(), &mut byte),
        Err(Errno::INTR)
    ) {}
}

#[allow(unsafe_code, reason = "changing a signal's disposition")]
fn ignore_children() -> io::Result<()> {
    // SAFETY: no handler is installed, so nothing can run at a bad time; and nothing here waits for a child.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if before == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
