//! What a group's processes have used.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::Cgroup;
use super::hierarchies::Version;

/// Figures of a group; `None` where the host's trees don't have them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupUsage {
    /// CPU time of all processes, microseconds.
    pub cpu_us: Option<u64>,
    /// How long they were held up by the quota, microseconds.
    pub throttled_us: Option<u64>,
    /// Bytes of memory, page cache included.
    pub memory: Option<u64>,
    /// The most there were.
    pub memory_peak: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<u64>,
    /// How often the kernel killed a process of the group for want of memory.
    pub oom_kills: Option<u64>,
}

impl Cgroup {
    /// What its processes have used so far.
    pub fn usage(&self) -> CgroupUsage {
        let mut usage = CgroupUsage::default();
        for (hierarchy, path) in &self.groups {
            match hierarchy.version {
                Version::Two => {
                    let cpu = pairs(path, "cpu.stat");
                    let or = |old: Option<u64>, new: Option<u64>| old.or(new);
                    usage.cpu_us = or(usage.cpu_us, cpu.get("usage_usec").copied());
                    usage.throttled_us = or(usage.throttled_us, cpu.get("throttled_usec").copied());
                    usage.memory = or(usage.memory, number(path, "memory.current"));
                    usage.memory_peak = or(usage.memory_peak, number(path, "memory.peak"));
                    usage.memory_limit = or(usage.memory_limit, number(path, "memory.max"));
                    let events = pairs(path, "memory.events");
                    usage.oom_kills = or(usage.oom_kills, events.get("oom_kill").copied());
                }
                Version::One => {
                    if hierarchy.has("cpuacct") {
                        usage.cpu_us = number(path, "cpuacct.usage").map(|nanos| nanos / 1000);
                    }
                    if hierarchy.has("cpu") {
                        let cpu = pairs(path, "cpu.stat");
                        usage.throttled_us = cpu.get("throttled_time").map(|nanos| nanos / 1000);
                    }
                    if hierarchy.has("memory") {
                        usage.memory = number(path, "memory.usage_in_bytes");
                        usage.memory_peak = number(path, "memory.max_usage_in_bytes");
                        usage.memory_limit = number(path, "memory.limit_in_bytes");
                        let control = pairs(path, "memory.oom_control");
                        usage.oom_kills = control.get("oom_kill").copied();
                    }
                }
            }
        }
        usage
    }
}

fn number(group: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(group.join(file))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// `NAME VALUE` lines.
fn pairs(group: &Path, file: &str) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(group.join(file)).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}
