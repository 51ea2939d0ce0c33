//! The control groups of a launch's machine: the machine's monitor, its helpers and its shim, with the limits that the spec
//! gives the whole machine.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use fcpipe_engine::{Cx, Effect, Failure, FailureKind, KeyWriter, UndoError};
use fcpipe_spec::LaunchSpec;
use fcpipe_vmm::{Cgroup, CgroupError, CgroupLimits, CgroupPlan, VmmKind};
use serde::{Deserialize, Serialize};

use crate::machine::launch_dir;

/// Makes the groups.
pub(crate) struct MakeCgroup {
    /// As the spec has it; where it has none, below `fcpipe`.
    path: Option<PathBuf>,
    id: String,
    limits: CgroupLimits,
}

/// What a monitor needs beside its guest's memory, bytes: its own, its helpers', and what the kernel keeps for them. Page
/// cache is charged too, and let go of when the limit is near.
pub(crate) fn overhead(vmm: VmmKind) -> u64 {
    match vmm {
        VmmKind::Firecracker => 64 << 20,
        // An emulator's translations of the guest's code are most of it.
        VmmKind::Qemu => 640 << 20,
    }
}

impl MakeCgroup {
    pub(crate) fn of(spec: &LaunchSpec, id: &str, vmm: VmmKind) -> Self {
        let cpu = spec.machine.cpu_quota;
        MakeCgroup {
            path: spec.cgroups_path.clone(),
            id: id.to_owned(),
            limits: CgroupLimits {
                memory: Some(spec.machine.memory + overhead(vmm)),
                cpu: cpu.map(|quota| (quota.quota_us, quota.period_us)),
            },
        }
    }
}

/// The directories to take away.
#[derive(Serialize, Deserialize)]
pub(crate) struct CgroupEntry {
    groups: Vec<PathBuf>,
    made: Vec<PathBuf>,
    shared: Vec<PathBuf>,
}

impl From<&CgroupEntry> for CgroupPlan {
    fn from(entry: &CgroupEntry) -> Self {
        CgroupPlan {
            groups: entry.groups.clone(),
            made: entry.made.clone(),
            shared: entry.shared.clone(),
        }
    }
}

impl Effect for MakeCgroup {
    const NAME: &'static str = "cgroup";
    type Entry = CgroupEntry;
    type Output = Option<Cgroup>;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        if let Some(path) = &self.path {
            k.field("path", path);
        }
    }

    fn intend(&self, cx: &Cx) -> Result<CgroupEntry, Failure> {
        let path = match &self.path {
            Some(path) => path.clone(),
            None => self.own(cx)?,
        };
        let plan = CgroupPlan::at(&path).map_err(|e| self.failure(cx, e))?;
        Ok(CgroupEntry {
            groups: plan.groups,
            made: plan.made,
            shared: plan.shared,
        })
    }

    fn make(&self, entry: &CgroupEntry, cx: &Cx) -> Result<Option<Cgroup>, Failure> {
        match CgroupPlan::from(entry).make(&self.limits) {
            Ok(cgroup) => Ok(Some(cgroup)),
            // Nobody asked for it by name: the machine runs all the same.
            Err(error @ (CgroupError::Io { .. } | CgroupError::NoController { .. }))
                if self.path.is_none() =>
            {
                if rustix::process::geteuid().is_root() {
                    cx.warn(format_args!(
                        "the machine runs without a control group, and so without limits on the host: {error}"
                    ));
                }
                Ok(None)
            }
            Err(error) => Err(self.failure(cx, error)),
        }
    }

    fn undo(entry: &CgroupEntry) -> Result<(), UndoError> {
        CgroupPlan::from(entry).remove()?;
        Ok(())
    }
}

impl MakeCgroup {
    /// Launches in two state directories may have the same id.
    fn own(&self, cx: &Cx) -> Result<PathBuf, Failure> {
        let dir = launch_dir(cx)?;
        let state = dir.parent().unwrap_or(&dir);
        let meta =
            std::fs::metadata(state).map_err(|e| cx.fail(FailureKind::Host, state.display(), e))?;
        Ok(format!("{}.{:x}.{:x}", self.id, meta.dev(), meta.ino()).into())
    }

    fn failure(&self, cx: &Cx, error: CgroupError) -> Failure {
        let hint = matches!(error, CgroupError::InUse { .. })
            .then_some("linux.cgroupsPath names a group for this launch alone");
        let failure = cx.fail(FailureKind::Host, "the machine's control group", error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
