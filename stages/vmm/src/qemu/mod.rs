//! QEMU: the machine for hosts where KVM cannot be used, and the one with KVM where Firecracker is not there.
//!
//! A q35 machine with PCI devices; its vsock device is a process of its own, `vhost-device-vsock`, because the kernel's
//! vhost needs a module and privileges that an embedded host does not have.

mod command;
mod machine;
mod prepare;
mod rings;

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Accelerator, MachineConfig, RateLimit, Tuning, VmmKind};
use crate::error::VmmError;
use crate::machine::{Prepared, Vmm};

/// The vsock device's socket, which this crate connects to.
const VSOCK_SOCKET: &str = "vsock.sock";
/// Between QEMU and the vsock device.
const VHOST_SOCKET: &str = "vhost-vsock.sock";

/// Slots of q35's root bus (32) that are left for drives and network interfaces beside its own devices.
const SLOTS: usize = 26;

const QEMU: &str = "qemu";
const VHOST_VSOCK: &str = "vhost-device-vsock";

/// A QEMU on this host. [`crate::choose`] makes one; with the fields at hand, so can anybody.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// `vhost-device-vsock`, 0.3 or later.
    pub vhost_vsock: PathBuf,
    pub accelerator: Accelerator,
    /// How long the vsock device may take to make its socket; it takes 4 ms.
    pub device_timeout: Duration,
}

impl Qemu {
    pub fn new(qemu: PathBuf, vhost_vsock: PathBuf, accelerator: Accelerator) -> Self {
        Self {
            qemu,
            vhost_vsock,
            accelerator,
            device_timeout: Duration::from_secs(5),
        }
    }
}

impl Vmm for Qemu {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    fn drive_slots(&self, nics: usize, _tuning: &Tuning) -> usize {
        SLOTS.saturating_sub(nics)
    }

    fn ignores(&self, config: &MachineConfig) -> Vec<&'static str> {
        let tuning = &config.tuning;
        let asked = [
            (tuning.cpu_template.is_some(), "machine.cpu_template"),
            (tuning.balloon.is_some(), "machine.balloon"),
            (
                tuning.drive_limit != RateLimit::default(),
                "disk.rate_limit",
            ),
            (
                tuning.net_limit != RateLimit::default(),
                "network.rate_limit",
            ),
        ];
        asked
            .into_iter()
            .filter_map(|(asked, name)| asked.then_some(name))
            .collect()
    }

    fn prepare(
        &self,
        config: &MachineConfig,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Box<dyn Prepared>, VmmError> {
        if cancel() {
            return Err(VmmError::Cancelled);
        }
        Ok(Box::new(prepare::PreparedQemu::new(
            self.clone(),
            config.clone(),
        )?))
    }
}
