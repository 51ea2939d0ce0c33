//! A QEMU that runs.

use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::child::{Child, in_words};
use crate::config::VmmKind;
use crate::console::Capture;
use crate::error::{Logs, VmmError};
use crate::machine::{Machine, VmmExit};
use crate::mark::ProcessMark;
use crate::qemu::prepare::Device;
use crate::qemu::rings::Gate;
use crate::qemu::{QEMU, VSOCK_SOCKET};
use crate::vsock::{Failed, SocketDir};

/// How long the last words of a process that ended may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a guest that panicked may go on about it: its trace comes after the line that says so, and then it reboots.
const TRACE: Duration = Duration::from_millis(500);

pub(crate) struct QemuMachine {
    // In the order in which they are to end: QEMU first, so that its end is not blamed on the device's.
    qemu: Owned,
    device: Device,
    sockets: SocketDir,
    console: Capture,
    log: Capture,
    gate: Mutex<Gate>,
    started: Instant,
}

/// A child that ends with its owner.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.kill();
    }
}

impl QemuMachine {
    pub(crate) fn new(
        qemu: Child,
        device: Device,
        sockets: SocketDir,
        console: Capture,
        log: Capture,
    ) -> Self {
        let gate = Mutex::new(Gate::new(device.child.mark.pid));
        Self {
            qemu: Owned(qemu),
            device,
            sockets,
            console,
            log,
            gate,
            started: Instant::now(),
        }
    }

    fn logs(&self) -> Box<Logs> {
        let mut logs = Box::<Logs>::default();
        logs.push("console", self.console.tail());
        logs.push(QEMU, self.log.tail());
        self.device.add_logs(&mut logs);
        logs
    }

    /// An error if the agent can't answer any more; else whether the device may be spoken to.
    fn check(&self, cancel: &dyn Fn() -> bool) -> Result<bool, VmmError> {
        // The device's end is looked at first, as QEMU's follows from it.
        for child in [&self.device.child, &self.qemu.0] {
            if let Some(status) = child.status() {
                return Err(self.ended(child, in_words(status)));
            }
        }
        if let Some(line) = self.console.panic() {
            if self.qemu.0.wait(TRACE).is_some() {
                self.console.wait_end(LAST_WORDS);
            }
            return Err(VmmError::Panic {
                line,
                logs: self.logs(),
            });
        }
        if cancel() {
            return Err(VmmError::Cancelled);
        }
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(gate.is_open())
    }

    /// A panic reboots the guest and so ends QEMU with status 0: the console knows better.
    fn ended(&self, child: &Child, status: String) -> VmmError {
        if !self.qemu.0.is_running() {
            self.console.wait_end(LAST_WORDS);
            self.log.wait_end(LAST_WORDS);
        }
        let logs = self.logs();
        match self.console.panic() {
            Some(line) => VmmError::Panic { line, logs },
            None => VmmError::Exited {
                program: child.name,
                status,
                logs,
            },
        }
    }
}

impl Machine for QemuMachine {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    fn connect(
        &self,
        port: u32,
        deadline: Instant,
        cancel: &dyn Fn() -> bool,
    ) -> Result<UnixStream, VmmError> {
        let connected = self
            .sockets
            .connect(VSOCK_SOCKET, port, deadline, &mut || self.check(cancel));
        connected.map_err(|failed| match failed {
            Failed::Check(error) => error,
            Failed::Protocol(got) => VmmError::Protocol {
                port,
                got,
                logs: self.logs(),
            },
            Failed::Deadline(last) => VmmError::NoAnswer {
                port,
                waited: self.started.elapsed(),
                last,
                logs: self.logs(),
            },
        })
    }

    fn wait_exit(&self, timeout: Duration) -> Option<VmmExit> {
        let status = self.qemu.0.wait(timeout)?;
        self.console.wait_end(LAST_WORDS);
        Some(VmmExit {
            code: status.code(),
            signal: status.signal(),
            panic: self.console.panic(),
            cause: self.qemu.0.cause(),
        })
    }

    fn kill(&mut self) {
        self.qemu.0.kill();
        self.device.child.kill();
    }

    fn console_tail(&self) -> Vec<u8> {
        self.console.tail()
    }

    fn processes(&self) -> Vec<ProcessMark> {
        [&self.qemu.0, &self.device.child]
            .into_iter()
            .filter(|child| child.is_running())
            .map(|child| child.mark)
            .collect()
    }
}
