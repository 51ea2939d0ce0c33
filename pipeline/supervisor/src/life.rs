//! Where a launch is in its life, for all threads of its supervisor: what it may be asked for now, and how that reaches it.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fcpipe_engine::{CancelToken, FailureKind};
use fcpipe_launch::Guest;
use fcpipe_proto::host::RunningProcess;
use fcpipe_proto::message::SignalOutcome;
use fcpipe_proto::process::Signal;
use fcpipe_proto::{ExitStatus, Process};
use serde_json::{Value, json};

use crate::events::Events;
use crate::message::Failed;
use crate::record::{Record, Status};

/// The life of one launch. Shared.
pub(crate) struct Life {
    state: Mutex<State>,
    changed: Condvar,
    cancel: CancelToken,
    own_process: Process,
}

struct State {
    dir: PathBuf,
    record: Record,
    events: Events,
    guest: Option<Guest>,
    process: Option<Arc<RunningProcess>>,
    /// Somebody has asked for the start.
    start: bool,
    /// Why it could not be started, or why it ended before its time.
    failed: Option<Failed>,
    /// The signal that ended it before its process could take it.
    ended_by: Option<i32>,
    /// Signals that came from whoever started it.
    signals: u32,
    created: bool,
    begun: Instant,
    boot: Duration,
    over: bool,
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// The process has it.
    ToProcess,
    /// No process was there to take it: the launch is being ended.
    Ending,
}

/// How often a wait looks whether the launch is cancelled, and the guest still there.
const STEP: Duration = Duration::from_millis(50);

impl Life {
    pub(crate) fn new(
        dir: PathBuf,
        record: Record,
        events: Events,
        own_process: Process,
        cancel: CancelToken,
    ) -> Self {
        let life = Life {
            state: Mutex::new(State {
                dir,
                record,
                events,
                guest: None,
                process: None,
                start: false,
                failed: None,
                ended_by: None,
                signals: 0,
                created: false,
                begun: Instant::now(),
                boot: Duration::ZERO,
                over: false,
            }),
            changed: Condvar::new(),
            cancel,
            own_process,
        };
        life.lock().save();
        life
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until `ready` has an answer.
    fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut state = self.lock();
        loop {
            if let Some(answer) = ready(&mut state) {
                return answer;
            }
            let waited = self.changed.wait_timeout(state, STEP);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn record(&self) -> Record {
        self.lock().record.clone()
    }

    pub(crate) fn cancel(&self) -> &CancelToken {
        &self.cancel
    }

    /// The launch's process, as it was asked for.
    pub(crate) fn own_process(&self) -> &Process {
        &self.own_process
    }

    /// Adds an event.
    pub(crate) fn event(&self, kind: &str, data: Value) {
        self.lock().events.add(kind, data);
    }

    /// There is a machine: its hooks may want to know its process.
    pub(crate) fn booted(&self, guest: &Guest) {
        self.change(|state| state.record.pid = guest.processes().first().map(|mark| mark.pid));
    }

    /// The guest waits for its process.
    pub(crate) fn created(&self, guest: &Guest) {
        self.change(|state| {
            state.created = true;
            state.boot = state.begun.elapsed();
            state.record.status = Status::Created;
            state.record.pid = guest.processes().first().map(|mark| mark.pid);
            state.guest = Some(guest.clone());
            state.save();
            let pid = state.record.pid;
            state.events.add(
                "created",
                json!({"pid": pid, "vmm": guest.vmm().to_string()}),
            );
        });
    }

    /// Asks for the start of the process, and waits for it. An error says why not, or why it failed.
    pub(crate) fn start(&self) -> Result<(), Failed> {
        self.change(|state| match state.record.status {
            Status::Created if !state.start => {
                state.start = true;
                Ok(())
            }
            // runc's words.
            status => Err(refused(format!(
                "cannot start a container in the {} state",
                if state.start { Status::Running } else { status }
            ))),
        })?;
        self.wait(|state| match (&state.failed, &state.process, state.over) {
            (Some(failed), ..) => Some(Err(failed.clone())),
            (None, Some(_), _) => Some(Ok(())),
            (None, None, true) => Some(Err(refused("the launch ended before its process ran"))),
            (None, None, false) => None,
        })
    }

    /// Waits until it is asked for. The status is how the launch ends instead.
    pub(crate) fn wait_for_start(&self) -> Result<(), Option<ExitStatus>> {
        self.wait(|state| {
            if let Some(signal) = state.ended_by {
                return Some(Err(by_signal(signal)));
            }
            if state.start {
                return Some(Ok(()));
            }
            let lost = state.guest.as_ref().and_then(|g| g.session().ended());
            (self.cancel.cancelled() || lost.is_some()).then_some(Err(None))
        })
    }

    /// The process runs.
    pub(crate) fn running(&self, process: &Arc<RunningProcess>) {
        self.change(|state| {
            state.process = Some(Arc::clone(process));
            state.record.status = Status::Running;
            state.save();
            state
                .events
                .add("started", json!({"pid": state.record.pid}));
        });
    }

    /// It will not run, or ended before its time.
    pub(crate) fn failed(&self, failed: Failed) {
        self.change(|state| {
            state.failed.get_or_insert(failed);
        });
    }

    /// Why it could not be started, or why it ended before its time, as far as is known.
    pub(crate) fn failure(&self) -> Option<Failed> {
        self.lock().failed.clone()
    }

    /// All is over, and undone.
    pub(crate) fn over(&self, exit: Option<ExitStatus>, error: Option<String>) {
        self.change(|state| {
            // What waits on it would keep the machine's memory.
            state.guest = None;
            state.process = None;
            if let Some(error) = &error {
                state.events.add("error", json!({"message": error}));
            }
            let code = exit.map(ExitStatus::shell_code);
            state
                .events
                .add("exit", json!({"status": exit, "code": code}));
            state.record.stop(exit, error);
            state.save();
            state.over = true;
        });
    }

    /// Waits for that: how the process ended, or why nothing is known of it. `None` where it is not over by then.
    pub(crate) fn wait_over(&self, patience: Duration) -> Option<Result<ExitStatus, Failed>> {
        let end = Instant::now() + patience;
        self.wait(|state| {
            if !state.over {
                return (Instant::now() >= end).then_some(None);
            }
            Some(Some(state.record.exit.ok_or_else(|| {
                let why = state.record.error.clone();
                state
                    .failed
                    .clone()
                    .unwrap_or_else(|| refused(why.unwrap_or_default()))
            })))
        })
    }

    /// OCI's `kill`: for what was created or runs.
    pub(crate) fn kill(&self, number: i32, all: bool) -> Result<SignalOutcome, Failed> {
        let signal =
            Signal::new(number).ok_or_else(|| refused(format!("{number} is no signal")))?;
        let process = self.change(|state| match (state.record.status, &state.process) {
            (Status::Running, Some(process)) => Ok(Some(Arc::clone(process))),
            (Status::Created, _) => {
                if signal.ends_by_default() {
                    state.ended_by.get_or_insert(number);
                }
                Ok(None)
            }
            _ => Err(refused("container not running")),
        })?;
        let Some(process) = process else {
            return Ok(SignalOutcome::Sent);
        };
        match process.signal(signal, all) {
            Ok(SignalOutcome::NotRunning) => Err(refused("container not running")),
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(Failed::of_guest(&error)),
        }
    }

    /// A signal of whoever started the launch: for its process; before there is one, or when it is the second, the
    /// launch's end.
    pub(crate) fn signal(&self, number: i32) -> Delivered {
        let (process, first) = self.change(|state| {
            state.signals += 1;
            (state.process.clone(), state.signals == 1)
        });
        if first
            && let (Some(process), Some(signal)) = (process, Signal::new(number))
            && process.signal(signal, false).is_ok()
        {
            return Delivered::ToProcess;
        }
        self.change(|state| state.ended_by.get_or_insert(number).to_owned());
        self.cancel.cancel();
        Delivered::Ending
    }

    /// The signal that ended it before its process could take it.
    pub(crate) fn ended_by(&self) -> Option<i32> {
        self.lock().ended_by
    }

    /// The guest, for another process in it.
    pub(crate) fn guest(&self) -> Result<Guest, Failed> {
        let state = self.lock();
        match (state.record.status, &state.guest) {
            (Status::Running, Some(guest)) => Ok(guest.clone()),
            (status, _) => Err(refused(format!("cannot exec in a {status} container"))),
        }
    }

    /// The guest, and how long it took to come to be, where there is one.
    pub(crate) fn machine(&self) -> Result<(Guest, Duration), Failed> {
        let state = self.lock();
        match &state.guest {
            Some(guest) => Ok((guest.clone(), state.boot)),
            None => Err(refused("container not running")),
        }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.lock().dir.clone()
    }

    /// The guest, if there is one yet and still.
    pub(crate) fn guest_now(&self) -> Option<Guest> {
        self.lock().guest.clone()
    }

    /// Whether it was created, whatever became of it then.
    pub(crate) fn came_to_creation(&self) -> bool {
        self.lock().created
    }

    /// Whether all is over.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// The launch's process, while it runs.
    pub(crate) fn process(&self) -> Option<Arc<RunningProcess>> {
        self.lock().process.clone()
    }

    pub(crate) fn set_poststop(&self, hooks: Vec<crate::hooks::Hook>) {
        self.change(|state| {
            state.record.poststop = hooks;
            state.save();
        });
    }
}

impl State {
    /// What can't be written is told at the next change; the launch does not depend on it.
    fn save(&self) {
        let _ = self.record.write(&self.dir);
    }
}

pub(crate) fn refused(why: impl std::fmt::Display) -> Failed {
    Failed::new(FailureKind::Host, why)
}

fn by_signal(number: i32) -> Option<ExitStatus> {
    let signal = Signal::new(number)?;
    Some(ExitStatus::Signal {
        signal,
        core: false,
    })
}
