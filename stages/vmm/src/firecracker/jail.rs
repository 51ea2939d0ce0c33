//! Firecracker's jailer: a directory that becomes the process's root, a user of the machine's own, and files from outside.
//!
//! The jailer makes a mount namespace, moves its root into the directory that we made, drops to the user, and becomes Firecracker. A
//! file of the store is never given away (chown) or linked into the jail: it is mounted there, read-only, in the *jail's*
//! mount namespace, from here, once the jailer is through. So no mount is left for anybody to undo: all end with the process, and the
//! directory goes with the launch's.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::VmmError;

/// In the launch's directory: the jailer's base directory.
const BASE: &str = "jail";

/// The users of jails: above those that distributions, containers and systemd-nspawn give out, and below 2³¹.
const FIRST_USER: u32 = 0x7000_0000;
const USERS: u64 = 0x0f00_0000;

/// One machine's jail.
pub(crate) struct Jail {
    pub(crate) user: u32,
    /// What will be `/` inside.
    pub(crate) root: PathBuf,
    base: PathBuf,
    id: String,
}

/// The user that the machine whose launch's directory is `dir` runs as. Directories that exist at one time have inodes of
/// their own, so machines that run at one time have users of their own.
pub(crate) fn user_of(dir: &Path) -> io::Result<u32> {
    let inode = std::fs::metadata(dir)?.ino() % USERS;
    // Less than `USERS`, so it fits.
    Ok(FIRST_USER + inode as u32)
}

impl Jail {
    /// Makes the directory. `id` is the instance's, `program` Firecracker: the jailer puts both into its path.
    pub(crate) fn make(dir: &Path, program: &Path, id: &str) -> Result<Self, VmmError> {
        let base = dir.join(BASE);
        let make = || -> io::Result<Self> {
            let program = program.canonicalize()?;
            let name = program.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            let root = base.join(name).join(id).join("root");
            std::fs::create_dir_all(&root)?;
            Ok(Self {
                user: user_of(dir)?,
                root,
                base: base.clone(),
                id: id.to_owned(),
            })
        };
        make().map_err(|source| VmmError::Io {
            what: "cannot make the jail",
            path: base.clone(),
            source,
        })
    }

    /// The jailer's arguments; Firecracker's own follow. Control groups and namespaces are entered before it is started.
    pub(crate) fn arguments(&self, program: &Path) -> Vec<OsString> {
        let user = self.user.to_string();
        let words: [OsString; 11] = [
            "--id".into(),
            self.id.clone().into(),
            "--exec-file".into(),
            program.into(),
            "--uid".into(),
            user.clone().into(),
            "--gid".into(),
            user.into(),
            "--chroot-base-dir".into(),
            self.base.clone().into(),
            "--".into(),
        ];
        words.into()
    }

    /// Gives a file of the jail's own to its user.
    pub(crate) fn own(&self, dir: impl AsFd, name: &str) -> io::Result<()> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.user));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(dir, name, Some(user), Some(group), flags)?;
        Ok(())
    }

    /// Mounts `source` as the file `name` in the root of the process `pid`, which is this jail's.
    ///
    /// A writable file is the launch's own, and becomes its user's.
    pub(crate) fn mount(
        &self,
        dir: impl AsFd,
        pid: u32,
        name: &str,
        source: &Path,
        read_only: bool,
    ) -> io::Result<()> {
        if !read_only {
            std::os::unix::fs::lchown(source, Some(self.user), Some(self.user))?;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, source, flags)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        drop(rustix::fs::openat(dir, name, flags, Mode::empty())?);
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
        let target = format!("/{name}");
        // A thread of its own goes there, and does not come back.
        let thread = thread::Builder::new().name("vmm-jail".to_owned());
        let mounting = thread.spawn(move || -> io::Result<()> {
            enter(&namespace)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(&tree, c"", CWD, &target, flags)?;
            if read_only {
                let flags = MountFlags::BIND
                    | MountFlags::RDONLY
                    | MountFlags::NOSUID
                    | MountFlags::NODEV
                    | MountFlags::NOEXEC;
                rustix::mount::mount_remount(&target, flags, c"")?;
            }
            Ok(())
        })?;
        mounting
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    }
}

/// Moves the calling thread into a mount namespace, whose root becomes its root.
#[allow(
    unsafe_code,
    reason = "unsharing a table of descriptors would be unsound; this is none"
)]
fn enter(namespace: &std::fs::File) -> io::Result<()> {
    // SAFETY: CLONE_FS gives this thread a root and a working directory of its own; memory and descriptors stay shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_51_directories_that_exist_together_have_users_of_their_own() {
        let root = tempfile::tempdir().unwrap();
        let mut users = std::collections::BTreeSet::new();
        for name in 0..100 {
            let dir = root.path().join(name.to_string());
            std::fs::create_dir(&dir).unwrap();
            let user = user_of(&dir).unwrap();
            assert!((FIRST_USER..1 << 31).contains(&user));
            assert!(users.insert(user));
        }
        assert!(user_of(&root.path().join("missing")).is_err());
    }
}
