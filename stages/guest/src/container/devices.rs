//! `/dev`: the devices and links that the OCI runtime specification says are always there
//! ("Default Devices", "Dev symbolic links" of its Linux part).

use std::os::fd::{AsFd, BorrowedFd};

use fcpipe_proto::confine::{Device, DeviceKind};
use fcpipe_proto::{Failure, GuestConfig};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chownat, makedev, mknodat, statat, symlinkat};
use rustix::io::Errno;

use super::{failed, resolve};

const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Makes them in the container's `/dev`, be it a mount or a directory of the root. Links that the
/// root brings are left alone, as runc does.
pub(super) fn make(root: BorrowedFd<'_>, config: &GuestConfig) -> Result<(), Failure> {
    let dev = resolve::make_dir(root, "/dev").map_err(|e| failed(Some("/dev"), "opening it", e))?;
    let dev = dev.as_fd();
    // The kernel's own devtmpfs has them all.
    if config
        .mounts
        .iter()
        .any(|m| m.fstype == "devtmpfs" && m.destination == "/dev")
    {
        return Ok(());
    }
    for (name, major, minor) in DEVICES {
        device(dev, name, makedev(major, minor))
            .map_err(|e| failed(Some(&format!("/dev/{name}")), "making the device", e))?;
    }
    for (name, to) in LINKS {
        link(dev, name, to)?;
    }
    // Not in the specification, but as runc has it: where the kernel was built with it.
    if std::fs::exists("/proc/kcore").unwrap_or(false) {
        link(dev, "core", "/proc/kcore")?;
    }
    if config.mounts.iter().any(|m| m.fstype == "devpts") {
        link(dev, "ptmx", "pts/ptmx")?;
    }
    Ok(())
}

/// Makes those that the spec names. What is there already is left, if it is the same.
pub(super) fn make_named(root: BorrowedFd<'_>, devices: &[Device]) -> Result<(), Failure> {
    for wanted in devices {
        let path = Some(wanted.path.as_str());
        let why = |e: Errno| failed(path, "making the device", e);
        let (dir, name) = wanted.path.rsplit_once('/').unwrap_or(("", &wanted.path));
        if name.is_empty() {
            return Err(why(Errno::INVAL));
        }
        let dir = resolve::make_dir(root, dir).map_err(why)?;
        let kind = match wanted.kind {
            DeviceKind::Character => FileType::CharacterDevice,
            DeviceKind::Block => FileType::BlockDevice,
            DeviceKind::Fifo => FileType::Fifo,
        };
        let number = match wanted.kind {
            DeviceKind::Fifo => 0,
            _ => makedev(wanted.major, wanted.minor),
        };
        node(dir.as_fd(), name, kind, wanted.mode, number).map_err(why)?;
        let owner = (
            Some(Uid::from_raw(wanted.uid)),
            Some(Gid::from_raw(wanted.gid)),
        );
        chownat(&dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).map_err(why)?;
    }
    Ok(())
}

fn device(dev: BorrowedFd<'_>, name: &str, number: u64) -> Result<(), Errno> {
    node(dev, name, FileType::CharacterDevice, 0o666, number)
}

fn node(
    dir: BorrowedFd<'_>,
    name: &str,
    kind: FileType,
    mode: u32,
    number: u64,
) -> Result<(), Errno> {
    match mknodat(dir, name, kind, Mode::from_raw_mode(mode), number) {
        Err(e @ (Errno::EXIST | Errno::ROFS)) => {
            let there = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same = FileType::from_raw_mode(there.st_mode) == kind && there.st_rdev == number;
            if same { Ok(()) } else { Err(e) }
        }
        result => result,
    }
}

fn link(dev: BorrowedFd<'_>, name: &str, to: &str) -> Result<(), Failure> {
    match symlinkat(to, dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        // A root on a disk that cannot be written, with no mount on /dev: programs that need the
        // link say so themselves.
        Err(Errno::ROFS) => Ok(()),
        Err(e) => Err(failed(Some(&format!("/dev/{name}")), "making the link", e)),
    }
}
