//! A connection to the agent.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::process::{RunningProcess, Stdio};
use super::reader;
use super::state::{Configure, Phase, ProcessState, Shared, State};
use crate::PROTOCOL;
use crate::config::GuestConfig;
use crate::error::ProtoError;
use crate::frame::{Frame, MAX_CONTROL_FROM_GUEST, MAX_CONTROL_FROM_HOST};
use crate::message::{self, GuestMessage, Hello, HelloReply, HostMessage};
use crate::mux::{Mux, Side};
use crate::patience::WAIT;
use crate::process::{Process, ProcessId};
use crate::stats::Stats;
use crate::stream::Stream;

/// How often a wait looks for an end that nothing announces.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// How often a wait for an answer looks whether that is still wanted.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// A connection to the agent of one VM. Dropping it ends the connection; the agent then ends the
/// container and the machine, unless another connection comes soon.
pub struct Session {
    shared: Arc<Shared>,
    guest: HelloReply,
}

impl Session {
    /// Shakes hands with the agent at the other end of `stream`.
    ///
    /// # Errors
    /// [`ProtoError::Version`], [`ProtoError::BootId`] and [`ProtoError::Busy`] when this is not
    /// the agent to talk to; [`ProtoError::Closed`] when none is there; [`ProtoError::Timeout`] at
    /// the deadline.
    pub fn connect<S: Stream>(
        stream: S,
        boot_id: &str,
        deadline: Instant,
    ) -> Result<Self, ProtoError> {
        Session::connect_unless(stream, boot_id, deadline, || false)
    }

    /// The same for a launch that may be cancelled: once `cancelled` says so, no answer of the agent is waited for any more, now
    /// and later, and the error is [`ProtoError::Ended`].
    ///
    /// # Errors
    /// As for [`Session::connect`].
    pub fn connect_unless<S: Stream>(
        mut stream: S,
        boot_id: &str,
        deadline: Instant,
        cancelled: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Self, ProtoError> {
        let guest = shake_hands(&mut stream, boot_id, deadline, &cancelled)?;
        let option = |e| ProtoError::io("setting the connection's timeout", &e);
        stream.set_read_timeout(Some(WAIT)).map_err(option)?;
        stream.set_write_timeout(Some(WAIT)).map_err(option)?;
        let mux = Mux::new(&stream, Side::Host, MAX_CONTROL_FROM_HOST)?;
        let next = guest.running.iter().map(|p| p.get()).max().unwrap_or(0) + 1;
        let configure = if guest.configured {
            Configure::Done
        } else {
            Configure::Not
        };
        let shared = Arc::new(Shared::new(
            mux,
            Box::new(cancelled),
            State {
                configure,
                inherited: guest.running.iter().copied().collect(),
                next_process: next,
                oom_kills: guest.oom_kills,
                ..State::default()
            },
        ));
        let owned = Arc::clone(&shared);
        thread::Builder::new()
            .name("proto-reader".to_owned())
            .spawn(move || reader::run(&owned, stream))
            .map_err(|e| {
                shared.mux.end(ProtoError::Ended);
                ProtoError::io("starting the reader thread", &e)
            })?;
        Ok(Session { shared, guest })
    }

    /// Who answered.
    #[must_use]
    pub fn guest(&self) -> &HelloReply {
        &self.guest
    }

    /// Gives the guest its root, mounts and names. Once a boot, before any process.
    ///
    /// # Errors
    /// [`ProtoError::Failed`] with what could not be made; [`ProtoError::Timeout`] at the
    /// deadline; why the connection ended.
    pub fn configure(&self, config: &GuestConfig, deadline: Instant) -> Result<(), ProtoError> {
        let asked = self.shared.change(|state| {
            let first = matches!(state.configure, Configure::Not);
            if first {
                state.configure = Configure::Asked;
            }
            first
        });
        if !asked {
            return Err(ProtoError::broken(
                "the guest has its configuration already",
            ));
        }
        let request = HostMessage::Configure(Box::new(config.clone()));
        if let Err(error) = self.shared.mux.send(&request, "the configuration") {
            self.shared.change(|state| state.configure = Configure::Not);
            return Err(error);
        }
        self.answer(deadline, "the configuration", |state| {
            match &state.configure {
                Configure::Not | Configure::Asked => None,
                Configure::Done => Some(Ok(())),
                Configure::Failed(failure) => Some(Err(ProtoError::Failed(failure.clone()))),
            }
        })
    }

    /// Starts a process: the first is the container's PID 1, others run beside it.
    ///
    /// Threads move its streams until they end; they are not waited for when the session is
    /// dropped, because a write to `stdio.stdout` may block for ever.
    ///
    /// # Errors
    /// [`ProtoError::Failed`] when it could not be started: [`Failure::shell_code`] says whether
    /// it was not found, not executable, or something else. As for [`Session::configure`]
    /// otherwise.
    ///
    /// [`Failure::shell_code`]: crate::process::Failure::shell_code
    pub fn start(
        &self,
        process: &Process,
        stdio: Stdio,
        deadline: Instant,
    ) -> Result<RunningProcess, ProtoError> {
        let (running, threads) = RunningProcess::open(&self.shared, process, stdio)?;
        let id = running.id();
        let started = self.answer(deadline, "the start of a process", |state| {
            match state.processes.get(&id).map(|p| &p.phase) {
                None | Some(Phase::Starting) => None,
                Some(Phase::Failed(failure)) => Some(Err(ProtoError::Failed(failure.clone()))),
                Some(Phase::Running | Phase::Exited(_)) => Some(Ok(())),
            }
        });
        if let Err(error) = started {
            running.abandon();
            return Err(error);
        }
        threads.spawn(&self.shared, id)?;
        Ok(running)
    }

    /// What the container and its machine have used.
    ///
    /// # Errors
    /// [`ProtoError::Timeout`] at the deadline; why the connection ended.
    pub fn stats(&self, deadline: Instant) -> Result<Stats, ProtoError> {
        let request = self.shared.change(|state| {
            let request = state.new_request();
            state.stats.insert(request, None);
            request
        });
        let sent = self
            .shared
            .mux
            .send(&HostMessage::Stats { request }, "a request for figures");
        let answer = sent.and_then(|()| {
            self.answer(deadline, "a request for figures", |state| {
                let stats = state.stats.get_mut(&request)?.take()?;
                Some(Ok(*stats))
            })
        });
        // A late answer to a request that timed out must not look like one that was never made.
        if !matches!(answer, Err(ProtoError::Timeout { .. })) {
            self.shared.lock().stats.remove(&request);
        }
        answer
    }

    /// How many processes of the container the guest's kernel has killed for want of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.shared.lock().oom_kills
    }

    /// Waits until that is more than `seen`, and gives it; `None` at the deadline.
    ///
    /// # Errors
    /// Why the connection ended.
    pub fn wait_oom(
        &self,
        seen: u64,
        deadline: Option<Instant>,
    ) -> Result<Option<u64>, ProtoError> {
        let answer = self.shared.wait(deadline, TICK, |state| {
            if state.oom_kills > seen {
                return Some(Ok(state.oom_kills));
            }
            state.ended.clone().map(Err)
        });
        answer.transpose()
    }

    /// Waits until every process has ended and its output has been written; `false` at the deadline, or where the connection ends.
    /// Before a shutdown: its answer overtakes output, and ends the connection. When the first process has ended, the guest's kernel
    /// kills the others, so their ends are near.
    pub fn settle(&self, deadline: Instant) -> bool {
        let settled = self.shared.wait(Some(deadline), LOOK, |state| {
            // Of one whose start was given up nothing is written by anybody.
            let nobody = |process: &ProcessState| process.forgotten && process.outputs == 0;
            let mut all = state.processes.values();
            let over = all.all(|process| process.is_over() || nobody(process));
            (over || self.shared.gave_up(state).is_some()).then_some(over)
        });
        settled.unwrap_or(false)
    }

    /// Ends the container, has everything written back, and resets the machine. `true` when the
    /// root was unmounted with nothing left to write.
    ///
    /// # Errors
    /// [`ProtoError::Timeout`] at the deadline; why the connection ended before the answer.
    pub fn shutdown(&self, deadline: Instant) -> Result<bool, ProtoError> {
        self.shared.change(|state| state.stopping = true);
        self.shared
            .mux
            .send(&HostMessage::Shutdown, "the shutdown")?;
        let clean = self.answer(deadline, "the shutdown", |state| state.stopped.map(Ok))?;
        // The agent waits for this before it resets the machine, so that its answer arrives.
        self.close();
        Ok(clean)
    }

    /// Why the connection ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<ProtoError> {
        self.shared.mux.error()
    }

    /// Ends the connection at once; whatever waits on it fails with [`ProtoError::Ended`]. Any
    /// thread may do it.
    pub fn close(&self) {
        self.shared.mux.end(ProtoError::Ended);
    }

    fn answer<T>(
        &self,
        deadline: Instant,
        what: &'static str,
        mut ready: impl FnMut(&mut State) -> Option<Result<T, ProtoError>>,
    ) -> Result<T, ProtoError> {
        let answer = self.shared.wait(Some(deadline), LOOK, |state| {
            ready(state).or_else(|| self.shared.gave_up(state).map(Err))
        });
        answer.unwrap_or(Err(ProtoError::Timeout { what }))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    /// The first process's id in a fresh session is [`ProcessId::INIT`].
    pub(super) fn new_process(&mut self) -> Result<ProcessId, ProtoError> {
        let id = ProcessId::new(self.next_process)
            .ok_or_else(|| ProtoError::broken("no process ids are left"))?;
        self.next_process += 1;
        Ok(id)
    }

    pub(super) fn new_request(&mut self) -> u32 {
        self.next_request = self.next_request.wrapping_add(1);
        self.next_request
    }
}

/// A stream during the handshake: all its reads together end at the deadline, however the bytes come.
struct Hurried<'a, S> {
    stream: &'a mut S,
    deadline: Instant,
    cancelled: &'a dyn Fn() -> bool,
}

impl<S: Stream> Read for Hurried<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if (self.cancelled)() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left.min(LOOK)))?;
            match self.stream.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

fn shake_hands<S: Stream>(
    stream: &mut S,
    boot_id: &str,
    deadline: Instant,
    cancelled: &dyn Fn() -> bool,
) -> Result<HelloReply, ProtoError> {
    let late = ProtoError::Timeout {
        what: "the handshake",
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(late);
    }
    let option = |e| ProtoError::io("setting the connection's timeout", &e);
    stream.set_write_timeout(Some(left)).map_err(option)?;

    let hello = HostMessage::Hello(Hello {
        protocol: PROTOCOL,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id.to_owned(),
    });
    let mut bytes = Vec::new();
    Frame::Control(message::to_json(
        &hello,
        "the hello",
        MAX_CONTROL_FROM_GUEST,
    )?)
    .encode(&mut bytes);
    let wrote = stream.write_all(&bytes);
    let mut answers = Hurried {
        stream,
        deadline,
        cancelled,
    };
    let read = match wrote {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(ProtoError::Closed),
        Err(e) => Err(ProtoError::io("writing the hello", &e)),
        Ok(()) => Frame::read(&mut answers, MAX_CONTROL_FROM_GUEST),
    };
    let frame = match read {
        Err(ProtoError::Io {
            kind: io::ErrorKind::TimedOut,
            ..
        }) => return Err(late),
        Err(ProtoError::Io {
            kind: io::ErrorKind::ConnectionAborted,
            ..
        }) => return Err(ProtoError::Ended),
        other => other?.ok_or(ProtoError::Closed)?,
    };
    let Frame::Control(json) = frame else {
        return Err(ProtoError::broken("it did not answer the hello"));
    };
    let guest = match message::parse(&json)? {
        GuestMessage::Hello(guest) => guest,
        GuestMessage::Busy => return Err(ProtoError::Busy),
        _ => return Err(ProtoError::broken("it did not answer the hello")),
    };
    if guest.protocol != PROTOCOL {
        return Err(ProtoError::Version {
            host: PROTOCOL,
            guest: guest.protocol,
            guest_program: guest.program.chars().take(64).collect(),
        });
    }
    if guest.boot_id != boot_id {
        return Err(ProtoError::BootId {
            expected: boot_id.to_owned(),
            got: guest.boot_id.chars().take(128).collect(),
        });
    }
    Ok(guest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::guest::Connection;
    use crate::process::ExitStatus;

    /// A guest whose processes end at once.
    fn guest(stream: UnixStream) {
        let hello = HelloReply {
            protocol: PROTOCOL,
            program: String::new(),
            boot_id: "b".to_owned(),
            configured: true,
            running: Vec::new(),
            oom_kills: 0,
        };
        let mut connection = Connection::accept(stream, || Some(hello)).unwrap();
        while let Ok(HostMessage::Start(start)) = connection.request() {
            let process = start.id;
            let mux = Arc::clone(connection.mux());
            let stream = |stdio| crate::frame::StreamId::new(process, stdio);
            let outs = [crate::frame::Stdio::Out, crate::frame::Stdio::Err];
            let outs = outs.map(|stdio| mux.open_out(stream(stdio)).unwrap());
            connection
                .answer(&GuestMessage::Started { process })
                .unwrap();
            let status = ExitStatus::Code { code: 0 };
            connection
                .answer(&GuestMessage::Exited { process, status })
                .unwrap();
            outs.iter().for_each(|out| out.finish());
        }
    }

    #[test]
    fn a_process_that_is_over_and_dropped_takes_no_memory() {
        let (host, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || guest(theirs));
        let soon = || Instant::now() + Duration::from_secs(60);
        let session = Session::connect(host, "b", soon()).unwrap();
        let known = || session.shared.lock().processes.len();
        for number in 0..20 {
            let stdio = Stdio {
                stdin: None,
                stdout: Box::new(io::sink()),
                stderr: Box::new(io::sink()),
            };
            let running = session.start(&Process::new(["x"]), stdio, soon()).unwrap();
            if number % 2 == 0 {
                running.wait(Some(soon())).unwrap();
                assert_eq!(known(), 1);
            }
            // Over before, or after: then the last of its threads lets it go.
            drop(running);
            assert!(session.settle(soon()));
            let end = soon();
            while known() > 0 {
                assert!(Instant::now() < end, "{number}");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
