//! What a run leaves behind, gone at the end of it: directories, mounts, the loop file with XFS.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::ways::find;

/// A directory that is empty at first and gone at last.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(dir: &Path) -> Result<Scratch> {
        let path = dir.join(format!("run-{}", std::process::id()));
        fs::create_dir(&path)?;
        // The write-back of what was removed before is not this run's.
        rustix::fs::syncfs(&File::open(&path)?)?;
        Ok(Scratch(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Only there if a loop mount's run failed half-way.
        let mount = self.0.join("mount");
        if mount.exists() {
            let _ = Command::new("umount").arg("-q").arg(&mount).status();
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what runs that were killed have left in `dir`.
pub(crate) fn sweep(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("run-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(Scratch(entry.path()));
        }
    }
    Ok(())
}

/// An XFS with reflink in a loop file.
pub(crate) struct Xfs {
    image: PathBuf,
    mount: PathBuf,
}

impl Xfs {
    /// `None` where the host can't have one.
    pub(crate) fn new(dir: &Path) -> Result<Option<Xfs>> {
        let Some(mkfs) = find("mkfs.xfs") else {
            return Ok(None);
        };
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let xfs = Xfs {
            image: dir.join("reflink.xfs"),
            mount: dir.join("reflink"),
        };
        fs::create_dir_all(&xfs.mount)?;
        File::create(&xfs.image)?.set_len(16 << 30)?;
        let made = Command::new(mkfs)
            .args(["-q", "-f", "-m", "reflink=1"])
            .arg(&xfs.image)
            .status()?;
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .arg(&xfs.image)
            .arg(&xfs.mount)
            .status()?;
        if !(made.success() && mounted.success()) {
            return Err("mkfs.xfs or its loop mount failed".into());
        }
        Ok(Some(xfs))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-q").arg(&self.mount).status();
        let _ = fs::remove_dir(&self.mount);
        let _ = fs::remove_file(&self.image);
    }
}
