//! What keeps a process, or a whole container, from something.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Sets of capabilities (capabilities(7)), bit n for the capability of number n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// A filter of system calls, compiled by the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seccomp {
    /// `SECCOMP_FILTER_FLAG_…` of seccomp(2).
    pub flags: u32,
    pub program: Vec<Instruction>,
}

/// An instruction of classic BPF: operation, jump if true, jump if false, operand (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction(pub u16, pub u8, pub u8, pub u32);

/// What an OCI config says of the container besides its mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confinement {
    /// Nothing of these paths can be seen.
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    /// Names with dots, as sysctl(8) has them, and values.
    pub sysctl: BTreeMap<String, String>,
    /// Besides those that every container has.
    pub devices: Vec<Device>,
    /// Of the root mount, when all is made; `None`: private.
    pub root_propagation: Option<Propagation>,
    pub limits: Limits,
}

/// A device node, FIFO or socket to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub path: String,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    Character,
    Block,
    Fifo,
}

/// mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    Shared,
    Slave,
    Private,
    Unbindable,
}

/// Of the container's cgroup. What the agent needs for itself bounds them too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Files of the cgroup (cgroup v2) and what is written to them.
    pub unified: BTreeMap<String, String>,
}

/// Programs that the guest runs for the container, inside its root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// When everything is mounted, before the root is made read-only.
    pub create_container: Vec<Hook>,
    /// Before the process's program.
    pub start_container: Vec<Hook>,
    /// The container's state of the OCI specification, without its status: every hook reads it.
    pub state: Option<HookState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute, inside the container's root.
    pub path: String,
    /// With the program's own name; empty: the path.
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    #[serde(default)]
    pub timeout_seconds: Option<u32>,
}

/// As the OCI specification has it, `status` left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState {
    pub oci_version: String,
    pub id: String,
    pub bundle: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
