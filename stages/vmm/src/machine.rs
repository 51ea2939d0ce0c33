//! The traits that every VMM's driver implements.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::{Drive, MachineConfig, Tuning, VmmKind};
use crate::error::VmmError;
use crate::mark::ProcessMark;

/// A program that can run machines, on this host.
pub trait Vmm: Send + Sync {
    fn kind(&self) -> VmmKind;

    /// How many drives a machine with so many network interfaces can have: known before anything is started.
    fn drive_slots(&self, nics: usize, tuning: &Tuning) -> usize;

    /// The user that the machine whose launch's directory is `dir` will run as, where that is another than this process's:
    /// whose the TAPs must be.
    fn user(&self, _dir: &Path) -> io::Result<Option<u32>> {
        Ok(None)
    }

    /// What the configuration asks for and this VMM does not have: the machine runs without it.
    fn ignores(&self, _config: &MachineConfig) -> Vec<&'static str> {
        Vec::new()
    }

    /// Starts and configures whatever does not need the drives.
    ///
    /// Returns soon: it starts processes and, for a VMM with an API, talks to it; it waits for nothing that a launch could
    /// be doing meanwhile. What was started ends when the result is dropped.
    fn prepare(
        &self,
        config: &MachineConfig,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Box<dyn Prepared>, VmmError>;

    /// Both phases at once, for callers that have their drives already.
    fn start(
        &self,
        config: &MachineConfig,
        drives: &[Drive],
        cancel: &dyn Fn() -> bool,
    ) -> Result<Box<dyn Machine>, VmmError> {
        self.prepare(config, cancel)?.boot(drives, cancel)
    }
}

/// A machine that lacks nothing but its drives.
pub trait Prepared: Send {
    /// Its processes so far.
    fn processes(&self) -> Vec<ProcessMark>;

    /// Attaches the drives, in order, and starts the guest; does not wait for the guest.
    fn boot(
        self: Box<Self>,
        drives: &[Drive],
        cancel: &dyn Fn() -> bool,
    ) -> Result<Box<dyn Machine>, VmmError>;
}

/// A machine that was started. Dropping it kills it.
pub trait Machine: Send + Sync {
    fn kind(&self) -> VmmKind;

    /// A stream to the vsock `port` that the agent listens on, retried until the guest answers.
    ///
    /// Fails at once when a process of the machine ended, the guest's kernel panicked, or `cancel` says so, and with
    /// [`VmmError::NoAnswer`] at `deadline`. Those errors carry the ends of the console and of the VMM's log. The stream is
    /// blocking and has no time-outs set.
    fn connect(
        &self,
        port: u32,
        deadline: Instant,
        cancel: &dyn Fn() -> bool,
    ) -> Result<UnixStream, VmmError>;

    /// How the VMM ended, or `None` if it still runs after `timeout`. Can be asked again.
    fn wait_exit(&self, timeout: Duration) -> Option<VmmExit>;

    /// Presses Ctrl-Alt-Del: an init that listens ends in order. For when the agent does not hear any more.
    fn ctrl_alt_del(&self) -> Result<(), VmmError> {
        Err(unsupported(self.kind(), "it has no keyboard to press"))
    }

    /// Stops the guest's CPUs where they are.
    fn pause(&self) -> Result<(), VmmError> {
        Err(unsupported(self.kind(), "it cannot be paused"))
    }

    /// Goes on after [`Machine::pause`].
    fn resume(&self) -> Result<(), VmmError> {
        Err(unsupported(self.kind(), "it cannot be resumed"))
    }

    /// Ends the machine's processes and waits for them (10 s at most each). The guest is not asked. Idempotent.
    fn kill(&mut self);

    /// The end of what the guest wrote to its console, at most [`crate::CONSOLE_KEPT`] bytes. Never trust it: the guest wrote it.
    fn console_tail(&self) -> Vec<u8>;

    /// The machine's processes that still run.
    fn processes(&self) -> Vec<ProcessMark>;
}

fn unsupported(kind: VmmKind, why: &str) -> VmmError {
    VmmError::Unsupported {
        kind,
        why: why.to_owned(),
    }
}

/// How a VMM's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmExit {
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel's words, when it panicked; a VMM's own status says nothing of it.
    pub panic: Option<String>,
    /// Why this crate ended it (a helper process was gone), if it did.
    pub cause: Option<String>,
}

impl VmmExit {
    /// The guest shut down or rebooted of its own will, and nothing broke.
    pub fn is_clean(&self) -> bool {
        self.code == Some(0) && self.panic.is_none() && self.cause.is_none()
    }
}

impl fmt::Display for VmmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "status {code}")?,
            (None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None) => f.write_str("unknown status")?,
        }
        if let Some(line) = &self.panic {
            write!(f, ", {line}")?;
        }
        if let Some(cause) = &self.cause {
            write!(f, ", {cause}")?;
        }
        Ok(())
    }
}
