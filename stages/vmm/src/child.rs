//! One process of a machine: started, watched and waited for by a thread of its own.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::cage::Cage;
use crate::confine::Confined;
use crate::error::VmmError;
use crate::mark::{KILL_TIMEOUT, MACHINE_DIR_VARIABLE, ProcessMark, kill_pidfd};
use crate::spawn::{Spawn, Spawned};

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

impl Child {
    /// Starts `program`. `on_exit` is called, in the waiting thread, after the process ended.
    pub(crate) fn spawn(
        program: Program,
        on_exit: impl FnOnce() + Send + 'static,
    ) -> Result<Self, VmmError> {
        let name = program.name;
        let path = program.path.clone();
        let (tell, told) = mpsc::channel::<io::Result<(ProcessMark, OwnedFd)>>();
        let (give, given) = mpsc::channel::<Arc<Shared>>();
        let failed = |source| VmmError::Spawn {
            program: path.clone(),
            source,
        };
        // The thread lives as long as the process: PDEATHSIG is sent when the thread that forked ends.
        thread::Builder::new()
            .name(format!("vmm-{name}"))
            .spawn(move || {
                let started =
                    start(program).and_then(|child| Ok((child.pidfd.try_clone()?, child)));
                let child = match started {
                    Ok((pidfd, child)) => {
                        // The receiver waits for exactly this, so it is there.
                        let _ = tell.send(Ok((child.mark, pidfd)));
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

/// Starts it. Everything the child was given is closed here when this returns, so that a pipe ends with the child.
fn start(program: Program) -> io::Result<Spawned> {
    let kept: Vec<_> = ENVIRONMENT
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)))
        .collect();
    let mut env = vec![(MACHINE_DIR_VARIABLE, program.dir.as_os_str())];
    env.extend(kept.iter().map(|(name, value)| (*name, value.as_os_str())));
    let args: Vec<&OsStr> = program.args.iter().map(OsString::as_os_str).collect();
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // The thread is this child's alone, so nothing else is started in the namespace.
    let caged = program.cage.enter()?;
    let spawn = Spawn {
        path: &program.path,
        args: &args,
        env: &env,
        dir: &program.dir,
        streams: [null.as_fd(), program.stdout.as_fd(), program.stderr.as_fd()],
        cgroups: &program.cage.cgroups,
        confined: Confined {
            inherit: program.inherit,
            netns: program.netns,
            caged,
            first: false,
        },
    };
    spawn.spawn()
}

/// An exit status in words.
pub(crate) fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}
