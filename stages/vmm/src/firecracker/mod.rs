//! Firecracker: a process that is configured over HTTP on a Unix socket, and a machine in it.
//!
//! What the driver makes in the launch's directory, all of it by names that need no escaping and fit into a socket's address,
//! as the process's working directory is this one:
//!
//! | name | what |
//! |---|---|
//! | `api.sock` | Firecracker's API |
//! | `vsock.sock` | the vsock device; the host connects here |
//! | `log.fifo`, `metrics.fifo` | what Firecracker says of itself: it wants paths, and a pipe is bounded |
//! | `vmlinux`, `initrd`, `drive0` … | symbolic links to the files, whose own paths may be of any length and any bytes; mounts, in a jail |
//! | `console.log`, `firecracker.log`, `metrics.log` | what was said, cut at [`crate::LOG_LIMIT`] |
//!
//! With a jailer all but the logs are in the jail's root, `jail/PROGRAM/ID/root`.
//!
//! Architecture invariant: everything that can be known before a process runs (limits, the number of devices, the kernel's
//! form) is checked before one is started.
//!
//! Begin reading at `prepare.rs`; `request.rs` has what is asked for, `client.rs` how.

mod client;
mod files;
mod http;
mod jail;
mod machine;
mod prepare;
mod request;
mod version;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{MachineConfig, Tuning, VmmKind};
use crate::error::VmmError;
use crate::machine::{Prepared, Vmm};

/// The program, as errors and logs name it.
pub(crate) const FIRECRACKER: &str = "firecracker";

/// Names in the launch's directory.
pub(crate) const API_SOCKET: &str = "api.sock";
pub(crate) const VSOCK_SOCKET: &str = "vsock.sock";
pub(crate) const KERNEL: &str = "vmlinux";
pub(crate) const INITRD: &str = "initrd";
pub(crate) const LOG: &str = "log.fifo";
pub(crate) const METRICS: &str = "metrics.fifo";

/// Devices on Firecracker's MMIO bus: each has an interrupt line of its own, x86 has the lines 5 to 23 for them, and two are
/// taken by what every machine has (VMGenID and, since 1.15, VMClock). Which version it is shows only once it runs, and this
/// is planned before: the one line more that older ones have is left alone.
const DEVICES: usize = 17;

/// Letters of a disk's name in the guest: `/dev/vda` to `/dev/vdz`.
const LETTERS: usize = 26;

/// Firecracker, ready to run machines.
#[derive(Debug, Clone)]
pub struct Firecracker {
    pub program: PathBuf,
    /// Then each machine runs in a jail of its own, as a user of its own.
    pub jailer: Option<PathBuf>,
    /// How long the process may take until its API answers; it takes 12 ms.
    pub api_timeout: Duration,
    /// How long one request may take; all but the start of the guest are done at once.
    pub request_timeout: Duration,
    /// How long `InstanceStart` may take, which makes the guest's memory and loads its kernel.
    pub start_timeout: Duration,
}

impl Firecracker {
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            jailer: None,
            api_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            start_timeout: Duration::from_secs(60),
        }
    }
}

impl Vmm for Firecracker {
    fn kind(&self) -> VmmKind {
        VmmKind::Firecracker
    }

    fn drive_slots(&self, nics: usize, tuning: &Tuning) -> usize {
        // The vsock device and the entropy device are always there.
        let others = 2 + nics + usize::from(tuning.balloon.is_some());
        DEVICES.saturating_sub(others).min(LETTERS)
    }

    fn user(&self, dir: &Path) -> io::Result<Option<u32>> {
        match &self.jailer {
            None => Ok(None),
            Some(_) => jail::user_of(dir).map(Some),
        }
    }

    fn prepare(
        &self,
        config: &MachineConfig,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Box<dyn Prepared>, VmmError> {
        if cancel() {
            return Err(VmmError::Cancelled);
        }
        Ok(Box::new(prepare::PreparedFirecracker::new(
            self, config, cancel,
        )?))
    }
}
