//! The agent's side of a process's start: pipes, namespaces, the new process, its streams.
//!
//! It runs on a thread of its own for each process, because a start can take as long as the disk
//! it reads from. The new process is born of yet another thread: one whose PID namespace for
//! children was changed cannot make threads any more (clone(2), "EINVAL").

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use fcpipe_proto::frame::{self, StreamId};
use fcpipe_proto::message::{GuestMessage, Start};
use fcpipe_proto::mux::{Inlet, Mux, Outlet};
use fcpipe_proto::pump::{self, AtStop, Stop};
use fcpipe_proto::{Failure, FailureKind, ProcessId, ProtoError};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::agent::Agent;
use crate::container;
use crate::handoff::{self, Container, Report};
use crate::processes::StreamsOf;

/// A process's streams, opened on the thread that reads requests, so that what the host sends
/// next finds them.
pub(crate) struct Streams {
    stdin: Option<Arc<Inlet>>,
    stdout: Arc<Outlet>,
    stderr: Arc<Outlet>,
}

impl Streams {
    pub(crate) fn open(mux: &Arc<Mux>, start: &Start) -> Result<Self, ProtoError> {
        let stream = |stdio| StreamId::new(start.id, stdio);
        Ok(Streams {
            stdin: match start.stdin {
                true => Some(mux.open_in(stream(frame::Stdio::In))?),
                false => None,
            },
            stdout: mux.open_out(stream(frame::Stdio::Out))?,
            stderr: mux.open_out(stream(frame::Stdio::Err))?,
        })
    }
}

/// What the process is beside: nothing yet, or a container that runs.
pub(crate) enum Place {
    New(Box<Container>),
    Beside(Arc<OwnedFd>),
}

/// Starts the process on a thread of its own, which tells the host what came of it.
pub(crate) fn spawn(
    agent: &Arc<Agent>,
    mux: &Arc<Mux>,
    start: Start,
    place: Place,
) -> Result<(), ProtoError> {
    let streams = Streams::open(mux, &start)?;
    let id = start.id;
    let (agent, owned) = (Arc::clone(agent), Arc::clone(mux));
    let thread = thread::Builder::new().name(format!("start-{id}"));
    let began = thread.spawn(move || run(&agent, &owned, start, place, streams));
    match began {
        Ok(_) => Ok(()),
        Err(e) => refuse(mux, id, setup("starting a thread", &e)),
    }
}

/// Tells the host that the process did not start.
pub(crate) fn refuse(mux: &Arc<Mux>, id: ProcessId, failure: Failure) -> Result<(), ProtoError> {
    mux.retire(id);
    let process = id;
    mux.send(&GuestMessage::StartFailed { process, failure }, "a failure")
}

fn run(agent: &Agent, mux: &Arc<Mux>, start: Start, place: Place, streams: Streams) {
    let id = start.id;
    let ends = match begin(agent, start, place, &streams) {
        Ok(ends) => ends,
        Err(failure) => {
            agent.processes.forget(id);
            // A host that has gone needs no answer.
            let _ = refuse(mux, id, failure);
            return;
        }
    };
    // Under the table's lock, so that the start is said before the exit.
    agent.processes.started(id, |exited| {
        let message = match exited {
            None => GuestMessage::Started { process: id },
            Some(status) => GuestMessage::Exited {
                process: id,
                status,
            },
        };
        let _ = mux.send(&message, "a start");
    });
    ends.pump(id, streams);
}

/// The agent's ends of a process's pipes.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    stop: Arc<Stop>,
}

fn begin(agent: &Agent, start: Start, place: Place, streams: &Streams) -> Result<Ends, Failure> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| setup("making a pipe", &e.into()));
    let (stdin, their_stdin) = if start.stdin {
        let (theirs, ours) = pipe()?;
        fcntl_setfl(&ours, OFlags::NONBLOCK).map_err(|e| setup("making a pipe", &e.into()))?;
        (Some(ours), theirs)
    } else {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        (
            None,
            null.map_err(|e| setup("opening /dev/null", &e.into()))?,
        )
    };
    let (stdout, their_stdout) = pipe()?;
    let (stderr, their_stderr) = pipe()?;
    let stop = Arc::new(Stop::new().map_err(|e| setup("making an eventfd", &e))?);

    let mut fds = vec![
        their_stdin.as_fd(),
        their_stdout.as_fd(),
        their_stderr.as_fd(),
    ];
    if let Place::Beside(init) = &place {
        fds.push(init.as_fd());
    }
    let (mut control, theirs) = UnixStream::pair().map_err(|e| setup("making a socket", &e))?;
    let stop_too = StreamsOf {
        stop: Arc::clone(&stop),
        stdin: streams.stdin.clone(),
    };
    let pid = agent.processes.spawn(start.id, stop_too, || {
        let bear = || bear(&agent.settings.program, OwnedFd::from(theirs), &place);
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("bear".to_owned());
            let born = thread.spawn_scoped(scope, bear)?.join();
            born.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        })
    });
    let pid = pid.map_err(|e| setup("starting a process", &e))?;
    if let Some(cgroup) = &agent.settings.cgroup
        && let Err(e) = cgroup.add(pid)
    {
        return Err(setup("entering the container's cgroup", &e));
    }

    let orders = OrdersRef {
        process: &start.process,
        container: match &place {
            Place::New(container) => Some(container),
            Place::Beside(_) => None,
        },
    };
    let told = handoff::send(&mut control, &orders, &fds);
    drop((their_stdin, their_stdout, their_stderr));
    let report = told.and_then(|()| last_report(&mut control));
    match report {
        Ok(Some(Report::Exec)) => Ok(Ends {
            stdin,
            stdout,
            stderr,
            stop,
        }),
        Ok(Some(Report::Failed(failure))) => Err(failure),
        Ok(None) => Err(Failure::new(
            FailureKind::Setup,
            None,
            "the new process died while it set the container up",
        )),
        Err(e) => Err(setup("talking to the new process", &e)),
    }
}

/// Runs this program as a container process, in the PID namespace where it belongs. The calling
/// thread is of no other use afterwards.
fn bear(program: &Path, control: OwnedFd, place: &Place) -> io::Result<u32> {
    match place {
        Place::New(_) => unshare(CloneFlags::CLONE_NEWPID)?,
        Place::Beside(init) => setns(init, CloneFlags::CLONE_NEWPID)?,
    }
    let mut command = Command::new(program);
    command.arg(container::ARGUMENT).env_clear().stdin(control);
    // Not waited for here: the reaper waits for all children.
    command.spawn().map(|child| child.id())
}

/// As [`handoff::Orders`], borrowed.
#[derive(serde::Serialize)]
struct OrdersRef<'a> {
    process: &'a fcpipe_proto::Process,
    container: Option<&'a Container>,
}

/// Reads until the process closes its end, in execve(2) or by dying.
fn last_report(control: &mut UnixStream) -> io::Result<Option<Report>> {
    let mut last = None;
    while let Some((report, _)) = handoff::receive(control)? {
        last = Some(report);
    }
    Ok(last)
}

impl Ends {
    /// Starts the threads that move the process's bytes.
    fn pump(self, id: ProcessId, streams: Streams) {
        let named = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(format!("{name}-{id}"));
            if let Err(e) = thread.spawn(run) {
                crate::console::say(&format!("process {id} has no {name}: {e}"));
            }
        };
        let outputs = [
            ("stdout", self.stdout, streams.stdout),
            ("stderr", self.stderr, streams.stderr),
        ];
        for (name, fd, outlet) in outputs {
            let stop = Arc::clone(&self.stop);
            named(
                name,
                Box::new(move || {
                    // When the host wants no more, closing the pipe is how the process learns it.
                    pump::send_fd(&fd, &outlet, &stop, AtStop::Drain);
                }),
            );
        }
        if let (Some(fd), Some(inlet)) = (self.stdin, streams.stdin) {
            let stop = self.stop;
            named(
                "stdin",
                Box::new(move || pump::receive_fd(&inlet, fd, &stop)),
            );
        }
    }
}

fn setup(what: &str, error: &io::Error) -> Failure {
    Failure::new(FailureKind::Setup, None, format!("{what}: {error}"))
}
