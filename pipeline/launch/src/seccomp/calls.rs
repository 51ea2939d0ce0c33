//! System calls by their names.

use syscalls::{x86, x86_64};

/// Those of an architecture.
pub(super) struct Table {
    /// `AUDIT_ARCH_…` of linux/audit.h.
    pub(super) audit: u32,
    /// Arguments have 64 bits.
    pub(super) wide: bool,
    /// Calls of the x32 ABI come with the same architecture.
    pub(super) has_x32: bool,
    pub(super) number: fn(&str) -> Option<u32>,
    /// The call that stands for this one among others, and what its first argument is then.
    pub(super) multiplexed: fn(&str) -> Option<(u32, u64)>,
}

pub(super) const X86_64: Table = Table {
    audit: 0xc000_003e,
    wide: true,
    has_x32: true,
    number: |name| Some(name.parse::<x86_64::Sysno>().ok()?.id() as u32),
    multiplexed: |_| None,
};

pub(super) const X86: Table = Table {
    audit: 0x4000_0003,
    wide: false,
    has_x32: false,
    number: |name| Some(name.parse::<x86::Sysno>().ok()?.id() as u32),
    multiplexed,
};

/// socketcall(2) by linux/net.h, ipc(2) by linux/ipc.h.
fn multiplexed(name: &str) -> Option<(u32, u64)> {
    const SOCKET: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    if let Some(at) = SOCKET.iter().position(|call| *call == name) {
        return Some((x86::Sysno::socketcall.id() as u32, at as u64 + 1));
    }
    let (_, which) = IPC.iter().find(|(call, _)| *call == name)?;
    Some((x86::Sysno::ipc.id() as u32, *which))
}
