//! Paths of the container that are hidden or read-only, and the root's propagation.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fcpipe_proto::Failure;
use fcpipe_proto::confine::Propagation;
use rustix::fs::{FileType, StatVfsMountFlags, fstat, fstatvfs, makedev};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount,
};

use super::{failed, resolve, setup};

/// Makes each path a read-only mount of itself; one that is not there needs nothing.
pub(super) fn readonly(root: BorrowedFd<'_>, paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        let Some(place) = place(root, path)? else {
            continue;
        };
        let why = |e| failed(Some(path), "making it read-only", e);
        let itself = resolve::path_of(place.as_fd());
        mount_bind_recursive(&itself, &itself).map_err(why)?;
        // The mount covers what was opened: look again.
        let mounted = resolve::open(root, path).map_err(why)?;
        let flags =
            MountFlags::BIND | MountFlags::RDONLY | flags_of(mounted.as_fd()).map_err(why)?;
        mount_remount(resolve::path_of(mounted.as_fd()), flags, c"").map_err(why)?;
    }
    Ok(())
}

/// Hides each path: a file behind `/dev/null`, a directory behind an empty file system.
pub(super) fn mask(root: BorrowedFd<'_>, paths: &[String]) -> Result<(), Failure> {
    if paths.is_empty() {
        return Ok(());
    }
    let null =
        resolve::open(root, "/dev/null").map_err(|e| failed(Some("/dev/null"), "opening it", e))?;
    let stat = fstat(&null).map_err(|e| failed(Some("/dev/null"), "opening it", e))?;
    // Behind anything else a file would be replaced, not hidden.
    if stat.st_rdev != makedev(1, 3) {
        return Err(setup("/dev/null is not the null device"));
    }
    for path in paths {
        let Some(place) = place(root, path)? else {
            continue;
        };
        let why = |e| failed(Some(path), "hiding it", e);
        let kind = FileType::from_raw_mode(fstat(&place).map_err(why)?.st_mode);
        let place = resolve::path_of(place.as_fd());
        if kind.is_dir() {
            mount("tmpfs", place, "tmpfs", MountFlags::RDONLY, c"").map_err(why)?;
        } else {
            mount_bind(resolve::path_of(null.as_fd()), place).map_err(why)?;
        }
    }
    Ok(())
}

fn place(root: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>, Failure> {
    match resolve::open(root, path) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(failed(Some(path), "opening it", e)),
    }
}

/// The flags of the mount that this is on: a remount without them would take them away.
pub(super) fn flags_of(fd: BorrowedFd<'_>) -> Result<MountFlags, Errno> {
    let has = fstatvfs(fd)?.f_flag;
    let pairs = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let flags = pairs.into_iter().filter(|(flag, _)| has.contains(*flag));
    Ok(flags.fold(MountFlags::empty(), |all, (_, flag)| all | flag))
}

/// For the root itself, once it is the root: pivot_root(2) refuses one that is shared.
pub(super) fn propagate(root: Option<Propagation>) -> Result<(), Failure> {
    let flags = match root {
        None => return Ok(()),
        Some(Propagation::Shared) => MountPropagationFlags::SHARED,
        Some(Propagation::Slave) => MountPropagationFlags::DOWNSTREAM,
        Some(Propagation::Private) => MountPropagationFlags::PRIVATE,
        Some(Propagation::Unbindable) => MountPropagationFlags::UNBINDABLE,
    };
    // Of this mount alone: others have their own options.
    mount_change("/", flags).map_err(|e| failed(Some("/"), "its propagation", e))
}
