//! The line from a signal handler to a launch: to its process while one runs, otherwise to its end.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use fcpipe_engine::CancelToken;
use fcpipe_proto::host::RunningProcess;
use fcpipe_proto::process::Signal;

/// Reaches a launch from another thread. Clones reach the same launch.
#[derive(Clone)]
pub struct Control {
    process: Arc<Mutex<Weak<RunningProcess>>>,
    cancel: CancelToken,
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// The process has it.
    ToProcess,
    /// No process was there to take it: the launch is being ended.
    Ending,
}

impl Control {
    /// A line to the launch that `cancel` ends.
    pub fn new(cancel: CancelToken) -> Self {
        Control {
            process: Arc::new(Mutex::new(Weak::new())),
            cancel,
        }
    }

    /// Passes a signal on to the process; before there is one, or when it is no signal to pass on, ends the launch.
    pub fn signal(&self, number: i32) -> Delivered {
        let process = self.lock().upgrade();
        if let (Some(process), Some(signal)) = (process, Signal::new(number))
            && process.signal(signal, false).is_ok()
        {
            return Delivered::ToProcess;
        }
        self.end();
        Delivered::Ending
    }

    /// Ends the launch, whatever it is doing; everything it made is undone.
    pub fn end(&self) {
        self.cancel.cancel();
    }

    pub(crate) fn attach(&self, process: &Arc<RunningProcess>) {
        *self.lock() = Arc::downgrade(process);
    }

    pub(crate) fn detach(&self) {
        *self.lock() = Weak::new();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Weak<RunningProcess>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
