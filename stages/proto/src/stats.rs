//! What a container and its machine have used, as the guest sees it.
//!
//! Counters run from the boot. The guest may lie about all of them: they are for people to read, and nothing is
//! decided by them.

use serde::{Deserialize, Serialize};

/// At one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Since the kernel began, microseconds.
    pub uptime_us: u64,
    /// When the agent began to listen, on the same clock: how long kernel and init took.
    pub listening_us: u64,
    pub cpu: Cpu,
    pub memory: Memory,
    pub pids: Pids,
    pub disks: Vec<Disk>,
    pub interfaces: Vec<Interface>,
}

/// CPU time of the container, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    pub usage_us: u64,
    pub user_us: u64,
    pub system_us: u64,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// What the guest's kernel has to give out.
    pub total: u64,
    pub available: u64,
    /// Of the container, its part of the page cache included.
    pub current: u64,
    /// Of that, what is no page cache.
    pub anonymous: u64,
    /// The most that the container may have; `None`: all.
    pub limit: Option<u64>,
    /// Processes of the container that were killed for want of memory.
    pub oom_kills: u64,
}

/// Tasks of the container: processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pids {
    pub current: u64,
    pub limit: Option<u64>,
    /// Forks that the limit refused.
    pub refused: u64,
}

/// A virtual disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// `vda` and so on.
    pub name: String,
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// `eth0` and so on.
    pub name: String,
    pub received_bytes: u64,
    pub received_packets: u64,
    pub received_dropped: u64,
    pub sent_bytes: u64,
    pub sent_packets: u64,
    pub sent_dropped: u64,
}

/// More of them than a machine can have.
const MAX_ITEMS: usize = 64;
/// The kernel's limit of an interface's name, and more than a disk's.
const MAX_NAME: usize = 15;

impl Stats {
    /// Without what no kernel says: names that are none, and endless lists.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let plain = |name: &str| {
            !name.is_empty()
                && name.len() <= MAX_NAME
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
        };
        self.disks.retain(|disk| plain(&disk.name));
        self.interfaces.retain(|interface| plain(&interface.name));
        self.disks.truncate(MAX_ITEMS);
        self.interfaces.truncate(MAX_ITEMS);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_47_names_that_a_kernel_does_not_give_are_left_out() {
        let disk = |name: &str| Disk {
            name: name.to_owned(),
            ..Disk::default()
        };
        let mut stats = Stats {
            disks: vec![
                disk("vda"),
                disk("\x1b[2J"),
                disk("a\"b"),
                disk(&"x".repeat(16)),
                disk(""),
            ],
            ..Stats::default()
        };
        stats.disks.extend((0..1000).map(|_| disk("vdb")));
        let stats = stats.bounded();
        assert_eq!(stats.disks.len(), MAX_ITEMS);
        assert_eq!(
            (&*stats.disks[0].name, &*stats.disks[1].name),
            ("vda", "vdb")
        );
    }
}
