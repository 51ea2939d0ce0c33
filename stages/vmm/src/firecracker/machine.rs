//! A Firecracker with a guest in it.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::config::VmmKind;
use crate::error::VmmError;
use crate::firecracker::VSOCK_SOCKET;
use crate::firecracker::client::Process;
use crate::firecracker::request::{self, Action, Request, VmState};
use crate::firecracker::version::{Feature, Version};
use crate::machine::{Machine, VmmExit};
use crate::mark::ProcessMark;

pub(crate) struct FirecrackerMachine {
    process: Process,
    version: Version,
    request_timeout: Duration,
}

/// Nobody cancels a single request to a machine that runs: it has its deadline.
const NEVER: &dyn Fn() -> bool = &|| false;

impl FirecrackerMachine {
    pub(crate) fn new(process: Process, version: Version, request_timeout: Duration) -> Self {
        Self {
            process,
            version,
            request_timeout,
        }
    }

    fn set_state(&self, state: VmState) -> Result<(), VmmError> {
        let request = request::vm_state(state)?;
        let mut connection = self.process.connect(self.request_timeout, NEVER)?;
        self.process
            .patch(&mut connection, &request, self.request_timeout, NEVER)
    }

    fn put(&self, request: &Request) -> Result<(), VmmError> {
        let mut connection = self.process.connect(self.request_timeout, NEVER)?;
        self.process
            .put(&mut connection, request, self.request_timeout, NEVER)
    }
}

impl Machine for FirecrackerMachine {
    fn kind(&self) -> VmmKind {
        VmmKind::Firecracker
    }

    fn connect(
        &self,
        port: u32,
        deadline: Instant,
        cancel: &dyn Fn() -> bool,
    ) -> Result<UnixStream, VmmError> {
        let process = &self.process;
        process.running.connect(
            &process.home.at,
            VSOCK_SOCKET,
            port,
            deadline,
            &mut || process.check(cancel).map(|()| true),
            &|_| (),
        )
    }

    fn wait_exit(&self, timeout: Duration) -> Option<VmmExit> {
        self.process.wait_exit(timeout)
    }

    fn ctrl_alt_del(&self) -> Result<(), VmmError> {
        if !self.version.has(Feature::CtrlAltDel) {
            return Err(VmmError::Unsupported {
                kind: VmmKind::Firecracker,
                why: format!(
                    "version {} has no key that a kernel with ACPI hears",
                    self.version
                ),
            });
        }
        self.put(&request::action(Action::SendCtrlAltDel)?)
    }

    fn pause(&self) -> Result<(), VmmError> {
        self.set_state(VmState::Paused)
    }

    fn resume(&self) -> Result<(), VmmError> {
        self.set_state(VmState::Resumed)
    }

    fn kill(&mut self) {
        self.process.running.child.kill();
    }

    fn console_tail(&self) -> Vec<u8> {
        self.process.running.console.tail()
    }

    fn processes(&self) -> Vec<ProcessMark> {
        let child = &self.process.running.child;
        match child.is_running() {
            true => vec![child.mark],
            false => Vec::new(),
        }
    }
}
