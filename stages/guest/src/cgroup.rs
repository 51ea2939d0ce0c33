//! The workload's cgroup, so that no fork or memory bomb takes what the agent needs.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fcpipe_proto::confine::Limits;
use fcpipe_proto::{Failure, FailureKind};
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
        for controller in ["+pids", "+memory", "+cpu", "+io", "+cpuset"] {
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
        // What the kernel has taken for itself by now is nobody's: a limit above what is left would never be reached.
        if let Some(left) = of_meminfo(&meminfo, "MemAvailable:") {
            put(
                &self.path.join("memory.max"),
                &most_memory(left).to_string(),
            )?;
        }
        let threads = fs::read_to_string("/proc/sys/kernel/threads-max")?;
        if let Ok(threads) = threads.trim().parse::<u64>() {
            put(
                &self.path.join("pids.max"),
                &most_tasks(threads).to_string(),
            )?;
        }
        Ok(())
    }

    /// The limits of a spec, inside those that are there.
    ///
    /// # Errors
    /// Which one the kernel does not take.
    pub(crate) fn apply(&self, limits: &Limits) -> Result<(), Failure> {
        let pids = limits.pids.map(|most| ("pids.max", most.to_string()));
        let unified = limits
            .unified
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()));
        for (name, value) in pids.into_iter().chain(unified) {
            if name.contains('/') || name.starts_with("cgroup.") {
                let why = "is no limit of the container's cgroup";
                return Err(Failure::new(FailureKind::Setup, Some(name), why));
            }
            let wanted = value.trim();
            let value = match (name, self.number(name)) {
                // The agent's reserve is out of reach.
                ("pids.max" | "memory.max", Some(most)) => match wanted.parse::<u64>() {
                    Ok(number) => number.min(most).to_string(),
                    Err(_) if wanted == "max" => continue,
                    Err(_) => value,
                },
                _ => value,
            };
            put(&self.path.join(name), &value).map_err(|e| {
                Failure::new(
                    FailureKind::Setup,
                    Some(name),
                    format!("setting the limit: {e}"),
                )
            })?;
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

    /// Kills everything in the group at once, so that nothing can fork out of it; `false` where the kernel cannot
    /// (before 5.14).
    pub fn kill(&self) -> bool {
        put(&self.path.join("cgroup.kill"), "1").is_ok()
    }

    /// A file of the group.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The number in a file of the group; `None` for `max`, or where the file is not there.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.file(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// One of the named numbers in a file of the group.
    pub(crate) fn named(&self, file: &str, name: &str) -> Option<u64> {
        named(&fs::read_to_string(self.file(file)).ok()?, name)
    }
}

/// What the workload may have of so many bytes.
fn most_memory(left: u64) -> u64 {
    left.saturating_sub(RESERVE.max(left / 32)).max(left / 2)
}

/// What it may have of so many tasks.
fn most_tasks(threads: u64) -> u64 {
    threads.saturating_sub(RESERVED_TASKS).max(threads / 2)
}

/// The number of the line that begins with `name`, as the kernel's "flat keyed" files have them.
pub(crate) fn named(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Writes to a file that is there; it is never made.
fn put(path: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// Bytes, from a line of `/proc/meminfo`.
pub(crate) fn of_meminfo(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_62_something_is_left_for_the_agent() {
        assert_eq!(most_tasks(4000), 4000 - 128);
        assert_eq!(most_memory(400 << 20), 384 << 20);
        assert_eq!(most_memory(4 << 30), (4 << 30) - (128 << 20));
        // And for the workload, where there is next to nothing.
        assert_eq!((most_tasks(100), most_memory(8 << 20)), (50, 4 << 20));
    }

    #[test]
    fn the_kernel_s_files_are_read() {
        let meminfo = "MemTotal:         486000 kB\nMemFree: 1 kB\n";
        assert_eq!(of_meminfo(meminfo, "MemTotal:"), Some(486_000 << 10));
        assert_eq!(of_meminfo(meminfo, "MemAvailable:"), None);
        let events = "low 0\noom 7\noom_kill 3\n";
        assert_eq!(named(events, "oom"), Some(7));
        assert_eq!(named(events, "oom_kill"), Some(3));
        assert_eq!(named(events, "oo"), None);
    }
}
