//! The workload's cgroup, so that no fork or memory bomb takes what the agent needs.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

/// Memory that the workload can never have: for the agent and for the kernel's own work.
const RESERVE: u64 = 16 << 20;
/// Tasks likewise.
const RESERVED_TASKS: u64 = 128;

/// The cgroup in which every container process runs.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Mounts the unified hierarchy at `root`, and makes the workload's group with its limits.
    /// `nsdelegate`: whoever is in a cgroup namespace cannot lift the limits at its root.
    ///
    /// # Errors
    /// When the kernel has no cgroup2. Controllers it does not have only leave their limits out.
    pub fn mount(root: &Path) -> io::Result<Self> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("cgroup2", root, "cgroup2", flags, c"nsdelegate")?;
        for controller in ["+pids", "+memory", "+cpu"] {
            // One that is missing must not keep the others out.
            let _ = put(&root.join("cgroup.subtree_control"), controller);
        }
        let path = root.join("container");
        fs::create_dir(&path)?;
        let cgroup = Cgroup { path };
        let _ = cgroup.limit();
        Ok(cgroup)
    }

    fn limit(&self) -> io::Result<()> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        if let Some(total) = mem_total(&meminfo) {
            let most = total.saturating_sub(RESERVE.max(total / 32)).max(total / 2);
            put(&self.path.join("memory.max"), &most.to_string())?;
        }
        let threads = fs::read_to_string("/proc/sys/kernel/threads-max")?;
        if let Ok(threads) = threads.trim().parse::<u64>() {
            let most = threads.saturating_sub(RESERVED_TASKS).max(threads / 2);
            put(&self.path.join("pids.max"), &most.to_string())?;
        }
        Ok(())
    }

    /// Moves a process into the group.
    ///
    /// # Errors
    /// When it has ended.
    pub fn add(&self, pid: rustix::process::Pid) -> io::Result<()> {
        let pid = pid.as_raw_nonzero().to_string();
        put(&self.path.join("cgroup.procs"), &pid)
    }

    /// Kills everything in the group.
    pub fn kill(&self) {
        // A kernel before 5.14 has no such file; init's end has killed all there.
        let _ = put(&self.path.join("cgroup.kill"), "1");
    }
}

/// Writes to a file that is there; it is never made.
fn put(path: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// Bytes, from the first line of `/proc/meminfo`.
fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        assert_eq!(
            mem_total("MemTotal:         486000 kB\nMemFree: 1 kB\n"),
            Some(486_000 << 10)
        );
        assert_eq!(mem_total("MemFree: 1 kB\n"), None);
    }
}
