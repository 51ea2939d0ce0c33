//! What holds the processes of a machine together: control groups that they are in, and a shim whose end is theirs.
//!
//! The shim is the first process of a PID namespace, and every program of the machine is another process of it. When the
//! shim ends the kernel kills the rest, whatever users they have become. The shim itself ends with the program that started it: by
//! PR_SET_PDEATHSIG, which nothing clears in a process that keeps its user, and by the end of a pipe.
//!
//! A PID namespace can only be made by root. Others have PR_SET_PDEATHSIG on each process alone.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use crate::cgroup::Entrances;
use crate::confine::Confined;
use crate::mark::{KILL_TIMEOUT, MACHINE_DIR_VARIABLE, ProcessMark, kill_pidfd, wait_pidfd};
use crate::spawn::{Spawn, Spawned};

/// Which program the shim is: one that calls [`shim_main`] when it is started with these arguments.
#[derive(Debug, Clone)]
pub struct ShimProgram {
    pub path: PathBuf,
    pub args: Vec<String>,
}

/// What a machine's processes are started in. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Cage {
    /// The control groups that they are to be in.
    pub(crate) cgroups: Entrances,
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
    pub fn new(cgroups: Entrances, program: Option<&ShimProgram>, dir: &Path) -> io::Result<Self> {
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
    fn start(program: &ShimProgram, cgroups: &Entrances, dir: &Path) -> io::Result<Option<Self>> {
        let (read, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (program, cgroups, dir) = (program.clone(), cgroups.clone(), dir.to_owned());
        let (tell, told) = mpsc::channel();
        // The thread lives as long as the shim: PDEATHSIG is sent when the thread that forked ends.
        let thread = thread::Builder::new().name("vmm-shim".to_owned());
        thread.spawn(move || match begin(&program, &cgroups, &dir, &read) {
            Ok(Some(shim)) => {
                drop(read);
                let known = shim.pidfd.try_clone();
                let _ = tell.send(known.map(|pidfd| Some((shim.mark, pidfd))));
                let _ = shim.wait();
            }
            other => {
                let _ = tell.send(other.map(|_| None));
            }
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

/// Starts it as the first process of a new PID namespace; `None` where that is not permitted.
fn begin(
    program: &ShimProgram,
    cgroups: &Entrances,
    dir: &Path,
    stdin: &OwnedFd,
) -> io::Result<Option<Spawned>> {
    if !children_in_new_namespace()? {
        return Ok(None);
    }
    let null = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let args: Vec<&OsStr> = program.args.iter().map(OsStr::new).collect();
    let shim = Spawn {
        path: &program.path,
        args: &args,
        env: &[(MACHINE_DIR_VARIABLE, dir.as_os_str())],
        dir,
        streams: [stdin.as_fd(), null.as_fd(), null.as_fd()],
        cgroups,
        confined: Confined {
            first: true,
            ..Confined::default()
        },
    };
    shim.spawn().map(Some)
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = kill_pidfd(&self.pidfd);
        let _ = wait_pidfd(&self.pidfd, KILL_TIMEOUT);
    }
}

/// Makes the calling thread's next child the first process of a new PID namespace; `false` where that is not permitted.
#[allow(
    unsafe_code,
    reason = "unsharing a table of descriptors would be unsound; this is none"
)]
fn children_in_new_namespace() -> io::Result<bool> {
    // SAFETY: CLONE_NEWPID changes only which namespace the children of this thread are in; memory and descriptors are as before.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) };
    match unshared {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::INVAL | Errno::NOSYS) => Ok(false),
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
