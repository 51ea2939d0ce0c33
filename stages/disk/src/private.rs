//! A disk that holds all of the image: shared blocks, or a copy of them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use fcpipe_sparse::Data;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::DiskError;
use crate::probe::{cannot_clone, file_system};

/// How much is copied between two looks at whether the launch is still wanted.
const PIECE: u64 = 16 << 20;

/// Makes `disk`, a new file of mode 0600, share the blocks of `image`.
///
/// It takes as long as the image has extents, and as what of it is not written back yet takes to write; not as
/// long as it is large.
///
/// # Errors
/// [`DiskError::CannotClone`] where the file system can't; when `disk` exists. A file that could not be finished is
/// removed.
pub fn clone(image: &Path, disk: &Path) -> Result<(), DiskError> {
    let from = open(image)?;
    make(disk, |to| {
        rustix::fs::ioctl_ficlone(to, &from).map_err(|errno| match errno {
            errno if cannot_clone(errno) => DiskError::CannotClone {
                path: disk.into(),
                file_system: file_system(to.as_fd()),
                source: errno.into(),
            },
            errno => failed(disk, errno),
        })
    })
}

/// Makes `disk`, a new file of mode 0600, hold what `image` holds, holes left out. Gives the bytes copied.
///
/// # Errors
/// When `disk` exists, when there is no room, or when `cancelled` answers true. A file that could not
/// be finished is removed.
pub fn copy(image: &Path, disk: &Path, cancelled: &dyn Fn() -> bool) -> Result<u64, DiskError> {
    let from = open(image)?;
    make(disk, |to| {
        copy_data(&from, to, cancelled).map_err(|errno| match errno {
            Errno::CANCELED => DiskError::Cancelled { path: disk.into() },
            errno => failed(disk, errno),
        })
    })
}

/// Makes `to`, an empty file, share the blocks of `from`. `false`: their file system does not do that, and nothing was done.
///
/// # Errors
/// Whatever else went wrong.
pub fn share(from: &File, to: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(errno) if cannot_clone(errno) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes `disk`, a new file of mode 0600, hold what device mapper would show of `image` under the snapshot disk `changes`: blocks of
/// the image shared where the file system can, copied elsewhere. Gives the bytes copied.
///
/// # Errors
/// As [`copy`], and when `changes` is not whole.
pub fn join(
    image: &Path,
    changes: &Path,
    disk: &Path,
    cancelled: &dyn Fn() -> bool,
) -> Result<u64, DiskError> {
    let from = open(image)?;
    let over = open(changes)?;
    make(disk, |to| {
        let size = rustix::fs::fstat(&from)
            .map_err(|errno| failed(disk, errno))?
            .st_size as u64;
        let to_file = File::from(to.try_clone().map_err(|source| DiskError::Disk {
            path: disk.into(),
            source,
        })?);
        let shared = share(&from, &to_file).map_err(|source| DiskError::Disk {
            path: disk.into(),
            source,
        })?;
        let mut copied = 0;
        if !shared {
            copied = copy_data(&from, to, cancelled).map_err(|errno| match errno {
                Errno::CANCELED => DiskError::Cancelled { path: disk.into() },
                errno => failed(disk, errno),
            })?;
        }
        fcpipe_ext4::apply_cow(&over, &to_file, size).map_err(|source| DiskError::Changes {
            path: changes.into(),
            source,
        })?;
        Ok(copied)
    })
}

fn open(image: &Path) -> Result<File, DiskError> {
    File::open(image).map_err(|source| DiskError::Image {
        path: image.into(),
        source,
    })
}

pub(crate) fn failed(disk: &Path, errno: Errno) -> DiskError {
    DiskError::Disk {
        path: disk.into(),
        source: errno.into(),
    }
}

/// Makes a new file, and takes it away if `fill` fails.
pub(crate) fn make<R>(
    disk: &Path,
    fill: impl FnOnce(&OwnedFd) -> Result<R, DiskError>,
) -> Result<R, DiskError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let to = rustix::fs::open(disk, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| failed(disk, errno))?;
    fill(&to).inspect_err(|_| {
        // Not ours to report: the error that led here says more.
        let _ = std::fs::remove_file(disk);
    })
}

/// Copies data and leaves holes; gives the bytes copied.
fn copy_data(from: &File, to: &OwnedFd, cancelled: &dyn Fn() -> bool) -> Result<u64, Errno> {
    let size = rustix::fs::fstat(from)?.st_size as u64;
    rustix::fs::ftruncate(to, size)?;
    let mut copied = 0;
    for run in Data::of(from.as_fd(), size)? {
        let run = run?;
        copied += copy_run(from, to, run.start, run.end, cancelled)?;
    }
    Ok(copied)
}

fn copy_run(
    from: &File,
    to: &OwnedFd,
    start: u64,
    end: u64,
    cancelled: &dyn Fn() -> bool,
) -> Result<u64, Errno> {
    let (mut source, mut target) = (start, start);
    while source < end {
        if cancelled() {
            return Err(Errno::CANCELED);
        }
        let piece = (end - source).min(PIECE) as usize;
        let moved = match rustix::fs::copy_file_range(
            from,
            Some(&mut source),
            to,
            Some(&mut target),
            piece,
        ) {
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                let moved = copy_by_hand(from, to, source, piece)?;
                source += moved as u64;
                target += moved as u64;
                moved
            }
            other => other?,
        };
        if moved == 0 {
            // The image ended before its size: it is not the file it was.
            return Err(Errno::IO);
        }
    }
    Ok(end - start)
}

/// Between file systems that do not know each other.
fn copy_by_hand(from: &File, to: &OwnedFd, at: u64, most: usize) -> Result<usize, Errno> {
    let mut buffer = vec![0; most.min(1 << 20)];
    let read = rustix::io::pread(from, &mut buffer, at)?;
    let mut written = 0;
    while written < read {
        written += rustix::io::pwrite(to, &buffer[written..read], at + written as u64)?;
    }
    Ok(read)
}
