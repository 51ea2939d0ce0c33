//! The session's reader thread: takes frames apart, and believes none of them.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use super::drain::Drain;
use super::state::{Configure, Phase, Shared, State};
use crate::error::ProtoError;
use crate::frame::{Frame, MAX_CONTROL_FROM_GUEST, StreamId};
use crate::message::{self, GuestMessage, HostMessage};
use crate::patience::Patience;
use crate::process::ProcessId;

/// Reads until the connection ends, and says why it did.
pub(super) fn run(shared: &Arc<Shared>, stream: impl Read) {
    let mut from = Patient {
        stream,
        shared: Arc::clone(shared),
        patience: Patience::default(),
    };
    let error = loop {
        let frame = match Frame::read(&mut from, MAX_CONTROL_FROM_GUEST) {
            Ok(Some(frame)) => frame,
            Ok(None) => break ProtoError::Closed,
            Err(e) => break e,
        };
        if let Err(e) = take(shared, frame) {
            break e;
        }
    };
    let silent = matches!(&error, ProtoError::Io { kind, .. } if *kind == io::ErrorKind::TimedOut);
    let error = if silent {
        ProtoError::Timeout {
            what: "the agent's sign of life",
        }
    } else {
        error
    };
    shared.mux.end(error.clone());
    // Another thread may have ended the connection first: its reason is the one that counts.
    let error = shared.mux.error().unwrap_or(error);
    shared.change(|state| {
        for process in state.processes.values_mut() {
            process.stop_input();
        }
        state.ended = Some(error);
    });
}

fn take(shared: &Shared, frame: Frame) -> Result<(), ProtoError> {
    match frame {
        Frame::Control(json) => control(shared, message::parse(&json)?),
        Frame::Data(id, _) | Frame::Eof(id) => {
            started(&shared.lock(), id)?;
            shared.mux.deliver(frame)
        }
        Frame::Credit(..) | Frame::Reset(_) => shared.mux.deliver(frame),
    }
}

/// Output before its process was started is not output.
fn started(state: &State, stream: StreamId) -> Result<(), ProtoError> {
    match state.processes.get(&stream.process()).map(|p| &p.phase) {
        Some(Phase::Running | Phase::Exited(_)) => Ok(()),
        // It is over and forgotten, and whoever read its output wanted no more: the rest may still be under way. Whether the
        // stream is open is another's to judge.
        None if stream.process().get() < state.next_process => Ok(()),
        _ => Err(ProtoError::broken(format!(
            "output of process {}, which was not started",
            stream.process()
        ))),
    }
}

fn control(shared: &Shared, message: GuestMessage) -> Result<(), ProtoError> {
    let over = match &message {
        GuestMessage::Exited { process, .. } | GuestMessage::StartFailed { process, .. } => {
            Some(*process)
        }
        _ => None,
    };
    let done = shared.change(|state| match message {
        GuestMessage::Hello(_) => Err(ProtoError::broken("a second hello")),
        GuestMessage::Busy => Err(ProtoError::Busy),
        GuestMessage::Pong => {
            state.answers += 1;
            Ok(())
        }
        GuestMessage::Configured => configured(state, Configure::Done),
        GuestMessage::ConfigureFailed { failure } => {
            configured(state, Configure::Failed(failure.bounded()))
        }
        GuestMessage::Started { process } => {
            *phase(state, process, "a start", |p| matches!(p, Phase::Starting))? = Phase::Running;
            Ok(())
        }
        GuestMessage::StartFailed { process, failure } => {
            let phase = phase(state, process, "a failure", |p| {
                matches!(p, Phase::Starting)
            })?;
            *phase = Phase::Failed(failure.bounded());
            if let Some(process) = state.processes.get_mut(&process) {
                process.stop_input();
            }
            shared.mux.retire(process);
            Ok(())
        }
        GuestMessage::Exited { process, .. } if state.inherited.remove(&process) => Ok(()),
        GuestMessage::Exited { process, status } => {
            *phase(state, process, "an exit", |p| matches!(p, Phase::Running))? =
                Phase::Exited(status);
            if let Some(process) = state.processes.get_mut(&process) {
                process.drain = Some(Drain::new(Instant::now(), state.answers));
                process.stop_input();
            }
            Ok(())
        }
        GuestMessage::Signalled { request, outcome } => match state.signals.get_mut(&request) {
            Some(answer @ None) => {
                *answer = Some(outcome);
                Ok(())
            }
            _ => Err(ProtoError::broken(format!(
                "an answer to request {request}, which was not made"
            ))),
        },
        GuestMessage::Stats { request, stats } => match state.stats.get_mut(&request) {
            Some(answer @ None) => {
                *answer = Some(Box::new(stats.bounded()));
                Ok(())
            }
            _ => Err(ProtoError::broken(format!(
                "figures for request {request}, which was not made"
            ))),
        },
        GuestMessage::Oom { kills } if kills >= state.oom_kills => {
            state.oom_kills = kills;
            Ok(())
        }
        GuestMessage::Oom { .. } => Err(ProtoError::broken("fewer deaths than before")),
        GuestMessage::Stopped { clean } => {
            if !state.stopping || state.stopped.is_some() {
                return Err(ProtoError::broken("it stopped without being asked"));
            }
            state.stopped = Some(clean);
            Ok(())
        }
    });
    if let Some(process) = over {
        shared.forget(process);
    }
    done
}

fn configured(state: &mut State, to: Configure) -> Result<(), ProtoError> {
    if !matches!(state.configure, Configure::Asked) {
        return Err(ProtoError::broken("an answer to no configuration"));
    }
    state.configure = to;
    Ok(())
}

/// The process's phase, if it is one in which `what` can be.
fn phase<'a>(
    state: &'a mut State,
    process: ProcessId,
    what: &str,
    allowed: impl Fn(&Phase) -> bool,
) -> Result<&'a mut Phase, ProtoError> {
    match state.processes.get_mut(&process) {
        Some(known) if allowed(&known.phase) => Ok(&mut known.phase),
        _ => Err(ProtoError::broken(format!(
            "{what} of process {process}, for which it is the wrong time"
        ))),
    }
}

/// A stream whose reads time out again and again without that being an error: it asks the agent
/// for a sign of life each time, and gives up when none comes.
struct Patient<S> {
    stream: S,
    shared: Arc<Shared>,
    patience: Patience,
}

impl<S: Read> Read for Patient<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.patience.again()?;
                    // It fails only when the connection has ended, which the next read sees.
                    let _ = self.shared.mux.send(&HostMessage::Ping, "a ping");
                }
                Ok(n) => {
                    self.patience.renew();
                    return Ok(n);
                }
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::mux::{Mux, Side};

    /// Waits in vain so many times before each byte.
    struct Silent {
        waits: u32,
        left: u32,
    }

    impl Read for Silent {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.left == 0 {
                self.left = self.waits;
                buffer[0] = 7;
                return Ok(1);
            }
            self.left -= 1;
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// What comes of reading three bytes, and how many pings were sent.
    fn heard(waits: u32) -> (io::Result<()>, usize) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mux = Mux::new(&ours, Side::Host, 1 << 10).unwrap();
        let shared = Shared::new(Arc::clone(&mux), Box::new(|| false), State::default());
        let left = waits;
        let mut patient = Patient {
            stream: Silent { waits, left },
            shared: Arc::new(shared),
            patience: Patience::default(),
        };
        let read = patient.read_exact(&mut [0; 3]);
        assert!(mux.flush(Instant::now() + std::time::Duration::from_secs(60)));
        mux.end(ProtoError::Ended);
        let mut sent = theirs;
        let pings = std::iter::from_fn(|| Frame::read(&mut sent, 1 << 10).ok().flatten());
        (read, pings.count())
    }

    #[test]
    fn row_49_an_agent_is_lost_only_when_it_answers_none_of_many_questions() {
        let (read, pings) = heard(23);
        read.unwrap();
        assert_eq!(pings, 3 * 23);
        let (read, pings) = heard(24);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(pings, 23);
    }
}
