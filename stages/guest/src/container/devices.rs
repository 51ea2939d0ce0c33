//! `/dev`: the devices and links that the OCI runtime specification says are always there
//! ("Default Devices", "Dev symbolic links" of its Linux part).

use std::os::fd::{AsFd, BorrowedFd};

use fcpipe_proto::{Failure, GuestConfig};
use rustix::fs::{AtFlags, FileType, Mode, mknodat, statat, symlinkat};
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
        device(dev, name, rustix::fs::makedev(major, minor))
            .map_err(|e| failed(Some(&format!("/dev/{name}")), "making the device", e))?;
    }
    for (name, to) in LINKS {
        link(dev, name, to)?;
    }
    if config.mounts.iter().any(|m| m.fstype == "devpts") {
        link(dev, "ptmx", "pts/ptmx")?;
    }
    Ok(())
}

fn device(dev: BorrowedFd<'_>, name: &str, number: u64) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(0o666);
    match mknodat(dev, name, FileType::CharacterDevice, mode, number) {
        Err(e @ (Errno::EXIST | Errno::ROFS)) => {
            let there = statat(dev, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(there.st_mode);
            if kind == FileType::CharacterDevice && there.st_rdev == number {
                return Ok(());
            }
            Err(e)
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
