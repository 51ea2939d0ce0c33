//! Figures of the container and of the machine, read from the kernel's files when the host asks.
//!
//! What a kernel does not say is 0.

use std::fs;
use std::time::Duration;

use fcpipe_proto::Stats;
use fcpipe_proto::stats::{Cpu, Disk, Interface, Memory, Pids};
use rustix::time::{ClockId, clock_gettime};

use crate::cgroup::{Cgroup, of_meminfo};

/// A sector of `/proc/diskstats`, whatever the disk's own.
const SECTOR: u64 = 512;

/// How long the kernel has run.
pub(crate) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

/// All of them, now. `listening` is when the agent began.
pub(crate) fn read(cgroup: Option<&Cgroup>, listening: Duration) -> Stats {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let meminfo = text("/proc/meminfo");
    let mut stats = Stats {
        uptime_us: micros(uptime()),
        listening_us: micros(listening),
        memory: Memory {
            total: of_meminfo(&meminfo, "MemTotal:").unwrap_or(0),
            available: of_meminfo(&meminfo, "MemAvailable:").unwrap_or(0),
            ..Memory::default()
        },
        disks: disks(&text("/proc/diskstats")),
        interfaces: interfaces(&text("/proc/net/dev")),
        ..Stats::default()
    };
    if let Some(cgroup) = cgroup {
        let number = |name| cgroup.number(name).unwrap_or(0);
        let named = |file, name| cgroup.named(file, name).unwrap_or(0);
        stats.cpu = Cpu {
            usage_us: named("cpu.stat", "usage_usec"),
            user_us: named("cpu.stat", "user_usec"),
            system_us: named("cpu.stat", "system_usec"),
        };
        stats.memory.current = number("memory.current");
        stats.memory.anonymous = named("memory.stat", "anon");
        stats.memory.limit = cgroup.number("memory.max");
        stats.memory.oom_kills = named("memory.events", "oom_kill");
        stats.pids = Pids {
            current: number("pids.current"),
            limit: cgroup.number("pids.max"),
            refused: named("pids.events", "max"),
        };
    }
    stats
}

/// Virtual disks, without their partitions and what is made of them (iostats.rst).
fn disks(text: &str) -> Vec<Disk> {
    let disk = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let name = fields.get(2).filter(|name| name.starts_with("vd"))?;
        if name.ends_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let number = |at: usize| -> Option<u64> { fields.get(at)?.parse().ok() };
        Some(Disk {
            name: (*name).to_owned(),
            reads: number(3)?,
            read_bytes: number(5)?.saturating_mul(SECTOR),
            writes: number(7)?,
            written_bytes: number(9)?.saturating_mul(SECTOR),
        })
    };
    text.lines().filter_map(disk).collect()
}

/// All but the loopback (proc(5), `/proc/net/dev`).
fn interfaces(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Option<Vec<u64>> = counters
            .split_ascii_whitespace()
            .map(|number| number.parse().ok())
            .collect();
        let counters = counters?;
        let number = |at: usize| counters.get(at).copied();
        let name = name.trim();
        (name != "lo").then_some(())?;
        Some(Interface {
            name: name.to_owned(),
            received_bytes: number(0)?,
            received_packets: number(1)?,
            received_dropped: number(3)?,
            sent_bytes: number(8)?,
            sent_packets: number(9)?,
            sent_dropped: number(11)?,
        })
    };
    text.lines().filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read() {
        let text = "   1       0 ram0 0 0 0 0 0 0 0 0 0 0 0\n \
                    254       0 vda 100 5 2000 40 7 1 64 3 0 50 43 0 0 0 0 0 0\n \
                    254       1 vda1 1 2 3 4 5 6 7 8 9 10 11\n";
        let disk = Disk {
            name: "vda".to_owned(),
            reads: 100,
            read_bytes: 1_024_000,
            writes: 7,
            written_bytes: 32_768,
        };
        assert_eq!(disks(text), [disk]);
    }

    #[test]
    fn interfaces_are_read() {
        let text = "Inter-|   Receive                            |  Transmit\n \
            face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop\n    \
            lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  \
            eth0: 1000 10 0 2 0 0 0 0 500 5 0 1 0 0 0 0\n";
        let interface = Interface {
            name: "eth0".to_owned(),
            received_bytes: 1000,
            received_packets: 10,
            received_dropped: 2,
            sent_bytes: 500,
            sent_packets: 5,
            sent_dropped: 1,
        };
        assert_eq!(interfaces(text), [interface]);
    }
}
