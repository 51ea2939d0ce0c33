//! A process's terminal: a pair of the container's own `/dev/pts`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fcpipe_proto::{Failure, Process, WindowSize};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, makedev, openat2};
use rustix::io::Errno;
use rustix::mount::mount_bind;
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{failed, resolve, setup};

/// Both ends.
pub(super) struct Terminal {
    /// The agent's.
    pub(super) master: OwnedFd,
    /// The process's.
    pub(super) peer: OwnedFd,
}

/// Makes the process's terminal, if it is to have one.
pub(super) fn open(root: BorrowedFd<'_>, process: &Process) -> Result<Option<Terminal>, Failure> {
    if !process.terminal {
        return Ok(None);
    }
    let what = "making a terminal";
    let ptmx = Some("/dev/ptmx");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let master = openat2(root, "/dev/ptmx", flags, Mode::empty(), resolve)
        .map_err(|e| failed(ptmx, what, e))?;
    // The root is the user's: what has the name need not be the thing.
    let stat = fstat(&master).map_err(|e| failed(ptmx, what, e))?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !is_device || stat.st_rdev != makedev(5, 2) {
        return Err(setup("/dev/ptmx is not the device that makes terminals"));
    }
    unlockpt(&master).map_err(|e| failed(ptmx, what, e))?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    // By descriptor: no name in /dev/pts is looked up.
    let peer = ioctl_tiocgptpeer(&master, flags).map_err(|e| failed(ptmx, what, e))?;
    if let Some(size) = process.console_size {
        resize(master.as_fd(), size).map_err(|e| failed(ptmx, "the terminal's size", e))?;
    }
    Ok(Some(Terminal { master, peer }))
}

pub(crate) fn resize(terminal: BorrowedFd<'_>, size: WindowSize) -> Result<(), Errno> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size)
}

impl Terminal {
    /// Makes it the container's `/dev/console`, as a mount.
    pub(super) fn make_console(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        let name = "/dev/console";
        let place =
            resolve::make_file(root, name).map_err(|e| failed(Some(name), "making it", e))?;
        mount_bind(
            resolve::path_of(self.peer.as_fd()),
            resolve::path_of(place.as_fd()),
        )
        .map_err(|e| failed(Some(name), "mounting the terminal", e))
    }

    /// Makes it the controlling terminal of the process, which leads a session.
    pub(super) fn control(&self) -> Result<(), Failure> {
        ioctl_tiocsctty(&self.peer).map_err(|e| failed(None, "the controlling terminal", e))
    }
}
