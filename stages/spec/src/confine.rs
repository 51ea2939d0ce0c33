//! What keeps a process from something, and what runs on its way: the types of the model for the parts of an OCI config
//! that the guest enforces.

use std::collections::BTreeMap;

use crate::model::Choice;

/// The five sets of capabilities(7), bit n for the capability of number n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// A resource limit of setrlimit(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on, one that Linux has.
    pub kind: String,
    /// `u64::MAX` is no limit; not above `hard`.
    pub soft: u64,
    pub hard: u64,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsoleSize {
    pub rows: u16,
    pub columns: u16,
}

/// `linux` of an OCI config, as far as the guest has a use for it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Linux {
    /// Absolute, inside the image.
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub sysctl: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    pub root_propagation: Option<Propagation>,
    /// Tasks; `None`: as many as the guest can have.
    pub pids_limit: Option<u64>,
    /// Files of cgroup v2 and what is written to them.
    pub unified: BTreeMap<String, String>,
}

/// A node to make in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Absolute, inside the image.
    pub path: String,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    /// With the permissions alone.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Character,
    Block,
    Fifo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Shared,
    Slave,
    Private,
    Unbindable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Personality {
    Linux,
    Linux32,
}

/// A filter of system calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seccomp {
    /// For calls that no rule is about.
    pub default: SeccompAction,
    /// Besides the machine's own.
    pub architectures: Vec<SeccompArch>,
    pub flags: Vec<SeccompFlag>,
    pub rules: Vec<SeccompRule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeccompAction {
    KillProcess,
    KillThread,
    Trap,
    /// The call fails with this number.
    Errno(u16),
    /// The tracer gets this number.
    Trace(u16),
    Log,
    Allow,
}

/// Those that programs of an x86-64 guest can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeccompArch {
    X86_64,
    X86,
    X32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeccompFlag {
    Tsync,
    Log,
    SpecAllow,
    WaitKillableRecv,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompRule {
    /// System calls; one that the machine does not have is nothing to filter.
    pub names: Vec<String>,
    pub action: SeccompAction,
    pub args: Vec<SeccompArg>,
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeccompArg {
    /// 0 to 5.
    pub index: u8,
    pub value: u64,
    /// What a masked value is compared with.
    pub value_two: u64,
    pub op: SeccompOp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeccompOp {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    MaskedEq,
}

/// OCI's hooks: programs that run at points of a container's life.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// On the host, after `create` has made everything but before the process can run; deprecated, and as `create_runtime`.
    pub prestart: Vec<Hook>,
    /// On the host.
    pub create_runtime: Vec<Hook>,
    /// In the guest.
    pub create_container: Vec<Hook>,
    /// In the guest.
    pub start_container: Vec<Hook>,
    /// On the host, after the process has begun.
    pub poststart: Vec<Hook>,
    /// On the host, after the container is deleted.
    pub poststop: Vec<Hook>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Absolute.
    pub path: String,
    /// The program's own name first; it may be empty.
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// Seconds, more than 0.
    pub timeout: Option<u32>,
}

/// Capabilities by their numbers (linux/capability.h), without `CAP_`.
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The bit of `CAP_…`.
pub(crate) fn capability(name: &str) -> Option<u64> {
    let name = name.strip_prefix("CAP_")?;
    let number = CAPABILITIES.iter().position(|known| *known == name)?;
    Some(1 << number)
}

/// Those of getrlimit(2).
pub(crate) const RLIMITS: &[&str] = &[
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
];

/// What a spec calls an action, before its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActionName {
    KillProcess,
    KillThread,
    Trap,
    Errno,
    Trace,
    Log,
    Allow,
    Notify,
}

/// `linux.seccomp.architectures`, of which most are of machines that the guest is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArchName {
    This(SeccompArch),
    Foreign,
}

macro_rules! named {
    ($($type:ty { $($name:literal => $value:expr),* $(,)? })*) => {
        $(impl Choice for $type {
            const NAMES: &'static [&'static str] = &[$($name),*];

            fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some($value),)*
                    _ => None,
                }
            }
        })*
    };
}

named! {
    Personality { "LINUX" => Personality::Linux, "LINUX32" => Personality::Linux32 }
    Propagation {
        "shared" => Propagation::Shared, "rshared" => Propagation::Shared,
        "slave" => Propagation::Slave, "rslave" => Propagation::Slave,
        "private" => Propagation::Private, "rprivate" => Propagation::Private,
        "unbindable" => Propagation::Unbindable, "runbindable" => Propagation::Unbindable,
    }
    SeccompOp {
        "SCMP_CMP_NE" => SeccompOp::Ne, "SCMP_CMP_LT" => SeccompOp::Lt, "SCMP_CMP_LE" => SeccompOp::Le,
        "SCMP_CMP_EQ" => SeccompOp::Eq, "SCMP_CMP_GE" => SeccompOp::Ge, "SCMP_CMP_GT" => SeccompOp::Gt,
        "SCMP_CMP_MASKED_EQ" => SeccompOp::MaskedEq,
    }
    SeccompFlag {
        "SECCOMP_FILTER_FLAG_TSYNC" => SeccompFlag::Tsync,
        "SECCOMP_FILTER_FLAG_LOG" => SeccompFlag::Log,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => SeccompFlag::SpecAllow,
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => SeccompFlag::WaitKillableRecv,
    }
    ActionName {
        "SCMP_ACT_KILL" => ActionName::KillThread, "SCMP_ACT_KILL_THREAD" => ActionName::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ActionName::KillProcess, "SCMP_ACT_TRAP" => ActionName::Trap,
        "SCMP_ACT_ERRNO" => ActionName::Errno, "SCMP_ACT_TRACE" => ActionName::Trace,
        "SCMP_ACT_LOG" => ActionName::Log, "SCMP_ACT_ALLOW" => ActionName::Allow,
        "SCMP_ACT_NOTIFY" => ActionName::Notify,
    }
    ArchName {
        "SCMP_ARCH_X86_64" => ArchName::This(SeccompArch::X86_64),
        "SCMP_ARCH_X86" => ArchName::This(SeccompArch::X86),
        "SCMP_ARCH_X32" => ArchName::This(SeccompArch::X32),
        "SCMP_ARCH_ARM" => ArchName::Foreign, "SCMP_ARCH_AARCH64" => ArchName::Foreign,
        "SCMP_ARCH_MIPS" => ArchName::Foreign, "SCMP_ARCH_MIPS64" => ArchName::Foreign,
        "SCMP_ARCH_MIPS64N32" => ArchName::Foreign, "SCMP_ARCH_MIPSEL" => ArchName::Foreign,
        "SCMP_ARCH_MIPSEL64" => ArchName::Foreign, "SCMP_ARCH_MIPSEL64N32" => ArchName::Foreign,
        "SCMP_ARCH_PPC" => ArchName::Foreign, "SCMP_ARCH_PPC64" => ArchName::Foreign,
        "SCMP_ARCH_PPC64LE" => ArchName::Foreign, "SCMP_ARCH_S390" => ArchName::Foreign,
        "SCMP_ARCH_S390X" => ArchName::Foreign, "SCMP_ARCH_PARISC" => ArchName::Foreign,
        "SCMP_ARCH_PARISC64" => ArchName::Foreign, "SCMP_ARCH_RISCV64" => ArchName::Foreign,
        "SCMP_ARCH_LOONGARCH64" => ArchName::Foreign, "SCMP_ARCH_M68K" => ArchName::Foreign,
        "SCMP_ARCH_SH" => ArchName::Foreign, "SCMP_ARCH_SHEB" => ArchName::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_kernel_s_numbers() {
        // linux/capability.h
        for (name, number) in [
            ("CAP_CHOWN", 0),
            ("CAP_SETPCAP", 8),
            ("CAP_SYS_ADMIN", 21),
            ("CAP_MKNOD", 27),
            ("CAP_SYSLOG", 34),
            ("CAP_CHECKPOINT_RESTORE", 40),
        ] {
            assert_eq!(capability(name), Some(1 << number), "{name}");
        }
        assert_eq!(capability("CHOWN"), None);
        assert_eq!(capability("CAP_"), None);
    }
}
