//! What a virtual machine is given as a disk: its own writable copy of an image.
//!
//! An image in the store is shared by every launch and is never attached writable. [`private`] makes
//! the file that one launch may write: a reflink clone where the file system can do that (instant,
//! and it shares its blocks with the image), otherwise a copy of the image's data, holes left out.
//!
//! Architecture invariant: nothing here opens an image for writing, and nothing knows what is in it.
//!
//! Begin reading at [`private`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

/// How a private disk came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By FICLONE: image and disk share their blocks until one is written.
    Clone,
    /// By copying what is not a hole.
    Copy {
        /// Bytes copied.
        bytes: u64,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{path}: cannot open the image: {source}")]
    Image { path: PathBuf, source: io::Error },
    #[error("{path}: cannot make the machine's disk: {source}")]
    Disk { path: PathBuf, source: io::Error },
    #[error("{path}: the launch was cancelled while its disk was copied")]
    Cancelled { path: PathBuf },
}

/// How much is copied between two looks at whether the launch is still wanted.
const PIECE: u64 = 16 << 20;

/// Makes `disk`, a new file of mode 0600, hold what `image` holds.
///
/// # Errors
/// When `disk` exists, when there is no room, or when `cancelled` answers true. A file that could not
/// be finished is removed.
pub fn private(
    image: &Path,
    disk: &Path,
    cancelled: &dyn Fn() -> bool,
) -> Result<Method, DiskError> {
    let from = File::open(image).map_err(|source| DiskError::Image {
        path: image.into(),
        source,
    })?;
    let failed = |source: Errno| DiskError::Disk {
        path: disk.into(),
        source: source.into(),
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let to = File::from(rustix::fs::open(disk, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?);
    let done = match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => Ok(Method::Clone),
        // Each file system says in its own way that it cannot.
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY) => {
            copy(&from, &to, cancelled).map(|bytes| Method::Copy { bytes })
        }
        Err(error) => Err(error),
    };
    done.map_err(|error| {
        // Not ours to report: the error that led here says more.
        let _ = std::fs::remove_file(disk);
        match error {
            Errno::CANCELED => DiskError::Cancelled { path: disk.into() },
            error => failed(error),
        }
    })
}

/// Copies data and leaves holes; gives the bytes copied.
fn copy(from: &File, to: &File, cancelled: &dyn Fn() -> bool) -> Result<u64, Errno> {
    let size = rustix::fs::fstat(from)?.st_size as u64;
    rustix::fs::ftruncate(to, size)?;
    let mut copied = 0;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data from here to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?;
        copied += copy_run(from, to, start, end, cancelled)?;
        at = end;
    }
    Ok(copied)
}

fn copy_run(
    from: &File,
    to: &File,
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
fn copy_by_hand(from: &File, to: &File, at: u64, most: usize) -> Result<usize, Errno> {
    let mut buffer = vec![0; most.min(1 << 20)];
    let read = rustix::io::pread(from, &mut buffer, at)?;
    let mut written = 0;
    while written < read {
        written += rustix::io::pwrite(to, &buffer[written..read], at + written as u64)?;
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    fn image(dir: &Path) -> PathBuf {
        let path = dir.join("image");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(&[7; 100_000], 20 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        path
    }

    #[test]
    fn a_private_disk_is_equal_and_as_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let disk = dir.path().join("disk");
        private(&image, &disk, &|| false).unwrap();
        assert!(std::fs::read(&image).unwrap() == std::fs::read(&disk).unwrap());
        assert!(disk.metadata().unwrap().blocks() * 512 < 1 << 20);
        File::options()
            .write(true)
            .open(&disk)
            .unwrap()
            .write_all_at(b"x", 0)
            .unwrap();
        assert_eq!(&std::fs::read(&image).unwrap()[..5], b"begin");
    }

    #[test]
    fn a_cancelled_copy_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let disk = dir.path().join("disk");
        match private(&image, &disk, &|| true) {
            // A clone is done before anybody could cancel it.
            Ok(Method::Clone) => {}
            Err(DiskError::Cancelled { .. }) => assert!(!disk.exists()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let disk = dir.path().join("disk");
        std::fs::write(&disk, "somebody's").unwrap();
        private(&image, &disk, &|| false).unwrap_err();
        assert_eq!(std::fs::read(&disk).unwrap(), b"somebody's");
    }
}
