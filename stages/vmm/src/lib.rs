//! The machine monitors that can run a guest, behind one pair of traits.
//!
//! A launch asks [`choose`] for a [`Vmm`] (what can this host run?), hands it a [`MachineConfig`], and
//! gets a [`Machine`]: the processes, the console, and a stream to the agent inside the guest.
//!
//! # Two phases
//! Everything about a machine but its drives is known early, while the image is still being built. So
//! starting has two steps, and a launch runs the first beside the build:
//!
//! 1. [`Vmm::prepare`] starts what needs no drive. QEMU: the vsock device's process (QEMU itself takes its
//!    drives on its command line, and cold-plugging into q35's root bus is not possible later, so it waits).
//!    An API-driven VMM such as Firecracker: its process, its API socket, and every call but `/drives` and
//!    `InstanceStart`.
//! 2. [`Prepared::boot`] attaches the drives, in order, and starts the guest. It does not wait for the guest.
//!
//! Then [`Machine::connect`] reaches the agent. Under each VMM a vsock device is a Unix socket in the
//! launch's directory that speaks `CONNECT <port>\n` → `OK <port>\n`; so that code is shared.
//!
//! # Processes
//! Each program is started by a thread of its own that lives until the program ends, because
//! PR_SET_PDEATHSIG follows the *thread* that forked. The children get SIGKILL when this process dies, however
//! it dies; they are in sessions of their own (a terminal's ^C is not for them), hold no descriptor that they were
//! not given, run with the launch's directory as working directory, and carry `FCPIPE_MACHINE_DIR` in
//! their environment, by which [`kill_by_mark`] finds them after a crash.
//!
//! # What a guest agent must bear
//! A connection may be accepted and closed again without a byte sent (the host gave up waiting), and `OK` means that
//! the guest's *kernel* has queued the connection. Output that the agent has written is safe only when
//! the host has acknowledged it: what is still in the device when the guest reboots is lost.
//!
//! # Architecture invariants
//! - Nothing here blocks without a deadline and a way to cancel.
//! - What a guest sends to its console is bounded in memory ([`CONSOLE_KEPT`]) and on disk ([`LOG_LIMIT`]), and is
//!   always read, so a guest can neither fill the host nor be stopped by a full pipe.
//! - No path is given to a socket call unless it is short: sockets are reached relative to a descriptor of
//!   the launch's directory, so the directory may be as deep as it likes.
//! - A process is only ever signalled through a pidfd, so never one that took over its number.
//!
//! Begin reading at `machine.rs` (the traits), then `firecracker/mod.rs` or `qemu/mod.rs`.

mod cage;
mod cgroup;
mod child;
mod config;
mod confine;
mod console;
mod error;
mod firecracker;
mod host;
mod kvm;
mod machine;
mod mark;
mod pvh;
mod qemu;
mod running;
mod spawn;
mod vfork;
mod vsock;

pub use cage::{Cage, ShimProgram, shim_main};
pub use cgroup::{
    Cgroup, CgroupError, CgroupLimits, CgroupPlan, CgroupUsage, Entrances, kill_in_groups,
};
pub use config::{
    Accelerator, Balloon, CpuTemplate, Drive, KernelFiles, MAX_VCPUS, MachineConfig, Nic,
    RateLimit, Tuning, VmmChoice, VmmKind,
};
pub use console::{CONSOLE_KEPT, LOG_LIMIT};
pub use error::{LogTail, Logs, VmmError};
pub use firecracker::Firecracker;
pub use host::{Chosen, Finding, Host, HostCaps, Jailer, KvmState, State, choose};
pub use machine::{Machine, Prepared, Vmm, VmmExit};
pub use mark::{MACHINE_DIR_VARIABLE, ProcessMark, kill_by_mark};
pub use qemu::Qemu;
