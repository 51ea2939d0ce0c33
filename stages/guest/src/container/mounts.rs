//! The container's mounts.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use fcpipe_proto::{Failure, FailureKind, GuestMount};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_change, mount_remount};

use super::{failed, options, resolve};
use crate::console::say;

/// Makes one mount, on a directory that is made where it is missing.
pub(super) fn make(root: BorrowedFd<'_>, wanted: &GuestMount) -> Result<(), Failure> {
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
    if is_dev(wanted) {
        // Its nodes are yet to be made.
        options.flags.remove(MountFlags::RDONLY);
    }
    let data = CString::new(options.data)
        .map_err(|_| refused("a mount option contains a zero byte".to_owned()))?;
    let result = resolve::make_dir(root, &wanted.destination).and_then(|place| {
        let target = resolve::path_of(place.as_fd());
        mount(
            wanted.source.as_str(),
            &target,
            fstype,
            options.flags,
            data.as_c_str(),
        )
    });
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

/// Makes what had to be writable until now read-only.
pub(super) fn finish(root: BorrowedFd<'_>, mounts: &[GuestMount]) -> Result<(), Failure> {
    for wanted in mounts.iter().filter(|m| is_dev(m)) {
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
