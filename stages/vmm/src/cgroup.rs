//! The control groups of one machine, under version 1 (a tree for each controller) and version 2 (one tree): made, limited, read,
//! and taken away.
//!
//! A host may have both at once, with the controllers in version 1's trees; then a machine has a group in each tree that matters.

mod hierarchies;
mod usage;

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use usage::CgroupUsage;

use crate::mark::{kill_pidfd, open_pidfd, wait_pidfd};
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
        let trees = hierarchies::probe().map_err(failed("cannot be read", Path::new("/proc")))?;
        Ok(Self::among(&trees, path))
    }

    fn among(trees: &[Hierarchy], path: &Path) -> Self {
        let mut plan = CgroupPlan {
            groups: Vec::new(),
            made: Vec::new(),
            shared: Vec::new(),
        };
        for hierarchy in trees {
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
        plan
    }

    /// Makes the groups and sets their limits.
    pub fn make(&self, limits: &CgroupLimits) -> Result<Cgroup, CgroupError> {
        let trees = hierarchies::probe().map_err(failed("cannot be read", Path::new("/proc")))?;
        self.make_among(&trees, limits)
    }

    fn make_among(
        &self,
        trees: &[Hierarchy],
        limits: &CgroupLimits,
    ) -> Result<Cgroup, CgroupError> {
        let mut groups = Vec::new();
        for path in &self.groups {
            let hierarchy = trees
                .iter()
                // The trees are mounted beside each other, so the longest is the right one.
                .filter(|h| path.starts_with(&h.mount))
                .max_by_key(|h| h.mount.as_os_str().len())
                .cloned();
            let Some(hierarchy) = hierarchy else {
                continue;
            };
            // In this order: nobody takes a shared parent away that has this group in it, and with it what was passed on.
            make_dirs(path)?;
            hierarchy.enable(path)?;
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

    /// Takes away what was made. Idempotent. Kills nobody: where the groups could not be had, because they are somebody else's, so
    /// is who is in them. A machine's own processes are ended before ([`kill_in_groups`]).
    pub fn remove(&self) -> Result<(), CgroupError> {
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
            // Somebody else's group in it stays, and so does this one: the kernel calls both that and a process on its way out busy.
            // (EBUSY has no stable name in the standard library.)
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                if has_groups(dir) {
                    return Ok(());
                }
                if Instant::now() >= end {
                    return match processes(dir)? {
                        // Two launches have made it at the same time, and this one had to leave it to the other.
                        Some(pids) if !pids.is_empty() => Ok(()),
                        _ => Err(failed("cannot be removed", dir)(e)),
                    };
                }
                std::thread::sleep(STEP);
            }
            removed => return removed.map_err(failed("cannot be removed", dir)),
        }
    }
}

/// Whether there are groups in this one.
fn has_groups(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut kinds = entries.filter_map(|entry| entry.file_type().ok());
    kinds.any(|kind| kind.is_dir())
}

/// Kills every process in these groups, and waits for their ends. A group that is not there has none.
pub fn kill_in_groups(groups: &[PathBuf]) -> Result<(), CgroupError> {
    groups.iter().try_for_each(|group| empty(group))
}

/// Kills every process in a group.
fn empty(group: &Path) -> Result<(), CgroupError> {
    let end = Instant::now() + PATIENCE;
    loop {
        let Some(pids) = processes(group)? else {
            return Ok(());
        };
        if pids.is_empty() {
            return Ok(());
        }
        let opened: Vec<_> = pids
            .into_iter()
            .filter_map(|pid| Some((pid, open_pidfd(pid).ok()??)))
            .collect();
        // Listed again after they were opened, so that none is another process of the same number.
        let still = processes(group)?.unwrap_or_default();
        let killed: Vec<_> = opened
            .iter()
            .filter(|(pid, _)| still.contains(pid))
            .collect();
        for (_, pidfd) in &killed {
            kill_pidfd(pidfd).map_err(failed("a process cannot be killed", group))?;
        }
        for (_, pidfd) in &killed {
            let left = end.saturating_duration_since(Instant::now());
            wait_pidfd(pidfd, left).map_err(failed("a process cannot be waited for", group))?;
        }
        if Instant::now() >= end {
            return Err(CgroupError::Immortal {
                path: group.to_owned(),
            });
        }
        if killed.is_empty() {
            // On their way in or out.
            std::thread::sleep(STEP);
        }
    }
}

/// The processes in a group; `None` where there is no such group.
fn processes(group: &Path) -> Result<Option<Vec<u32>>, CgroupError> {
    match fs::read_to_string(group.join("cgroup.procs")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        // It went while it was read.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        procs => {
            let procs = procs.map_err(failed("cannot be read", group))?;
            Ok(Some(
                procs.lines().filter_map(|line| line.parse().ok()).collect(),
            ))
        }
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

    /// Its directories.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.groups.iter().map(|(_, path)| path.clone()).collect()
    }

    /// By which processes enter.
    pub fn entrances(&self) -> Result<Entrances, CgroupError> {
        let mut entrances = Entrances::default();
        let open = |path: &Path, name: &str| {
            let file = fs::OpenOptions::new().write(true).open(path.join(name));
            let file = file.map_err(failed("cannot be entered", path))?;
            Ok::<_, CgroupError>(Arc::new(OwnedFd::from(file)))
        };
        for (hierarchy, path) in &self.groups {
            match hierarchy.version {
                Version::One => entrances.of_one.push(open(path, "tasks")?),
                Version::Two => {
                    let dir = fs::File::open(path).map_err(failed("cannot be entered", path))?;
                    entrances.of_two = Some(EntranceOfTwo {
                        dir: Arc::new(dir.into()),
                        procs: open(path, "cgroup.procs")?,
                    });
                }
            }
        }
        Ok(entrances)
    }
}

/// The ways into a machine's groups. Moving a process between groups makes the kernel wait for a grace period, some milliseconds,
/// unless it is a thread that moves itself (`tasks`, of version 1) or a process that is born in its group (version 2).
#[derive(Debug, Clone, Default)]
pub struct Entrances {
    /// The `tasks` of each group of version 1, open for writing.
    pub(crate) of_one: Vec<Arc<OwnedFd>>,
    pub(crate) of_two: Option<EntranceOfTwo>,
}

#[derive(Debug, Clone)]
pub(crate) struct EntranceOfTwo {
    /// Where processes can be born.
    pub(crate) dir: Arc<OwnedFd>,
    /// `cgroup.procs`, open for writing: for kernels where they cannot.
    pub(crate) procs: Arc<OwnedFd>,
}

impl Entrances {
    /// Those that a process can take by itself, by writing "0", when it has one thread.
    pub(crate) fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let of_two = self.of_two.iter().map(|two| &two.procs);
        self.of_one.iter().chain(of_two).map(|fd| fd.as_fd())
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
mod tests;
