//! What a session knows: shared by its reader thread and by everyone who waits on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::drain::Drain;
use crate::error::ProtoError;
use crate::message::SignalOutcome;
use crate::mux::{Mux, lock};
use crate::process::{ExitStatus, Failure, ProcessId};
use crate::pump::Stop;
use crate::stats::Stats;

/// The session's state and the way to wait for it to change.
pub(super) struct Shared {
    pub(super) mux: Arc<Mux>,
    /// Whoever asked wants no answers any more.
    cancelled: Cancelled,
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) type Cancelled = Box<dyn Fn() -> bool + Send + Sync>;

#[derive(Default)]
pub(super) struct State {
    pub(super) configure: Configure,
    pub(super) processes: BTreeMap<ProcessId, ProcessState>,
    /// Requests that wait for an answer, and answers that wait to be taken.
    pub(super) signals: BTreeMap<u32, Option<SignalOutcome>>,
    /// The same of requests for figures.
    pub(super) stats: BTreeMap<u32, Option<Box<Stats>>>,
    /// Processes that the guest's kernel killed for want of memory.
    pub(super) oom_kills: u64,
    /// Processes of earlier connections, whose exits are nobody's any more.
    pub(super) inherited: BTreeSet<ProcessId>,
    /// How many times the agent has given a sign of life that it was asked for.
    pub(super) answers: u64,
    /// `Shutdown` was sent.
    pub(super) stopping: bool,
    /// The answer to it: whether all was written back.
    pub(super) stopped: Option<bool>,
    pub(super) next_process: u32,
    pub(super) next_request: u32,
    /// Why the connection ended.
    pub(super) ended: Option<ProtoError>,
}

#[derive(Default)]
pub(super) enum Configure {
    #[default]
    Not,
    Asked,
    Done,
    Failed(Failure),
}

pub(super) struct ProcessState {
    pub(super) phase: Phase,
    /// Since its exit was told.
    pub(super) drain: Option<Drain>,
    /// Ends the thread that reads the process's input; gone when the process is.
    pub(super) stop: Option<Arc<Stop>>,
    /// Output threads that have not ended.
    pub(super) outputs: u32,
    /// Why not all output came.
    pub(super) lost: Option<ProtoError>,
    /// Nobody asks about it any more.
    pub(super) forgotten: bool,
}

impl ProcessState {
    /// Whether nothing of it is to come.
    pub(super) fn is_over(&self) -> bool {
        match self.phase {
            Phase::Starting | Phase::Running => false,
            Phase::Failed(_) => true,
            Phase::Exited(_) => self.outputs == 0,
        }
    }

    /// Stops reading its input, and lets the descriptor for that go.
    pub(super) fn stop_input(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.set();
        }
    }
}

pub(super) enum Phase {
    Starting,
    Running,
    Failed(Failure),
    Exited(ExitStatus),
}

impl Shared {
    pub(super) fn new(mux: Arc<Mux>, cancelled: Cancelled, state: State) -> Self {
        Shared {
            mux,
            cancelled,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Lets go of a process that is over and that nobody asks about: a launch may live for years, and run a process every second.
    pub(super) fn forget(&self, id: ProcessId) {
        let mut state = self.lock();
        let done = |process: &ProcessState| process.forgotten && process.is_over();
        if state.processes.get(&id).is_some_and(done) {
            state.processes.remove(&id);
        }
    }

    /// Why no answer is waited for any more, if that is so.
    pub(super) fn gave_up(&self, state: &State) -> Option<ProtoError> {
        let ended = state.ended.clone();
        ended.or_else(|| (self.cancelled)().then_some(ProtoError::Ended))
    }

    /// Changes the state and wakes everyone who waits for it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until `ready` has an answer; `None` at the deadline. It looks again at least every
    /// `tick`.
    pub(super) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        tick: Duration,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = ready(&mut state) {
                return Some(answer);
            }
            let left = deadline.map_or(tick, |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, left.min(tick));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
