//! What a machine is made of, in words that hold for every VMM.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The most CPUs a machine may have: Firecracker's limit, kept for every VMM so that a spec means one thing.
pub const MAX_VCPUS: u32 = 32;

/// One machine, without its drives: those come last, in [`crate::Prepared::boot`].
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// The launch's id; only shown to people (in the VMM's own messages and in `ps`).
    pub id: String,
    /// 1 to 32.
    pub vcpus: u32,
    pub memory_mib: u64,
    pub kernel: KernelFiles,
    pub initrd: PathBuf,
    /// Appended to the kernel arguments that the VMM needs, so it can also override them (`loglevel=7`).
    pub cmdline_extra: String,
    /// The guest's vsock address, 3 or more. Each machine has a vsock device of its own, so two machines may share a number.
    pub vsock_cid: u32,
    /// The launch's directory, which must exist: sockets and logs are made here, and it is the working directory of
    /// every process of the machine. Only one machine may use it at a time.
    pub dir: PathBuf,
    /// Descriptors that the VMM's process holds until it ends, such as the store's lock on the image it
    /// runs from: so the lock ends with the VMM and not with whoever started it.
    pub inherit: Vec<Arc<OwnedFd>>,
    /// The network namespace that every process of the machine runs in; `None` is this process's.
    pub netns: Option<Arc<OwnedFd>>,
    /// The guest's network interfaces, in the order in which it finds them.
    pub nics: Vec<Nic>,
}

/// A network interface of the guest, a virtio device on a TAP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The TAP's name in [`MachineConfig::netns`]; it exists, has one queue, and nobody is attached to it.
    pub tap: String,
    /// The guest's address on it.
    pub mac: [u8; 6],
    pub mtu: u16,
}

impl Nic {
    /// The address as it is written: `02:00:00:00:00:01`.
    pub fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// One kernel in the forms that VMMs take.
#[derive(Debug, Clone)]
pub struct KernelFiles {
    /// The compressed kernel as distributions ship it.
    pub bzimage: Option<PathBuf>,
    /// The ELF kernel: Firecracker's form, and where it has a PVH entry point QEMU's too (nothing is left
    /// to decompress in the guest, 0.3 s under emulation).
    pub vmlinux: PathBuf,
}

/// A raw disk image, given to the guest as a virtio block device. The first is `/dev/vda`.
///
/// A writable drive lives as long as its launch: the guest's flushes are not passed on to the host's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    pub path: PathBuf,
    pub read_only: bool,
}

/// The programs that can run a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmmKind {
    Firecracker,
    Qemu,
}

impl fmt::Display for VmmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        })
    }
}

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VmmChoice {
    #[default]
    Auto,
    Firecracker,
    Qemu,
}

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator: works everywhere, several times slower.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}
