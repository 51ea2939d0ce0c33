//! Small things about directories and locks that the store and the launch directories share.

use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// Why a directory is not used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// Somebody else could put things there, or has.
    #[error("{} is not used: it {why}", path.display())]
    Refused {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It can't be made or opened.
    #[error("{}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Opens a directory that is this user's alone to write, making it (0700) and its parents where missing.
///
/// Refused: a symlink, another owner, and a directory that everybody may write to.
pub(crate) fn own_dir(path: &Path) -> Result<(PathBuf, OwnedFd), DirError> {
    // O_NOFOLLOW does not hold for "link/": take trailing slashes off.
    let path: PathBuf = path.components().collect();
    let io = |source: io::Error| DirError::Io {
        path: path.clone(),
        source,
    };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    own_dir_at(CWD, &path, &path).map(|fd| (path.clone(), fd))
}

/// The same for `name` in the directory `dir`; `path` is for messages.
pub(crate) fn own_dir_at(dir: impl AsFd, name: &Path, path: &Path) -> Result<OwnedFd, DirError> {
    let io = |errno: Errno| DirError::Io {
        path: path.to_owned(),
        source: errno.into(),
    };
    let refused = |why| {
        Err(DirError::Refused {
            path: path.to_owned(),
            why,
        })
    };
    match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(io(errno)),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::LOOP | Errno::NOTDIR) => return refused("is a symlink or not a directory"),
        Err(errno) => return Err(io(errno)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(io)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return refused("belongs to another user");
    }
    if stat.st_mode & 0o002 != 0 {
        return refused("can be written by everybody");
    }
    Ok(fd)
}

/// Takes a flock, waiting as long as it takes.
pub(crate) fn flock(file: impl AsFd, operation: FlockOperation) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| {
        rustix::fs::flock(&file, operation)
    })?)
}

/// Takes a flock if it is free. `operation` must be one of the non-blocking ones.
pub(crate) fn try_flock(file: impl AsFd, operation: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether an open file has lost its last name.
pub(crate) fn is_unlinked(file: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstat(file)?.st_nlink == 0)
}

/// Opens, or makes (0600), a file to lock.
pub(crate) fn open_lock(dir: impl AsFd, name: impl rustix::path::Arg) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// 16 hexadecimal digits that no other call gives, in this process or (but for bad luck) another.
pub(crate) fn nonce() -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    // std's hasher keys are the one source of randomness that needs no dependency.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u64(CALLS.fetch_add(1, Ordering::Relaxed));
    format!("{:016x}", hasher.finish())
}

/// A file that appears under its name, in place of what was there, when it is complete. Dropped before, it leaves nothing.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    dir: OwnedFd,
    name: std::ffi::OsString,
    /// Its name until then, where it has one.
    tmp: Option<String>,
}

impl NewFile {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(parent, flags, Mode::empty())?;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let unnamed = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let (file, tmp) = match rustix::fs::openat(&dir, ".", unnamed, mode) {
            Ok(fd) if Path::new("/proc/self/fd").is_dir() => (fd.into(), None),
            Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let tmp = format!(".fcpipe.{}", nonce());
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&dir, tmp.as_str(), flags, mode)?;
                (fd.into(), Some(tmp))
            }
            Err(errno) => return Err(errno.into()),
        };
        Ok(Self {
            file,
            dir,
            name: name.to_owned(),
            tmp,
        })
    }

    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn commit(mut self) -> io::Result<()> {
        if self.tmp.is_none() {
            // A link can't take the place of a file, a rename can.
            let tmp = format!(".fcpipe.{}", nonce());
            link_unnamed(&self.file, &self.dir, &tmp)?;
            self.tmp = Some(tmp);
        }
        if let Some(tmp) = &self.tmp {
            rustix::fs::renameat(&self.dir, tmp.as_str(), &self.dir, Path::new(&self.name))?;
        }
        self.tmp = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(tmp) = &self.tmp {
            let _ = rustix::fs::unlinkat(&self.dir, tmp.as_str(), rustix::fs::AtFlags::empty());
        }
    }
}

/// Gives a file made with O_TMPFILE its name.
pub(crate) fn link_unnamed(file: &File, dir: impl AsFd, name: &str) -> Result<(), Errno> {
    use std::os::fd::AsRawFd as _;
    // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH; the way through /proc needs nothing.
    let through = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, through, dir, name, rustix::fs::AtFlags::SYMLINK_FOLLOW)
}
