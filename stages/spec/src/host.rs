//! What the host has, as far as a spec's numbers are held against it.

use std::fs;

/// The CPUs and the memory of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// CPUs that are online.
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
}

impl Host {
    /// Asks the kernel. The answer does not depend on this process's own cgroup or affinity: a VM's
    /// threads run elsewhere.
    pub fn probe() -> Host {
        let info = rustix::system::sysinfo();
        let online = fs::read_to_string("/sys/devices/system/cpu/online")
            .ok()
            .and_then(|list| count(list.trim()));
        let cpus = online.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, |n| n.get().try_into().unwrap_or(1))
        });
        Host {
            cpus,
            memory: (info.totalram as u64).saturating_mul(info.mem_unit.into()),
        }
    }
}

/// How many CPUs a list such as `0-3,8` names (cpuset(7), "List format").
fn count(list: &str) -> Option<u32> {
    list.split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-3,8,10-11"), Some(7));
        for list in ["", "a", "3-1", "0-", "0-4294967295"] {
            assert_eq!(count(list), None, "{list}");
        }
    }

    #[test]
    fn this_host_has_something() {
        let host = Host::probe();
        assert!(host.cpus >= 1 && host.memory > 1 << 20);
    }
}
