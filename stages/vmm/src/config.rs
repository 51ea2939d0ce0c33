//! What a machine is made of, in words that hold for every VMM.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cage::Cage;
use crate::error::VmmError;

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
    /// What every process of the machine is started in.
    pub cage: Cage,
    /// The guest's network interfaces, in the order in which it finds them.
    pub nics: Vec<Nic>,
    pub tuning: Tuning,
}

impl MachineConfig {
    /// What no VMM could run.
    pub(crate) fn check(&self) -> Result<(), VmmError> {
        let wrong = |why: String| {
            Err(VmmError::Config {
                id: self.id.clone(),
                why,
            })
        };
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return wrong(format!(
                "{} CPUs asked for; between 1 and {MAX_VCPUS} can be given",
                self.vcpus
            ));
        }
        if self.memory_mib == 0 {
            return wrong("it cannot have no memory".to_owned());
        }
        // 0 to 2 are the hypervisor, the loopback and the host (vsock(7)); the last is "any".
        if self.vsock_cid < 3 || self.vsock_cid == u32::MAX {
            return wrong(format!("a guest cannot have the CID {}", self.vsock_cid));
        }
        if self.cmdline_extra.contains(['\0', '\n']) {
            return wrong("its kernel arguments hold a NUL or a newline".to_owned());
        }
        for nic in &self.nics {
            // The kernel's own rules for a name, and the comma, which has a meaning to QEMU.
            let fits = (1..=15).contains(&nic.tap.len());
            let odd = |c: char| c.is_whitespace() || c.is_control() || "/:,".contains(c);
            if !fits || nic.tap.contains(odd) {
                return wrong(format!("{:?} is no name of a TAP", nic.tap));
            }
        }
        Ok(())
    }
}

/// What a machine can do without; a VMM that lacks some of it says so in [`crate::Vmm::ignores`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    pub cpu_template: Option<CpuTemplate>,
    /// Whether the guest sees two threads of a core.
    pub smt: bool,
    /// Guest memory on hugetlbfs pages of 2 MiB.
    pub huge_pages: bool,
    pub balloon: Option<Balloon>,
    /// Of each drive.
    pub drive_limit: RateLimit,
    /// Of each network interface, both ways.
    pub net_limit: RateLimit,
}

/// Firecracker's static CPU templates, by its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
}

/// Memory that the guest gives back from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balloon {
    pub mib: u32,
    /// Whether a guest that runs out of memory takes some of it again.
    pub deflate_on_oom: bool,
}

/// At most this much a second; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimit {
    /// Bytes.
    pub bandwidth: Option<u64>,
    /// Requests, or packets.
    pub ops: Option<u64>,
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
