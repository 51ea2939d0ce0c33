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
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

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

fn run(agent: &Arc<Agent>, mux: &Arc<Mux>, start: Start, place: Place, streams: Streams) {
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
    let terminal = match &ends.side {
        Side::Terminal(master) => Some(Arc::clone(master)),
        Side::Pipes { .. } => None,
    };
    // Under the table's lock, so that the start is said before the exit.
    agent.processes.started(id, terminal, |exited| {
        let message = match exited {
            None => GuestMessage::Started { process: id },
            Some(status) => GuestMessage::Exited {
                process: id,
                status,
            },
        };
        let _ = mux.send(&message, "a start");
    });
    ends.pump(agent, id, streams);
}

/// The agent's ends of a process's streams.
struct Ends {
    side: Side,
    stop: Arc<Stop>,
}

enum Side {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal(Arc<OwnedFd>),
}

/// The process's ends of its pipes.
struct Theirs {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

fn pipes(with_stdin: bool) -> Result<(Side, Theirs), Failure> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| setup("making a pipe", &e.into()));
    let (ours, stdin) = if with_stdin {
        let (theirs, ours) = pipe()?;
        unblock(&ours).map_err(|e| setup("making a pipe", &e))?;
        (Some(ours), theirs)
    } else {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        (
            None,
            null.map_err(|e| setup("opening /dev/null", &e.into()))?,
        )
    };
    let (from_stdout, stdout) = pipe()?;
    let (from_stderr, stderr) = pipe()?;
    let side = Side::Pipes {
        stdin: ours,
        stdout: from_stdout,
        stderr: from_stderr,
    };
    let theirs = Theirs {
        stdin,
        stdout,
        stderr,
    };
    Ok((side, theirs))
}

fn unblock(fd: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(fd, OFlags::NONBLOCK)?)
}

fn begin(agent: &Agent, start: Start, place: Place, streams: &Streams) -> Result<Ends, Failure> {
    let pipes = match start.process.terminal {
        true => None,
        false => Some(pipes(start.stdin)?),
    };
    let stop = Arc::new(Stop::new().map_err(|e| setup("making an eventfd", &e))?);
    let mut fds = Vec::new();
    if let Place::Beside(init) = &place {
        fds.push(init.as_fd());
    }
    if let Some((_, theirs)) = &pipes {
        fds.extend([&theirs.stdin, &theirs.stdout, &theirs.stderr].map(AsFd::as_fd));
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
    let pipes = pipes.map(|(ours, _)| ours);
    let reports = told.and_then(|()| reports(&mut control));
    let reports = reports.map_err(|e| setup("talking to the new process", &e))?;
    let lacking = |what: &str| Failure::new(FailureKind::Setup, None, what);
    match reports.last {
        Some(Report::Exec) => {}
        Some(Report::Failed(failure)) => return Err(failure),
        Some(Report::Terminal) | None => {
            return Err(lacking(
                "the new process died while it set the container up",
            ));
        }
    }
    let side = match (pipes, reports.terminal) {
        (Some(pipes), _) => pipes,
        (None, Some(master)) => {
            unblock(&master).map_err(|e| setup("using the terminal", &e))?;
            Side::Terminal(Arc::new(master))
        }
        (None, None) => return Err(lacking("the terminal did not come")),
    };
    Ok(Ends { side, stop })
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

/// What the new process said.
#[derive(Default)]
struct Reports {
    last: Option<Report>,
    terminal: Option<OwnedFd>,
}

/// Reads until the process closes its end, in execve(2) or by dying.
fn reports(control: &mut UnixStream) -> io::Result<Reports> {
    let mut reports = Reports::default();
    while let Some((report, fds)) = handoff::receive(control)? {
        if matches!(report, Report::Terminal) {
            reports.terminal = fds.into_iter().next();
        }
        reports.last = Some(report);
    }
    Ok(reports)
}

impl Ends {
    /// Starts the threads that move the process's bytes.
    fn pump(self, agent: &Arc<Agent>, id: ProcessId, streams: Streams) {
        let stop = self.stop;
        match self.side {
            Side::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                // When the host wants no more, closing the pipe is how the process learns it.
                let outputs = [
                    ("stdout", stdout, streams.stdout),
                    ("stderr", stderr, streams.stderr),
                ];
                for (name, fd, outlet) in outputs {
                    let (stop, sender) = (Arc::clone(&stop), Arc::clone(&outlet));
                    let pumps = pumping(name, id, move || {
                        pump::send_fd(&fd, &sender, &stop, AtStop::Drain);
                    });
                    if !pumps {
                        // The host would wait for its end.
                        outlet.finish();
                    }
                }
                if let (Some(fd), Some(inlet)) = (stdin, streams.stdin) {
                    pumping("stdin", id, move || {
                        pump::receive_fd(&inlet, &fd, &stop);
                    });
                }
            }
            Side::Terminal(master) => {
                streams.stderr.finish();
                let (fd, agent) = (Arc::clone(&master), Arc::clone(agent));
                let (outlet, stop_too) = (Arc::clone(&streams.stdout), Arc::clone(&stop));
                let pumps = pumping("terminal", id, move || {
                    let end = pump::send_fd(&fd, &outlet, &stop_too, AtStop::Drain);
                    drop(fd);
                    if end.is_some() {
                        agent.processes.hang_up(id);
                    }
                });
                if !pumps {
                    streams.stdout.finish();
                }
                if let Some(inlet) = streams.stdin {
                    pumping("stdin", id, move || {
                        if pump::receive_fd(&inlet, &master, &stop) {
                            type_end(&master, &stop);
                        }
                    });
                }
            }
        }
    }
}

/// `false` where there can be no thread for it.
fn pumping(name: &str, id: ProcessId, run: impl FnOnce() + Send + 'static) -> bool {
    let thread = thread::Builder::new().name(format!("{name}-{id}"));
    let spawned = thread.spawn(run);
    if let Err(e) = &spawned {
        crate::console::say(&format!("process {id} has no {name}: {e}"));
    }
    spawned.is_ok()
}

/// A terminal's input has no end but the one that is typed: once to end a line that was begun, and once more.
fn type_end(master: &OwnedFd, stop: &Stop) {
    let Ok(mode) = tcgetattr(master) else {
        return;
    };
    let end = mode.special_codes[SpecialCodeIndex::VEOF];
    if mode.local_modes.contains(LocalModes::ICANON) && end != 0 {
        pump::write_all(master, &[end, end], stop);
    }
}

fn setup(what: &str, error: &io::Error) -> Failure {
    Failure::new(FailureKind::Setup, None, format!("{what}: {error}"))
}
