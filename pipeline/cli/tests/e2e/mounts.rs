//! File systems that a test mounts, and that go with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A place where something is mounted, for as long as this lives.
pub(crate) struct MountPoint(pub(crate) PathBuf);

impl MountPoint {
    /// A file system in memory, small by its options, on a directory that is made if it is not there.
    pub(crate) fn tmpfs(on: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&on).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&on);
        assert!(mount.status().unwrap().success());
        MountPoint(on)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        // Whoever ended this moment may have something there still.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
