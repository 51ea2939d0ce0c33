//! A process of the guest, as the host sees it.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::drain::{Drain, Next};
use super::session::{LOOK, TICK};
use super::state::{Phase, ProcessState, Shared};
use crate::error::ProtoError;
use crate::frame::{self, StreamId};
use crate::message::{HostMessage, SignalOutcome, Start};
use crate::mux::{Inlet, Outlet, lock};
use crate::process::{ExitStatus, Process, ProcessId, Signal, WindowSize};
use crate::pump::{self, AtStop, Stop};

/// How long an agent may take to answer a signal.
const SIGNAL: Duration = Duration::from_secs(10);

/// Where a process's standard streams go.
pub struct Stdio {
    /// `None`: the process has `/dev/null`. The descriptor is only read once poll(2) says that
    /// there is something, so it may be a terminal; its mode is not changed.
    pub stdin: Option<OwnedFd>,
    pub stdout: Box<dyn Write + Send>,
    pub stderr: Box<dyn Write + Send>,
}

/// The output of a process could not be passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputError {
    /// `stdout` or `stderr`.
    pub stream: &'static str,
    /// [`io::ErrorKind::BrokenPipe`] where its reader has gone: usually no error to speak of.
    pub kind: io::ErrorKind,
    pub reason: String,
}

impl OutputError {
    /// What there is to say of it: nothing, where a reader wanted no more.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let told = self.kind != io::ErrorKind::BrokenPipe;
        told.then(|| {
            format!(
                "the process's {} was cut short: {}",
                self.stream, self.reason
            )
        })
    }
}

/// A process that was started. Dropping it leaves the process running.
pub struct RunningProcess {
    id: ProcessId,
    shared: Arc<Shared>,
    outputs: [Arc<Inlet>; 2],
    errors: Arc<Mutex<Vec<OutputError>>>,
}

/// The threads' parts, until the process runs.
pub(super) struct Threads {
    stdin: Option<(OwnedFd, Arc<Outlet>)>,
    outputs: [(&'static str, Arc<Inlet>, Box<dyn Write + Send>); 2],
    stop: Arc<Stop>,
    errors: Arc<Mutex<Vec<OutputError>>>,
}

impl RunningProcess {
    /// Opens the streams and asks for the start.
    pub(super) fn open(
        shared: &Arc<Shared>,
        process: &Process,
        stdio: Stdio,
    ) -> Result<(Self, Threads), ProtoError> {
        let stop = Stop::new().map_err(|e| ProtoError::io("making an eventfd", &e))?;
        let stop = Arc::new(stop);
        let id = shared.change(|state| {
            let id = state.new_process()?;
            let process = ProcessState {
                phase: Phase::Starting,
                drain: None,
                stop: Some(Arc::clone(&stop)),
                outputs: 2,
                lost: None,
                forgotten: false,
            };
            state.processes.insert(id, process);
            Ok::<_, ProtoError>(id)
        })?;
        let mux = &shared.mux;
        let stdin = match stdio.stdin {
            Some(fd) => Some((fd, mux.open_out(StreamId::new(id, frame::Stdio::In))?)),
            None => None,
        };
        let out = mux.open_in(StreamId::new(id, frame::Stdio::Out))?;
        let err = mux.open_in(StreamId::new(id, frame::Stdio::Err))?;
        let start = HostMessage::Start(Box::new(Start {
            id,
            process: process.clone(),
            stdin: stdin.is_some(),
        }));
        if let Err(error) = mux.send(&start, "the process") {
            mux.retire(id);
            shared.change(|state| state.processes.remove(&id));
            return Err(error);
        }
        let errors = Arc::new(Mutex::new(Vec::new()));
        let running = RunningProcess {
            id,
            shared: Arc::clone(shared),
            outputs: [Arc::clone(&out), Arc::clone(&err)],
            errors: Arc::clone(&errors),
        };
        let threads = Threads {
            stdin,
            outputs: [("stdout", out, stdio.stdout), ("stderr", err, stdio.stderr)],
            stop,
            errors,
        };
        Ok((running, threads))
    }

    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Sends a signal to the process, or to every process of the container (`all`), and waits
    /// until the agent has done it. Output that nobody reads does not delay it.
    ///
    /// # Errors
    /// [`ProtoError::Timeout`] after ten seconds; why the connection ended.
    pub fn signal(&self, signal: Signal, all: bool) -> Result<SignalOutcome, ProtoError> {
        let request = self.shared.change(|state| {
            let request = state.new_request();
            state.signals.insert(request, None);
            request
        });
        let message = HostMessage::Signal {
            request,
            process: self.id,
            signal,
            all,
        };
        let sent = self.shared.mux.send(&message, "a signal");
        let deadline = Some(Instant::now() + SIGNAL);
        let answer = sent.and_then(|()| {
            let waited =
                self.shared
                    .wait(deadline, LOOK, |state| match state.signals.get(&request) {
                        Some(Some(outcome)) => Some(Ok(*outcome)),
                        _ => self.shared.gave_up(state).map(Err),
                    });
            waited.unwrap_or(Err(ProtoError::Timeout { what: "a signal" }))
        });
        // A late answer to a request that timed out must not look like one that was never made.
        if !matches!(answer, Err(ProtoError::Timeout { .. })) {
            self.shared.lock().signals.remove(&request);
        }
        answer
    }

    /// Gives up a start that is not waited for any more: should the process still begin, it is killed, and its output is nobody's.
    pub(super) fn abandon(&self) {
        let request = self.shared.change(|state| {
            let process = state.processes.get_mut(&self.id)?;
            process.outputs = 0;
            process.stop_input();
            let late = matches!(process.phase, Phase::Starting);
            let request = late.then(|| state.new_request())?;
            // Its answer is not waited for, but known when it comes.
            state.signals.insert(request, None);
            Some(request)
        });
        let Some(request) = request else {
            return;
        };
        let message = HostMessage::Signal {
            request,
            process: self.id,
            signal: Signal::KILL,
            all: false,
        };
        // Where the connection has ended, the process ends with it.
        let _ = self.shared.mux.send(&message, "a signal");
        self.outputs.iter().for_each(|inlet| inlet.close());
    }

    /// Gives the process's terminal another size. One without a terminal, or that has ended, takes no notice.
    ///
    /// # Errors
    /// Why the connection ended.
    pub fn resize(&self, size: WindowSize) -> Result<(), ProtoError> {
        let message = HostMessage::Resize {
            process: self.id,
            size,
        };
        self.shared.mux.send(&message, "a terminal's size")
    }

    /// Waits until the process has ended and its output has been written; `None` at the deadline.
    /// To be told of a cancellation, wait in steps.
    ///
    /// # Errors
    /// Why the connection ended before all was known.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<Option<ExitStatus>, ProtoError> {
        let answer = self.shared.wait(deadline, TICK, |state| {
            let Some(ProcessState {
                phase: Phase::Exited(status),
                drain,
                outputs,
                lost,
                ..
            }) = state.processes.get_mut(&self.id)
            else {
                return state.ended.clone().map(Err);
            };
            match lost {
                Some(error) => Some(Err(error.clone())),
                None if *outputs == 0 => Some(Ok(*status)),
                None if drain
                    .as_mut()
                    .is_some_and(|drain| self.output_never_ends(drain, state.answers)) =>
                {
                    let error = ProtoError::broken(
                        "the process has ended, and its output neither comes nor ends",
                    );
                    self.shared.mux.end(error.clone());
                    Some(Err(error))
                }
                None => None,
            }
        });
        answer.transpose()
    }

    /// How the process ended, as soon as it is known: its output may still be under way.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        match self.shared.lock().processes.get(&self.id)?.phase {
            Phase::Exited(status) => Some(status),
            _ => None,
        }
    }

    /// What kept output from being passed on; after [`RunningProcess::wait`] it is complete.
    #[must_use]
    pub fn output_errors(&self) -> Vec<OutputError> {
        lock(&self.errors).clone()
    }

    /// Whether the rest of the output of a process that has exited is not to be waited for.
    fn output_never_ends(&self, drain: &mut Drain, answers: u64) -> bool {
        let mut idle = self.outputs.iter().map(|inlet| inlet.idle_since());
        let idle = idle.try_fold(None, |last, since| Some(last.max(Some(since?))));
        match drain.look(idle.flatten(), answers, Instant::now()) {
            Next::Wait => false,
            Next::Ask => {
                // It fails only when the connection has ended, which the wait sees.
                let _ = self.shared.mux.send(&HostMessage::Ping, "a ping");
                false
            }
            Next::GiveUp => true,
        }
    }
}

impl Drop for RunningProcess {
    fn drop(&mut self) {
        if let Some(process) = self.shared.lock().processes.get_mut(&self.id) {
            process.forgotten = true;
        }
        self.shared.forget(self.id);
    }
}

impl Threads {
    /// Starts them.
    pub(super) fn spawn(self, shared: &Arc<Shared>, id: ProcessId) -> Result<(), ProtoError> {
        let named = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(format!("{name}-{id}"))
                .spawn(run)
                .map(drop)
                .map_err(|e| {
                    let error = ProtoError::io("starting a stream's thread", &e);
                    shared.mux.end(error.clone());
                    error
                })
        };
        for (stream, inlet, mut to) in self.outputs {
            let shared = Arc::clone(shared);
            let errors = Arc::clone(&self.errors);
            named(
                stream,
                Box::new(move || {
                    let received = pump::receive(&inlet, &mut to);
                    if let Ok(Err(e)) = &received {
                        lock(&errors).push(OutputError {
                            stream,
                            kind: e.kind(),
                            reason: e.to_string(),
                        });
                    }
                    // The writer goes first: whoever waited may look at where it wrote.
                    drop(to);
                    shared.change(|state| {
                        if let Some(process) = state.processes.get_mut(&id) {
                            process.outputs -= 1;
                            process.lost = process.lost.take().or(received.err());
                        }
                    });
                    shared.forget(id);
                }),
            )?;
        }
        if let Some((fd, outlet)) = self.stdin {
            let stop = self.stop;
            named(
                "stdin",
                Box::new(move || {
                    pump::send_fd(&fd, &outlet, &stop, AtStop::Leave);
                }),
            )?;
        }
        Ok(())
    }
}
