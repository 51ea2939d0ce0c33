//! The container's mounts.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use fcpipe_proto::{Failure, FailureKind, GuestMount};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, chmod, fstat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_change, mount_remount};

use super::resolve::DeadLinks;
use super::{copyup, failed, options, resolve};
use crate::console::say;
use crate::root::beside_path;

/// What each bind mount shows: what the root has at its destination, or something on a disk beside the root's. `None` for
/// other mounts, and where the root has nothing there: then a later mount of the spec covers it, and nobody would see it.
/// `base` is where the agent has mounted them all.
pub(super) fn places(
    base: &Path,
    root: BorrowedFd<'_>,
    mounts: &[GuestMount],
) -> Result<Vec<Option<OwnedFd>>, Failure> {
    let place = |wanted: &GuestMount| {
        if wanted.fstype != GuestMount::BIND {
            return Ok(None);
        }
        if !wanted.source.is_empty() {
            // A number and a name that the host has chosen.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let path = beside_path(base, &wanted.source);
            return rustix::fs::open(path, flags, Mode::empty())
                .map(Some)
                .map_err(|e| failed(Some(&wanted.destination), "opening its source", e));
        }
        match resolve::open(root, &wanted.destination) {
            Ok(place) => Ok(Some(place)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(failed(Some(&wanted.destination), "opening it", e)),
        }
    };
    mounts.iter().map(place).collect()
}

/// Makes one mount, on a directory that is made where it is missing. `place` is what a bind mount shows.
pub(super) fn make(
    root: BorrowedFd<'_>,
    wanted: &GuestMount,
    place: Option<&OwnedFd>,
) -> Result<(), Failure> {
    if wanted.fstype == GuestMount::BIND {
        return place.map_or(Ok(()), |place| bind(root, wanted, place.as_fd()));
    }
    let to = Some(wanted.destination.as_str());
    let refused = |why: String| Failure::new(FailureKind::Setup, to, why);
    let mut options = options::parse(&wanted.options);
    // The unified hierarchy has its own name, and options that were the old one's have no meaning.
    let fstype = match wanted.fstype.as_str() {
        "cgroup" | "cgroup2" => {
            options.data.clear();
            "cgroup2"
        }
        other => other,
    };
    // Something is yet to be made in it, or it is a tmpfs: as with runc, the mount is read-only then, and not the file
    // system.
    let readonly = options.flags.contains(MountFlags::RDONLY);
    let tmpfs = fstype == "tmpfs";
    if is_dev(wanted) || tmpfs {
        options.flags.remove(MountFlags::RDONLY);
    }
    let place = resolve::make_dir(root, &wanted.destination)
        .map_err(|e| failed(to, &format!("mounting {fstype}"), e))?;
    let own_mode = options.data.split(',').any(|o| o.starts_with("mode="));
    let data = CString::new(options.data)
        .map_err(|_| refused("a mount option contains a zero byte".to_owned()))?;
    let result = mount(
        wanted.source.as_str(),
        resolve::path_of(place.as_fd()),
        fstype,
        options.flags,
        data.as_c_str(),
    );
    match result {
        Ok(()) => {}
        Err(e) if may_be_missing(fstype) => {
            say(&format!("no {fstype} in the container: {e}"));
            return Ok(());
        }
        Err(Errno::NODEV) => {
            return Err(refused(format!(
                "the guest's kernel has no file system {fstype:?}"
            )));
        }
        Err(e) => return Err(failed(to, &format!("mounting {fstype}"), e)),
    }
    if tmpfs {
        // The mount covers what was opened: look again.
        let mounted =
            resolve::open(root, &wanted.destination).map_err(|e| failed(to, "filling it", e))?;
        let path = resolve::path_of(mounted.as_fd());
        if options.copy_up {
            copyup::copy(place.as_fd(), mounted.as_fd())
                .map_err(|e| failed(to, "filling it", e))?;
        }
        if !own_mode {
            // A tmpfs is open to everybody unless it is told otherwise: it is to be what the directory was.
            let mode = fstat(&place)
                .and_then(|stat| chmod(&path, Mode::from_raw_mode(stat.st_mode & 0o7777)));
            mode.map_err(|e| failed(to, "its mode", e))?;
        }
        if readonly && !is_dev(wanted) {
            let flags = MountFlags::BIND | MountFlags::RDONLY | options.flags;
            mount_remount(&path, flags, c"").map_err(|e| failed(to, "making it read-only", e))?;
        }
    }
    if !options.propagation.is_empty() {
        // The mount covers what was opened: look again.
        let place = resolve::open(root, &wanted.destination);
        let place = place.map_err(|e| failed(to, "its propagation", e))?;
        for propagation in options.propagation {
            mount_change(resolve::path_of(place.as_fd()), propagation)
                .map_err(|e| failed(to, "its propagation", e))?;
        }
    }
    Ok(())
}

/// Mounts a place of the root on its own path, or on what has covered that since.
fn bind(root: BorrowedFd<'_>, wanted: &GuestMount, place: BorrowedFd<'_>) -> Result<(), Failure> {
    let to = wanted.destination.as_str();
    let options = options::parse(&wanted.options);
    let links = match wanted.source.is_empty() {
        true => DeadLinks::Error,
        // As the image would have it if the source were in there.
        false => DeadLinks::Followed,
    };
    let target = || -> Result<OwnedFd, Errno> {
        let stat = fstat(place)?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            resolve::make_dir_by(root, to, links)
        } else {
            resolve::make_file_by(root, to, links)
        }
    };
    let target = target().map_err(|e| failed(Some(to), "a place to mount it on", e))?;
    let is_dir = |fd: BorrowedFd<'_>| {
        let stat = rustix::fs::fstat(fd).map_err(|e| failed(Some(to), "looking at it", e))?;
        Ok(FileType::from_raw_mode(stat.st_mode).is_dir())
    };
    match (is_dir(place)?, is_dir(target.as_fd())?) {
        (true, false) => {
            let why = "a directory can't be mounted on what is not one";
            return Err(Failure::new(FailureKind::Setup, Some(to), why));
        }
        (false, true) => {
            let why = "a file can't be mounted on a directory";
            return Err(Failure::new(FailureKind::Setup, Some(to), why));
        }
        _ => {}
    }
    if wanted.stand_in {
        let around = rustix::fs::statat(&target, "..", AtFlags::empty());
        around
            .and_then(|around| resolve::set_mtime(place, ".", &around))
            .map_err(|e| failed(Some(to), "its time", e))?;
    }
    mount_bind(resolve::path_of(place), resolve::path_of(target.as_fd()))
        .map_err(|e| failed(Some(to), "mounting it", e))?;
    // The mount covers what was opened: look again.
    let mounted = resolve::open(root, to).map_err(|e| failed(Some(to), "its options", e))?;
    let mounted = resolve::path_of(mounted.as_fd());
    // A bind mount takes its options in a second step (mount(2), MS_BIND).
    if !options.flags.is_empty() {
        mount_remount(&mounted, MountFlags::BIND | options.flags, c"")
            .map_err(|e| failed(Some(to), "its options", e))?;
    }
    for propagation in options.propagation {
        mount_change(&mounted, propagation).map_err(|e| failed(Some(to), "its propagation", e))?;
    }
    Ok(())
}

/// Makes what had to be writable until now read-only.
pub(super) fn finish(root: BorrowedFd<'_>, mounts: &[GuestMount]) -> Result<(), Failure> {
    for wanted in mounts
        .iter()
        .filter(|m| is_dev(m) && m.fstype != GuestMount::BIND)
    {
        let flags = options::parse(&wanted.options).flags;
        if flags.contains(MountFlags::RDONLY) {
            let to = Some(wanted.destination.as_str());
            let place = resolve::open(root, &wanted.destination);
            let place = place.map_err(|e| failed(to, "making it read-only", e))?;
            mount_remount(
                resolve::path_of(place.as_fd()),
                MountFlags::BIND | flags,
                c"",
            )
            .map_err(|e| failed(to, "making it read-only", e))?;
        }
    }
    Ok(())
}

/// Whether it is the tmpfs in which devices are made.
fn is_dev(mount: &GuestMount) -> bool {
    mount.destination.trim_end_matches('/') == "/dev"
}

/// Kernels are built without these, and few programs miss them.
fn may_be_missing(fstype: &str) -> bool {
    matches!(fstype, "cgroup2" | "mqueue")
}
