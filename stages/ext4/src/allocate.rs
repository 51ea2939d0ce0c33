//! The image's file before and after its bytes: room for it, its length, and its name at the end.
//!
//! Nothing here reads a source. An [`OutputFile`] has no name until it is committed, so a reader of
//! the output's path sees the old file or the new one, whatever happens in between.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::copy::{CopyError, clone};
use crate::map::{BLOCK_SIZE, ImageMap};

/// Gives the target the disk's length, after looking whether the file system has room for what will
/// be written to it.
///
/// The file is sparse: what the map does not cover takes no room. What may be cloned from a source is
/// not counted; [`crate::write_image`] looks again when it knows what was, and reserves the rest.
///
/// # Errors
/// [`CopyError::NoSpace`] with what is needed and what there is; [`CopyError::Target`].
pub fn allocate(map: &ImageMap, target: &File) -> Result<(), CopyError> {
    check_space(target, map, clone::at_most(map, target)?)?;
    target
        .set_len(map.blocks * BLOCK_SIZE)
        .map_err(|source| match source.raw_os_error() {
            // tmpfs and quotas may say it here already.
            Some(libc::ENOSPC | libc::EDQUOT) => CopyError::NoSpace {
                needed: blocks(map) * BLOCK_SIZE,
                available: available(target).unwrap_or(0),
            },
            _ => CopyError::Target {
                doing: "set its length",
                source,
            },
        })
}

/// Fails if the map's blocks, but for so many that were or may be cloned, need more room than is free.
pub(crate) fn check_space(target: &File, map: &ImageMap, cloned: u64) -> Result<(), CopyError> {
    let needed = blocks(map).saturating_sub(cloned) * BLOCK_SIZE;
    let available = available(target).map_err(|source| CopyError::Target {
        doing: "ask for free space",
        source,
    })?;
    if needed > available {
        return Err(CopyError::NoSpace { needed, available });
    }
    Ok(())
}

fn blocks(map: &ImageMap) -> u64 {
    map.extents.iter().map(|e| u64::from(e.blocks)).sum()
}

/// Bytes free on a file's file system. The part kept for root is left alone.
pub(crate) fn available(file: &File) -> io::Result<u64> {
    let fs = rustix::fs::fstatvfs(file)?;
    // Some file systems over a network know no numbers.
    if fs.f_blocks == 0 {
        return Ok(u64::MAX);
    }
    Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
}

/// What a committed output survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A crash of the program. After a crash of the machine the file may be incomplete, so this is for
    /// files that are checked or made again then.
    Process,
    /// A crash of the machine too: bytes are on stable storage before the name is, and both are when
    /// the commit returns.
    Machine,
}

/// Why there is no output file. The path holds what it held before.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("{path}: is not a regular file")]
    NotAFile { path: PathBuf },
    #[error("{path}: {doing}: {source}")]
    Io {
        path: PathBuf,
        doing: &'static str,
        source: io::Error,
    },
}

/// A file that will be at a path when it is finished, in place of what is there now.
///
/// Until [`OutputFile::commit`] it has no name (`O_TMPFILE`), so nothing is left of it when the
/// program ends in any way. Where the file system has no unnamed files it has a temporary name beside
/// the path, which a kill leaves behind.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    path: PathBuf,
    dir: OwnedFd,
    name: OsString,
    /// A name that must go again.
    temporary: Option<OsString>,
}

impl OutputFile {
    /// Begins an output at `path`, with mode 0600: an image holds files that only root may read. A
    /// symlink stays one, and the file that it names is replaced, or made where there is none.
    ///
    /// # Errors
    /// When the directory can't be written, or `path` is something else than a regular file.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        Self::begin(path, OFlags::TMPFILE)
    }

    /// `unnamed`: the flag that makes a file without a name; a test leaves it away, for the file systems
    /// that do not know it.
    fn begin(path: &Path, unnamed: OFlags) -> Result<Self, OutputError> {
        let failed = |doing: &'static str, source: io::Error| OutputError::Io {
            path: path.into(),
            doing,
            source,
        };
        let real = file_of(path)?;
        let Some(name) = real.file_name().map(OsString::from) else {
            return Err(OutputError::NotAFile { path: path.into() });
        };
        let parent = match real.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let dir = rustix::fs::open(
            parent,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| failed("cannot open its directory", e.into()))?;
        let mode = Mode::RUSR | Mode::WUSR;
        let unnamed = unnamed | OFlags::RDWR | OFlags::CLOEXEC;
        let (file, temporary) = match rustix::fs::openat(&dir, c".", unnamed, mode) {
            Ok(file) => (file, None),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let named = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                let (temporary, file) =
                    with_free_name(&name, |name| rustix::fs::openat(&dir, name, named, mode))
                        .map_err(|e| failed("cannot be created", e.into()))?;
                (file, Some(temporary))
            }
            Err(error) => return Err(failed("cannot be created", error.into())),
        };
        Ok(OutputFile {
            file: file.into(),
            path: path.into(),
            dir,
            name,
            temporary,
        })
    }

    /// What to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts the file at its path, at once and whole, and gives it back.
    ///
    /// # Errors
    /// When it can't be synced or named. The path then has what it had, and nothing else is left.
    pub fn commit(mut self, durability: Durability) -> Result<File, OutputError> {
        let failed = |path: &Path, doing: &'static str, source: Errno| OutputError::Io {
            path: path.into(),
            doing,
            source: source.into(),
        };
        if durability == Durability::Machine {
            rustix::fs::fsync(&self.file).map_err(|e| failed(&self.path, "cannot be synced", e))?;
        }
        self.publish()
            .map_err(|e| failed(&self.path, "cannot be put in place", e))?;
        if durability == Durability::Machine {
            rustix::fs::fsync(&self.dir)
                .map_err(|e| failed(&self.path, "its directory cannot be synced", e))?;
        }
        self.file.try_clone().map_err(|source| OutputError::Io {
            path: self.path.clone(),
            doing: "cannot be kept open",
            source,
        })
    }

    fn publish(&mut self) -> rustix::io::Result<()> {
        if self.temporary.is_none() {
            match link(&self.file, self.dir.as_fd(), &self.name) {
                Err(Errno::EXIST) => {}
                done => return done,
            }
            // A link replaces nothing: the file gets a name of its own first, then takes the place.
            let (name, ()) =
                with_free_name(&self.name, |name| link(&self.file, self.dir.as_fd(), name))?;
            self.temporary = Some(name);
        }
        if let Some(temporary) = &self.temporary {
            rustix::fs::renameat(&self.dir, temporary, &self.dir, &self.name)?;
            self.temporary = None;
        }
        Ok(())
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            // There is nobody left to tell.
            let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
        }
    }
}

/// Which file `path` names, through symlinks: the one that is there, or the one that will be.
fn file_of(path: &Path) -> Result<PathBuf, OutputError> {
    let failed = |source: io::Error| OutputError::Io {
        path: path.into(),
        doing: "cannot be read",
        source,
    };
    // By the kernel, which has rules about whose links are followed (`fs.protected_symlinks`).
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => return std::fs::canonicalize(path).map_err(failed),
        Ok(_) => return Err(OutputError::NotAFile { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut file = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        let Ok(target) = std::fs::read_link(&file) else {
            return Ok(file);
        };
        file.pop();
        file.push(target);
    }
    Err(failed(Errno::LOOP.into()))
}

/// As many as the kernel follows: path_resolution(7).
const MOST_LINKS: usize = 40;

fn link(file: &File, dir: impl AsFd, name: &std::ffi::OsStr) -> rustix::io::Result<()> {
    // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(
        rustix::fs::CWD,
        path,
        dir.as_fd(),
        name,
        AtFlags::SYMLINK_FOLLOW,
    )
}

/// Tries hidden names that resemble `name` until one is free.
fn with_free_name<T>(
    name: &std::ffi::OsStr,
    attempt: impl Fn(&std::ffi::OsStr) -> rustix::io::Result<T>,
) -> rustix::io::Result<(OsString, T)> {
    // Room for what is put around it, within a name's 255 bytes.
    let stem = &name.as_bytes()[..name.len().min(200)];
    let pid = std::process::id();
    for number in 0u32..1000 {
        let mut temporary = OsString::from(".");
        temporary.push(std::ffi::OsStr::from_bytes(stem));
        temporary.push(format!(".{pid}.{number}.part"));
        match attempt(&temporary) {
            Ok(done) => return Ok((temporary, done)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

#[cfg(test)]
mod tests;
