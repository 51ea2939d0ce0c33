//! Unix sockets by paths of any length: a socket address holds 108 bytes only, zero included.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// The longest path that fits.
const LONGEST: usize = 107;

/// Calls `with` with a path that fits a socket address: where the given one does not, by way of its directory's
/// descriptor.
pub fn short_path<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() <= LONGEST {
        return with(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return with(path);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent: OwnedFd = rustix::fs::open(parent, flags, Mode::empty())?;
    let mut short = PathBuf::from("/proc/self/fd");
    short.push(parent.as_raw_fd().to_string());
    short.push(name);
    with(&short)
}
