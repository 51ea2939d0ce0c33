//! One process of a machine: started, watched and waited for by a thread of its own.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use crate::cage::Cage;
use crate::confine::{Confined, confine};
use crate::error::VmmError;
use crate::mark::{KILL_TIMEOUT, MACHINE_DIR_VARIABLE, ProcessMark, kill_pidfd, open_pidfd};

/// The variables of this process's environment that a child gets too; the rest may hold secrets, and a VMM is the first
/// thing a guest that breaks out finds itself in.
const ENVIRONMENT: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "TMPDIR"];

/// What to start.
pub(crate) struct Program {
    /// Shown to people, and the name of the thread that waits (15 bytes are kept).
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Its working directory; absolute.
    pub(crate) dir: PathBuf,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) inherit: Vec<Arc<OwnedFd>>,
    /// `None`: this process's.
    pub(crate) netns: Option<Arc<OwnedFd>>,
    pub(crate) cage: Cage,
}

/// A process that was started. Clones are the same process; it is not killed when they are dropped.
#[derive(Clone)]
pub(crate) struct Child {
    pub(crate) name: &'static str,
    pub(crate) mark: ProcessMark,
    shared: Arc<Shared>,
}

struct Shared {
    pidfd: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    status: Option<ExitStatus>,
    cause: Option<String>,
}

type Spawned = Result<(ProcessMark, OwnedFd), io::Error>;

impl Child {
    /// Starts `program`. `on_exit` is called, in the waiting thread, after the process ended.
    pub(crate) fn spawn(
        program: Program,
        on_exit: impl FnOnce() + Send + 'static,
    ) -> Result<Self, VmmError> {
        let name = program.name;
        let path = program.path.clone();
        let (tell, told) = mpsc::channel::<Spawned>();
        let (give, given) = mpsc::channel::<Arc<Shared>>();
        let failed = |source| VmmError::Spawn {
            program: path.clone(),
            source,
        };
        // The thread lives as long as the process: PDEATHSIG is sent when the thread that forked ends.
        thread::Builder::new()
            .name(format!("vmm-{name}"))
            .spawn(move || {
                let mut child = match start(program) {
                    Ok((child, mark, pidfd)) => {
                        // The receiver waits for exactly this, so it is there.
                        let _ = tell.send(Ok((mark, pidfd)));
                        child
                    }
                    Err(error) => {
                        let _ = tell.send(Err(error));
                        return;
                    }
                };
                let Ok(shared) = given.recv() else {
                    return;
                };
                let status = child
                    .wait()
                    .unwrap_or_else(|_| ExitStatus::from_raw(0xff00));
                shared.lock().status = Some(status);
                shared.changed.notify_all();
                on_exit();
            })
            .map_err(failed)?;
        let (mark, pidfd) = told
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
            .map_err(failed)?;
        let shared = Arc::new(Shared {
            pidfd,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        // The thread is in `recv`.
        let _ = give.send(Arc::clone(&shared));
        Ok(Self { name, mark, shared })
    }

    pub(crate) fn is_running(&self) -> bool {
        self.status().is_none()
    }

    pub(crate) fn status(&self) -> Option<ExitStatus> {
        self.shared.lock().status
    }

    /// Why it was killed from here, if it was and a reason was given.
    pub(crate) fn cause(&self) -> Option<String> {
        self.shared.lock().cause.clone()
    }

    /// Its status, once it has ended, or `None` after `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<ExitStatus> {
        let guard = self.shared.lock();
        let (guard, _) = self
            .shared
            .changed
            .wait_timeout_while(guard, timeout, |state| state.status.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        guard.status
    }

    /// SIGKILL, unless it has ended, and `cause` is remembered.
    pub(crate) fn signal_kill(&self, cause: Option<String>) {
        let mut state = self.shared.lock();
        if state.status.is_some() {
            return;
        }
        state.cause = state.cause.take().or(cause);
        // It can only fail for a process that another user owns now (a set-uid program), and then nothing helps.
        let _ = kill_pidfd(&self.shared.pidfd);
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&self) {
        self.signal_kill(None);
        self.wait(KILL_TIMEOUT);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The fields are written whole: a panic elsewhere leaves them right.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forks and execs. Everything the child was given is closed here when this returns, so that a pipe ends with the child.
fn start(program: Program) -> io::Result<(std::process::Child, ProcessMark, OwnedFd)> {
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .current_dir(&program.dir)
        .env_clear()
        .env(MACHINE_DIR_VARIABLE, &program.dir)
        .stdin(Stdio::null())
        .stdout(program.stdout)
        .stderr(program.stderr);
    for name in ENVIRONMENT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // The thread is this child's alone, so nothing else is started in the namespace.
    let caged = program.cage.enter()?;
    let confined = Confined {
        inherit: program.inherit,
        netns: program.netns,
        cgroups: program.cage.cgroups,
        caged,
        first: false,
    };
    confine(&mut command, confined);
    let mut child = command.spawn()?;
    // Not waited for yet, so even if it has ended the number is still its own.
    let looked = ProcessMark::of(child.id()).and_then(|mark| {
        let pidfd = open_pidfd(child.id())?.ok_or(io::ErrorKind::NotFound)?;
        Ok((mark, pidfd))
    });
    match looked {
        Ok((mark, pidfd)) => Ok((child, mark, pidfd)),
        Err(error) => {
            // One that can't be watched is not kept.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// An exit status in words.
pub(crate) fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}
