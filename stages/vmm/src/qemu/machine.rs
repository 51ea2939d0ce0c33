//! A QEMU that runs.

use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::child::{Child, in_words};
use crate::config::VmmKind;
use crate::console::Capture;
use crate::error::{Logs, VmmError};
use crate::machine::{Machine, VmmExit};
use crate::mark::ProcessMark;
use crate::qemu::VSOCK_SOCKET;
use crate::qemu::prepare::Device;
use crate::qemu::rings::Gate;
use crate::running::Running;
use crate::vsock::SocketDir;

pub(crate) struct QemuMachine {
    // In the order in which they are to end: QEMU first, so that its end is not blamed on the device's.
    qemu: Running,
    device: Device,
    sockets: SocketDir,
    gate: Mutex<Gate>,
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
            qemu: Running::new(qemu, console, log),
            device,
            sockets,
            gate,
        }
    }

    fn add_logs(&self, logs: &mut Logs) {
        self.device.add_logs(logs);
    }

    /// An error if the agent can't answer any more; else whether the device may be spoken to.
    fn check(&self, cancel: &dyn Fn() -> bool) -> Result<bool, VmmError> {
        // The device's end is looked at first, as QEMU's follows from it.
        let device = &self.device.child;
        if let Some(status) = device.status() {
            return Err(self
                .qemu
                .ended(device.name, in_words(status), &|logs| self.add_logs(logs)));
        }
        self.qemu.check(cancel, &|logs| self.add_logs(logs))?;
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(gate.is_open())
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
        self.qemu.connect(
            &self.sockets,
            VSOCK_SOCKET,
            port,
            deadline,
            &mut || self.check(cancel),
            &|logs| self.add_logs(logs),
        )
    }

    fn wait_exit(&self, timeout: Duration) -> Option<VmmExit> {
        self.qemu.wait_exit(timeout)
    }

    fn kill(&mut self) {
        self.qemu.child.kill();
        self.device.child.kill();
    }

    fn console_tail(&self) -> Vec<u8> {
        self.qemu.console.tail()
    }

    fn processes(&self) -> Vec<ProcessMark> {
        [&self.qemu.child, &self.device.child]
            .into_iter()
            .filter(|child| child.is_running())
            .map(|child| child.mark)
            .collect()
    }
}
