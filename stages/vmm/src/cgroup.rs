//! The control groups of one machine, under version 1 (a tree for each controller) and version 2 (one tree): made, limited, read,
//! and taken away.
//!
//! A host may have both at once, with the controllers in version 1's trees; then a machine has a group in each tree that matters.

mod hierarchies;
mod usage;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use usage::CgroupUsage;

use crate::mark::{kill_pidfd, open_pidfd};
use hierarchies::{Hierarchy, Version};

/// How long processes may take to leave a group after they were killed.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(1);

/// The groups that a machine is to have: enough to take them away again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPlan {
    /// One in each tree.
    pub groups: Vec<PathBuf>,
    /// Those directories that are to be made for it, each after its parent.
    pub made: Vec<PathBuf>,
    /// Directories that several machines share: taken away by whoever leaves last.
    pub shared: Vec<PathBuf>,
}

/// What a machine may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Microseconds of CPU time in each period of so many microseconds.
    pub cpu: Option<(u64, u64)>,
}

/// What went wrong with a group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("{}: {what}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{}: the control group has processes already", path.display())]
    InUse { path: PathBuf },
    #[error("{}: no tree of control groups is mounted that can limit {what}", path.display())]
    NoController { what: &'static str, path: PathBuf },
    #[error("{}: processes in the control group do not end", path.display())]
    Immortal { path: PathBuf },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { what, path, source }
}

/// The groups of a machine.
#[derive(Debug, Clone)]
pub struct Cgroup {
    groups: Vec<(Hierarchy, PathBuf)>,
}

impl CgroupPlan {
    /// Plans groups at `path` in every tree that matters: absolute as the spec has it, or relative, below `fcpipe`, which
    /// machines share. Nothing is made. Empty where no trees are mounted.
    pub fn at(path: &Path) -> Result<Self, CgroupError> {
        let mut plan = CgroupPlan {
            groups: Vec::new(),
            made: Vec::new(),
            shared: Vec::new(),
        };
        for hierarchy in
            hierarchies::probe().map_err(failed("cannot be read", Path::new("/proc")))?
        {
            let below = match path.strip_prefix("/") {
                Ok(absolute) => absolute.to_owned(),
                Err(_) => {
                    plan.shared.push(hierarchy.mount.join(OWN));
                    Path::new(OWN).join(path)
                }
            };
            let mut dir = hierarchy.mount.clone();
            for name in below.components() {
                dir.push(name);
                if !dir.exists() && !plan.shared.contains(&dir) {
                    plan.made.push(dir.clone());
                }
            }
            plan.groups.push(dir);
        }
        Ok(plan)
    }

    /// Makes the groups and sets their limits.
    pub fn make(&self, limits: &CgroupLimits) -> Result<Cgroup, CgroupError> {
        let mounted = hierarchies::probe().map_err(failed("cannot be read", Path::new("/proc")))?;
        let mut groups = Vec::new();
        for path in &self.groups {
            let hierarchy = mounted
                .iter()
                // The trees are mounted beside each other, so the longest is the right one.
                .filter(|h| path.starts_with(&h.mount))
                .max_by_key(|h| h.mount.as_os_str().len())
                .cloned();
            let Some(hierarchy) = hierarchy else {
                continue;
            };
            hierarchy.enable(path)?;
            make_dirs(path)?;
            let procs = fs::read_to_string(path.join("cgroup.procs"))
                .map_err(failed("cannot be read", path))?;
            if !procs.trim().is_empty() {
                return Err(CgroupError::InUse { path: path.clone() });
            }
            groups.push((hierarchy, path.clone()));
        }
        let cgroup = Cgroup { groups };
        cgroup.limit(limits)?;
        Ok(cgroup)
    }

    /// Kills what is left in the groups and takes them away. Idempotent.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for group in &self.groups {
            if self.made.contains(group) || group.join("cgroup.procs").exists() {
                empty(group)?;
            }
        }
        for dir in self.made.iter().rev() {
            remove_dir(dir)?;
        }
        for dir in &self.shared {
            // Others may be in it.
            let _ = fs::remove_dir(dir);
        }
        Ok(())
    }
}

/// What relative paths are below.
const OWN: &str = "fcpipe";

/// Another machine that ends may take a shared parent away at any time.
fn make_dirs(path: &Path) -> Result<(), CgroupError> {
    let mut tries = 0;
    loop {
        match fs::create_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && tries < 100 => tries += 1,
            made => return made.map_err(failed("cannot be made", path)),
        }
    }
}

/// A group can be removed when its last process has been waited for.
fn remove_dir(dir: &Path) -> Result<(), CgroupError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // EBUSY has no stable name in the standard library.
            Err(e)
                if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error())
                    && Instant::now() < end =>
            {
                std::thread::sleep(STEP);
            }
            // Somebody else's group in it stays, and so does this one.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NOTEMPTY.raw_os_error()) => {
                return Ok(());
            }
            removed => return removed.map_err(failed("cannot be removed", dir)),
        }
    }
}

/// Kills every process in a group.
fn empty(group: &Path) -> Result<(), CgroupError> {
    let end = Instant::now() + PATIENCE;
    loop {
        let procs = match fs::read_to_string(group.join("cgroup.procs")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            procs => procs.map_err(failed("cannot be read", group))?,
        };
        let pids: Vec<u32> = procs.lines().filter_map(|line| line.parse().ok()).collect();
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            // Listed again after it was opened, so that it is not another process of the same number.
            if let Ok(Some(pidfd)) = open_pidfd(pid)
                && fs::read_to_string(group.join("cgroup.procs"))
                    .is_ok_and(|procs| procs.lines().any(|line| line.parse() == Ok(pid)))
            {
                kill_pidfd(&pidfd).map_err(failed("a process cannot be killed", group))?;
            }
        }
        if Instant::now() >= end {
            return Err(CgroupError::Immortal {
                path: group.to_owned(),
            });
        }
        std::thread::sleep(STEP);
    }
}

impl Cgroup {
    fn limit(&self, limits: &CgroupLimits) -> Result<(), CgroupError> {
        if let Some(bytes) = limits.memory {
            let (hierarchy, path) = self.of("memory")?;
            let file = match hierarchy.version {
                Version::One => "memory.limit_in_bytes",
                Version::Two => "memory.max",
            };
            write(path, file, &bytes.to_string())?;
        }
        if let Some((quota, period)) = limits.cpu {
            let (hierarchy, path) = self.of("cpu")?;
            match hierarchy.version {
                Version::One => {
                    // A group below others may have no more than they have: first the period, which the quota is judged by.
                    write(path, "cpu.cfs_period_us", &period.to_string())?;
                    write(path, "cpu.cfs_quota_us", &quota.to_string())?;
                }
                Version::Two => write(path, "cpu.max", &format!("{quota} {period}"))?,
            }
        }
        Ok(())
    }

    /// The group that has a controller.
    fn of(&self, controller: &'static str) -> Result<(&Hierarchy, &Path), CgroupError> {
        let found = self
            .groups
            .iter()
            .find(|(hierarchy, _)| hierarchy.has(controller));
        match found {
            Some((hierarchy, path)) => Ok((hierarchy, path)),
            None => Err(CgroupError::NoController {
                what: controller,
                path: self.groups.first().map(|g| g.1.clone()).unwrap_or_default(),
            }),
        }
    }

    /// By which processes enter.
    pub fn entrances(&self) -> Result<Vec<Arc<OwnedFd>>, CgroupError> {
        self.groups
            .iter()
            .map(|(_, path)| {
                let file = fs::OpenOptions::new()
                    .write(true)
                    .open(path.join("cgroup.procs"))
                    .map_err(failed("cannot be entered", path))?;
                Ok(Arc::new(file.into()))
            })
            .collect()
    }
}

fn write(group: &Path, file: &'static str, value: &str) -> Result<(), CgroupError> {
    fs::write(group.join(file), value).map_err(|source| CgroupError::Io {
        what: file,
        path: group.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_groups_are_made_with_their_limits_entered_emptied_and_taken_away() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let name = format!("test-{}", std::process::id());
        let plan = CgroupPlan::at(Path::new(&name)).unwrap();
        if plan.groups.is_empty() {
            println!("skipped: no control groups are mounted");
            return;
        }
        let limits = CgroupLimits {
            memory: Some(64 << 20),
            cpu: Some((20_000, 100_000)),
        };
        let cgroup = plan.make(&limits).unwrap();
        assert_eq!(cgroup.usage().memory_limit, Some(64 << 20));
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        for entrance in cgroup.entrances().unwrap() {
            rustix::io::write(&entrance, child.id().to_string().as_bytes()).unwrap();
        }
        assert!(matches!(plan.make(&limits), Err(CgroupError::InUse { .. })));
        let waited = std::thread::spawn(move || child.wait().unwrap());
        plan.remove().unwrap();
        assert!(!waited.join().unwrap().success());
        assert!(plan.groups.iter().all(|group| !group.exists()));
        plan.remove().unwrap();
    }

    #[test]
    fn a_group_of_the_spec_s_own_leaves_what_was_there() {
        let plan = CgroupPlan::at(Path::new("/fcpipe-none/a")).unwrap();
        assert!(plan.shared.is_empty());
        // Two directories in each tree.
        assert_eq!(plan.made.len(), 2 * plan.groups.len());
        plan.remove().unwrap();
    }
}
