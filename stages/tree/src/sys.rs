//! The system calls of this crate that take more than one line.
//!
//! Everything is relative to a directory's descriptor and follows no symlink. The one exception is
//! [`open_source`], which follows links to the source itself, as mount(2) does.

mod content;
mod xattr;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::model::Timestamp;
use crate::scan::Stamp;

pub(crate) use content::hash as hash_content;
pub(crate) use xattr::{get as get_xattr, list as list_xattrs};

/// Longest path that is given to the kernel in one piece: PATH_MAX with its NUL, and some room.
const PIECE: usize = 4000;

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Read without waiting for a FIFO's other end.
const FILE: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// What every scan asks for: BASIC_STATS without the access time, and the mount.
const WANTED: StatxFlags = StatxFlags::TYPE
    .union(StatxFlags::MODE)
    .union(StatxFlags::NLINK)
    .union(StatxFlags::UID)
    .union(StatxFlags::GID)
    .union(StatxFlags::MTIME)
    .union(StatxFlags::CTIME)
    .union(StatxFlags::INO)
    .union(StatxFlags::SIZE)
    .union(StatxFlags::BLOCKS)
    .union(StatxFlags::MNT_ID);

/// `name` in `dir`, which is not followed where it is a link; the directory itself for an empty name.
pub(crate) fn stat(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx, Errno> {
    let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    if name.is_empty() {
        flags |= AtFlags::EMPTY_PATH;
    }
    retry(|| rustix::fs::statx(dir, name, flags, WANTED))
}

/// Lets the launch's other threads go before this one, which nobody waits for.
pub(crate) fn step_back() {
    const NICE: i32 = 10;
    // In Linux a thread has a priority of its own. One that can't be lowered is no harm.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Which mount something is in: what tells a mount point from an ordinary directory. Kernels before
/// 5.8 have no mount ids; there the device has to do, which misses binds of the same file system.
pub(crate) fn mount_of(s: &Statx) -> u64 {
    if StatxFlags::from_bits_retain(s.stx_mask).contains(StatxFlags::MNT_ID) {
        s.stx_mnt_id
    } else {
        device(s)
    }
}

pub(crate) fn device(s: &Statx) -> u64 {
    rustix::fs::makedev(s.stx_dev_major, s.stx_dev_minor)
}

pub(crate) fn stamp_of(s: &Statx) -> Stamp {
    Stamp {
        dev: device(s),
        ino: s.stx_ino,
        size: s.stx_size,
        mtime: Timestamp {
            secs: s.stx_mtime.tv_sec,
            nanos: s.stx_mtime.tv_nsec,
        },
        ctime: Timestamp {
            secs: s.stx_ctime.tv_sec,
            nanos: s.stx_ctime.tv_nsec,
        },
    }
}

/// The stamp of an open file, and its mode with the type.
#[allow(
    clippy::unnecessary_cast,
    reason = "the fields of `struct stat` differ between architectures"
)]
pub(crate) fn stamp_of_open(file: BorrowedFd<'_>) -> Result<(Stamp, u32), Errno> {
    let s = retry(|| rustix::fs::fstat(file))?;
    let stamp = Stamp {
        dev: s.st_dev as u64,
        ino: s.st_ino as u64,
        size: s.st_size as u64,
        mtime: Timestamp {
            secs: s.st_mtime as i64,
            nanos: s.st_mtime_nsec as u32,
        },
        ctime: Timestamp {
            secs: s.st_ctime as i64,
            nanos: s.st_ctime_nsec as u32,
        },
    };
    Ok((stamp, s.st_mode as u32))
}

/// Opens a directory to list it.
pub(crate) fn open_directory(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    without_atime(|flags| rustix::fs::openat(dir, name, DIRECTORY | flags, Mode::empty()))
}

/// Opens a regular file to read it. The caller compares what it got with what it expected.
pub(crate) fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    without_atime(|flags| rustix::fs::openat(dir, name, FILE | flags, Mode::empty()))
}

/// Opens the directory that is reached from `top` by these names, following no link on the way, and
/// entering no other mount unless `cross`. Any depth: a path of more than PATH_MAX goes in pieces.
pub(crate) fn open_below(
    top: BorrowedFd<'_>,
    names: &[&[u8]],
    cross: bool,
) -> Result<OwnedFd, Errno> {
    let mut at: Option<OwnedFd> = None;
    let mut rest = names;
    loop {
        let mut path = Vec::with_capacity(256);
        let mut taken = 0;
        for name in rest {
            if taken > 0 && path.len() + 1 + name.len() > PIECE {
                break;
            }
            if taken > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            taken += 1;
        }
        if taken == 0 {
            path.push(b'.');
        }
        let from = at.as_ref().map_or(top, AsFd::as_fd);
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        let next = open_piece(from, &path, cross)?;
        rest = &rest[taken..];
        if rest.is_empty() {
            return Ok(next);
        }
        at = Some(next);
    }
}

fn open_piece(from: BorrowedFd<'_>, path: &CStr, cross: bool) -> Result<OwnedFd, Errno> {
    let mut resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    if !cross {
        resolve |= ResolveFlags::NO_XDEV;
    }
    let opened = without_atime(|flags| {
        rustix::fs::openat2(from, path, DIRECTORY | flags, Mode::empty(), resolve)
    });
    match opened {
        // Before Linux 5.6, or where a seccomp filter does not know it.
        Err(Errno::NOSYS | Errno::PERM) => open_each(from, path),
        other => other,
    }
}

/// Name by name: what openat2 does in one call. Mounts are told apart by the caller's stat.
fn open_each(from: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let mut at: Option<OwnedFd> = None;
    for name in path.to_bytes().split(|&b| b == b'/') {
        if name == b".." {
            return Err(Errno::XDEV);
        }
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        at = Some(open_directory(
            at.as_ref().map_or(from, AsFd::as_fd),
            &name,
        )?);
    }
    at.ok_or(Errno::NOENT)
}

/// A source by its path on the host, links followed; not opened (O_PATH), so that a FIFO or a device
/// is only looked at.
pub(crate) fn look_at_source(source: &Path) -> Result<OwnedFd, Errno> {
    retry(|| rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
}

/// How a source directory is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// As it is seen on the host.
    AsSeen,
    /// Through a detached, not recursive copy of its mount: what other mounts cover shows, as it does
    /// through a non-recursive bind. Needs CAP_SYS_ADMIN and Linux 5.2.
    Uncovered,
}

/// Opens a source directory that [`look_at_source`] has found.
pub(crate) fn enter(source: BorrowedFd<'_>, entrance: Entrance) -> Result<OwnedFd, Errno> {
    match entrance {
        Entrance::AsSeen => open_directory(source, c"."),
        Entrance::Uncovered => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            let detached = rustix::mount::open_tree(source, c"", flags)?;
            open_directory(detached.as_fd(), c".")
        }
    }
}

/// Opens a source that is a file, which [`look_at_source`] has found, to read it.
pub(crate) fn open_source(found: BorrowedFd<'_>, source: &Path) -> Result<OwnedFd, Errno> {
    let flags = FILE.difference(OFlags::NOFOLLOW);
    let by_descriptor = format!("/proc/self/fd/{}", found.as_raw_fd());
    let opened = without_atime(|extra| {
        rustix::fs::openat(CWD, &*by_descriptor, flags | extra, Mode::empty())
    });
    match opened {
        // No /proc here: by its path, and the caller compares.
        Err(Errno::NOENT | Errno::NOTDIR) => {
            without_atime(|extra| rustix::fs::open(source, flags | extra, Mode::empty()))
        }
        other => other,
    }
}

/// Reading leaves access times alone where the kernel permits it: to owners and to CAP_FOWNER.
fn without_atime(open: impl Fn(OFlags) -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    match retry(|| open(OFlags::NOATIME)) {
        Err(Errno::PERM) => retry(|| open(OFlags::empty())),
        other => other,
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The step of the clock that [`now`] reads, nanoseconds.
pub(crate) fn tick() -> u64 {
    let tick = rustix::time::clock_getres(rustix::time::ClockId::RealtimeCoarse);
    tick.tv_sec as u64 * 1_000_000_000 + tick.tv_nsec as u64
}

/// Bytes that nobody had before.
pub(crate) fn random() -> [u8; 16] {
    use std::hash::{BuildHasher, RandomState};
    // Seeded by the kernel for each process, and counted on for each use.
    let half = || RandomState::new().hash_one(now().nanos).to_le_bytes();
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&half());
    bytes[8..].copy_from_slice(&half());
    bytes
}

/// What a file of this mode is called.
pub(crate) fn kind_in_words(mode: u32) -> &'static str {
    match FileType::from_raw_mode(mode) {
        FileType::Directory => "directory",
        FileType::RegularFile => "file",
        FileType::Symlink => "symlink",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "something else",
    }
}

/// The kernel's coarse clock, from which file times are taken.
pub(crate) fn now() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Timestamp {
        secs: now.tv_sec,
        nanos: now.tv_nsec as u32,
    }
}
