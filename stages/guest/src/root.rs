//! The container's root: from a disk to a mount, and back.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fcpipe_proto::{Failure, FailureKind, RootFs, Writes};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// How long a disk may take to appear once its driver is loaded.
const DISK: Duration = Duration::from_secs(10);
/// How long the file system may stay busy after the last process has ended.
const RELEASE: Duration = Duration::from_secs(5);
/// Between two looks.
const STEP: Duration = Duration::from_millis(2);

/// A root that is mounted in the agent's mount namespace.
pub(crate) struct Root {
    path: PathBuf,
    disk: PathBuf,
    /// In the order in which they were made.
    mounts: Vec<PathBuf>,
}

impl Root {
    /// Mounts the root below `base`.
    pub(crate) fn mount(base: &Path, disk: PathBuf, root: &RootFs) -> Result<Self, Failure> {
        wait_for(&disk)?;
        let mut this = Root {
            path: base.join("root"),
            disk,
            mounts: Vec::new(),
        };
        let result = match root.writes {
            Writes::Direct => {
                let path = this.path.clone();
                this.mount_disk(&path, root, root.disk_readonly)
            }
            Writes::Overlay => this.mount_overlay(base, root),
        };
        if let Err(failure) = result {
            // What stays mounted is of no use, and the machine ends soon.
            let _ = this.unmount_all();
            return Err(failure);
        }
        Ok(this)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn mount_disk(&mut self, on: &Path, root: &RootFs, readonly: bool) -> Result<(), Failure> {
        let flags = if readonly {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        let disk = self.disk.clone();
        self.mount_one(&disk, on, &root.fstype, flags, "")
    }

    fn mount_overlay(&mut self, base: &Path, root: &RootFs) -> Result<(), Failure> {
        let (lower, scratch) = (base.join("lower"), base.join("scratch"));
        self.mount_disk(&lower, root, true)?;
        self.mount_one(
            Path::new("scratch"),
            &scratch,
            "tmpfs",
            MountFlags::empty(),
            "",
        )?;
        let (upper, work) = (scratch.join("upper"), scratch.join("work"));
        for dir in [&upper, &work] {
            fs::create_dir(dir).map_err(|e| failed(dir, "making it", &e))?;
        }
        let data = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let path = self.path.clone();
        self.mount_one(
            Path::new("overlay"),
            &path,
            "overlay",
            MountFlags::empty(),
            &data,
        )
    }

    fn mount_one(
        &mut self,
        source: &Path,
        on: &Path,
        fstype: &str,
        flags: MountFlags,
        data: &str,
    ) -> Result<(), Failure> {
        fs::create_dir_all(on).map_err(|e| failed(on, "making it", &e))?;
        let data = std::ffi::CString::new(data).unwrap_or_default();
        mount(source, on, fstype, flags, data.as_c_str()).map_err(|e| {
            let what = match e {
                rustix::io::Errno::NODEV => format!("the guest's kernel has no {fstype}"),
                _ => format!("mounting it as {fstype}"),
            };
            failed(source, &what, &e.into())
        })?;
        self.mounts.push(on.to_owned());
        Ok(())
    }

    /// Writes everything back and lets the disk go. After that it is free of the file system, so
    /// that nothing more can be written.
    ///
    /// # Errors
    /// What still holds it after [`RELEASE`]; all was written back even so.
    pub(crate) fn release(mut self) -> io::Result<()> {
        let deadline = Instant::now() + RELEASE;
        let mut released = self.unmount_all();
        while released.is_err() && Instant::now() < deadline {
            sleep(STEP);
            released = self.unmount_all();
        }
        rustix::fs::sync();
        released?;
        // The container's mount namespace may still be on its way out: its copy of the mount
        // claims the disk until then.
        loop {
            let mut claim = OpenOptions::new();
            match claim
                .read(true)
                .custom_flags(nix::libc::O_EXCL)
                .open(&self.disk)
            {
                Ok(_) => return Ok(()),
                Err(e) if Instant::now() >= deadline => return Err(e),
                Err(_) => sleep(STEP),
            }
        }
    }

    fn unmount_all(&mut self) -> io::Result<()> {
        while let Some(last) = self.mounts.last() {
            unmount(last, UnmountFlags::empty())?;
            self.mounts.pop();
        }
        Ok(())
    }
}

fn wait_for(disk: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + DISK;
    while !disk.exists() {
        if Instant::now() > deadline {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            return Err(failed(disk, "waiting for the root disk", &missing));
        }
        sleep(STEP);
    }
    Ok(())
}

fn failed(path: &Path, what: &str, error: &io::Error) -> Failure {
    let path = path.to_str();
    Failure::new(FailureKind::Setup, path, format!("{what}: {error}"))
}
