//! The container's root: from one disk or two to a mount, and back.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fcpipe_proto::{Failure, FailureKind, RootFs, Writes};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::mapper::Joined;

/// How long a disk may take to appear once its driver is loaded.
const DISK: Duration = Duration::from_secs(10);
/// How long the file system may stay busy after the last process has ended.
const RELEASE: Duration = Duration::from_secs(5);
/// Between two looks.
const STEP: Duration = Duration::from_millis(2);

/// A root that is mounted in the agent's mount namespace, and disks beside it.
pub(crate) struct Root {
    path: PathBuf,
    /// Free of all file systems when the root is released.
    disks: Vec<PathBuf>,
    joined: Vec<Joined>,
    /// In the order in which they were made.
    mounts: Vec<PathBuf>,
}

impl Root {
    /// Mounts the root below `base`, and what is beside it. `disk` knows the disks by their numbers.
    pub(crate) fn mount(
        base: &Path,
        disk: &dyn Fn(u32) -> Result<PathBuf, Failure>,
        root: &RootFs,
    ) -> Result<Self, Failure> {
        let mut this = Root {
            path: base.join("root"),
            disks: Vec::new(),
            joined: Vec::new(),
            mounts: Vec::new(),
        };
        if let Err(failure) = this.mount_all(base, disk, root) {
            // What stays mounted is of no use, and the machine ends soon.
            let _ = this.undo();
            return Err(failure);
        }
        Ok(this)
    }

    fn mount_all(
        &mut self,
        base: &Path,
        disk: &dyn Fn(u32) -> Result<PathBuf, Failure>,
        root: &RootFs,
    ) -> Result<(), Failure> {
        let first = Place {
            name: "root".to_owned(),
            path: self.path.clone(),
            fstype: &root.fstype,
        };
        self.mount_disk_at(
            base,
            disk,
            first,
            root.disk,
            (root.writes, root.disk_readonly),
        )?;
        for (number, beside) in root.beside.iter().enumerate() {
            let place = Place {
                name: format!("beside{number}"),
                path: beside_path(base, &number.to_string()),
                fstype: &root.fstype,
            };
            self.mount_disk_at(base, disk, place, beside.disk, (beside.writes, false))?;
        }
        Ok(())
    }

    fn mount_disk_at(
        &mut self,
        base: &Path,
        disk: &dyn Fn(u32) -> Result<PathBuf, Failure>,
        place: Place<'_>,
        number: u32,
        (writes, readonly): (Writes, bool),
    ) -> Result<(), Failure> {
        let image = disk(number)?;
        wait_for(&image)?;
        self.disks.push(image.clone());
        match writes {
            Writes::Direct => self.mount_disk(&image, &place.path, place.fstype, readonly),
            Writes::Snapshot { scratch, changes } => {
                self.mount_snapshot(&image, disk(scratch)?, changes, &place)
            }
            Writes::Overlay { scratch } => self.mount_overlay(base, &image, disk(scratch)?, &place),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn mount_disk(
        &mut self,
        disk: &Path,
        on: &Path,
        fstype: &str,
        readonly: bool,
    ) -> Result<(), Failure> {
        let flags = if readonly {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        self.mount_one(disk, on, fstype, flags, "")
    }

    /// The file system is the disk's own, to the last bit; only its blocks come from two disks.
    fn mount_snapshot(
        &mut self,
        image: &Path,
        scratch: PathBuf,
        changes: bool,
        place: &Place<'_>,
    ) -> Result<(), Failure> {
        wait_for(&scratch)?;
        let joined = Joined::new(&place.name, image, &scratch, changes).map_err(|e| {
            let what = match e.kind() {
                io::ErrorKind::NotFound => "the guest's kernel has no device mapper",
                io::ErrorKind::InvalidInput => "joining it and its scratch disk (dm_snapshot)",
                _ => "joining it and its scratch disk",
            };
            failed(image, what, &e)
        })?;
        let disk = joined.path().to_owned();
        self.disks.push(scratch);
        self.joined.push(joined);
        wait_for(&disk)?;
        self.mount_disk(&disk, &place.path, place.fstype, false)
    }

    fn mount_overlay(
        &mut self,
        base: &Path,
        image: &Path,
        disk: PathBuf,
        place: &Place<'_>,
    ) -> Result<(), Failure> {
        wait_for(&disk)?;
        let own = |what: &str| base.join(format!("{}-{what}", place.name));
        let (lower, scratch) = (own("lower"), own("scratch"));
        self.mount_disk(image, &lower, place.fstype, true)?;
        self.mount_one(&disk, &scratch, "ext4", MountFlags::empty(), "")?;
        self.disks.push(disk);
        let (upper, work) = (scratch.join("upper"), scratch.join("work"));
        for dir in [&upper, &work] {
            fs::create_dir(dir).map_err(|e| failed(dir, "making it", &e))?;
        }
        // The merged root is the upper one to everybody who looks.
        like(&lower, &upper).map_err(|e| failed(&upper, "making it like the image's root", &e))?;
        // `index` keeps hard links together when one of them is written, `redirect_dir` lets directories of the
        // image be renamed, `xino` gives every file the same device and a number that stays.
        let data = format!(
            "lowerdir={},upperdir={},workdir={},index=on,redirect_dir=on,xino=on",
            lower.display(),
            upper.display(),
            work.display()
        );
        self.mount_one(
            Path::new("overlay"),
            &place.path,
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

    /// Writes everything back and lets the disks go. After that they are free of the file system, so
    /// that nothing more can be written.
    ///
    /// # Errors
    /// What still holds one after [`RELEASE`]; all was written back even so.
    pub(crate) fn release(mut self) -> io::Result<()> {
        let deadline = Instant::now() + RELEASE;
        // The container's mount namespace may still be on its way out: its copy of the mounts holds what is
        // below them until then.
        let mut released = self.undo();
        while released.is_err() && Instant::now() < deadline {
            sleep(STEP);
            released = self.undo();
        }
        rustix::fs::sync();
        released?;
        self.disks.iter().try_for_each(|disk| claim(disk, deadline))
    }

    /// Takes away what was made, the last first; goes on where it was stopped.
    fn undo(&mut self) -> io::Result<()> {
        while let Some(last) = self.mounts.last() {
            unmount(last, UnmountFlags::empty())?;
            self.mounts.pop();
        }
        while let Some(last) = self.joined.last() {
            last.remove()?;
            self.joined.pop();
        }
        Ok(())
    }
}

/// Where a disk's file system is to be.
struct Place<'a> {
    /// For the device that stands for it.
    name: String,
    path: PathBuf,
    fstype: &'a str,
}

/// Where what is beside the root is mounted; `rest` is a number, and perhaps a path below it.
pub(crate) fn beside_path(base: &Path, rest: &str) -> PathBuf {
    base.join("beside").join(rest)
}

/// Waits until no file system holds the disk.
fn claim(disk: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        let mut claim = OpenOptions::new();
        match claim.read(true).custom_flags(nix::libc::O_EXCL).open(disk) {
            Ok(_) => return Ok(()),
            Err(e) if Instant::now() >= deadline => return Err(e),
            Err(_) => sleep(STEP),
        }
    }
}

/// Gives the directory `to` the owner, mode, attributes and times of `from`.
fn like(from: &Path, to: &Path) -> io::Result<()> {
    let meta = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(to, meta.permissions())?;
    let mut names = vec![0; XATTR_LIST_MAX];
    let len = rustix::fs::listxattr(from, &mut names)?;
    let names = names[..len].split(|&byte| byte == 0);
    for name in names.filter(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay.")) {
        let mut value = vec![0; XATTR_SIZE_MAX];
        let len = rustix::fs::getxattr(from, name, &mut value)?;
        rustix::fs::setxattr(to, name, &value[..len], rustix::fs::XattrFlags::empty())?;
    }
    let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
    let times = rustix::fs::Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    rustix::fs::utimensat(rustix::fs::CWD, to, &times, rustix::fs::AtFlags::empty())?;
    Ok(())
}

/// The kernel's limits, `linux/limits.h`.
const XATTR_LIST_MAX: usize = 65_536;
const XATTR_SIZE_MAX: usize = 65_536;

fn wait_for(disk: &Path) -> Result<(), Failure> {
    wait_at_most(DISK, disk)
}

fn wait_at_most(patience: Duration, disk: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn row_44_a_disk_that_does_not_appear_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let wait = |patience: Duration, disk: PathBuf| {
            let (tell, told) = mpsc::channel();
            std::thread::spawn(move || tell.send(wait_at_most(patience, &disk)));
            let waited = told.recv_timeout(Duration::from_secs(60));
            waited.expect("it is waited for still")
        };
        let missing = dir.path().join("vdz");
        let failure = wait(5 * STEP, missing.clone()).unwrap_err().to_string();
        assert!(
            failure.contains("waiting for the root disk")
                && failure.contains(&missing.display().to_string()),
            "{failure}"
        );
        // One whose driver is slow is worth the wait.
        let late = dir.path().join("vda");
        let made = late.clone();
        std::thread::spawn(move || {
            sleep(20 * STEP);
            fs::write(made, "").unwrap();
        });
        wait(DISK, late).unwrap();
    }
}
