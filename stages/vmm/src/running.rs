//! A VMM's process that runs a guest: what it and the guest say, and how it ends. The same under every VMM.

use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use crate::child::{Child, in_words};
use crate::console::Capture;
use crate::error::{Logs, VmmError};
use crate::machine::VmmExit;
use crate::vsock::{Failed, SocketDir};

/// How long the last words of a process that ended may take to be read.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a guest that panicked may go on about it: its trace comes after the line that says so, and then it reboots.
const TRACE: Duration = Duration::from_millis(500);

/// Ends the process when it is dropped, and has its logs written to their ends then.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) console: Capture,
    pub(crate) log: Capture,
    started: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill();
        self.hear_out();
    }
}

impl Running {
    pub(crate) fn new(child: Child, console: Capture, log: Capture) -> Self {
        Self {
            child,
            console,
            log,
            started: Instant::now(),
        }
    }

    /// For when the process has ended: until what it wrote was read and is in the log files.
    fn hear_out(&self) {
        self.console.wait_end(LAST_WORDS);
        self.log.wait_end(LAST_WORDS);
    }

    /// Whole, if the process has ended.
    pub(crate) fn logs(&self) -> Box<Logs> {
        if !self.child.is_running() {
            self.hear_out();
        }
        let mut logs = Box::<Logs>::default();
        logs.push("console", self.console.tail());
        logs.push(self.child.name, self.log.tail());
        logs
    }

    /// An error if nothing can come of this machine any more: its process ended, its guest panicked, or `cancel` says so. `add`
    /// completes the logs.
    pub(crate) fn check(
        &self,
        cancel: &dyn Fn() -> bool,
        add: &dyn Fn(&mut Logs),
    ) -> Result<(), VmmError> {
        if let Some(status) = self.child.status() {
            return Err(self.ended(self.child.name, in_words(status), add));
        }
        if let Some(line) = self.console.panic() {
            self.child.wait(TRACE);
            return Err(VmmError::Panic {
                line,
                logs: self.logs_with(add),
            });
        }
        if cancel() {
            return Err(VmmError::Cancelled);
        }
        Ok(())
    }

    /// Why `program`'s end was the machine's. A panic reboots the guest and so ends a VMM with status 0: the console knows better.
    pub(crate) fn ended(
        &self,
        program: &'static str,
        status: String,
        add: &dyn Fn(&mut Logs),
    ) -> VmmError {
        let logs = self.logs_with(add);
        match self.console.panic() {
            Some(line) => VmmError::Panic { line, logs },
            None => VmmError::Exited {
                program,
                status,
                logs,
            },
        }
    }

    fn logs_with(&self, add: &dyn Fn(&mut Logs)) -> Box<Logs> {
        let mut logs = self.logs();
        add(&mut logs);
        logs
    }

    /// A stream to the guest's `port` by way of the vsock device's socket `name`. `check` is [`Self::check`], and whether the
    /// device may be spoken to.
    pub(crate) fn connect(
        &self,
        sockets: &SocketDir,
        name: &str,
        port: u32,
        deadline: Instant,
        check: &mut dyn FnMut() -> Result<bool, VmmError>,
        add: &dyn Fn(&mut Logs),
    ) -> Result<UnixStream, VmmError> {
        let connected = sockets.connect(name, port, deadline, check);
        connected.map_err(|failed| match failed {
            Failed::Check(error) => error,
            Failed::Protocol(got) => VmmError::Protocol {
                port,
                got,
                logs: self.logs_with(add),
            },
            Failed::Deadline(last) => VmmError::NoAnswer {
                port,
                waited: self.started.elapsed(),
                last,
                logs: self.logs_with(add),
            },
        })
    }

    pub(crate) fn wait_exit(&self, timeout: Duration) -> Option<VmmExit> {
        let status = self.child.wait(timeout)?;
        self.hear_out();
        Some(VmmExit {
            code: status.code(),
            signal: status.signal(),
            panic: self.console.panic(),
            cause: self.child.cause(),
        })
    }
}
